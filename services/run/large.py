"""Networks that no single process holds: above a size, each process has memory for its own layers alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowdimfa.emptied import UnfitError
from lowdimfa.errors import InputError
from lowdimfa.partitioning import BlockPlan
from lowdimfa.sparse import Outline, Share, outline

LARGE = 128 << 20
"""Bytes of parameters and buffers above which no process holds the whole network: a smaller one starts faster whole."""

Make = Callable[[], nn.Module]
"""Calls a factory of networks, with the run's seed."""

Cut = TypeVar("Cut")


def build_and_cut(
    make: Make, cut: Callable[[nn.Module], Cut], whole: bool
) -> tuple[Cut, Outline | None, str]:
    """Build a network and cut it; a large one has no memory for its weights then, unless the whole is wanted.

    Returns
    -------
    cut, outline, note
        Of a large network: what knows how to build some layers, still to be closed; or why all have memory.
    """
    try:
        with nullcontext() if whole else _UpTo(LARGE):
            model = make()
    except _TooLargeError:
        return _outline_and_cut(make, cut)
    return cut(model), None, ""


def _outline_and_cut(make: Make, cut: Callable[[nn.Module], Cut]) -> tuple[Cut, Outline | None, str]:
    running = None
    try:
        found = outline(make)
        if found.nbytes <= LARGE:
            return cut(make()), None, ""
        running = found.running()
        with running.active():
            blocks = cut(found.model)
        return blocks, found, ""
    except UnfitError as error:
        reason = str(error)
    except InputError:
        if running is None or running.unfit is None:
            raise
        reason = running.unfit
    note = f"every process holds the whole network, as model.factory can't build some layers alone: {reason}"
    return cut(make()), None, note


def build_shapes(make: Make) -> nn.Module:
    """Build a network whose values nobody needs: a large one has shapes alone, unless it can only be built whole."""
    model, outline, _ = build_and_cut(make, lambda model: model, whole=False)
    if outline is not None:
        outline.close()
    return model


def build_some(make: Make, outlined: Outline | Share, block: BlockPlan) -> BlockPlan:
    """Return a block of a large network, or a piece of one, with its layers and their memory.

    Raises
    ------
    InputError
        The factory builds something else than when the network was planned.
    """
    share = (
        outlined if isinstance(outlined, Share) else outlined.share([layer.name for layer in block.layers])
    )
    try:
        return replace(block, layers=tuple(share.build(make)))
    except UnfitError as error:
        raise InputError("model.factory", str(error), "one that builds the same in every process") from error


class _TooLargeError(BaseException):
    """Ends a factory, which may catch exceptions."""


class _UpTo(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Ends what makes tensors of more bytes than that."""

    supports_higher_order_operators = True

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._left = limit

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, HigherOrderOperator):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func._schema.is_mutable:
            self._left -= sum(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        if self._left < 0:
            raise _TooLargeError
        return result
