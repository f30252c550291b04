"""A block's connections: data, the neighbours, the error broadcast."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lowdimfa.block import ErrorKind
from lowdimfa.data.base import BatchOrder, Dataset
from lowdimfa.tickets import Ticket
from lowdimfa.trainer import evaluation_batches
from services.block.activations import Activation, Kind, Receiver, Sender
from services.broadcast.publisher import ErrorPublisher


class DataPort:
    """Draws inputs (first block) or targets (head) in the run's order, each in its own process.

    Parameters
    ----------
    dataset
        Training and test samples.
    order
        Which samples each micro-batch has.
    """

    def __init__(self, dataset: Dataset, order: BatchOrder) -> None:
        self._dataset = dataset
        self._order = order
        self._evaluation = evaluation_batches(dataset.test, order.microbatch_size)

    def fingerprint(self) -> str:
        """Return a short digest of sizes and training targets, by which two processes know that they read alike."""
        train = self._dataset.train
        digest = hashlib.sha256(f"{len(train)}:{len(self._dataset.test)}".encode())
        for indices in torch.split(torch.arange(len(train)), 4096):
            targets = train.targets(indices).contiguous()
            digest.update(targets.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def inputs(self, ticket: Ticket) -> Tensor:
        """Return a training micro-batch's inputs."""
        return self._dataset.train.inputs(self._order.indices(ticket))

    def targets(self, ticket: Ticket) -> Tensor:
        """Return a training micro-batch's targets."""
        return self._dataset.train.targets(self._order.indices(ticket))

    def evaluation_inputs(self, index: int) -> Tensor:
        """Return an evaluation batch's inputs."""
        return self._dataset.test.inputs(self._evaluation[index])

    def evaluation_targets(self, index: int) -> Tensor:
        """Return an evaluation batch's targets."""
        return self._dataset.test.targets(self._evaluation[index])


class BlockPorts:
    """All connections of one block; what its place in the network doesn't have is None.

    Attributes
    ----------
    data
        In the first block and the head.
    receiver
        From the block before.
    sender
        To the block after.
    publisher
        The error broadcast, in the head.
    """

    def __init__(
        self, data: DataPort | None, receiver: Receiver | None, publisher: ErrorPublisher | None
    ) -> None:
        self.data = data
        self.receiver = receiver
        self.publisher = publisher
        self.sender: Sender | None = None

    def inputs(self, ticket: Ticket) -> Tensor:
        """Return a training micro-batch's inputs."""
        return self._data.inputs(ticket)

    def targets(self, ticket: Ticket) -> Tensor:
        """Return a training micro-batch's targets."""
        return self._data.targets(ticket)

    def evaluation_inputs(self, index: int) -> Tensor:
        """Return an evaluation batch's inputs."""
        return self._data.evaluation_inputs(index)

    def evaluation_targets(self, index: int) -> Tensor:
        """Return an evaluation batch's targets."""
        return self._data.evaluation_targets(index)

    def send(self, kind: Kind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Send activations to the next block."""
        assert self.sender is not None, "only blocks before the head send"
        self.sender.send(kind, ticket, tensors)

    def release(self, activation: Activation) -> None:
        """Make room in the previous block's window."""
        assert self.receiver is not None, "only blocks after the first receive"
        self.receiver.release(activation)

    def publish(self, ticket: Ticket, kind: ErrorKind, error: Tensor) -> None:
        """Broadcast an error."""
        assert self.publisher is not None, "only the head publishes"
        self.publisher.publish(ticket, kind, error)

    @property
    def _data(self) -> DataPort:
        assert self.data is not None, "only the first block and the head draw data"
        return self.data
