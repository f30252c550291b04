"""Everything about a run that follows from its specification alone: data, model, cut, feedback, steps.

Each process of a run makes the plan anew from the same specification and gets the same one; only the boundaries
between blocks are handed on, because measured costs may differ from machine to machine. Of a large network the trainer
makes the plan alone, and hands on shapes and how to build each block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakSet

from torch import nn

from lowdimfa.data.base import EVALUATION_SAMPLES, BatchOrder, Dataset
from lowdimfa.data.reading import Reader
from lowdimfa.errors import InputError
from lowdimfa.feedback.entering import settled
from lowdimfa.generators import unchanged_generators
from lowdimfa.layers import named_tensors
from lowdimfa.network import computing_threads
from lowdimfa.partitioning import BlockPlan
from lowdimfa.services.run.data import load_dataset
from lowdimfa.services.run.described import check_classes
from lowdimfa.services.run.example import Example
from lowdimfa.services.run.fitting_data import check_targets, check_tokens
from lowdimfa.services.run.in_turn import rehearse_in_turn
from lowdimfa.services.run.large import LARGE, build_and_cut
from lowdimfa.services.run.model import build_model, cut_model, measures
from lowdimfa.services.run.network_plan import NetworkPlan
from lowdimfa.services.run.profile import Bench, balance_by_time, make_bench
from lowdimfa.services.run.rehearsal import rehearse
from lowdimfa.services.run.tokenizer_files import check_tokenizer
from lowdimfa.services.run.training import batch_order, feedback_config, training_config
from lowdimfa.services.run.weights import NO_BLOCK, Weights
from lowdimfa.services.spec import Specification
from lowdimfa.services.spec.given import Given

_EVALUATION_NUMBERS = 2**26
"""Numbers in a tensor within a block, for an evaluation batch of more samples than a micro-batch: 256 MiB."""


@dataclass(frozen=True)
class RunPlan:
    """The whole run.

    Attributes
    ----------
    numbers
        Those of which each evaluation has one, by name; `Language.numbers` are further ones.
    fingerprint
        Of the data, of a stream what it begins with; empty where nothing is to be trained.
    """

    specification: Specification
    dataset: Dataset
    order: BatchOrder
    example: Example
    network: NetworkPlan
    numbers: list[str]
    fingerprint: str

    @property
    def reader(self) -> Reader:
        """Reads the run's data."""
        return Reader(self.dataset, self.order, self.example.types)

    def describe(self) -> dict[str, Any]:
        """Return the plan as the run directory's ``plan.json``."""
        train = self.specification.train
        described = self.network.describe(train.effective_window, self.order.steps_per_epoch)
        size = self.order.microbatch_size
        for block in described["blocks"]:
            block["sent_bytes_per_sample"] = self.network.sent_bytes(block["index"], size) / size
            block["output_bytes_per_sample"] = self.network.output_bytes(block["index"])
        return described | {
            "batch_size": train.batch_size,
            "last_batch_size": self.order.last_batch_size,
            "left_out": self.order.left_out,
            "replicas": self.specification.replicas,
        }


@unchanged_generators()
def make_run_plan(
    specification: Specification,
    boundaries: Sequence[str] | None = None,
    rehearsed: bool = True,
    resumed: bool = False,
    whole: bool = True,
    in_turn: bool = True,
) -> RunPlan:
    """Load the data, build and cut the model, and check that everything fits.

    Parameters
    ----------
    specification
        Of the run.
    boundaries
        Of an earlier run that is resumed, in place of an automatic cut.
    rehearsed
        Whether a step is made on copies, as for everything that is to train.
    resumed
        Whether the weights will be those of a checkpoint.
    whole
        Whether this process is to hold the network, however large it is.
    in_turn
        Whether a network that it doesn't hold is rehearsed too, piece by piece.

    Raises
    ------
    InputError
        Anything in the specification doesn't fit the data, the model, or itself.
    """
    dataset = load_dataset(specification)
    train = specification.train
    order = batch_order(specification, dataset.train)
    reader = Reader(dataset, order)
    reader.require_repeatable()
    example = Example.of(reader)
    steps = train.steps or (train.epochs or 0) * order.steps_per_epoch
    weights = None if resumed else Weights.of(specification)

    def planned(boundaries: Sequence[str] | None) -> NetworkPlan:
        return make_network_plan(specification, example, steps, boundaries, weights, whole=whole)

    network = planned(boundaries)
    check_tokens(network, reader)
    if boundaries is None and measures(specification) and network.outline is None:
        network = _balanced(specification, network, reader, planned)
    order.evaluation_size = _evaluation_size(network, order)
    if new := rehearsed and not resumed:
        check_classes(network, dataset)
        check_tokenizer(network, specification.data.args.get("path"))
    numbers = check_targets(network, reader, new)
    if rehearsed and (in_turn or network.outline is None):
        # Compiling takes longer than all the rest.
        bench = make_bench(specification, network.feedback, replace(network.training, compile=False), reader)
        smallest = order.smallest_microbatch
        counts = _rehearse(
            specification, network, bench, lambda: planned(network.boundaries).blocks, smallest
        )
        network = network.moving(counts)
    if network.outline is not None:
        network.outline.close()
    with computing_threads(specification.placement.threads_of(0)):  # as the first block does
        fingerprint = reader.fingerprint() if rehearsed else ""
    return RunPlan(specification, dataset, order, example, network, numbers, fingerprint)


def make_network_plan(
    specification: Specification,
    example: Example,
    total_steps: int,
    boundaries: Sequence[str] | None = None,
    weights: Weights | None = None,
    own: int | None = None,
    whole: bool = True,
) -> NetworkPlan:
    """Build the model with the run's seed and cut it; load weights, of the block ``own`` or of all.

    Blocks of a large network have no weights unless it is wanted whole.
    """
    make, cut = (
        partial(_made_anew, specification),
        partial(cut_model, specification, example.batch, boundaries),
    )
    given = isinstance(specification.model.factory, Given) and specification.model.factory.whole
    blocks, outline, note = build_and_cut(make, cut, whole or given)
    if given and not whole and sum(map(_nbytes, blocks)) > LARGE:
        note = (
            "every process holds the whole network, which was given as a module: give what makes it instead"
        )
    if weights is not None:
        weights.load(blocks, own if outline is None else NO_BLOCK)
    feedback = feedback_config(specification)
    training = training_config(specification, total_steps)
    shape, feedback = settled(blocks, feedback, training, example.task)
    origin = weights.origin if weights else None
    return NetworkPlan(blocks, shape, feedback, training, None, origin, outline, note)


_MADE: WeakSet[nn.Module] = WeakSet()
"""Modules of models of this process that are there yet."""


def _made_anew(specification: Specification) -> nn.Module:
    """Build the model, and refuse one that was there before: an earlier run may have trained it."""
    model = build_model(specification)
    for name, module in model.named_modules():
        if module in _MADE and any(value.requires_grad for value in module.parameters(recurse=False)):
            raise InputError(
                "model.factory",
                f"a factory that returns the module {name!r} of an earlier call",
                "new modules at each call",
                "A module itself is copied where it is given as the model of DecoupledTrainer.",
            )
    _MADE.update(model.modules())
    return model


def _nbytes(block: BlockPlan) -> int:
    return sum(value.nbytes for layer in block.layers for _, value in named_tensors(layer.module))


def _balanced(
    specification: Specification,
    network: NetworkPlan,
    reader: Reader,
    planned: Callable[[Sequence[str]], NetworkPlan],
) -> NetworkPlan:
    """Return the plan with its boundaries where whole blocks, as they were timed, take the most equal time."""
    if network.feedback.form != "broadcast" or len(network.blocks) == 1:
        return network
    # Compiling every cut that is tried would take longer than it could gain.
    training = replace(network.training, compile=False)
    bench = make_bench(specification, network.feedback, training, reader)
    blocks, seconds = balance_by_time(bench, network.blocks, lambda boundaries: planned(boundaries).blocks)
    return replace(network, blocks=blocks, seconds=seconds)


def _rehearse(
    specification: Specification,
    network: NetworkPlan,
    bench: Bench,
    rebuild: Callable[[], list[BlockPlan]],
    smallest: int,
) -> dict[str, list[str]]:
    """Make a step on copies, of a large network with memory for one piece at a time; return what counts there."""
    if network.outline is None:
        return rehearse(specification, network.blocks, bench, rebuild, smallest)
    make = partial(build_model, specification)
    return rehearse_in_turn(specification, network.blocks, bench, network.outline, make, smallest)


def _evaluation_size(network: NetworkPlan, order: BatchOrder) -> int:
    """Return how many samples an evaluation batch has: fewer where what is put out within a block for one is large."""
    largest = max(flow.largest for block in network.blocks for flow in block.flows)
    return max(order.microbatch_size, min(EVALUATION_SAMPLES, _EVALUATION_NUMBERS // max(1, largest)))
