"""Everything about a run that follows from its specification alone: data, model, cut, feedback, steps.

Each process of a run makes the plan anew from the same specification and gets the same one; only the boundaries
between blocks are handed on, because measured costs may differ from machine to machine. Of a large network the trainer
makes the plan alone, and hands on shapes and how to build each block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from lowdimfa.balance import balance, bottleneck
from lowdimfa.build import error_shape, features_of, parts_of, refuse_unlearnable, resolve_feedback, tap_of
from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.data.base import BatchOrder, Dataset, as_dataset
from lowdimfa.data.reading import Reader
from lowdimfa.feedback.making import ErrorShape, feedback_columns
from lowdimfa.feedback.source import source_of, starts_as_identity, stays_transposed
from lowdimfa.generators import reproducible, unchanged_generators
from lowdimfa.imports import call_factory
from lowdimfa.layers import Layer
from lowdimfa.loss_check import checked_loss
from lowdimfa.losses import counts, make_loss, validate_class_targets, validate_tokens
from lowdimfa.partitioning import BlockPlan, block_starts, coarser_between
from lowdimfa.services.run.example import Example
from lowdimfa.services.run.in_turn import rehearse_in_turn
from lowdimfa.services.run.large import build_and_cut
from lowdimfa.services.run.model import build_model, cut_model, measures
from lowdimfa.services.run.profile import balance_by_time, make_bench
from lowdimfa.services.run.rehearsal import rehearse
from lowdimfa.services.run.training import batch_order, feedback_config, training_config
from lowdimfa.services.run.weights import NO_BLOCK, Origin, Weights
from lowdimfa.services.spec import Specification
from lowdimfa.sparse import Outline
from lowdimfa.tickets import Ticket, derive_seed
from lowdimfa.values import ONE, Types

_ITEMS_CHECKED = 1024
"""Items of a data set, which may be costly to read, whose targets are looked at before a run. Of others all are."""


@dataclass(frozen=True)
class NetworkPlan:
    """The cut network and its feedback, without data.

    Attributes
    ----------
    blocks
        In order, the head last.
    shape
        Of the broadcast error.
    feedback
        With ``auto`` resolved.
    training
        What the blocks need to know of it.
    seconds
        What each block was measured to take per micro-batch; None where the cut goes by counted operations.
    weights
        Where those came from with which the run begins; None if not from files.
    outline
        In a trainer whose network is too large for one process: how to build some layers. The blocks then have none.
    note
        What people should know before the start.
    """

    blocks: list[BlockPlan]
    shape: ErrorShape
    feedback: FeedbackConfig
    training: TrainingConfig
    seconds: list[float] | None = None
    weights: Origin | None = None
    outline: Outline | None = None
    note: str = ""

    @property
    def shapes(self) -> NetworkPlan:
        """The same without any layer, as plain data."""
        named = [tuple(map(_stand_in, block.layers)) for block in self.blocks]
        blocks = [replace(block, layers=layers) for block, layers in zip(self.blocks, named, strict=True)]
        return replace(self, blocks=blocks, outline=None)

    @property
    def boundaries(self) -> list[str]:
        """Names of the layers at which the second and later blocks start."""
        return [block.name for block in self.blocks[1:]]

    @property
    def notices(self) -> list[str]:
        """What whoever starts the run has to know of its layers."""
        return [layer.notice for block in self.blocks for layer in block.layers if layer.notice]

    def describe(self, window: int, steps_per_epoch: int) -> dict[str, Any]:
        """Return the plan as the run directory's ``plan.json``."""
        sites = [parts_of(block, self.feedback, block is self.blocks[-1]).sites for block in self.blocks]
        entries = [[self._describe_entry(part) for part in parts] for parts in sites]
        features = [sum(entry["tap_features"] for entry in own) for own in entries]
        blocks = [
            {
                "index": block.index,
                "name": block.name,
                "layers": [layer.name for layer in block.layers],
                "parameters": block.parameters,
                "frozen_parameters": block.frozen,
                "input_shape": _shapes(block.inputs),
                "output_shape": _shapes(block.outputs),
                "cost_share": round(block.cost_share, 4),
                "layer_shares": [round(share, 6) for share in block.layer_shares],
            }
            | ({} if self.seconds is None else {"milliseconds": round(1e3 * self.seconds[i], 3)})
            | (entries[i][-1] if entries[i] else {"tap": None, "q_start": None})
            | {"tap_features": features[i]}
            for i, block in enumerate(self.blocks)
        ]
        columns = feedback_columns(self.shape, self.feedback)
        return {
            "blocks": blocks,
            "source": source_of(self.feedback),
            "error_dim": self.shape.error_dim,
            "task_dim": self.shape.task_dim,
            "parameters": sum(block.parameters for block in self.blocks),
            "feedback_parameters": columns
            * sum(self._own_features(entry) for own in entries for entry in own),
            "feedback_columns": columns,
            "microbatches": self.training.microbatches,
            "window": window,
            "staleness": self.training.staleness,
            "steps": self.training.total_steps,
            "steps_per_epoch": steps_per_epoch,
            "balance": self._describe_balance(),
            "notices": self.notices,
        }

    def _describe_entry(self, part: BlockPlan) -> dict[str, Any]:
        """Return how the error enters at the end of a part of a block."""
        tap = tap_of(part, self.feedback, self.shape)
        identity = starts_as_identity(part, tap, self.feedback, self.shape)
        start = "identity" if identity else "random"
        return {"tap": tap.name, "q_start": start, "tap_features": features_of(tap, part)}

    def _own_features(self, entry: dict[str, Any]) -> int:
        """Return the features of an entry that have feedback weights of their own, which `Pᵀ` isn't."""
        borrowed = entry["q_start"] == "identity" and stays_transposed(self.feedback)
        return 0 if borrowed else int(entry["tap_features"])

    def _describe_balance(self) -> dict[str, Any]:
        shares = [block.cost_share for block in self.blocks]
        layers = [layer for block in self.blocks for layer in block.layers]
        starts = {layers[index].name for index in block_starts(layers, 1)[1:]} | set(self.boundaries)
        return {
            "by": "flops" if self.seconds is None else "time",
            "bottleneck": bottleneck(shares),
            "predicted": round(balance(shares), 4),
            "starts": [layer.name for layer in layers if layer.name in starts],
        }


def _shapes(types: Types) -> list[int] | dict[str, list[int]]:
    shapes = {name: list(kind.shape) for name, kind in types.items()}
    return shapes.get(ONE, shapes)


@dataclass(frozen=True)
class RunPlan:
    """The whole run."""

    specification: Specification
    dataset: Dataset
    order: BatchOrder
    example: Example
    network: NetworkPlan

    @property
    def reader(self) -> Reader:
        """Reads the run's data."""
        return Reader(self.dataset, self.order, self.example.types)

    def describe(self) -> dict[str, Any]:
        """Return the plan as the run directory's ``plan.json``."""
        train = self.specification.train
        described = self.network.describe(train.effective_window, self.order.steps_per_epoch)
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

    Raises
    ------
    InputError
        Anything in the specification doesn't fit the data, the model, or itself.
    """
    dataset = load_dataset(specification)
    train = specification.train
    order = batch_order(specification, len(dataset.train))
    reader = Reader(dataset, order)
    reader.require_repeatable()
    example = Example.of(reader)
    steps = train.steps or (train.epochs or 0) * order.steps_per_epoch
    weights = None if resumed else Weights.of(specification)

    def planned(boundaries: Sequence[str] | None) -> NetworkPlan:
        return make_network_plan(specification, example, steps, boundaries, weights, whole=whole)

    network = planned(boundaries)
    _check_tokens(network, reader)
    if boundaries is None and measures(specification) and network.outline is None:
        network = _balanced(specification, network, reader, planned)
    _check_targets(network, reader)
    if rehearsed:
        # Compiling takes longer than all the rest.
        training = replace(network.training, compile=False)
        bench = make_bench(specification, network.feedback, training, reader)
        if network.outline is None:
            rehearse(
                specification,
                network.blocks,
                bench,
                lambda: planned(network.boundaries).blocks,
                order.smallest_microbatch,
            )
        else:
            make = partial(build_model, specification)
            rehearse_in_turn(specification, network.blocks, bench, network.outline, make)
    if network.outline is not None:
        network.outline.close()
    return RunPlan(specification, dataset, order, example, network)


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
        partial(build_model, specification),
        partial(cut_model, specification, example.batch, boundaries),
    )
    blocks, outline, note = build_and_cut(make, cut, whole)
    if weights is not None:
        weights.load(blocks, own if outline is None else NO_BLOCK)
    if specification.train.activations == "bf16":
        blocks = coarser_between(blocks)
    feedback = feedback_config(specification)
    refuse_unlearnable(blocks, feedback)
    shape, training = error_shape(blocks, feedback), training_config(specification, total_steps)
    feedback = resolve_feedback(feedback, shape, training, example.task)
    origin = weights.origin if weights else None
    return NetworkPlan(blocks, shape, feedback, training, None, origin, outline, note)


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


def load_dataset(specification: Specification) -> Dataset:
    """Call the data factory, and apply the limits that the specification sets."""
    data = specification.data
    with reproducible(derive_seed(specification.train.seed, "data")):
        made = call_factory(data.factory, deepcopy(dict(data.args)), "data.factory")
    dataset = as_dataset(made, "data.factory")
    if data.validation:
        dataset = dataset.with_validation(data.validation)
    limit = specification.train.limit_samples
    return dataset if limit is None else dataset.limited(limit)


def _stand_in(layer: Layer) -> Layer:
    """Return a layer without memory, of which one can tell whether there is something to learn."""
    parameters, module = list(layer.module.parameters()), nn.Identity()
    if parameters:
        learns = any(parameter.requires_grad for parameter in parameters)
        module.register_parameter("stand_in", nn.Parameter(torch.empty(0), requires_grad=learns))
    return replace(layer, module=module)


def _check_tokens(network: NetworkPlan, reader: Reader) -> None:
    """Look at the tokens of the data, if the network begins with an embedding that says how many it has room for."""
    vocabulary = getattr(network.blocks[0].layers[0].module, "vocabulary", None)
    if vocabulary is not None:
        for inputs in reader.known_inputs(_ITEMS_CHECKED):
            validate_tokens(inputs, vocabulary)


def _check_targets(network: NetworkPlan, reader: Reader) -> None:
    """Run the loss once on an output of the right shape, so that a mismatch is found before the first step."""
    training, task, shape = network.training, reader.dataset.task, network.blocks[-1].output_shape
    loss = make_loss(training.loss, task, training.ignore_index)
    if training.loss in ("auto", "cross_entropy") and task != "regression":
        for targets in reader.known_targets(_ITEMS_CHECKED):
            validate_class_targets(targets, shape[-1], training.ignore_index)
    # A number of samples that no other dimension has: what is broadcast then shows.
    samples = next(number for number in range(2, 8) if number not in shape)
    targets = reader.training(reader.order.indices(Ticket(0, 0))[:samples]).targets()
    counted = counts(training.loss, task, training.ignore_index)(targets)
    checked_loss(loss, torch.zeros(len(targets), *shape), targets, counted)
