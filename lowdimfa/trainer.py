"""The in-process trainer: all blocks in one process, no cluster needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lowdimfa.data.base import BatchOrder, Dataset
from lowdimfa.data.items import Samples
from lowdimfa.data.reading import Reader
from lowdimfa.generators import unchanged_generators
from lowdimfa.head import Evaluation
from lowdimfa.network import Batch, DecoupledNetwork, StepResult
from lowdimfa.values import entering


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
    reader
        Of these, if there is one.
    """

    def __init__(
        self, network: DecoupledNetwork, dataset: Dataset, order: BatchOrder, reader: Reader | None = None
    ) -> None:
        self.network = network
        self._reader = reader or Reader(dataset, order)

    def run(
        self, first_step: int, last_step: int, on_step: Callable[[StepResult], None] | None = None
    ) -> None:
        """Run the steps ``first_step <= t < last_step``; ``on_step`` gets each one's result."""
        with unchanged_generators():
            for step in range(first_step, last_step):
                result = self.step(step)
                if on_step is not None:
                    on_step(result)

    def step(self, step: int) -> StepResult:
        """Run one step; reading its samples leaves the default random generators seeded."""
        return self.network.train_step(step, self._batches(self._reader.step(step)))

    def evaluate(self) -> Evaluation:
        """Return loss and accuracy on the test split."""
        reader = self._reader
        with unchanged_generators():
            return self.network.evaluate(
                self._batches(reader.evaluation_batch(index) for index in range(reader.evaluation_batches))
            )

    def _batches(self, read: Iterable[Samples]) -> Iterator[Batch]:
        device = self.network.head.device
        for samples in read:
            yield entering(samples.inputs()).to(device), samples.targets().to(device)
