"""Tensors that have a shape but no memory: their storages are given some while an operation looks at them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PATTERN = 1 << 16
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h of glibc numbers them
_KEPT = 32 << 20


class UnfitError(Exception):
    """Something looks at values that are not there; says what."""


@dataclass
class Slot:
    """A storage that may be emptied.

    Attributes
    ----------
    number
        How many such storages were made before it.
    nbytes
        Its size when it isn't empty.
    storage
        By which it can be told whether it still is.
    """

    number: int
    nbytes: int
    storage: StorageWeakRef


class Emptied(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives emptied storages memory while an operation runs on them, with values that stand for drawn weights.

    Within it a model whose weights are empty can run: it computes the same function of the same made-up weights each
    time, and no more of them than one operation needs is in memory at a time.

    Attributes
    ----------
    slots
        The storages, by the address of torch's own object, which their weak references keep from being used again.
    unfit
        What was done that needs true values, if anything.
    working
        Above 0 while an operation is done.
    """

    supports_higher_order_operators = True

    def __init__(self, slots: dict[int, Slot] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots = {} if slots is None else slots
        self.unfit: str | None = None
        self.working = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, HigherOrderOperator):
            return NotImplemented  # its operators come here one by one
        with self.at_work():
            return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do an operation."""
        with self.filled(tensors_in(args, kwargs), made_up=True):
            return func(*args, **kwargs)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let the mode's own looks at memory pass."""
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1

    @contextmanager
    def filled(self, tensors: Sequence[Tensor], made_up: bool) -> Iterator[None]:
        """Give emptied storages memory for a while, and made-up values if these will be looked at."""
        given = []
        for tensor in tensors:
            slot, storage = self.slot_of(tensor), tensor.untyped_storage()
            if slot is not None and slot.nbytes and not storage.nbytes():
                storage.resize_(slot.nbytes)
                given.append((slot, storage))
                if made_up:
                    _make_up(storage, tensor.dtype)
        try:
            yield
        finally:
            for slot, storage in given:
                empty(slot, storage)

    def slot_of(self, tensor: Tensor) -> Slot | None:
        """Return the slot of a tensor's storage, if it has one."""
        return self.slots.get(address(tensor))

    def is_absent(self, tensor: Tensor) -> bool:
        """Whether a tensor's values are not there."""
        return is_plain(tensor) and self.slot_of(tensor) is not None and not tensor.untyped_storage().nbytes()

    def refuse(self, reason: str) -> UnfitError:
        """Note what can't be done, and return the error for it."""
        self.unfit = self.unfit or reason
        return UnfitError(reason)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Enter the mode, and refuse what reads memory past torch's operations."""
        with _given_back(), _Guard(self), self:
            yield


class _Guard(TorchFunctionMode):
    """Refuses methods that hand out a tensor's memory, which is not there."""

    def __init__(self, emptied: Emptied) -> None:
        super().__init__()
        self._emptied = emptied

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if not self._emptied.working and args and isinstance(args[0], Tensor):
            if name == "__deepcopy__" and is_plain(args[0]) and self._emptied.slot_of(args[0]) is not None:
                return _copied(*args)
            if name in _PAST_OPERATIONS and self._emptied.is_absent(args[0]):
                raise self._emptied.refuse(f"Tensor.{name} of values that are not there")
        return func(*args, **(kwargs or {}))


_PAST_OPERATIONS = {
    *("numpy", "tolist", "__array__", "data_ptr", "__dlpack__", "apply_", "map_", "share_memory_"),
    *("untyped_storage", "storage", "_typed_storage", "__reduce_ex__"),
}


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Do as ``Tensor.__deepcopy__`` with an operation, where torch would copy memory."""
    if id(tensor) not in memo:
        memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return memo[id(tensor)]  # type: ignore[no-any-return]


def address(tensor: Tensor) -> int:
    """Return what tells storages apart."""
    return int(tensor.untyped_storage()._cdata)


def weakly(storage: torch.UntypedStorage) -> StorageWeakRef:
    """Return a reference that lets a storage go."""
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def empty(slot: Slot, storage: torch.UntypedStorage) -> None:
    """Take a storage's memory."""
    slot.nbytes = storage.nbytes()
    storage.resize_(0)


def tensors_in(*trees: Any) -> list[Tensor]:
    """Return the tensors with memory of the processor's in some arguments or results."""
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor) and is_plain(leaf)]


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has one storage, on the processor."""
    if is_lazy(tensor) or tensor.device.type != "cpu":
        return False
    return tensor.layout == torch.strided and not tensor.is_nested


def tensors_of(module: nn.Module, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Yield all tensors that a module and those within it hold, registered or not, hidden modules' too."""
    seen = set() if seen is None else seen
    for part in module.modules():
        if id(part) in seen:
            continue
        seen.add(id(part))
        for leaf in tree_leaves(vars(part)):
            if isinstance(leaf, Tensor):
                yield leaf
            elif isinstance(leaf, nn.Module) and id(leaf) not in seen:
                yield from tensors_of(leaf, seen)


def forget(tensor: Tensor) -> None:
    """Put a tensor whose memory is gone on the meta device: whoever uses it by mistake is told so by torch."""
    gone = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        gone = nn.Parameter(gone, tensor.requires_grad)
    with suppress(RuntimeError):  # somebody has a weak reference to it
        torch.utils.swap_tensors(tensor, gone)  # type: ignore[no-untyped-call]


@contextmanager
def _given_back() -> Iterator[None]:
    """Let the C library give large tensors' memory back to the system as soon as it is free.

    Where it may choose, glibc keeps what is as large as something that was freed before in one heap, in which the next
    small thing behind each large one pins it: a network built piece by piece would take the memory of the whole.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _PATTERN)
    try:
        yield
    finally:
        # What it would have chosen by itself: for training, which frees and takes the same sizes again and again.
        mallopt(_MMAP_THRESHOLD, _KEPT)
        mallopt(_TRIM_THRESHOLD, 2 * _KEPT)


def _make_up(storage: torch.UntypedStorage, dtype: torch.dtype) -> None:
    values: Tensor = torch.empty(0, dtype=dtype).set_(storage)
    # As wide as the usual draws of a square matrix's weights, so that deep networks neither vanish nor explode.
    base = (_pattern() * max(len(values), 1) ** -0.25).to(dtype)
    for part in torch.split(values, _PATTERN):
        part.copy_(base[: len(part)])


@cache
def _pattern() -> Tensor:
    return torch.randn(
        _PATTERN, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
    )
