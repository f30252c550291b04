"""What a block computes and sends, one piece at a time; when is the runner's business."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from lowdimfa.block import Block, ErrorKind
from lowdimfa.errors import PeerError
from lowdimfa.head import Broadcast, Evaluation, Head
from lowdimfa.network import StepResult
from lowdimfa.stage import Stage
from lowdimfa.tickets import Ticket
from services.block.activations import Activation
from services.block.activations import Kind as ActivationKind
from services.block.faults import FaultInjector
from services.block.observer import Observer
from services.block.replica import ReplicaShelf
from services.broadcast.subscriber import ErrorVector


class Data(Protocol):
    """Where the first block gets inputs, and the head targets."""

    def inputs(self, ticket: Ticket) -> Tensor:
        """Return a training micro-batch's inputs."""

    def targets(self, ticket: Ticket) -> Tensor:
        """Return a training micro-batch's targets."""

    def evaluation_inputs(self, index: int) -> Tensor:
        """Return an evaluation batch's inputs."""

    def evaluation_targets(self, index: int) -> Tensor:
        """Return an evaluation batch's targets."""


class Neighbours(Protocol):
    """How a block reaches the others."""

    def send(self, kind: ActivationKind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Send activations to the next block."""

    def release(self, activation: Activation) -> None:
        """Tell the previous block that its activations were consumed."""

    def publish(self, ticket: Ticket, kind: ErrorKind, error: Tensor) -> None:
        """Broadcast an error to all blocks."""

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
    faults
        What is to go wrong.
    replicas
        Gets copies of the state, or None.
    patience
        Seconds within which a replica has to be kept.
    on_step
        In the head, takes the result of each step.
    """

    def __init__(
        self,
        stage: Stage,
        neighbours: Neighbours,
        data: Data | None,
        observer: Observer,
        faults: FaultInjector,
        replicas: ReplicaShelf | None,
        patience: float,
        on_step: Callable[[StepResult], None],
    ) -> None:
        self.stage = stage
        self._on_step = on_step
        self._neighbours = neighbours
        self._source = data
        self._observer = observer
        self._faults = faults
        self._replicas = replicas
        self._patience = patience
        self._activations: dict[Ticket, Activation] = {}
        self._errors: dict[tuple[Ticket, ErrorKind], Tensor] = {}
        self._outputs: dict[Ticket, tuple[Tensor, ...]] = {}
        self._broadcasts: dict[Ticket, Broadcast] = {}
        self._result: StepResult | None = None

    def keep(self, message: Activation | ErrorVector) -> None:
        """Keep what a message of the training carries until its turn comes."""
        if isinstance(message, Activation):
            self._activations[message.ticket] = message
        else:
            self._errors[message.ticket, message.kind] = message.error

    def begin(self, step: int) -> None:
        """Make the replica that is due before the first step."""
        if self._replicas is not None:
            self._replicas.offer(self.stage, step)

    def forward(self, ticket: Ticket, probe: bool) -> None:
        """Run the forward pass, and keep what is to be sent."""
        self._faults.before_forward(ticket)
        activation = None if self._first else self._activations.pop(ticket)
        tensors = (self._data.inputs(ticket),) if activation is None else activation.tensors
        clean, perturbed = (tensors[i].to(self.stage.device) for i in (0, -1))
        if isinstance(self.stage, Head):
            targets = self._data.targets(ticket).to(self.stage.device)
            sent = self.stage.forward(clean, targets, ticket, perturbed if probe else None)
            self._broadcasts[ticket] = sent
            self._count(ticket, sent)
        else:
            output = self._block.forward(clean, ticket).cpu()
            noisy = (self._block.probe(perturbed, ticket).cpu(),) if probe else ()
            self._outputs[ticket] = (output, *noisy)
        if activation is not None:
            self._neighbours.release(activation)

    def update(self, ticket: Ticket, kind: ErrorKind) -> None:
        """Turn an error into local gradients, or into an update of the feedback weights."""
        self._block.receive_error(ticket, self._errors.pop((ticket, kind)).to(self.stage.device), kind)

    def apply(self, step: int) -> None:
        """Let the optimiser apply a step, and make the replica that is due after it.

        Raises
        ------
        PeerError
            The last replica was not taken in time.
        """
        if self._replicas is not None and not self._replicas.settled(self._patience):
            raise PeerError(
                f"block {self.stage.index} has waited {self._patience:g} s for the trainer to keep its last replica",
                block=self.stage.index,
                step=step,
                setting="run.liveness_seconds",
            )
        self.stage.step()
        if self._replicas is not None:
            self._replicas.offer(self.stage, step + 1)
        if self._result is not None:
            self._observer.trained(self._result)
            self._on_step(self._result)
            self._result = None

    def send(self, ticket: Ticket) -> None:
        """Send the output of a forward to the next block."""
        began = time.time()
        self._observer.begin("send", str(ticket))
        output, *noisy = self._outputs.pop(ticket)
        self._neighbours.send("train", ticket, (self._faults.poisoned(ticket, output), *noisy))
        self._observer.did("send", ticket, began)

    def publish(self, ticket: Ticket) -> None:
        """Broadcast the head's error, and the response to a probe."""
        began = time.time()
        self._observer.begin("publish", str(ticket))
        sent = self._broadcasts.pop(ticket)
        self._neighbours.publish(ticket, "train", self._faults.poisoned(ticket, sent.error.cpu()))
        if sent.response is not None:
            self._neighbours.publish(ticket, "probe", sent.response.cpu())
        self._observer.did("publish", ticket, began)

    def evaluate(self, index: int, activation: Activation | None, totals: Evaluation) -> None:
        """Pass one evaluation batch on; in the head, count loss and right predictions."""
        inputs = self._data.evaluation_inputs(index) if activation is None else activation.tensors[0]
        inputs = inputs.to(self.stage.device)
        if isinstance(self.stage, Head):
            targets = self._data.evaluation_targets(index).to(self.stage.device)
            self.stage.evaluate_outputs(inputs, targets, totals)
        else:
            self._neighbours.send("evaluate", Ticket(0, index), (self.stage.evaluate(inputs).cpu(),))
        if activation is not None:
            self._neighbours.release(activation)

    def _count(self, ticket: Ticket, sent: Broadcast) -> None:
        if self._result is None:
            self._result = StepResult(ticket.step)
        self._result.add(float(sent.loss), int(sent.correct), sent.counted)

    @property
    def _first(self) -> bool:
        return self.stage.index == 0

    @property
    def _data(self) -> Data:
        assert self._source is not None, "only the first block and the head draw data"
        return self._source

    @property
    def _block(self) -> Block:
        assert isinstance(self.stage, Block)
        return self.stage
