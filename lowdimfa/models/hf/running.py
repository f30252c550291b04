"""In which order the modules of a network run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from inspect import signature
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from lowdimfa.errors import InputError
from lowdimfa.models.hf.shapes import run_on_shapes

_TOKENS = 5


class Ran(NamedTuple):
    """A module that has run.

    Attributes
    ----------
    name
        Of the module in the network.
    given, made
        How many dimensions its first input and its output have: 0 without real numbers.
    more
        Names of other inputs with real numbers.
    """

    name: str
    given: int
    made: int
    more: tuple[str, ...] = ()


def lists_of(original: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the lists of modules that a network has, but for those in others."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in original.named_modules():
        within = any(name.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and len(module) and not within:
            found[name] = module
    return found


def order_of(original: nn.Module, images: bool) -> list[Ran]:
    """Return the modules outside of blocks, and the blocks, in the order in which they end, as far as can be told.

    The network runs on shapes, with stand-ins that give back hidden states for all that is in lists.
    """
    # Some kinds of blocks return more than hidden states. What takes the one for the other ends early.
    return max((_run(original, images, answer) for answer in (_bare, _in_tuple)), key=len)


def _bare(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    if hidden_states.ndim != 3:
        raise ValueError("the first of a tuple was taken of what is none")
    return hidden_states


def _in_tuple(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return _bare(hidden_states), None


def _run(original: nn.Module, images: bool, answer: Callable[..., Any]) -> list[Ran]:
    ran: list[Ran] = []
    inputs = _inputs(original.config, images)

    def note(name: str) -> Callable[..., None]:
        def noted(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
            known = (
                dict(zip(signature(type(module).forward).parameters, (module, *given), strict=False)) | named
            )
            first, *others = [*known.items()][1:] or [("", None)]
            more = tuple(key for key, value in others if _dimensions(value))
            ran.append(Ran(name, _dimensions(first[1]), _dimensions(made), more))

        return noted

    within = tuple(
        f"{name}.{index}" for name, blocks in lists_of(original).items() for index in range(len(blocks))
    )
    with ExitStack() as stack:
        for name, module in original.named_modules():
            if name in within:
                stack.enter_context(mock.patch.object(module, "forward", answer))
            if not name.startswith(tuple(f"{block}." for block in within)):
                stack.callback(module.register_forward_hook(note(name), with_kwargs=True).remove)
        # What looks at values, as some do for the last token, doesn't run to its end.
        with suppress(Exception):
            run_on_shapes(original, inputs, lambda: None)
    return ran


def _dimensions(value: Any) -> int:
    return value.ndim if isinstance(value, Tensor) and value.is_floating_point() else 0


def _inputs(config: Any, images: bool) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    if not images:
        return {"input_ids": ((1, _TOKENS), torch.int64)}
    return {"pixel_values": (image_shape(config, 1), torch.float32)}


def image_shape(config: Any, samples: int) -> tuple[int, ...]:
    """Return the shape of images that a network takes.

    Raises
    ------
    InputError
        Its configuration doesn't say how large they are.
    """
    size = getattr(config, "image_size", None)
    if size is None:
        raise InputError(
            "model.args.config", "no image_size", "that of the data, one number or [height, width]"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return samples, config.num_channels, height, width
