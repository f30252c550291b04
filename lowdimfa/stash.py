"""Weight stashing: graphs that keep the weights of their forward, though these are updated before their backward."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class StashedWeights:
    """The storages of learned parameters as they are now; a copy of them once they are about to change."""

    def __init__(self, module: nn.Module) -> None:
        learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._parameters = [(parameter, _Place.of(parameter)) for parameter in learned]
        self.storages = {place.pointer: _whole(parameter) for parameter, place in self._parameters}
        self._copied = False

    def copy(self) -> None:
        """Keep a copy, since the parameters are about to change."""
        self.storages = {pointer: storage.clone() for pointer, storage in self.storages.items()}
        self._copied = True

    @staticmethod
    @contextmanager
    def in_place(weights: StashedWeights | None) -> Iterator[None]:
        """Let the parameters have these values meanwhile, for layers that run again in their own backward pass."""
        if weights is None or not weights._copied:
            yield
            return
        present = [(parameter, parameter.data) for parameter, _ in weights._parameters]
        for parameter, place in weights._parameters:
            parameter.data = place.within(weights.storages[place.pointer])
        try:
            yield
        finally:
            for parameter, data in present:
                parameter.data = data


class _Place(NamedTuple):
    """Where a tensor lies in a storage."""

    pointer: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Place:
        return cls(_pointer(tensor), tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def within(self, storage: Tensor) -> Tensor:
        return storage.as_strided(self.size, self.stride, self.offset)


class _Saved(NamedTuple):
    """What a graph holds in place of a tensor that shares a parameter's storage."""

    weights: StashedWeights
    place: _Place

    def tensor(self) -> Tensor:
        return self.place.within(self.weights.storages[self.place.pointer])


class _Unmoved(NamedTuple):
    """What a graph holds of a frozen parameter that no forward has changed so far: the tensor, and its version."""

    alias: Tensor
    version: int

    def tensor(self) -> Tensor:
        if self.alias._version != self.version:  # autograd looks no more where hooks have packed
            raise RuntimeError(
                "a frozen parameter that the backward pass needs has been modified by an inplace operation since; "
                "change it in every forward, before it is used, or make it a buffer"
            )
        return self.alias


class WeightStash:
    """Keeps the weights that graphs of earlier forwards still need.

    Without it the update of an earlier step, applied between a micro-batch's forward and its backward, would mix old
    activations with new weights (autograd refuses that). All forwards between two updates share one copy, which is
    made at the update, and only if a graph is left that needs it (PipeDream's weight stashing; Narayanan et al., 2019).

    Parameters
    ----------
    module
        Whose parameters are kept. Buffers that a graph saves are copied at once, since forwards change them; so are
        frozen parameters once a forward has changed them, as one that is an average of others.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        # Versions of frozen parameters before the first forward, by where they lie.
        self._frozen: dict[int, int] = {}
        # Weak, so that the last graph that needs a version takes it along.
        self._present: weakref.ref[StashedWeights] | None = None

    @contextmanager
    def keeping(self) -> Iterator[StashedWeights]:
        """Let the graphs of the forwards within refer to the present weights, whatever becomes of the parameters."""
        weights = self._present() if self._present is not None else None
        if weights is None:
            weights = StashedWeights(self._module)
            self._present = weakref.ref(weights)
        present: StashedWeights = weights
        # Held, as a layer may put others in their place: their memory must not become that of another tensor meanwhile.
        fixed = (one for one in self._module.parameters() if not one.requires_grad)
        frozen = {_pointer(one): one for one in fixed if _is_dense(one)}
        held = frozen | {_pointer(one): one for one in self._module.buffers() if _is_dense(one)}
        self._frozen = {place: self._frozen.get(place, one._version) for place, one in frozen.items()}
        copies: dict[tuple[int, torch.dtype, int], Tensor] = {}

        def pack(tensor: Tensor) -> Tensor | _Saved | _Unmoved:
            if not _is_dense(tensor):
                return tensor.detach()
            place = _Place.of(tensor)
            if place.pointer in present.storages:
                same = present.storages[place.pointer].dtype == tensor.dtype
                return _Saved(present, place) if same else tensor.clone()
            alias = tensor.detach()  # a node's own output would hold its node for ever
            if place.pointer not in held:
                return alias
            if self._frozen.get(place.pointer) == alias._version:
                return _Unmoved(alias, alias._version)
            key = place.pointer, alias.dtype, alias._version
            if key not in copies:
                copies[key] = _whole(tensor).clone()
            return place.within(copies[key])

        with torch.autograd.graph.saved_tensors_hooks(
            pack, lambda saved: saved.tensor() if isinstance(saved, _Saved | _Unmoved) else saved
        ):
            yield present

    def before_update(self) -> None:
        """Copy the present weights for the graphs that need them; to be called before the parameters change."""
        weights = self._present() if self._present is not None else None
        if weights is not None:
            weights.copy()
        self._present = None


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor lies in one storage."""
    return tensor.layout is torch.strided and not tensor.is_nested


def _pointer(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor's storage as a vector that shares it."""
    return tensor.detach().as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
