"""The in-process trainer: all blocks in one process, no cluster needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from lowdimfa.data.base import BatchOrder, Dataset, Split
from lowdimfa.head import Evaluation
from lowdimfa.network import Batch, DecoupledNetwork, StepResult
from lowdimfa.tickets import Ticket


class InProcessTrainer:
    """Feeds a network in this process.

    Parameters
    ----------
    network
        The blocks.
    dataset
        Training and test samples.
    order
        Which samples each micro-batch has.
    microbatches
        Parts of a step's batch.
    """

    def __init__(
        self, network: DecoupledNetwork, dataset: Dataset, order: BatchOrder, microbatches: int = 1
    ) -> None:
        self.network = network
        self._dataset = dataset
        self._order = order
        self._microbatches = microbatches

    def run(
        self, first_step: int, last_step: int, on_step: Callable[[StepResult], None] | None = None
    ) -> None:
        """Run the steps ``first_step <= t < last_step``; ``on_step`` gets each one's result."""
        for step in range(first_step, last_step):
            result = self.network.train_step(step, self._batches(step))
            if on_step is not None:
                on_step(result)

    def evaluate(self) -> Evaluation:
        """Return loss and accuracy on the test split."""
        device = self.network.head.device
        split = self._dataset.test
        return self.network.evaluate(
            (split.inputs(indices).to(device), split.targets(indices).to(device))
            for indices in evaluation_batches(split, self._order.microbatch_size)
        )

    def _batches(self, step: int) -> Iterator[Batch]:
        device = self.network.head.device
        for microbatch in range(self._microbatches):
            indices = self._order.indices(Ticket(step, microbatch))
            split = self._dataset.train
            yield split.inputs(indices).to(device), split.targets(indices).to(device)


def evaluation_batches(split: Split, microbatch_size: int) -> list[torch.Tensor]:
    """Return the indices of a split in order, in batches of at least 256 samples (fewer in the last)."""
    return list(torch.split(torch.arange(len(split)), max(microbatch_size, 256)))
