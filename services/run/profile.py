"""What the blocks of a run cost on this machine, measured before it starts, and the cut that evens that out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowdimfa.balance import Cut, recut
from lowdimfa.block import Block
from lowdimfa.build import build_block, build_head, build_stages
from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.data.base import Task
from lowdimfa.data.reading import Reader
from lowdimfa.errors import InputError, LowdimfaError, in_words
from lowdimfa.feedback.making import ErrorShape
from lowdimfa.generators import reproducible
from lowdimfa.head import Head
from lowdimfa.measure import StageTime, make_step, measure_times
from lowdimfa.memory import StageMemory, measure_memory
from lowdimfa.network import computing_threads
from lowdimfa.partitioning import BlockPlan, block_starts, copies
from lowdimfa.services.run.training import use_own_threads
from lowdimfa.services.spec import Specification
from lowdimfa.services.spec.placement import PlacementSection
from lowdimfa.tickets import Ticket
from lowdimfa.values import Activation, entering, everywhere

BETTER = 0.02
"""Share of the bottleneck's time that another cut has to save to be taken."""

TRIES = 4
"""Cuts that are measured at most."""


@dataclass(frozen=True)
class Bench:
    """Measures blocks as the run would train them, on copies, so that nothing of the run changes.

    Attributes
    ----------
    feedback
        As `lowdimfa.feedback.entering.settled` returns it.
    training, task
        Of the run.
    batches
        Inputs and targets of micro-batches of the run's size.
    placement
        Says with how many threads each block computes.
    device
        On which it does.
    last_evaluated
        Samples of an evaluation's last batch.
    """

    feedback: FeedbackConfig
    training: TrainingConfig
    task: Task
    batches: list[tuple[Activation, Tensor]]
    placement: PlacementSection
    device: torch.device
    last_evaluated: int

    def times(self, blocks: Sequence[BlockPlan]) -> list[StageTime]:
        """Return what each block's work takes."""
        with computing_threads(self.placement.threads_of(0)):
            stages = self.stages(blocks)
            train = self.training
            return measure_times(*stages, self.feedback, self.batches, train.microbatches, train.staleness)

    def memory(self, blocks: Sequence[BlockPlan]) -> list[StageMemory]:
        """Return what each block holds."""
        # Neither stashed nor compiled: autograd then shows what the graphs keep.
        plain = replace(self.training, staleness=0, compile=False)
        learning, head = replace(self, training=plain).stages(blocks)
        make_step(learning, head, self.feedback, self.batches)
        stages: list[Block | Head] = [*learning, head]
        found, inputs = [], self.batches[0][0].to(self.device)
        for stage in stages:
            found.append(measure_memory(stage, inputs, self.training.staleness))
            inputs = inputs if stage is head else stage.evaluate(inputs)
        return found

    def stages(self, blocks: Sequence[BlockPlan]) -> tuple[list[Block], Head]:
        """Build copies of the blocks.

        Raises
        ------
        InputError
            They can't be copied.
        """
        try:
            copied = copies(blocks)
        except Exception as error:  # the user's own modules may hold anything
            raise InputError(
                "model.factory",
                f"modules that copy.deepcopy does not take ({in_words(error)})",
                "some that it takes, since blocks are measured on copies",
                "A run with model.balance: flops needs no measurement.",
            ) from error
        return self.build(copied)

    def build(self, blocks: Sequence[BlockPlan]) -> tuple[list[Block], Head]:
        """Build blocks that nobody needs, for they will learn."""
        learning, head = build_stages(blocks, self.feedback, self.training, self.task, self.device)
        use_own_threads([*learning, head], self.placement)
        return learning, head

    def build_one(self, plan: BlockPlan, shape: ErrorShape, is_head: bool) -> Block | Head:
        """Build one such block."""
        arguments = plan, shape, self.feedback, self.training
        if is_head:
            return build_head(*arguments, self.task, self.device)
        return build_block(*arguments, self.device)

    @contextmanager
    def computing(self, seed: int) -> Iterator[None]:
        """Compute as a block does, with random numbers that leave no trace."""
        with computing_threads(self.placement.threads_of(0)), reproducible(seed, self.device):
            yield

    def with_samples(self, most: int) -> Bench:
        """Return a bench with the first samples of the batches, on its device."""
        some = [
            (everywhere(x, lambda part: part[:most].to(self.device)), y[:most].to(self.device))
            for x, y in self.batches
        ]
        return replace(self, batches=some)


def make_bench(
    specification: Specification,
    feedback: FeedbackConfig,
    training: TrainingConfig,
    reader: Reader,
) -> Bench:
    """Return a bench with a run's own data, threads and device; where this machine has no GPU, the processor."""
    placement = specification.placement
    # Two micro-batches are enough: of those of a step one may carry a probe, and all others are alike.
    batches = [_batch(reader, Ticket(0, number)) for number in range(min(2, training.microbatches))]
    on_gpu = placement.gpus_per_block > 0 and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    last_evaluated = (len(reader.dataset.test) - 1) % reader.order.evaluation_size + 1
    return Bench(feedback, training, reader.dataset.task, batches, placement, device, last_evaluated)


def free_gpu() -> None:
    """Give back what torch keeps of the GPU after its benches are gone: a block in another process may need it."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()  # stages with threads of their own refer to themselves
        torch.cuda.empty_cache()


def _batch(reader: Reader, ticket: Ticket) -> tuple[Activation, Tensor]:
    try:
        samples = reader.microbatch(ticket)
        return entering(samples.inputs()), samples.targets()
    except LowdimfaError:
        raise
    except (Exception, SystemExit) as error:  # a user's data may fail in any way
        raise InputError(
            "data.factory",
            f"training samples of {ticket} that can't be read ({in_words(error)})",
            "inputs and targets of equal shapes for every sample",
        ) from error


def balance_by_time(
    bench: Bench, blocks: list[BlockPlan], cut_at: Callable[[Sequence[str]], list[BlockPlan]]
) -> tuple[list[BlockPlan], list[float]]:
    """Move the boundaries between blocks until no other cut is expected to be more even.

    What a layer costs by itself says little of the taps, the feedback weights and the optimiser of a block that ends
    there. So the blocks are built and timed whole, and each layer's estimate is corrected by what its block really
    took, which leads to the next cut; of all that were timed the best is taken.

    Parameters
    ----------
    bench
        Measures.
    blocks
        An automatic cut by measured time.
    cut_at
        Returns the blocks of the same network with other boundaries.

    Returns
    -------
    blocks, seconds
        The cut, with the measured shares of cost, and what each block takes per micro-batch.
    """
    estimates = {
        layer.name: share
        for block in blocks
        for layer, share in zip(block.layers, block.layer_shares, strict=True)
    }
    layers = [layer for block in blocks for layer in block.layers]
    starts = {layers[index].name for index in block_starts(layers, len(blocks))}
    tried: dict[tuple[str, ...], tuple[list[BlockPlan], Cut]] = {}
    for _ in range(TRIES):
        cut = _timed(bench, blocks)
        tried[cut.boundaries] = blocks, cut
        costs = [{layer.name: estimates[layer.name] for layer in block.layers} for block in blocks]
        better = recut(costs, cut.costs, starts)
        if better.boundaries in tried or cut.saving(better) < BETTER:
            break
        blocks = cut_at(better.boundaries)
    blocks, cut = min(tried.values(), key=lambda entry: entry[1].highest)
    return _shared_out(blocks, cut.costs, estimates), list(cut.costs)


def _timed(bench: Bench, blocks: list[BlockPlan]) -> Cut:
    microbatches = bench.training.microbatches
    costs = tuple(times.per_microbatch(microbatches) for times in bench.times(blocks))
    return Cut(tuple(block.name for block in blocks[1:]), costs)


def _shared_out(
    blocks: list[BlockPlan], seconds: Sequence[float], estimates: dict[str, float]
) -> list[BlockPlan]:
    """Return the blocks with shares of cost that come to what each took."""
    shared = []
    for block, own in zip(blocks, seconds, strict=True):
        costs = [estimates[layer.name] for layer in block.layers]
        whole = sum(costs) * sum(seconds)
        shared.append(replace(block, layer_shares=tuple(own * cost / whole for cost in costs)))
    return shared
