"""Several blocks' schedules in one thread, without network or clocks.

The simulation keeps its own account of every block and holds the schedule to it: an instruction that breaks a
rule fails, and so does a wait while the rules would let the block work.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace

from lowdimfa.services.block.instructions import (
    ActivationArrived,
    ApplyStep,
    Compute,
    Done,
    EndAt,
    ErrorArrived,
    Event,
    Finished,
    Halt,
    Instruction,
    Policy,
    Publish,
    RunForward,
    RunUpdate,
    Send,
    Wait,
)
from lowdimfa.services.block.schedule import Schedule
from lowdimfa.tickets import Ticket


def policy(
    *,
    first: bool = False,
    head: bool = False,
    m: int = 1,
    w: int = 1,
    s: int = 0,
    probe_every: int = 0,
    replicas: int = 1,
    rank: int = 0,
    learns: bool = True,
) -> Policy:
    return Policy(
        first,
        head,
        microbatches=m,
        window=w,
        staleness=s,
        probe_every=probe_every,
        replicas=replicas,
        rank=rank,
        learns=learns,
    )


def is_probed(rules: Policy, ticket: Ticket) -> bool:
    return rules.probe_every > 0 and ticket.microbatch == 0 and ticket.step % rules.probe_every == 0


@dataclass
class Node:
    """One simulated block, with the rules counted a second time from the log of what it did."""

    rules: Policy
    steps: range
    schedule: Schedule = field(init=False)
    activations: set[Ticket] = field(default_factory=set)
    errors: set[tuple[Ticket, str]] = field(default_factory=set)
    finished: list[Compute] = field(default_factory=list)
    running: Compute | None = None
    halt: Halt | None = None
    done: bool = False
    dead: bool = False

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.rules, self.steps.start, self.steps.stop)
        self.plan_work()

    def plan_work(self) -> None:
        """List what the block has to do in its steps."""
        own = range(self.rules.rank, self.rules.microbatches, self.rules.replicas)
        tickets = [Ticket(t, j) for t in self.steps for j in own]
        self.forwards: list[Compute] = [RunForward(x, is_probed(self.rules, x)) for x in tickets]
        self.updates: list[Compute] = []
        for ticket in tickets:
            last = ticket.microbatch == own[-1]
            if self.updating:
                self.updates.append(RunUpdate(ticket, "train"))
                self.updates += [RunUpdate(ticket, "probe")] * is_probed(self.rules, ticket)
            self.updates += [ApplyStep(ticket.step)] * last

    @property
    def updating(self) -> bool:
        return self.rules.learns and not self.rules.head

    def of(self, *kinds: type) -> list[Compute]:
        return [item for item in self.finished if isinstance(item, kinds)]

    def runnable(self) -> Compute | None:
        """What the policy wants this block to compute now."""
        forwarded, updated = len(self.of(RunForward)), self.of(RunUpdate, ApplyStep)
        applied = self.steps.start + len(self.of(ApplyStep))
        if len(updated) < len(self.updates):
            update = self.updates[len(updated)]
            if isinstance(update, RunUpdate) and (update.ticket, update.kind) in self.errors:
                return update
            share = self.rules.microbatches // self.rules.replicas
            last_forward = forwarded == (applied - self.steps.start + 1) * share
            if isinstance(update, ApplyStep) and (last_forward or self.updating):
                return update
        if self.halt is None and forwarded < len(self.forwards) and self.held_back_by() is None:
            return self.forwards[forwarded]
        return None

    def at_rest(self) -> bool:
        """Whether a halted block that has nothing to do has done all that it was halted after."""
        if self.halt is None or not self.updating:
            return self.halt is not None
        return self.halt.through in (None, *self.of(RunUpdate))

    def held_back_by(self) -> str | None:
        if self.halt is not None:
            return "error"
        forwarded = len(self.of(RunForward))
        if forwarded == len(self.forwards):
            return "error"
        forward = self.forwards[forwarded]
        assert isinstance(forward, RunForward)
        if self.steps.start + len(self.of(ApplyStep)) < forward.ticket.step - self.rules.staleness:
            return "staleness"
        if self.in_flight() >= self.rules.window:
            return "window"
        if not self.rules.first and forward.ticket not in self.activations:
            return "activation"
        return None

    def in_flight(self) -> int:
        trained = sum(isinstance(item, RunUpdate) and item.kind == "train" for item in self.finished)
        return len(self.of(RunForward)) - trained if self.updating else 0

    def end_at(self, step: int) -> bool:
        """Shorten the plan as far as a request to end early may; return whether that changed anything."""
        begun = [ticket.step for ticket in self.activations]
        begun += [item.ticket.step for item in [*self.finished, self.running] if isinstance(item, RunForward)]
        if self.rules.first and self.rules.replicas > 1 and self.rules.rank == 0:
            # The step that the others may be in before they hear of it, with the next sum.
            summed = len(self.of(ApplyStep)) + isinstance(self.running, ApplyStep)
            begun.append(self.steps.start + summed + self.rules.staleness)
        end = min(self.steps.stop, max([step, self.steps.start, *(one + 1 for one in begun)]))
        changed = end < self.steps.stop
        self.steps = range(self.steps.start, end)
        self.plan_work()
        return changed

    def obey(self, instruction: Instruction) -> None:
        """Take one decision of the schedule, and fail unless the policy wants just that."""
        assert self.running is None and not self.done
        assert self.schedule.in_flight == self.in_flight() <= self.rules.window
        assert self.schedule.applied_steps == self.steps.start + len(self.of(ApplyStep))
        wanted = self.runnable()
        if isinstance(instruction, Done):
            assert wanted is None and (self.at_rest() or self.finished[-1:] == self.updates[-1:])
            self.done = True
        elif isinstance(instruction, Wait):
            assert wanted is None and not self.at_rest() and instruction.cause == self.held_back_by()
        else:
            assert instruction == wanted
            self.running = wanted


class Simulation:
    """Blocks whose messages arrive late, out of order and more than once, and whose work takes any time.

    Of a block's replicas, in ``replicas`` one number for each block, none ends a step before all have come to it.
    """

    def __init__(
        self,
        blocks: int,
        rules: Policy,
        steps: range,
        seed: int,
        stop_turn: int | None = None,
        replicas: Sequence[int] | None = None,
        frozen: Container[int] = (),
    ) -> None:
        self.random = random.Random(seed)
        self.stop_turn = stop_turn  # after so many events somebody asks for an early end
        self.turns = 0
        self.told = False
        self.mail: list[tuple[int, Event]] = []
        self.seats = [
            (block, rank) for block in range(blocks) for rank in range(replicas[block] if replicas else 1)
        ]
        self.nodes = []
        for block, rank in self.seats:
            role = replace(
                rules,
                first=block == 0,
                head=block == blocks - 1,
                replicas=replicas[block] if replicas else 1,
                rank=rank,
                learns=block not in frozen,
            )
            self.nodes.append(Node(role, steps))
        self.summed: list[dict[int, int]] = [{} for _ in range(blocks)]  # by step: the end that rank 0 knew

    def run(self) -> None:
        for node in self.nodes:
            self.decide(node, node.schedule.start())
        self.go_on()
        assert all(node.done for node in self.nodes), [node.schedule.waiting_for for node in self.nodes]

    def go_on(self) -> None:
        """Let anything that can happen next happen, until nothing can."""
        while self.choices():
            self.intervene()
            self.turns += 1
            if choices := self.choices():
                choice = self.random.choice(choices)
                if isinstance(choice, int):
                    self.deliver(choice)
                else:
                    self.finish(choice)

    def choices(self) -> list[int | Node]:
        """Return what can happen next: a message arrives, or a block's computation ends."""
        return [*range(len(self.mail)), *(node for node in self.nodes if self.can_finish(node))]

    def can_finish(self, node: Node) -> bool:
        """Whether a block's computation may end: that of a step waits for the other replicas' gradients."""
        if isinstance(node.running, ApplyStep) and node.rules.replicas > 1:
            return all(
                other.running == node.running or node.running in other.finished
                for other in self.siblings(node)
            )
        return node.running is not None

    def siblings(self, node: Node) -> list[Node]:
        """Return all replicas of a node's block, itself among them, in the order of their ranks."""
        block = self.block_of(node)
        return [other for other, (its, _) in zip(self.nodes, self.seats, strict=True) if its == block]

    def block_of(self, node: Node) -> int:
        return self.seats[self.nodes.index(node)][0]

    def intervene(self) -> None:
        """Do what is to be done before the present turn."""
        if self.turns == self.stop_turn:
            self.mail.append((0, EndAt(0)))

    def decide(self, node: Node, instructions: list[Instruction]) -> None:
        assert len(instructions) == 1
        node.obey(instructions[0])
        if isinstance(node.running, ApplyStep) and node.rules.rank == 0:
            self.summed[self.block_of(node)][node.running.step] = node.schedule.last_step

    def deliver(self, position: int) -> None:
        block, event = self.mail[position]
        if self.random.random() < 0.7:  # otherwise it stays, and arrives once more
            self.mail.pop(position)
        node = self.nodes[block]
        if node.dead or (node.done and (node.halt or isinstance(event, Halt))):
            return  # nobody reads it any more
        if isinstance(event, Halt):
            fresh, node.halt = True, event
        elif isinstance(event, EndAt):
            fresh = node.end_at(event.step)
        elif isinstance(event, ActivationArrived):
            fresh = event.ticket not in node.activations
            node.activations.add(event.ticket)
        else:
            assert isinstance(event, ErrorArrived)
            own = event.ticket.microbatch % node.rules.replicas == node.rules.rank
            fresh = own and (event.ticket, event.kind) not in node.errors
            node.errors.add((event.ticket, event.kind))
        instructions = node.schedule.handle(event)
        if fresh and node.running is None:
            self.decide(node, instructions)
        else:
            assert instructions == []
        if isinstance(event, EndAt):
            assert node.schedule.last_step == node.steps.stop
            if block == 0 and not self.told:  # it decides; the others hear of it at any later time
                self.told = True
                self.mail += [(other, EndAt(node.steps.stop)) for other in range(len(self.nodes))]

    def finish(self, node: Node) -> None:
        ended = node.running
        assert ended is not None
        block = self.block_of(node)
        if isinstance(ended, ApplyStep) and node.rules.rank > 0:
            node.end_at(self.summed[block][ended.step])
            assert node.schedule.handle(EndAt(self.summed[block][ended.step])) == []
            assert node.schedule.last_step == node.steps.stop
        node.running = None
        node.finished.append(ended)
        instructions = node.schedule.handle(Finished(ended))
        if isinstance(ended, RunForward):
            sent = instructions.pop(0)
            if node.rules.head:
                assert sent == Publish(ended.ticket, ended.probe)
                self.publish(ended)
            else:
                assert sent == Send(ended.ticket)
                self.mail.append((self.worker(block + 1, ended.ticket), ActivationArrived(ended.ticket)))
        self.decide(node, instructions)

    def worker(self, block: int, ticket: Ticket) -> int:
        """Return which node works on a micro-batch in a block."""
        ranks = [index for index, (its, _) in enumerate(self.seats) if its == block]
        return ranks[ticket.microbatch % len(ranks)]

    def publish(self, forward: RunForward) -> None:
        for block in (number for number, node in enumerate(self.nodes) if node.updating):
            self.mail.append((block, ErrorArrived(forward.ticket, "train")))
            if forward.probe:
                self.mail.append((block, ErrorArrived(forward.ticket, "probe")))
