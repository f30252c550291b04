"""Samples of any split one by one, for a function of the user's that puts them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lowdimfa.data.drawing import read
from lowdimfa.data.items import Collate, ItemSplit
from lowdimfa.data.splits import Split, SubSplit, whole_of


@dataclass(frozen=True)
class Rows:
    """The samples of a split as items ``(input, target)``, the input maybe a mapping from names."""

    split: Split

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, numbers: list[int]) -> list[tuple[Any, Tensor]]:
        """Return some items; what the split draws for them comes of the default generators."""
        samples = read(self.split, torch.tensor(numbers), int(torch.randint(2**62, ())))
        inputs, targets = samples.inputs(), samples.targets()
        if isinstance(inputs, Mapping):
            names, parts = list(inputs), zip(*inputs.values(), strict=True)
            return list(zip([dict(zip(names, row, strict=True)) for row in parts], targets, strict=True))
        return list(zip(inputs, targets, strict=True))


def put_together(split: Split, where: str, collate: Collate) -> Split:
    """Return a split whose samples a function puts together; ``where`` names the factory of their data, for messages."""
    if isinstance(split, SubSplit):
        return replace(split, split=put_together(split.split, where, collate))
    if isinstance(split, ItemSplit):
        return replace(split, collate=collate)
    return ItemSplit(Rows(split), where, collate)


def put_in(split: Split) -> Split:
    """Return the whole split whose samples a split has, before a function put them together."""
    whole = whole_of(split)
    return whole.items.split if isinstance(whole, ItemSplit) and isinstance(whole.items, Rows) else whole
