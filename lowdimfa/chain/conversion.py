"""Turn an ordinary model into one with feedback, and back, in place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar, Unpack, cast

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from lowdimfa.chain.attention import PARTS, ChainAttention, input_projections
from lowdimfa.chain.config import ChainConfig, ChainSettings, ErrorDim
from lowdimfa.chain.direct import OutputError
from lowdimfa.chain.layers import ChainConv2d, ChainLinear
from lowdimfa.chain.making import DirectMaker, FeedbackMaker, Maker
from lowdimfa.errors import InputError
from lowdimfa.rules import CHAIN_RULES

Model = TypeVar("Model", bound=nn.Module)

KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: ChainLinear,
    nn.Conv2d: ChainConv2d,
    nn.MultiheadAttention: ChainAttention,
}
"""What can be converted, and to what."""

CONVERTED = tuple(KINDS.values())


def convert(
    model: Model,
    error_dim: ErrorDim = 64,
    *,
    example: Tensor | None = None,
    **settings: Unpack[ChainSettings],
) -> Model:
    """Replace the transposed weights in a model's backward pass by feedback, in place.

    Every `nn.Linear`, `nn.Conv2d` and `nn.MultiheadAttention` keeps its parameters (the same objects under the same
    names) and its output. Its weights' gradients are exact for the error that reaches it; what it passes on to its input
    is ``Q P δ`` in place of ``Wᵀ δ`` (arXiv:2502.20580). Learned ``Q`` and ``P`` are parameters whose gradient the
    backward pass sets: make the optimiser after converting (`parameter_groups`), and train as ever.

    Layers of subclasses with a forward of their own, parametrised layers, and other kinds of layers keep exact gradients.

    Parameters
    ----------
    model
        Any module.
    error_dim, settings
        As in `ChainConfig`, each by its name.
    example
        A batch of inputs; only for the rule ``direct``, which learns the width of the output and the sizes of images
        from it. It can do without where there are no convolutions and the last linear layer makes the output.

    Returns
    -------
    The model itself.

    Raises
    ------
    InputError
        A value is out of range, a name is unknown, the model is converted already, isn't initialised yet, or has
        nothing to convert.
    """
    config = ChainConfig(error_dim, **settings)
    layers = _find(model, config)
    direct = CHAIN_RULES.find(config.rule).direct
    maker = DirectMaker(model, layers, config, example) if direct else FeedbackMaker(config)
    made = [(module, _feedback_of(name, module, maker)) for name, module in layers.items()]
    for module, feedback in made:  # nothing was changed before this
        _attach(module, feedback)
    if isinstance(maker, DirectMaker):
        maker.output.watch(model)
    return model


def revert(model: Model) -> Model:
    """Turn a converted model back into an ordinary one with the weights that it has, in place.

    Raises
    ------
    InputError
        The model isn't converted.
    """
    converted = [module for module in model.modules() if isinstance(module, CONVERTED)]
    if not converted:
        raise InputError("revert: model", "no converted layer", "a model that convert() returned")
    for output in [module for module in model.modules() if isinstance(module, OutputError)]:
        output.release()
    for module in converted:
        layer = cast(ChainLinear, module)
        plain = layer.plain_class
        del layer.feedback, layer.plain_class
        module.__class__ = plain
    return model


def _find(model: nn.Module, config: ChainConfig) -> dict[str, nn.Module]:
    """Return the layers to convert, by name."""
    named = dict(model.named_modules())
    if any(isinstance(module, CONVERTED) for module in named.values()):
        raise InputError(
            "convert: model", "a model that is converted already", "an ordinary one", "Call revert() first."
        )
    _require_known("skip", config.skip, named)
    found: dict[str, nn.Module] = {}
    chosen: set[int] = set()
    kept: list[str] = []
    for name, module in named.items():
        kind = _kind(module)
        if kind is None or _is_under(name, config.skip):
            continue
        if any(
            isinstance(parameter, UninitializedParameter) for parameter in module.parameters(recurse=False)
        ):
            raise InputError(
                "convert: model",
                f"the layer {name!r}, a {type(module).__name__} without weights yet",
                "a model whose layers have their weights",
                "Run one batch through the model first.",
            )
        owner = named[name.rpartition(".")[0]] if name else None
        if (
            _bypasses(owner, chosen)
            or type(module).forward is not kind.forward
            or "forward" in vars(module)  # as libraries that wrap layers set it
            or _convolves_otherwise(module)
            or parametrize.is_parametrized(module)
        ):
            kept.append(f"{name or 'the model'} ({type(module).__name__})")
        else:
            found[name] = module
            chosen.add(id(module))
    if not found:
        raise InputError(
            "convert: model",
            f"only layers of other kinds, skipped, or changed ones{': ' + ', '.join(kept) if kept else ''}",
            "at least one nn.Linear, nn.Conv2d or nn.MultiheadAttention with the forward of PyTorch",
        )
    _require_known("error_dims", config.error_dims, found)
    _require_known("p_targets", config.p_targets, found)
    _require_known("joint", config.joint, {name.rpartition(".")[2]: module for name, module in found.items()})
    return found


def _feedback_of(name: str, module: nn.Module, maker: Maker) -> nn.Module:
    if isinstance(module, nn.MultiheadAttention):
        weights = (weight for weight, _ in input_projections(module))
        parts = zip(PARTS, weights, strict=True)
        return nn.ModuleDict({part: maker.make(name, module, weight, part) for part, weight in parts})
    return maker.make(name, module, cast(Tensor, module.weight))


def _attach(module: nn.Module, feedback: nn.Module) -> None:
    plain = type(module)
    module.__class__ = _converted_class(plain)  # type: ignore[arg-type]  # mypy takes classes for unhashable
    converted = cast(ChainLinear, module)
    converted.plain_class = plain
    converted.feedback = cast(Any, feedback)
    feedback.train(module.training)


def _bypasses(owner: nn.Module | None, chosen: Collection[int]) -> bool:
    """Return whether a layer's owner is an attention that isn't converted: it uses the layer's weights directly."""
    return isinstance(owner, nn.MultiheadAttention) and id(owner) not in chosen


def _kind(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in KINDS if isinstance(module, kind)), None)


@cache
def _converted_class(plain: type[nn.Module]) -> type[nn.Module]:
    """Return the class of a converted layer; a subclass that only adds to PyTorch's keeps what it adds."""
    kind = next(kind for kind in KINDS if issubclass(plain, kind))
    if plain in (kind, NonDynamicallyQuantizableLinear):
        return KINDS[kind]
    return type(f"Chain{plain.__name__}", (KINDS[kind], plain), {"__module__": plain.__module__})


def _convolves_otherwise(module: nn.Module) -> bool:
    """Return whether a convolution standardises, masks or casts its weights, in what its ``forward`` calls."""
    if not isinstance(module, nn.Conv2d):
        return False
    return type(module)._conv_forward is not nn.Conv2d._conv_forward or "_conv_forward" in vars(module)


def _is_under(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _require_known(argument: str, names: Sequence[str] | Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, cutoff=0.0)
            raise InputError(
                f"convert: {argument}",
                f"the name {name!r}",
                f"names of layers, such as {', '.join(map(repr, near))}",
            )
