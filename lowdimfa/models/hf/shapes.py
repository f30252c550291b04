"""Networks that run on shapes alone: what they do in which order, of weights that no process may hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_LOOKS = 10_000
_ONE = threading.Lock()
"""Held while a function of the package is replaced: of two that overlap, the one would leave that of the other."""


class _Values(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers 0 to who looks at the value of a number, such as the longest position: there is none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.looks = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is not torch.ops.aten._local_scalar_dense.default:
            return function(*args, **(kwargs or {}))
        self.looks += 1
        if self.looks > _LOOKS:
            raise RuntimeError("it goes on looking at a value")
        return torch.zeros((), dtype=args[0].dtype, device="cpu").item()


def run_on_shapes(
    original: nn.Module,
    inputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    looking: Callable[[], None],
    **options: bool,
) -> None:
    """Run a network on shapes.

    Parameters
    ----------
    original
        The network.
    inputs
        Shapes and types of its inputs, by name.
    looking
        Called where its masks look for packed texts at positions, which have no values here: none are found.
    options
        Of its forward.
    """
    with _ONE, _packed_for(looking), _disable_current_modes(), torch.no_grad(), torch.device("meta"):
        shapes = {
            name: torch.empty_like(value, device="meta")
            for name, value in (*original.named_parameters(), *original.named_buffers())
        }
        with _unchanged(original), _Values():
            given = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in inputs.items()}
            functional_call(original, shapes, kwargs=given | options)


@contextmanager
def _packed_for(looking: Callable[[], None]) -> Iterator[None]:
    """Let masks of this thread call it where they look for packed texts; other threads go on looking for theirs."""
    masks = import_module("transformers.masking_utils")
    find, thread = masks.find_packed_sequence_indices, threading.get_ident()

    def found_none(*positions: Any, **named: Any) -> Any:
        if threading.get_ident() != thread:
            return find(*positions, **named)
        return looking()

    with mock.patch.object(masks, "find_packed_sequence_indices", found_none):
        yield


@contextmanager
def _unchanged(network: nn.Module) -> Iterator[None]:
    """Let modules forget what they keep of a run, as rotary embeddings do that depend on how long sequences are."""
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in network.modules()]
    try:
        yield
    finally:
        for module, values, buffers in before:
            for now, then in ((vars(module), values), (module._buffers, buffers)):
                now.clear()
                now.update(then)
