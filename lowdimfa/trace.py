"""Run the layers of a model on an example, to learn shapes, costs, and whether they are all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowdimfa.cost import COSTS, Balance
from lowdimfa.errors import InputError, in_words
from lowdimfa.generators import unchanged_generators
from lowdimfa.layers import FACTORY_KEY, Layer, runs_children

_TAKES_GRADIENT = (
    "Evaluation runs without gradients, and a block's input requires none: a layer that takes one does so within "
    "torch.enable_grad(), of x if x.requires_grad else x.detach().requires_grad_()."
)


@dataclass(frozen=True)
class TracedLayer:
    """Shapes (batch included) and types of the tensors around a layer, its cost, and its output in words."""

    input_shape: torch.Size
    output_shape: torch.Size
    input_dtype: torch.dtype
    output_dtype: torch.dtype
    cost: float
    output: str


def trace(model: nn.Module, layers: list[Layer], example: Tensor, balance: Balance) -> list[TracedLayer]:
    """Run the layers in order and measure each; neither the model nor the global random state is changed.

    Raises
    ------
    InputError
        A layer fails, puts out something else than a tensor, or the layers aren't all that the model does.
    """
    traced: list[TracedLayer] = []
    with _unchanged(model, example, training=False):
        x = example
        for index, layer in enumerate(layers):
            y = _run(layer, layers[index - 1] if index else None, x)
            cost = _cost(layer, x, balance)
            traced.append(TracedLayer(x.shape, y.shape, x.dtype, y.dtype, cost, _described(y)))
            x = y
    if not runs_children(model) and type(model).forward is not nn.Module.forward:
        _refuse_other_function(model, layers, example)
    return traced


@contextmanager
def _unchanged(model: nn.Module, example: Tensor, training: bool) -> Iterator[None]:
    """Enter one mode, then put back the model's modes, buffers and extra state, and the global random state."""
    modes = [(module, module.training) for module in model.modules()]
    extra = [(module, _extra_state(module)) for module in model.modules() if _restores(module)]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not is_lazy(buffer)]
    with unchanged_generators(example.device), torch.no_grad():
        try:
            model.train(training)
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, value in buffers:
                buffer.copy_(value)
            for module, state in extra:
                module.set_extra_state(state)


def _extra_state(module: nn.Module) -> Any:
    try:
        return deepcopy(module.get_extra_state())
    except (Exception, SystemExit) as error:  # the user's own
        found = f"a {type(module).__name__} whose get_extra_state fails ({in_words(error)})"
        raise InputError(FACTORY_KEY, found, "a state that can be saved") from error


def _restores(module: nn.Module) -> bool:
    """Whether a module has extra state, and takes it back."""
    kind = type(module)
    return (
        kind.get_extra_state is not nn.Module.get_extra_state
        and kind.set_extra_state is not nn.Module.set_extra_state
    )


def _run(layer: Layer, before: Layer | None, x: Tensor) -> Tensor:
    source = f"the output of layer {before.name!r}" if before else "the example input"
    try:
        y: object = layer.module(x.clone())  # the layer may work in place
    except (Exception, SystemExit) as error:  # a user's layer may fail in any way
        raise InputError(
            FACTORY_KEY,
            f"layer {layer.name!r}, which fails on {source}, shape {tuple(x.shape)} and type {x.dtype} "
            f"({in_words(error)})",
            "layers that each accept what the one before puts out",
            _TAKES_GRADIENT if "require grad" in str(error) else "",
        ) from error
    if not isinstance(y, Tensor):
        found = f"layer {layer.name!r}, which puts out a {type(y).__name__}"
        raise InputError(FACTORY_KEY, found, "layers that put out one tensor")
    return y


def _cost(layer: Layer, x: Tensor, balance: Balance) -> float:
    try:
        return COSTS[balance](layer.module, x)
    except (Exception, SystemExit) as error:  # a user's layer may fail in any way
        raise InputError(
            FACTORY_KEY,
            f"layer {layer.name!r}, which runs but fails where gradients are recorded ({in_words(error)})",
            "layers that can be trained",
        ) from error


def _described(output: Tensor) -> str:
    """Return a tensor's kind in words; empty for a dense tensor of real numbers, which any wire carries."""
    kinds = {
        f"a {type(output).__name__}": type(output) in (Tensor, nn.Parameter),
        "complex": not output.is_complex(),
        "quantised": not output.is_quantized,
        f"of layout {output.layout}": output.layout == torch.strided and not output.is_nested,
    }
    return next((kind for kind, is_plain in kinds.items() if not is_plain), "")


def _refuse_other_function(model: nn.Module, layers: list[Layer], example: Tensor) -> None:
    """Compare the listed layers with the model's own forward, which may do something between them."""
    kind = type(model).__name__
    batch = torch.cat([example, example])  # batch normalisation can't train on a single sample
    try:
        # In training mode, so that a dropout left out shows too; both runs draw the same random numbers.
        with _unchanged(model, example, training=True):
            whole = model(batch.clone())
        with _unchanged(model, example, training=True):
            composed = batch.clone()
            for layer in layers:
                composed = layer.module(composed)
    except (Exception, SystemExit) as error:  # a user's model may fail in any way
        found = f"a {kind} that fails on the example input in training mode ({in_words(error)})"
        raise InputError(FACTORY_KEY, found, "a model that runs on its data") from error
    is_same = (
        isinstance(whole, Tensor)
        and whole.shape == composed.shape
        and torch.allclose(whole, composed, equal_nan=True)
    )
    if not is_same:
        raise InputError(
            FACTORY_KEY,
            f"a {kind} whose layers, run in order, don't compute its forward",
            "layers that are all that the model does",
            "Make modules of the operations between the layers (such as nn.Flatten) and list them too.",
        )
