"""Turn an ordinary model into one with feedback, and back, in place."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar, Unpack, cast

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lowdimfa.chain.attention import PARTS, input_projections
from lowdimfa.chain.config import ChainConfig, ChainSettings, ErrorDim
from lowdimfa.chain.direct import OutputError
from lowdimfa.chain.finding import CONVERTED, KINDS, find_layers
from lowdimfa.chain.layers import ChainLinear
from lowdimfa.chain.making import DirectMaker, FeedbackMaker, Maker
from lowdimfa.errors import InputError
from lowdimfa.rules import CHAIN_RULES

Model = TypeVar("Model", bound=nn.Module)


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

    Layers of subclasses with a forward of their own, or with an attribute ``feedback``, parametrised layers, layers of
    complex numbers, and other kinds of layers keep exact gradients.

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
    if not isinstance(model, nn.Module):
        raise InputError("convert: model", f"a {type(model).__name__}", "an nn.Module")
    config = ChainConfig(error_dim, **settings)
    layers = find_layers(model, config)
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


@cache
def _converted_class(plain: type[nn.Module]) -> type[nn.Module]:
    """Return the class of a converted layer; a subclass that only adds to PyTorch's keeps what it adds."""
    kind = next(kind for kind in KINDS if issubclass(plain, kind))
    if plain in (kind, NonDynamicallyQuantizableLinear):
        return KINDS[kind]
    return type(f"Chain{plain.__name__}", (KINDS[kind], plain), {"__module__": plain.__module__})
