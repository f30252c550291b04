"""Files of tables as rows of Hugging Face's `datasets`: all of a folder's, each column of one type, or a refusal."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowdimfa.data.extra import package
from lowdimfa.errors import InputError, in_words, some_of

FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json"}

_OTHERS = (".arrow", ".feather", ".orc", ".tsv", ".xls", ".xlsx")
_PACKED = (".bz2", ".gz", ".lz4", ".xz", ".zip", ".zst")

_ROWS = 100_000
"""Of a CSV file that are looked at together."""


def rows(where: Path, columns: Sequence[str], texts: Sequence[str] = ()) -> Any:
    """Return some columns of a table, a `datasets.Dataset`.

    Parameters
    ----------
    where
        A file, a folder of files of one kind, or one that `datasets.Dataset.save_to_disk` wrote.
    columns
        Which.
    texts
        Columns that are text, whatever they look like in CSV.

    Raises
    ------
    InputError
        It can't be read, or not all of it; a column is missing, or isn't of one type.
    """
    datasets = package("datasets", "lowdimfa.data:table")
    quiet, counted = datasets.are_progress_bars_disabled(), datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.disable_progress_bars()
    # Else each file is told to the hub, which takes seconds where there is no network.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        if where.is_dir() and (where / "dataset_info.json").exists():
            return _chosen(datasets.load_from_disk(str(where)), where, columns)
        if (splits := where / "dataset_dict.json").exists():
            found = f"several tables, {', '.join(json.loads(splits.read_text())['splits'])}"
            raise InputError(str(where), found, "the path of one, as path and as test")
        return _of_files(where, columns, texts)
    except (OSError, ValueError, TypeError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(
            str(where), f"what datasets can't read ({in_words(error.__cause__ or error)})", "a table"
        ) from error
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counted
        if not quiet:
            datasets.enable_progress_bars()


def _files(where: Path) -> tuple[str, list[Path]]:
    """Return the kind of the files of a path, and which they are.

    Raises
    ------
    InputError
        They are of several kinds, or there are further tables that would not be read.
    """
    entries = (
        [entry for entry in sorted(where.iterdir()) if not entry.name.startswith(".")]
        if where.is_dir()
        else []
    )
    files = [entry for entry in entries if entry.suffix.lower() in FORMATS and not entry.is_dir()]
    if not where.is_dir():
        files = [where]
    kinds = {FORMATS.get(file.suffix.lower(), "") for file in files}
    if len(kinds) != 1 or "" in kinds:
        found = f"files of {', '.join(sorted({file.suffix or 'no' for file in files})) or 'no'} kind"
        raise InputError(str(where), found, f"files of one kind: {', '.join(FORMATS)}")
    seen = {os.path.realpath(where)}
    if left := [entry.name for entry in entries if entry not in files and _has_rows(entry, seen)]:
        raise InputError(
            str(where),
            f"{some_of(left)}, which would not be read",
            "all tables as files in the folder itself, none of them packed",
            "Unpack, convert or move what is to be read, and move the rest away.",
        )
    return kinds.pop(), files


def _has_rows(entry: Path, seen: set[str]) -> bool:
    """Return whether a folder has some tables, at any depth, each looked into once, or whether a file is one."""
    if entry.is_dir():
        if (real := os.path.realpath(entry)) in seen:
            return False
        seen.add(real)
        return any(_has_rows(inside, seen) for inside in entry.iterdir() if not inside.name.startswith("."))
    suffixes = [suffix.lower() for suffix in entry.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in (*FORMATS, *_OTHERS)


def _of_files(where: Path, columns: Sequence[str], texts: Sequence[str]) -> Any:
    kind, files = _files(where)
    if kind == "csv":
        # Else each 10,000 rows have types of their own, and codes such as 01 may be texts in some and numbers in others.
        return _chosen(_loaded(kind, files, features=_csv_types(files, texts)), where, columns)
    sizes = {file: file.stat().st_size for file in files}
    files = [file for file in files if sizes[file]]
    if not files:
        raise InputError(str(where), "nothing", "rows")
    options = {"chunksize": 1 + max(sizes.values())} if kind == "json" else {}
    parts = [_chosen(_loaded(kind, [file], **options), file, columns) for file in files]
    return package("datasets").concatenate_datasets(_of_one_type(parts, files, columns))


def _of_one_type(parts: list[Any], files: list[Path], columns: Sequence[str]) -> list[Any]:
    """Return the rows of files with each column of the type that has all its numbers."""
    arrow, features = package("pyarrow"), parts[0].features.copy()
    for name in columns:
        for part, file in zip(parts, files, strict=True):
            if part.features[name] == features[name]:
                continue
            both = [each.arrow_schema.field(name) for each in (features, part.features)]
            try:
                if both[0].type == both[1].type:  # classes of other names
                    raise arrow.ArrowInvalid
                joined = arrow.unify_schemas(
                    [arrow.schema([each]) for each in both], promote_options="permissive"
                )
            except arrow.ArrowException:
                found, first = (_type(each.features[name]) for each in (part, parts[0]))
                _refuse_type(file, name, found, f"{first}, as in {files[0].name}")
            features[name] = package("datasets").Features.from_arrow_schema(joined)[name]
    return [part if part.features == features else part.cast(features) for part in parts]


def _loaded(kind: str, files: list[Path], **options: Any) -> Any:
    """Return the rows of files as `datasets` has converted them, now or earlier if they are unchanged since."""
    if linked := next((file for file in files if "::" in str(file)), None):
        expected = "one without, as datasets takes it for an address within another"
        raise InputError(str(linked), "a path with '::'", expected)
    # The library itself looks at the time of the last change alone, which copies may have in common.
    states = [file.stat() for file in files]
    state = repr([(each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in states])
    return package("datasets").load_dataset(
        kind,
        name=hashlib.sha256(state.encode()).hexdigest()[:16],
        data_files=[glob.escape(str(file.absolute())) for file in files],
        split="train",
        **options,
    )


def _chosen(table: Any, where: Path, columns: Sequence[str]) -> Any:
    for name in columns:
        if name not in table.column_names:
            known = f"one of {', '.join(map(repr, table.column_names))}"
            raise InputError(str(where), f"no column {name!r}", known)
        if "Json" in _type(table.features[name]):
            _refuse_type(where, name, "values of several types", "of one type")
    return table.select_columns(list(columns))


def _type(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or feature)


def _refuse_type(file: Path, name: str, found: str, expected: str) -> None:
    raise InputError(
        str(file), f"{found} in the column {name!r}", expected, "Write the column in one way everywhere."
    )


def _csv_types(files: list[Path], texts: Sequence[str]) -> Any:
    """Return the type that each column has over all rows of all files: text, if some of it is no number.

    Raises
    ------
    InputError
        A file can't be read, its rows are longer than its header, or it has other columns than the first.
    """
    datasets = package("datasets")
    types: dict[str, set[str]] = {}
    for file in files:
        found = _types_in(file)
        if types and set(found) != set(types):
            other = f"the columns {', '.join(map(repr, found))}"
            raise InputError(str(file), other, f"{', '.join(map(repr, types))}, as in {files[0].name}")
        types = {name: found[name] | types.get(name, set()) for name in found}
    joined = {name: "string" if name in texts else _joined(kinds) for name, kinds in types.items()}
    return datasets.Features({name: datasets.Value(kind) for name, kind in joined.items()})


def _types_in(file: Path) -> dict[str, set[str]]:
    pandas = package("pandas")
    types: dict[str, set[str]] = {}
    try:
        # Of rows that are all longer than the header, pandas would take the first values for names of rows, and shift all
        # others. Where the header is a row too, it refuses them.
        pandas.read_csv(file, header=None, nrows=2)
        with pandas.read_csv(file, chunksize=_ROWS, low_memory=False) as chunks:
            for chunk in chunks:
                for name, dtype in chunk.dtypes.items():
                    # A header alone says nothing of types.
                    types.setdefault(str(name), set()).update([str(dtype)] if len(chunk) else [])
    except (OSError, ValueError) as error:
        raise InputError(
            str(file),
            f"what pandas can't read ({in_words(error)})",
            "text in UTF-8, with rows as long as the header",
        ) from error
    return types


def _joined(kinds: set[str]) -> str:
    """Return the type of a column that pandas takes for these in some rows each, as it does for all rows together."""
    if len(kinds) == 1 and kinds <= {"bool", "int64", "uint64", "float64"}:
        return next(iter(kinds))
    if kinds <= {"int64", "uint64"}:
        return "uint64"
    return "float64" if kinds <= {"int64", "uint64", "float64"} else "string"
