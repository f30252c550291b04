"""The data of a block: inputs in the first one, targets in the head, each drawn in its own process."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lowdimfa.data.base import BatchOrder, Dataset
from lowdimfa.tickets import Ticket
from lowdimfa.trainer import evaluation_batches


class DataPort:
    """Draws inputs or targets in the run's order.

    Parameters
    ----------
    dataset
        Training and test samples.
    order
        Which samples each micro-batch has.
    """

    def __init__(self, dataset: Dataset, order: BatchOrder) -> None:
        self.task = dataset.task
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
