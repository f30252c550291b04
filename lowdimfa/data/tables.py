"""Factory of data from tables: Parquet, CSV and JSON lines, and what Hugging Face's `datasets` has saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lowdimfa.data.base import Dataset
from lowdimfa.data.extra import package
from lowdimfa.data.held_out import class_names, existing, with_test
from lowdimfa.data.table_files import rows
from lowdimfa.errors import InputError
from lowdimfa.values import Inputs

_EXACT = 1 << 24
"""Up to which single precision has every whole number."""


@dataclass(frozen=True)
class TableSplit:
    """Rows of a table, read when they are drawn.

    Attributes
    ----------
    input_rows, target_rows
        The `datasets.Dataset` as it gives tensors of the inputs, and of the targets alone.
    where
        Its path, for messages.
    columns
        Of each input by name: one, or a list of what is put side by side.
    target
        Column of the target.
    classes
        Number of the class that each text of this column stands for; empty where it has numbers.
    """

    input_rows: Any
    target_rows: Any
    where: str
    columns: dict[str, str | list[str]]
    target: str
    classes: dict[str, int]

    def __len__(self) -> int:
        return len(self.target_rows)

    def inputs(self, indices: Tensor) -> Inputs:
        """Return the inputs of the given rows."""
        read = self.input_rows[indices.tolist()]
        drawn: dict[str, Tensor] = {
            name: self._tensor(read, given) if isinstance(given, str) else self._beside(read, given)
            for name, given in self.columns.items()
        }
        return drawn.get("", drawn)

    def targets(self, indices: Tensor) -> Tensor:
        """Return the targets of the given rows."""
        read = self.target_rows[indices.tolist()]
        if not self.classes:
            return self._tensor(read, self.target)
        found = read[self.target]
        if unknown := [text for text in found if text not in self.classes]:
            known = f"those of training, {', '.join(map(repr, list(self.classes)[:10]))}"
            raise InputError(self.where, f"the class {unknown[0]!r} in {self.target!r}", known)
        return torch.tensor([self.classes[text] for text in found])

    def _beside(self, read: Mapping[str, Any], columns: list[str]) -> Tensor:
        parts = [self._tensor(read, column) for column in columns]
        if len(parts) == 1 and parts[0].dim() != 1:
            return parts[0]
        for column, part in zip(columns, parts, strict=True):
            if part.dim() != 1:
                found = f"values of shape {list(part.shape[1:])} in {column!r}, one of several columns"
                raise InputError(self.where, found, "one number in each row, or this column alone")
        return torch.stack([part.float() for part in parts], 1)

    def _tensor(self, read: Mapping[str, Any], column: str) -> Tensor:
        found = read[column]
        if isinstance(found, Tensor):
            if found.is_floating_point() and (gaps := int(found.isnan().sum())):
                what = f"{gaps} gaps (NaN) in {len(found)} rows of the column {column!r}"
                raise InputError(self.where, what, "a number at every place")
            return found
        kinds = sorted(
            {f"{list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__ for part in found}
        )
        raise InputError(
            self.where,
            f"{' and '.join(kinds[:3])} in the column {column!r}",
            "numbers, or lists of them of one shape",
            "Text is for 'lowdimfa data tokens'; for all else write a factory, with data.collate if shapes differ.",
        )


def table(
    path: str,
    inputs: str | Sequence[str] | Mapping[str, str | Sequence[str]],
    target: str = "label",
    test: str | float = 0.1,
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Return rows of a table, which are read when they are drawn; it needs the extra ``hf``.

    Floating-point numbers are float32, whole ones int64; columns that are put side by side are float32.

    Parameters
    ----------
    path
        A file (``.parquet``, ``.csv``, ``.jsonl``, ``.ndjson``, ``.json`` of lines), a folder of such of one kind, or a
        folder that `datasets.Dataset.save_to_disk` wrote.
    inputs
        A column with a number or a list in each row; a list of columns of numbers, which are put side by side; or either
        of these for each name of an input.
    target
        Column of the targets; texts are classes, numbered in their order.
    test
        Path of the test rows, or what part of all rows they are.
    seed
        Decides which rows are in such a part.
    classes
        Names of the classes in the order of their numbers; by default texts are sorted.

    Raises
    ------
    InputError
        The path can't be read, or is that of several tables; a column is missing, has gaps, or has no numbers; whole
        numbers beyond 2^24 would be rounded.
    """
    by_name = inputs if isinstance(inputs, Mapping) else {"": inputs}
    columns = {name: given if isinstance(given, str) else list(given) for name, given in by_name.items()}
    beside = {column for given in columns.values() if not isinstance(given, str) for column in given}
    alone = [given for given in columns.values() if isinstance(given, str)]
    numbers: dict[str, int] = {}
    kinds: list[str] = []
    order = None if classes is None else class_names(classes, "table: classes")
    named = list(order or ())

    def read(path: str) -> TableSplit:
        where = existing(path, "table: path")
        wanted = list(dict.fromkeys([*alone, *sorted(beside)]))
        every = list(dict.fromkeys([*wanted, target]))
        found = rows(where, every, [target] if numbers else [])
        for name in every:
            _require_numbers(found.data.column(name), str(where), name)
            if name in beside:
                _require_exact(found.data.column(name), str(where), name)
        kinds.append("text" if "string" in str(getattr(found.features[target], "dtype", "")) else "numbers")
        if kinds[-1] != kinds[0]:
            what = f"{kinds[-1]} in the column {target!r}"
            raise InputError(str(where), what, f"{kinds[0]}, as in the training rows")
        if not numbers and kinds[-1] == "text":
            numbers.update(_numbered(found.unique(target), order, str(where)))
        named[:] = numbers or _names(found.features[target], named, str(where))
        inputs, targets = (found.with_format("torch", columns=names) for names in (wanted, [target]))
        return TableSplit(inputs, targets, str(where), columns, target, numbers)

    data = with_test("table", read, path, test, seed)
    return replace(data, classes=tuple(named) or None)


def _numbered(texts: Sequence[str], classes: Sequence[str] | None, where: str) -> dict[str, int]:
    """Return the number of each class."""
    order = sorted(texts) if classes is None else list(classes)
    if unknown := sorted(set(texts) - set(order)):
        raise InputError(where, f"the class {unknown[0]!r}", f"those of 'classes', {', '.join(order)}")
    return {text: number for number, text in enumerate(order)}


def _names(feature: Any, expected: Sequence[str], where: str) -> list[str]:
    """Return the names of classes that have numbers already: those expected, if there are any."""
    own = list(getattr(feature, "names", None) or ())
    if own and expected and own != list(expected):
        found = f"classes that are numbered already, {', '.join(own)}"
        raise InputError(where, found, f"those of 'classes', or of training, {', '.join(expected)}")
    return own or list(expected)


def _require_numbers(column: Any, where: str, name: str) -> None:
    """Refuse what would become other numbers, or none; a column of Arrow is looked at, however deep its lists are."""
    arrow, compute = package("pyarrow"), package("pyarrow.compute")
    if gaps := column.null_count:
        raise InputError(where, f"{gaps} rows without {name!r}", "a value in every row")
    # Lists, which may be most of a table, are looked at as they are drawn.
    if arrow.types.is_floating(column.type) and (gaps := compute.sum(compute.is_nan(column)).as_py()):
        raise InputError(where, f"{gaps} rows with NaN as {name!r}", "a number in every row")
    while isinstance(column.type, arrow.ListType | arrow.LargeListType | arrow.FixedSizeListType):
        column = compute.list_flatten(column)
        if gaps := column.null_count:
            raise InputError(where, f"{gaps} gaps in the lists of {name!r}", "a number at every place")
    if arrow.types.is_temporal(column.type) or arrow.types.is_decimal(column.type):
        expected = "numbers, or lists of them of one shape"
        raise InputError(where, f"{column.type} in the column {name!r}", expected, "Convert it to a number.")
    if column.type == arrow.uint64() and (compute.max(column).as_py() or 0) >= 2**63:
        raise InputError(where, f"{compute.max(column)} in the column {name!r}", "whole numbers below 2^63")


def _require_exact(column: Any, where: str, name: str) -> None:
    """Refuse whole numbers that single precision rounds."""
    arrow, compute = package("pyarrow"), package("pyarrow.compute")
    if not arrow.types.is_integer(column.type) or not len(column):
        return
    largest = max(compute.min_max(column).as_py().values(), key=abs)
    if abs(largest) > _EXACT:
        raise InputError(
            where,
            f"{largest} in the column {name!r}, one of those that become float32 side by side",
            f"whole numbers up to {_EXACT}",
            "As an input by name of its own, the column stays int64.",
        )
