"""Weight stashing: graphs that keep the weights of their forward, though these are updated before their backward."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class _Weights:
    """The parameters' storages as they are now; a copy of them once they are about to change."""

    def __init__(self, module: nn.Module) -> None:
        self.storages = {_pointer(parameter): _whole(parameter) for parameter in module.parameters()}

    def copy(self) -> None:
        self.storages = {pointer: storage.clone() for pointer, storage in self.storages.items()}


class _Saved(NamedTuple):
    """What a graph holds in place of a tensor that shares a parameter's storage."""

    weights: _Weights
    pointer: int
    like: tuple[torch.Size, tuple[int, ...], int]

    def tensor(self) -> Tensor:
        return self.weights.storages[self.pointer].as_strided(*self.like)


class WeightStash:
    """Keeps the weights that graphs of earlier forwards still need.

    Without it the update of an earlier step, applied between a micro-batch's forward and its backward, would mix old
    activations with new weights (autograd refuses that). All forwards between two updates share one copy, which is
    made at the update, and only if a graph is left that needs it (PipeDream's weight stashing; Narayanan et al., 2019).

    Parameters
    ----------
    module
        Whose parameters are kept. Buffers that a graph saves are copied at once, since forwards change them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        # Weak, so that the last graph that needs a version takes it along.
        self._present: weakref.ref[_Weights] | None = None

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Let the graphs of the forwards within refer to the present weights, whatever becomes of the parameters."""
        weights = self._present() if self._present is not None else None
        if weights is None:
            weights = _Weights(self._module)
            self._present = weakref.ref(weights)
        present: _Weights = weights
        buffers = {_pointer(buffer) for buffer in self._module.buffers()}
        copies: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor | _Saved:
            pointer = _pointer(tensor)
            like = tensor.shape, tensor.stride(), int(tensor.storage_offset())
            if pointer in present.storages:
                same = present.storages[pointer].dtype == tensor.dtype
                return _Saved(present, pointer, like) if same else tensor.clone()
            if pointer not in buffers:
                return tensor.detach()  # a node's own output would hold its node for ever
            if pointer not in copies:
                copies[pointer] = _whole(tensor).clone()
            return copies[pointer].as_strided(*like)

        with torch.autograd.graph.saved_tensors_hooks(
            pack, lambda saved: saved.tensor() if isinstance(saved, _Saved) else saved
        ):
            yield

    def before_update(self) -> None:
        """Copy the present weights for the graphs that need them; to be called before the parameters change."""
        weights = self._present() if self._present is not None else None
        if weights is not None:
            weights.copy()
        self._present = None


def _pointer(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor's storage as a vector that shares it."""
    return tensor.detach().as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
