"""What a block computes and sends, one piece at a time; when is the runner's business."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lowdimfa.block import Block, ErrorKind
from lowdimfa.data.items import Samples
from lowdimfa.data.reading import Reader
from lowdimfa.errors import NotFiniteError, PeerError
from lowdimfa.head import Evaluation, Head
from lowdimfa.network import StepResult
from lowdimfa.services.block.devices import Check, Copies, OnDevice, OnHost
from lowdimfa.services.block.instructions import RunUpdate
from lowdimfa.services.block.mailboxes import Delivery
from lowdimfa.services.block.observer import Observer
from lowdimfa.services.block.snapshot import SnapshotShelf
from lowdimfa.services.stream.frames import ErrorVector, Kind, Message
from lowdimfa.stage import Stage
from lowdimfa.tickets import Ticket
from lowdimfa.values import Activation, Inputs, put_together, travelling, with_side


class _Drawn(NamedTuple):
    """What a block needs of the data for one micro-batch: inputs where it reads some, targets and weight in the head."""

    inputs: Inputs | None = None
    targets: Tensor | None = None
    weight: float = 1.0


class Neighbours(Protocol):
    """How a block reaches the others."""

    def send(self, kind: Kind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Send activations to the next block."""

    def release(self, activation: Message) -> None:
        """Tell the previous block that its activations were consumed."""

    def publish(
        self, ticket: Ticket, kind: ErrorKind, error: Tensor, projection: Tensor | None = None
    ) -> None:
        """Broadcast an error to all blocks, maybe with the ``P`` that made it."""

    def renew(self) -> None:
        """Have what may have been lost on its way here repeated."""


class Work:
    """The pieces of work of one block, and what waits for them. One thread owns it.

    Parameters
    ----------
    stage
        The block, or the head.
    neighbours
        Where its outputs go.
    data
        In the first block and the head.
    observer
        Gets what was done when.
    snapshots
        Gets copies of the state, or None.
    patience
        Seconds within which a snapshot has to be kept.
    copies, outbox
        Between the block's device and the host, and from there to the neighbours.

    Attributes
    ----------
    published
        The last error of the head that was really broadcast: one whose check fails in the outbox is not. Any thread may
        read it.
    """

    def __init__(
        self,
        stage: Stage,
        neighbours: Neighbours,
        data: Reader | None,
        observer: Observer,
        snapshots: SnapshotShelf | None,
        patience: float,
        copies: Copies,
        outbox: Delivery,
    ) -> None:
        self.stage = stage
        self._neighbours = neighbours
        self._source = data
        self._drawn: dict[Ticket, _Drawn] = {}
        self._observer = observer
        self._snapshots = snapshots
        self._patience = patience
        self._copies, self._outbox = copies, outbox
        self.published: RunUpdate | None = None
        self._activations: dict[Ticket, tuple[Message, OnDevice]] = {}
        self._errors: dict[tuple[Ticket, ErrorKind], OnDevice] = {}
        self._outputs: dict[Ticket, OnHost] = {}
        self._broadcasts: dict[Ticket, tuple[OnHost, int]] = {}
        self._measured: list[OnHost] = []
        self._checks: list[Check] = []
        stage.look_later = self._look_later if copies.deferred else None

    def keep(self, message: Message | ErrorVector) -> None:
        """Keep what a message of the training carries until its turn comes."""
        if isinstance(message, Message):
            self._activations[message.ticket] = message, self._copies.to_device(*message.tensors)
        else:
            self._errors[message.ticket, message.kind] = self._copies.to_device(*message.tensors)

    def begin(self, step: int) -> None:
        """Make the snapshot that is due before the first step."""
        if self._snapshots is not None:
            self._snapshots.offer(self.stage, step)

    @property
    def reads(self) -> bool:
        """Whether the block needs some of the data itself."""
        return self._source is not None

    def read(self, ticket: Ticket) -> None:
        """Read what the forward pass needs; the head reads a whole step, which says what each part weighs."""
        if self._source is None or ticket in self._drawn:
            return
        if not isinstance(self.stage, Head):
            self._drawn[ticket] = self._read(self._source, ticket)
            return
        tickets = [Ticket(ticket.step, part) for part in range(self._source.order.microbatches)]
        read = [self._read(self._source, each) for each in tickets]
        weights = self.stage.objective.weights([_present(drawn.targets) for drawn in read])
        self._drawn = {
            each: drawn._replace(weight=weight)
            for each, drawn, weight in zip(tickets, read, weights, strict=True)
        }

    def _read(self, source: Reader, ticket: Ticket) -> _Drawn:
        self._observer.begin("read", str(ticket))  # a hang in it is noticed as one in a computation
        return self._parts(source.microbatch(ticket))

    def forward(self, ticket: Ticket, probe: bool) -> None:
        """Run the forward pass on what was read, and keep what is to be sent."""
        activation, arrived = self._activations.pop(ticket, (None, None))
        drawn = self._drawn.pop(ticket, _Drawn())
        clean, perturbed = self._entering(arrived, drawn.inputs)
        if isinstance(self.stage, Head):
            (targets,) = self._copies.to_device(_present(drawn.targets)).use()
            sent = self.stage.forward(clean, targets, ticket, perturbed if probe else None, drawn.weight)
            error, response = (self._written(each) for each in (sent.error, sent.response))
            errors = tuple(each for each in (error, sent.projection) if each is not None)
            responses = () if response is None else (response,)
            measured = sent.loss, sent.correct, sent.counted
            computed = self._copies.to_host(*measured, *errors, *responses, checks=self._take_checks())
            self._broadcasts[ticket] = computed, len(errors)
            self._measured.append(computed)
            self._observer.forwarded(ticket, sent.error.shape[0])
        else:
            output = leaving = travelling(self._block.forward(clean, ticket))
            if probe:
                # The memory of the clean output may be the layers', which run once more.
                leaving = *map(torch.clone, output), *travelling(self._block.probe(perturbed, ticket))
            self._outputs[ticket] = self._copies.to_next_block(*leaving, checks=self._take_checks())
            self._observer.forwarded(ticket, len(output[0]))
        if activation is not None:
            self._neighbours.release(activation)

    def update(self, ticket: Ticket, kind: ErrorKind) -> None:
        """Turn an error into local gradients, or into an update of the feedback weights."""
        error, *projection = self._errors.pop((ticket, kind)).use()
        self._block.receive_error(ticket, error.float(), kind, *projection)

    def apply(self, step: int) -> None:
        """Let the optimiser apply a step, and make the snapshot that is due after it.

        Raises
        ------
        PeerError
            The last snapshot was not taken in time.
        NotFiniteError
            Something in one of the head's forwards was not finite. (What a block forwards is looked at before it is
            sent, and without that no error comes back.)
        """
        if self._snapshots is not None and not self._snapshots.settled(self._patience):
            raise PeerError(
                f"block {self.stage.index} has waited {self._patience:g} s for the trainer to keep its last snapshot",
                block=self.stage.index,
                step=step,
                setting="run.liveness_seconds",
            )
        result = self._result(step)
        self.stage.step()
        if self._snapshots is not None:
            self._snapshots.offer(self.stage, step + 1)
        if result is not None:
            self._observer.trained(result)

    def send(self, ticket: Ticket) -> None:
        """Send the output of a forward to the next block."""
        began = time.time()
        if isinstance(self.stage, Block) and not self.stage.learns:  # held back by the next block alone
            self._observer.begin("wait", f"next block to take {ticket}")
        else:
            self._observer.begin("send", str(ticket))
        self._outbox.put(self._outputs.pop(ticket), partial(self._send, ticket))
        self._observer.did("send", ticket, began)

    def publish(self, ticket: Ticket) -> None:
        """Broadcast the head's error, and the response to a probe."""
        began = time.time()
        self._observer.begin("publish", str(ticket))
        computed, errors = self._broadcasts.pop(ticket)
        self._outbox.put(computed, partial(self._publish, ticket, errors))
        self._observer.did("publish", ticket, began)

    def settle(self, patience: float) -> None:
        """Wait until what was computed is sent, or dropped as its check fails."""
        self._outbox.settle(patience)

    def evaluate(self, index: int, activation: Message | None, totals: Evaluation) -> None:
        """Pass one evaluation batch on; in the head, count loss and right predictions."""
        batch = f"evaluation batch {index}"
        self._observer.begin(
            "evaluate", batch
        )  # a hang in data, layers or metrics is noticed as one in training
        drawn = self._draw_for_evaluation(index)
        arrived = None if activation is None else self._copies.to_device(*activation.tensors)
        inputs, _ = self._entering(arrived, drawn.inputs)
        if isinstance(self.stage, Head):
            (targets,) = self._copies.to_device(_present(drawn.targets)).use()
            self.stage.evaluate_outputs(inputs, targets, totals, index)
        else:
            output = self._copies.to_next_block(*travelling(self.stage.evaluate(inputs, index)))
            self._observer.begin("wait", f"next block to take {batch}")
            self._outbox.put(output, partial(self._neighbours.send, "evaluate", Ticket(0, index)))
        if activation is not None:
            self._neighbours.release(activation)

    def _entering(self, arrived: OnDevice | None, drawn: Inputs | None) -> tuple[Activation, Activation]:
        """Return what enters the block: of the block before, or of the data, with its inputs by name beside it.

        On a probe the second one is perturbed, else it is the first once more.
        """
        side: dict[str, Tensor] = {}
        if isinstance(drawn, Mapping):
            beside = [drawn[name] for name in self.stage.ports.side]
            side = dict(zip(self.stage.ports.side, self._copies.to_device(*beside).use(), strict=True))
        elif arrived is None:
            assert drawn is not None, "the first block draws inputs"
            (inputs,) = self._copies.to_device(drawn).use()
            return inputs, inputs
        names = tuple(self.stage.ports.arrives)
        tensors = () if arrived is None else arrived.use()
        clean, perturbed = (
            put_together(names, each) for each in (tensors[: len(names)], tensors[-len(names) :])
        )
        return with_side(clean, side), with_side(perturbed, side)

    def _draw_for_evaluation(self, index: int) -> _Drawn:
        return _Drawn() if self._source is None else self._parts(self._source.evaluation_batch(index))

    def _parts(self, samples: Samples) -> _Drawn:
        inputs = samples.inputs() if self.stage.index == 0 or self.stage.ports.side else None
        return _Drawn(inputs, samples.targets() if isinstance(self.stage, Head) else None)

    def _send(self, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        self._neighbours.send("train", ticket, tensors)

    def _publish(self, ticket: Ticket, errors: int, tensors: tuple[Tensor, ...]) -> None:
        """Broadcast what comes after the three measured numbers: an error, maybe ``P``, and maybe a response."""
        self._neighbours.publish(ticket, "train", *tensors[3 : 3 + errors])
        self.published = RunUpdate(ticket, "train")
        for projected in tensors[3 + errors :]:
            self._neighbours.publish(ticket, "probe", projected)
            self.published = RunUpdate(ticket, "probe")

    def _written(self, error: Tensor | None) -> Tensor | None:
        """Return what the head broadcasts as it travels: where it was rounded nothing is lost by that."""
        coarse = isinstance(self.stage, Head) and self.stage.sends.coarse
        return error.bfloat16() if coarse and error is not None else error

    def _result(self, step: int) -> StepResult | None:
        """Return what the head's forwards of a step measured."""
        if not self._measured:
            return None
        result = StepResult(step)
        for computed in self._measured:
            loss, correct, counted, *_ = computed.wait()
            result.add(float(loss), int(correct), int(counted))
        self._measured = []
        return result

    def _look_later(self, passed: Tensor, failure: Callable[[], NotFiniteError]) -> None:
        self._checks.append(Check(passed, failure))

    def _take_checks(self) -> list[Check]:
        checks, self._checks = self._checks, []
        return checks

    @property
    def _block(self) -> Block:
        assert isinstance(self.stage, Block)
        return self.stage


def _present(drawn: Tensor | None) -> Tensor:
    assert drawn is not None, "the head draws targets"
    return drawn
