"""Run the layers of a model on an example, to learn shapes, costs, and whether they are all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowdimfa.cost import COSTS, Balance
from lowdimfa.errors import InputError, in_words
from lowdimfa.layers import FACTORY_KEY, Layer, runs_children


@dataclass(frozen=True)
class TracedLayer:
    """Shapes (batch included) and types of the tensors around a layer, and its cost."""

    input_shape: torch.Size
    output_shape: torch.Size
    input_dtype: torch.dtype
    output_dtype: torch.dtype
    cost: float


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
            traced.append(TracedLayer(x.shape, y.shape, x.dtype, y.dtype, COSTS[balance](layer.module, x)))
            x = y
    if not runs_children(model) and type(model).forward is not nn.Module.forward:
        _refuse_other_function(model, layers, example)
    return traced


@contextmanager
def _unchanged(model: nn.Module, example: Tensor, training: bool) -> Iterator[None]:
    """Enter one mode, then put back the model's modes and buffers and the global random state."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [example.device] if example.is_cuda else []
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            model.train(training)
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, value in buffers:
                buffer.copy_(value)


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
        ) from error
    if not isinstance(y, Tensor):
        found = f"layer {layer.name!r}, which puts out a {type(y).__name__}"
        raise InputError(FACTORY_KEY, found, "layers that put out one tensor")
    return y


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
