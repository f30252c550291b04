"""Which layers of a model a conversion takes, and which stay as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from lowdimfa.chain.attention import ChainAttention, input_projections
from lowdimfa.chain.config import ChainConfig
from lowdimfa.chain.layers import ChainConv2d, ChainLinear
from lowdimfa.errors import InputError

KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: ChainLinear,
    nn.Conv2d: ChainConv2d,
    nn.MultiheadAttention: ChainAttention,
}
"""What can be converted, and to what."""

CONVERTED = tuple(KINDS.values())
OWN = ("feedback", "plain_class")
"""What a converted layer has, and a plain one may not have: it would be overwritten."""


def find_layers(model: nn.Module, config: ChainConfig) -> dict[str, nn.Module]:
    """Return the layers to convert, each by the first of its names.

    Raises
    ------
    InputError
        There are none; or the model is converted already or isn't initialised yet, or a name is unknown.
    """
    names = _names(model)
    modules = dict(model.named_modules())
    if any(isinstance(module, CONVERTED) for module in modules.values()):
        raise InputError(
            "convert: model", "a model that is converted already", "an ordinary one", "Call revert() first."
        )
    _require_known("skip", config.skip, [name for each in names.values() for name in each])
    wanted = {
        name: module
        for name, module in modules.items()
        # A layer that two blocks share is skipped with either.
        if _kind(module) is not None and not _is_under(names[id(module)], config.skip)
    }
    _refuse_without_values(wanted)
    plain = {id(module) for module in wanted.values() if _is_plain(module)}
    plain -= _bypassed(modules.values(), plain)
    found = {name: one for name, one in wanted.items() if id(one) in plain}
    if not found:
        kept = ", ".join(f"{name or 'the model'} ({type(one).__name__})" for name, one in wanted.items())
        raise InputError(
            "convert: model",
            f"only layers of other kinds, skipped, or changed ones{': ' + kept if kept else ''}",
            "at least one nn.Linear, nn.Conv2d or nn.MultiheadAttention with the forward of PyTorch and weights of real "
            "numbers",
        )
    others = {other: name for name, one in found.items() for other in names[id(one)] if other != name}
    _require_known("error_dims", config.error_dims, found, others)
    _require_known("p_targets", config.p_targets, found, others)
    _require_known("joint", config.joint, {name.rpartition(".")[2] for name in found})
    return found


def _bypassed(modules: Iterable[nn.Module], plain: Collection[int]) -> set[int]:
    """Return what attentions that aren't converted hold: they use the weights of their output projection directly."""
    owners = (one for one in modules if isinstance(one, nn.MultiheadAttention) and id(one) not in plain)
    return {id(child) for owner in owners for child in owner.children()}


def _names(model: nn.Module) -> dict[int, list[str]]:
    """Return all names of each module, by its identity."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), []).append(name)
    return found


def _kind(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in KINDS if isinstance(module, kind)), None)


def _refuse_without_values(layers: Mapping[str, nn.Module]) -> None:
    for name, module in layers.items():
        parameters = list(module.parameters(recurse=False))
        is_lazy = any(isinstance(one, UninitializedParameter) for one in parameters)
        if is_lazy or any(one.is_meta for one in parameters):
            raise InputError(
                "convert: model",
                f"the layer {name!r}, a {type(module).__name__} without weights yet",
                "a model whose layers have their weights",
                "Run one batch through the model first."
                if is_lazy
                else "Give it memory first, as with to_empty(), and then its weights.",
            )


def _is_plain(module: nn.Module) -> bool:
    """Return whether a layer does what PyTorch's does, with weights that are real numbers."""
    kind = _kind(module)
    assert kind is not None, "of other modules nobody asks"
    return not (
        type(module).forward is not kind.forward
        or "forward" in vars(module)  # as libraries that wrap layers set it
        or _convolves_otherwise(module)
        or parametrize.is_parametrized(module)
        or any(hasattr(module, name) for name in OWN)
    ) and all(isinstance(one, Tensor) and one.is_floating_point() for one in _weights(module))


def _weights(module: nn.Module) -> list[object]:
    if isinstance(module, nn.MultiheadAttention):
        return [weight for weight, _ in input_projections(module)]
    return [getattr(module, "weight", None)]


def _convolves_otherwise(module: nn.Module) -> bool:
    """Return whether a convolution standardises, masks or casts its weights, in what its ``forward`` calls."""
    if not isinstance(module, nn.Conv2d):
        return False
    return type(module)._conv_forward is not nn.Conv2d._conv_forward or "_conv_forward" in vars(module)


def _is_under(names: Iterable[str], prefixes: Collection[str]) -> bool:
    return any(
        not prefix or name == prefix or name.startswith(f"{prefix}.") for name in names for prefix in prefixes
    )


def _require_known(
    argument: str, names: Iterable[str], known: Collection[str], others: Mapping[str, str] | None = None
) -> None:
    for name in names:
        if name in (others or {}):
            first = (others or {})[name]
            raise InputError(
                f"convert: {argument}",
                f"the name {name!r}, under which the model holds its layer {first!r} once more",
                f"the first of its names, {first!r}",
            )
        if name not in known:
            near = get_close_matches(name, filter(None, known), cutoff=0.0)
            raise InputError(
                f"convert: {argument}",
                f"the name {name!r}",
                f"names of layers, such as {', '.join(map(repr, near))}",
            )
