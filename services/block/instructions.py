"""What a block's schedule hears and says: its policy, the events going in, the instructions coming out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowdimfa.tickets import Ticket

Kind = Literal["train", "probe"]
Cause = Literal["activation", "error", "staleness", "window"]


@dataclass(frozen=True)
class Policy:
    """What decides when a block may work.

    Attributes
    ----------
    first, head
        Whether the block reads the data itself, and whether it computes the loss. One block alone is both.
    microbatches
        Micro-batches per optimiser step, at least 1.
    window
        Most micro-batches that may have been forwarded and not yet updated, at least 1.
    staleness
        A forward of step ``t`` runs only once the first ``t - staleness`` steps are applied; 0 is sequential.
    probe_every
        The first micro-batch of every such step also carries a probe; 0 for no probes.
    replicas
        Data-parallel replicas of the block, a divisor of ``microbatches``.
    rank
        Which of them this is: it works on the micro-batches ``rank``, ``rank + replicas`` and so on of every step.
    learns
        Whether the block has anything to learn. Otherwise it only runs forward, as far as the next block takes what it
        sends; a step is done once its micro-batches are forwarded.
    """

    first: bool
    head: bool
    microbatches: int
    window: int
    staleness: int
    probe_every: int = 0
    replicas: int = 1
    rank: int = 0
    learns: bool = True

    @property
    def updates(self) -> bool:
        """Whether the block makes updates from broadcast errors."""
        return self.learns and not self.head

    @property
    def share(self) -> int:
        """Micro-batches of a step that this replica works on."""
        return self.microbatches // self.replicas

    def owns(self, ticket: Ticket) -> bool:
        """Return whether a micro-batch is this replica's to work on."""
        return ticket.microbatch % self.replicas == self.rank

    def index(self, ticket: Ticket) -> int:
        """Return how many of this replica's micro-batches come before one of them."""
        return ticket.step * self.share + ticket.microbatch // self.replicas

    def ticket(self, index: int) -> Ticket:
        """Return this replica's micro-batch before which there are ``index`` others."""
        step, position = divmod(index, self.share)
        return Ticket(step, self.rank + position * self.replicas)

    def probed(self, ticket: Ticket) -> bool:
        """Return whether this micro-batch carries a probe."""
        return self.probe_every > 0 and ticket.microbatch == 0 and ticket.step % self.probe_every == 0


@dataclass(frozen=True)
class ActivationArrived:
    """The previous block's output for a ticket is here."""

    ticket: Ticket


@dataclass(frozen=True)
class ErrorArrived:
    """The head's broadcast error for a ticket is here."""

    ticket: Ticket
    kind: Kind


@dataclass(frozen=True)
class EndAt:
    """Somebody wants the run of steps to end before a step, or as soon after it as what was begun allows.

    Of several replicas of the first block only the one of rank 0 is told; the others learn the end from it when the
    gradients of a step are added up, and therefore it puts the end behind whatever they may have begun by then.
    """

    step: int


@dataclass(frozen=True)
class Halt:
    """Somebody wants the block to come to rest at a step boundary that all blocks share, because one was lost.

    No further forward is begun, but every update is made whose error the head has broadcast: so blocks that have
    forwarded the same micro-batches come to rest after the same step.

    Attributes
    ----------
    through
        The last error that the head has broadcast and that will come, or None where none will but what is here.
    """

    through: RunUpdate | None


@dataclass(frozen=True)
class PeerLost:
    """Another block, or the connection to it, is gone."""

    peer: str
    reason: str


@dataclass(frozen=True)
class RunForward:
    """Compute the forward pass; with ``probe`` clean and perturbed activations go through it together."""

    ticket: Ticket
    probe: bool


@dataclass(frozen=True)
class RunUpdate:
    """Turn an error into local gradients (train) or into an update of the feedback weights (probe)."""

    ticket: Ticket
    kind: Kind


@dataclass(frozen=True)
class ApplyStep:
    """Let the optimiser apply the step's accumulated gradients."""

    step: int


@dataclass(frozen=True)
class Send:
    """Send the output of a forward to the next block."""

    ticket: Ticket


@dataclass(frozen=True)
class Publish:
    """Broadcast the head's error for a ticket, with ``probe`` the probe's error too."""

    ticket: Ticket
    probe: bool


@dataclass(frozen=True)
class Wait:
    """Nothing to do until another event; ``cause`` is what keeps the next forward back."""

    cause: Cause


@dataclass(frozen=True)
class Done:
    """The last step has been applied, or the block was halted."""


Compute = RunForward | RunUpdate | ApplyStep
Instruction = Compute | Send | Publish | Wait | Done


@dataclass(frozen=True)
class Finished:
    """The computation that this instruction asked for has ended."""

    instruction: Compute


Event = ActivationArrived | ErrorArrived | EndAt | Halt | Finished | PeerLost
