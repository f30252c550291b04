"""Where blocks begin by name, and what may be at the end of one."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise

import torch
from torch import Tensor

from lowdimfa.calling import FACTORY_KEY
from lowdimfa.emptied import address, is_plain
from lowdimfa.errors import InputError
from lowdimfa.layers import Layer, named_tensors
from lowdimfa.trace import TracedLayer
from lowdimfa.values import CARRIED, MAX_MEMBERS, ONE, Types

BLOCKS_KEY = "model.blocks"


def cuts_at(layers: Sequence[Layer], names: Sequence[str]) -> list[int]:
    """Return the indexes of the layers with these names, at which blocks begin.

    Raises
    ------
    InputError
        There is no such layer, or they aren't different ones in the order of the layers, after the first.
    """
    positions = {layer.name: index for index, layer in enumerate(layers)}
    unknown = [name for name in names if name not in positions]
    if unknown:
        near = get_close_matches(unknown[0], positions, cutoff=0.0)
        raise InputError(
            BLOCKS_KEY,
            f"the layer name {unknown[0]!r}",
            f"names of layers, such as {', '.join(map(repr, near))}",
        )
    cuts = [positions[name] for name in names]
    if any(start >= stop for start, stop in pairwise([0, *cuts])):
        raise InputError(
            BLOCKS_KEY,
            str(list(names)),
            f"different names in the order of the layers, after {layers[0].name!r}",
        )
    return cuts


def refuse_end(layer: Layer, traced: TracedLayer, batch: int) -> None:
    """Refuse the end of a block whose output can't go to another one.

    Raises
    ------
    InputError
        It isn't made of dense tensors with one entry per sample, or of too many.
    """
    if traced.odd:
        raise InputError(
            FACTORY_KEY,
            f"layer {layer.name!r} at a block's end, whose output is {traced.odd}",
            f"a dense torch.Tensor of {', '.join(str(one).removeprefix('torch.') for one in CARRIED)}",
            "Name other boundaries in model.blocks, or convert it within the layer.",
        )
    if len(traced.outputs) > MAX_MEMBERS:
        found = f"layer {layer.name!r} at the end of a block, which puts out {len(traced.outputs)} tensors"
        raise InputError(FACTORY_KEY, found, f"at most {MAX_MEMBERS}")
    for name, kind in traced.outputs.items():
        if kind.shape[:1] != (batch,):
            raise InputError(
                FACTORY_KEY,
                f"layer {layer.name!r} at the end of a block, whose output {name and f'{name!r} '}is {kind.shape} for "
                f"{batch} samples",
                "one entry per sample along the first dimension",
            )


def refuse_set(layer: Layer, outputs: Types) -> None:
    """Refuse a network that ends with a named set.

    Raises
    ------
    InputError
        It does.
    """
    if set(outputs) != {ONE}:
        raise InputError(
            FACTORY_KEY,
            f"layer {layer.name!r} at the end, which puts out {', '.join(map(repr, outputs))}",
            "one tensor, of which the loss is computed",
        )


def refuse_shared(blocks: Sequence[Sequence[Layer]]) -> None:
    """Refuse blocks that share a tensor.

    Raises
    ------
    InputError
        Two do.
    """
    owners: dict[tuple[int, int], tuple[int, str]] = {}
    for index, layers in enumerate(blocks):
        for layer in layers:
            for name, tensor in named_tensors(layer.module, layer.name):
                block, first_name = owners.setdefault(_place(tensor), (index, name))
                if block != index:
                    raise InputError(
                        BLOCKS_KEY,
                        f"{first_name} in block {block}, which block {index} shares as {name}",
                        "blocks that share nothing, since each learns in a process of its own",
                        "Untie the two, or move the boundaries so that one block holds both.",
                    )


def _place(tensor: Tensor) -> tuple[int, int]:
    """Return what two tensors have in common that are one, or begin at one place in memory, as two parameters may."""
    if not is_plain(tensor):
        return id(tensor), 0
    with torch._C.DisableTorchFunction():  # nothing is read: the values need not be there
        return address(tensor), int(tensor.storage_offset())
