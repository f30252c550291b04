"""Run the layers of a model on an example, to learn shapes, costs, and whether they are all of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves

from lowdimfa.block_module import BlockModule
from lowdimfa.calling import FACTORY_KEY, by_name, refuse_lacking, takes_of
from lowdimfa.cost import COSTS, Balance
from lowdimfa.errors import InputError, LowdimfaError, in_words
from lowdimfa.layers import Layer, runs_children
from lowdimfa.unchanged import unchanged
from lowdimfa.values import (
    CARRIED,
    ONE,
    Activation,
    Types,
    Value,
    Values,
    everywhere,
    named,
    onward,
    opened,
    some_tensor,
    types_of,
)

_TAKES_GRADIENT = (
    "Evaluation runs without gradients, and a block's input requires none: a layer that takes one does so within "
    "torch.enable_grad(), of x if x.requires_grad else x.detach().requires_grad_()."
)


@dataclass(frozen=True)
class TracedLayer:
    """What a layer does with an example.

    Attributes
    ----------
    inputs, outputs
        Shapes (batch included) and types of what comes to it and of what goes on.
    side
        The inputs of the data that it takes by name.
    learned
        Of a named set that it puts out, what it has made itself and what depends on weights.
    cost
        Of the layer.
    largest
        How many numbers the largest tensor has, for each sample, that it or a module within it puts out.
    odd
        In words, an output that can't leave a block.
    moves
        Parameters that its forward changes by itself, and attributes that are numbers or truth values.
    """

    inputs: Types
    outputs: Types
    side: tuple[str, ...]
    learned: frozenset[str]
    cost: float
    largest: int
    odd: str
    moves: tuple[str, ...] = ()


def trace(model: nn.Module, layers: list[Layer], example: Activation, balance: Balance) -> list[TracedLayer]:
    """Run the layers in order and measure each; neither the model nor the global random state is changed.

    Raises
    ------
    InputError
        A layer fails, puts out something else than a tensor or a named set, or the layers aren't all that the model does.
    """
    traced: list[TracedLayer] = []
    device = some_tensor(example).device
    with unchanged(model, device, training=False) as moved:
        x = example
        for index, layer in enumerate(layers):
            stream, side = opened(x)
            takes = layer.takes
            refuse_lacking(takes, stream, side)
            with _put_out(len(some_tensor(x))) as sizes:
                y, learned = _run(layer, layers[index - 1] if index else None, x)
            taken = by_name(takes, stream, side)
            beside = tuple(name for name in taken if isinstance(stream, Tensor) or name not in stream)
            cost, odd = _cost(layer, x, balance), _described(y)
            largest = max(sizes, default=0)
            traced.append(TracedLayer(types_of(stream), types_of(y), beside, learned, cost, largest, odd))
            x = onward(x, y)
    _refuse_unused(opened(example)[1], traced)
    traced = [replace(one, moves=_moves(layer, moved)) for one, layer in zip(traced, layers, strict=True)]
    if not runs_children(model) and type(model).forward is not nn.Module.forward:
        _refuse_other_function(model, layers, example)
    return traced


@contextmanager
def _put_out(samples: int) -> Iterator[set[int]]:
    """Note how many numbers for each sample the outputs of modules have that run meanwhile in this thread."""
    sizes, own = set[int](), threading.get_ident()

    def note(module: nn.Module, args: object, output: object) -> None:
        if threading.get_ident() != own:
            return
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_nested:
                # Others are no samples, such as weights that a parametrisation makes.
                sizes.update([leaf.numel() // samples] if leaf.shape[:1] == (samples,) else [])

    # For all modules: those of torch take slower ways where one of their own has a hook.
    hook = register_module_forward_hook(note)
    try:
        yield sizes
    finally:
        hook.remove()


def _moves(layer: Layer, moved: Mapping[nn.Module, list[str]]) -> tuple[str, ...]:
    parts = {module: name for name, module in layer.module.named_modules()}
    return tuple(
        f"{parts[module]}.{name}".lstrip(".") for module in parts if module in moved for name in moved[module]
    )


def _refuse_unused(side: Mapping[str, Tensor], traced: list[TracedLayer]) -> None:
    """Refuse inputs by name that no layer takes: plain torch wouldn't take them either."""
    unused = set(side) - {name for layer in traced for name in layer.side}
    if unused:
        raise InputError(
            "data.factory",
            f"the input {min(unused)!r}, which no layer's forward takes by name",
            "inputs that layers name",
            "Name it among the parameters of the layers that need it, or leave it out of the data.",
        )


def _run(layer: Layer, before: Layer | None, x: Activation) -> tuple[Value, frozenset[str]]:
    """Return what a layer puts out, and what of a named set it has made itself and depends on weights."""
    source = f"the output of layer {before.name!r}" if before else "the example input"
    module, own = BlockModule([layer]), everywhere(x, Tensor.clone)  # the layer may work in place
    stream, side = opened(own)
    try:
        y = module(stream, side)
        learned = _learned(module, x) if isinstance(y, dict) else frozenset()
    except LowdimfaError:
        raise
    except (Exception, SystemExit) as error:  # a user's layer may fail in any way
        raise InputError(
            FACTORY_KEY,
            f"layer {layer.name!r}, which fails on {source}, {_in_words(x)} ({in_words(error)})",
            "layers that each accept what the one before puts out",
            _TAKES_GRADIENT if "require grad" in str(error) else "",
        ) from error
    written = [name for name, tensor in side.items() if tensor._version]
    if written:
        raise InputError(
            FACTORY_KEY,
            f"layer {layer.name!r}, which writes in place to the input {written[0]!r} of the data",
            "layers that make a copy of what others get too",
        )
    _refuse_shared_writes(layer, stream, opened(x)[0])
    return y, learned


def _refuse_shared_writes(layer: Layer, given: Value, origin: Value) -> None:
    """Refuse a layer that writes to a member of a named set that another one shares memory with: cut, it wouldn't."""
    if isinstance(given, Tensor) or isinstance(origin, Tensor):
        return
    for name in (name for name, tensor in given.items() if tensor._version):
        place = origin[name].untyped_storage()._cdata
        shared = [
            other for other in origin if other != name and origin[other].untyped_storage()._cdata == place
        ]
        if shared:
            raise InputError(
                FACTORY_KEY,
                f"layer {layer.name!r}, which writes in place to {name!r}, whose memory {shared[0]!r} shares",
                "layers that write to what is theirs alone",
                "At the end of a block each of the two would be a tensor of its own. Let the layer before make a copy.",
            )


def _learned(module: nn.Module, x: Activation) -> frozenset[str]:
    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(tensor.is_floating_point())

    # What weights have made is that if the whole layer is frozen, too; of one that learns, a table it doesn't is not.
    frozen = [value for value in module.parameters() if value.is_floating_point()]
    if any(value.requires_grad for value in frozen):
        frozen = []
    try:
        for value in frozen:
            value.requires_grad_()
        with torch.enable_grad():
            stream = {name: leaf(tensor).clone() for name, tensor in named(opened(x)[0]).items()}
            y = module(stream.get(ONE, stream), opened(x)[1])
    finally:
        for value in frozen:
            value.requires_grad_(False)
    return frozenset(
        name for name, tensor in y.items() if tensor is not stream.get(name) and tensor.requires_grad
    )


def _in_words(x: Activation) -> str:
    stream, side = opened(x)
    of = types_of(stream if isinstance(stream, Tensor) else {**side, **stream})
    return ", ".join(
        f"{name and f'{name!r} of '}shape {kind.shape} and type {kind.dtype}" for name, kind in of.items()
    )


def _cost(layer: Layer, x: Activation, balance: Balance) -> float:
    try:
        return COSTS[balance](BlockModule([layer]), x)
    except (Exception, SystemExit) as error:  # a user's layer may fail in any way
        raise InputError(
            FACTORY_KEY,
            f"layer {layer.name!r}, which runs but fails where gradients are recorded ({in_words(error)})",
            "layers that can be trained",
        ) from error


def _described(output: Value) -> str:
    """Return an output's kind in words; empty for dense tensors of numbers that any wire carries."""
    return next(filter(None, map(_kind, named(output).values())), "")


def _kind(output: Tensor) -> str:
    kinds = {
        f"a {type(output).__name__}": type(output) in (Tensor, nn.Parameter),
        "complex": not output.is_complex(),
        "quantised": not output.is_quantized,
        f"of layout {output.layout}": output.layout == torch.strided and not output.is_nested,
        f"of {output.dtype}": output.dtype in CARRIED,
    }
    return next((kind for kind, is_plain in kinds.items() if not is_plain), "")


def _refuse_other_function(model: nn.Module, layers: list[Layer], example: Activation) -> None:
    """Compare the listed layers with the model's own forward, which may do something between them."""
    kind = type(model).__name__
    batch = everywhere(
        example, lambda tensor: torch.cat([tensor, tensor])
    )  # batch normalisation can't train on a single sample
    try:
        # In training mode, so that a dropout left out shows too; both runs draw the same random numbers.
        with unchanged(model, some_tensor(example).device, training=True):
            whole = _whole(model, everywhere(batch, Tensor.clone))
        with unchanged(model, some_tensor(example).device, training=True):
            composed = BlockModule(layers)(*opened(everywhere(batch, Tensor.clone)))
    except (Exception, SystemExit) as error:  # a user's model may fail in any way
        found = f"a {kind} that fails on the example input in training mode ({in_words(error)})"
        raise InputError(FACTORY_KEY, found, "a model that runs on its data") from error
    if not _is_same(whole, composed):
        raise InputError(
            FACTORY_KEY,
            f"a {kind} whose layers, run in order, don't compute its forward",
            "layers that are all that the model does",
            "Make modules of the operations between the layers (such as nn.Flatten) and list them too.",
        )


def _is_same(whole: object, composed: object) -> bool:
    """Whether two outputs differ by no more than the same operations in another order and layout do."""
    if not isinstance(whole, Tensor) or not isinstance(composed, Tensor) or whole.shape != composed.shape:
        return False
    rounding = max(1e-4, 10 * torch.finfo(whole.dtype).eps) if whole.is_floating_point() else 0.0
    largest = whole.abs().nan_to_num(0.0, 0.0, 0.0).max().item() if whole.numel() else 0.0
    return torch.allclose(whole, composed, rtol=rounding, atol=rounding * largest / 10, equal_nan=True)


def _whole(model: nn.Module, batch: Activation) -> object:
    """Call the model itself: with the data's inputs by name, or where it names none of them, with all of them at once."""
    if not isinstance(batch, Values):
        return model(batch)
    given = by_name(takes_of(model), {}, batch.side)
    return model(**batch.side) if given else model(dict(batch.side))
