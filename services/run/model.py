"""The run's model: built with its seed, and cut as its specification says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from lowdimfa.block_module import BlockModule, load_layers
from lowdimfa.encoding import references
from lowdimfa.errors import InputError
from lowdimfa.generators import reproducible
from lowdimfa.imports import call_factory
from lowdimfa.layers import Layer, as_module, channels_last, list_layers, named_tensors, reads_maps_by_shape
from lowdimfa.models.hf.layers import Part
from lowdimfa.network import computing_threads
from lowdimfa.partitioning import BlockPlan, partition
from lowdimfa.services.run.example import MOST
from lowdimfa.services.run.manifest import MODEL_PREFIX, Manifest, export_state
from lowdimfa.services.run.weights import freeze
from lowdimfa.services.spec import Specification
from lowdimfa.services.spec.given import opened
from lowdimfa.tickets import derive_seed
from lowdimfa.values import Inputs

_NO_MATTER = {
    "architectures",
    "id2label",
    "initializer_range",
    "label2id",
    "transformers_version",
    "use_cache",
}
"""What a configuration says, beside the numbers of tokens, that changes nothing of what its network computes."""


def build_model(specification: Specification) -> nn.Module:
    """Call the model factory with random numbers that depend on the run's seed alone."""
    model = specification.model
    with reproducible(derive_seed(specification.train.seed, "model")):
        made = call_factory(opened(model.factory), deepcopy(dict(model.args)), "model.factory")
    module = as_module(made)
    if _puts_channels_last(specification, module):
        channels_last(module)
    freeze(module, model.frozen)
    return module


def _puts_channels_last(specification: Specification, module: nn.Module) -> bool:
    """Return whether channels come last in memory: as that is said, or where no code of others may see it.

    Such may read maps or weights as they lie: ``view`` fails then, and ``as_strided`` makes other ones of them.
    """
    said, train = specification.model.channels_last, specification.train
    if isinstance(said, bool):
        return said
    own = [block.optimizer.factory for block in train.per_block.values() if block.optimizer]
    return reads_maps_by_shape(module) and all(
        isinstance(factory, str) and factory.startswith(("torch.optim.", "lowdimfa."))
        for factory in (train.optimizer.factory, *filter(None, own))
    )


def trained_model(specification: Specification, manifest: Manifest, average: bool = False) -> nn.Module:
    """Return the uncut model with the weights and buffers of a checkpoint, or with the weights' moving average."""
    model = build_model(specification)
    require_configuration(list_layers(model), manifest)
    kinds = manifest.kinds(lambda name: name.startswith(MODEL_PREFIX))
    for name, value in named_tensors(model):
        if nn.parameter.is_lazy(value):
            value.materialize(kinds[f"{MODEL_PREFIX}{name}"].shape)
    module = BlockModule(list_layers(model))
    scalars = [{key: entry.scalars[key] for key in ("extra", "versions")} for entry in manifest.entries]
    kept = kinds.keys() | set(references(scalars))
    load_layers(module, manifest.tensors(kept.__contains__), *scalars)
    if average:
        averages = export_state(manifest, average=True)
        with torch.no_grad():
            averaged = set()
            for name, value in model.named_parameters(
                remove_duplicate=False
            ):  # tied ones are kept under one name
                if name in averages:
                    value.copy_(averages[name])
                    averaged.add(id(value))
            assert averaged == {id(value) for value in model.parameters()}, "a parameter without an average"
    return model


def configuration_of(layers: Iterable[Layer]) -> dict[str, Any]:
    """Return the configuration by which layers say what they compute, as plain data; empty if none has one.

    It is that of a network of Hugging Face, which a file may hold that changes while a run goes on.
    """
    for layer in layers:
        if isinstance(layer.module, Part):
            plain: dict[str, Any] = json.loads(json.dumps(layer.module.config.to_dict(), default=str))
            return {
                key: value
                for key, value in plain.items()
                if not key.startswith("_") and not key.endswith("_token_id") and key not in _NO_MATTER
            }
    return {}


def require_configuration(layers: Iterable[Layer], manifest: Manifest) -> None:
    """Refuse layers of another configuration than those of a checkpoint: they would compute something else.

    Raises
    ------
    InputError
        Names the first thing that differs. What only one of both knows is left to the package's versions.
    """
    unlike = _first_unlike(configuration_of(layers), manifest.meta.get("configuration") or {})
    if unlike is not None:
        key, now, then = unlike
        raise InputError(
            f"model.args: the configuration's {key}",
            repr(now),
            f"{then!r}, as when the checkpoint was written",
            "The file was changed since: put it back, or begin a new run with model.weights.",
        )


def _first_unlike(now: dict[str, Any], then: dict[str, Any]) -> tuple[str, Any, Any] | None:
    for key in sorted(now.keys() & then.keys()):
        mine, theirs = now[key], then[key]
        if isinstance(mine, dict) and isinstance(theirs, dict):
            if within := _first_unlike(mine, theirs):
                return f"{key}.{within[0]}", *within[1:]
        elif mine != theirs:
            return key, mine, theirs
    return None


def cut_model(
    specification: Specification,
    example: Callable[[int], Inputs],
    boundaries: Sequence[str] | None,
    model: nn.Module,
) -> list[BlockPlan]:
    """Cut a model into blocks, by an example batch of some samples; boundaries are those of an earlier run."""
    train = specification.train
    cut = specification.model.blocks if boundaries is None else list(boundaries)
    # Lazy layers draw their weights when they first see a batch, which is here.
    with reproducible(derive_seed(train.seed, "lazy layers")):
        if boundaries is None and measures(specification):
            with computing_threads(specification.placement.threads_of(0)):
                return partition(model, cut, example(train.batch_size // train.microbatches), "time")
        return partition(model, cut, example(MOST))


def measures(specification: Specification) -> bool:
    """Whether it is for this machine's clock to say where the model is cut."""
    return specification.model.balance == "time" and isinstance(specification.model.blocks, int)
