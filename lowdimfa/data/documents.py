"""Text files of several kinds as documents, in pieces, so that no file has to fit into memory."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from lowdimfa.data.extra import package
from lowdimfa.data.folders import files_below, require_target
from lowdimfa.data.sources import SOURCES, data_folder, read_file
from lowdimfa.errors import InputError
from lowdimfa.paths import expand

PIECE = 2**18
"""Characters of a document that are looked at together."""

_PLAIN, _LINES, _PARQUET = (".txt", ".text", ".md"), (".jsonl", ".ndjson", ".json"), (".parquet",)
_BUILT_IN = ("shakespeare",)
_WHERE = "data tokens"


class Piece(NamedTuple):
    """A part of a document: its text, and whether the document begins and ends with it."""

    text: str
    begins: bool
    ends: bool


@dataclass(frozen=True)
class TextFile:
    """A file with documents: plain text is one, of JSON lines and Parquet each row is.

    Attributes
    ----------
    path
        Of the file; where it ends in ``.gz``, what was compressed counts (but for Parquet).
    field
        Of a row, where the text is.
    """

    path: Path
    field: str = "text"

    def fingerprint(self) -> str:
        """Return how the file is read, and the SHA-256 of its contents."""
        try:
            with self.path.open("rb") as opened:
                return f"{_kind(self.path)} {hashlib.file_digest(opened, 'sha256').hexdigest()}"
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def pieces(self) -> Iterator[Piece]:
        """Yield the file's text, documents one after the other; those without a character are left out.

        Raises
        ------
        InputError
            The file can't be read, isn't text, or a row has no text in the field.
        """
        kind = _kind(self.path)
        try:
            if kind in _PARQUET:
                documents: Iterable[Iterable[str]] = map(_blocks, self._parquet())
            elif kind in _LINES:
                documents = map(_blocks, self._lines())
            else:
                documents = [self._plain()]
            for document in documents:
                yield from _pieces(document)
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(self.path, error) from error

    def _plain(self) -> Iterator[str]:
        with self._open() as opened:
            try:
                while block := opened.read(PIECE):
                    yield self._text(block, "")
            except UnicodeDecodeError as error:
                raise self._not_text("", error) from error

    def _lines(self) -> Iterator[str]:
        number = 0
        with self._open() as opened:
            try:
                for number, line in enumerate(opened, 1):
                    if line.strip():
                        yield self._field(json.loads(line), f", line {number}")
            except UnicodeDecodeError as error:
                raise self._not_text(f", after line {number}", error) from error
            except (ValueError, RecursionError) as error:
                found = f"what is no JSON ({error})"
                raise InputError(
                    f"{self.path}, line {number}", found, "one JSON object on each line"
                ) from error

    def _parquet(self) -> Iterator[str]:
        parquet, number = package("pyarrow.parquet"), 0
        try:
            with parquet.ParquetFile(self.path) as opened:
                names = opened.schema_arrow.names
                if self.field not in names:
                    raise self._unknown_field("", names)
                for batch in opened.iter_batches(batch_size=1024, columns=[self.field]):
                    for value in batch.column(0).to_pylist():
                        number += 1
                        yield self._text(value, f", row {number}")
        except ValueError as error:  # pyarrow's own errors derive from it
            raise InputError(str(self.path), f"no Parquet file ({error})", "an intact one") from error

    def _field(self, row: object, place: str) -> str:
        if not isinstance(row, dict):
            found = f"{type(row).__name__}"
            raise InputError(f"{self.path}{place}", found, f"a JSON object with the field {self.field!r}")
        if self.field not in row:
            raise self._unknown_field(place, list(row))
        return self._text(row[self.field], place)

    def _text(self, value: object, place: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            found = f"{type(value).__name__} in the field {self.field!r}"
            raise InputError(f"{self.path}{place}", found, "text", "Name the field that has it with --field.")
        if "\0" in value:
            raise self._not_text(place, "a null character")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self._not_text(place, error) from error
        return value

    def _open(self) -> IO[str]:
        # Line ends stay as they are.
        if self.path.suffix == ".gz":
            return gzip.open(self.path, "rt", encoding="utf-8-sig", newline="")
        return self.path.open(encoding="utf-8-sig", newline="")

    def _not_text(self, place: str, reason: object) -> InputError:
        return InputError(f"{self.path}{place}", f"what is no text ({reason})", "text in UTF-8")

    def _unknown_field(self, place: str, names: Sequence[str]) -> InputError:
        known = ", ".join(map(repr, names[:8])) or "none"
        return InputError(
            f"{self.path}{place}",
            f"no field {self.field!r}, but {known}",
            "a field with text",
            "Name it with --field.",
        )


def text_files(sources: Sequence[str], field: str = "text", root: str | None = None) -> list[TextFile]:
    """Return the files that sources name, in the order of the sources and each once.

    Parameters
    ----------
    sources
        Files, folders (their text, JSON lines and Parquet files at any depth, in the order of their paths), patterns
        such as ``corpus/**/*.txt``, or ``shakespeare``, the built-in collection.
    field
        Of a row of JSON lines or Parquet.
    root
        Data folder of what is built in.

    Raises
    ------
    InputError
        A source names nothing, or what can't be read.
    """
    found: dict[Path, TextFile] = {}
    for source in sources:
        for path in _built_in(source, root) if source in _BUILT_IN else _paths(source):
            found.setdefault(path.resolve(), TextFile(path, field))
    return list(found.values())


def _built_in(name: str, root: str | None) -> list[Path]:
    source = SOURCES[name]
    folder, paths = data_folder(source, root), []
    for file in sorted(source.files):
        read_file(source, file, root)
        path = folder / file
        paths.append(path if path.exists() else path.with_name(f"{file}.gz"))
    return paths


def _paths(source: str) -> list[Path]:
    try:
        path = expand(source)
    except ValueError as error:
        raise InputError(_WHERE, f"{source!r} ({error})", "a file, a folder or a pattern") from error
    if path.is_dir():
        files = [found for found in files_below(path) if _kind(found)]
        if not files:
            kinds = ", ".join(_PLAIN + _LINES + _PARQUET)
            raise InputError(
                str(path),
                "a folder without text",
                f"files that end in {kinds}",
                "Files with other names can be given by a pattern.",
            )
        return files
    if path.exists():
        return [path]
    names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207, which finds hidden files, as no shell does
    for name in names:
        require_target(Path(name))
    matched = [found for found in map(Path, names) if found.is_file()]
    if not matched:
        expected = f"a file, a folder, a pattern that matches files, or {', '.join(_BUILT_IN)}"
        raise InputError(_WHERE, f"{source!r}, which names nothing", expected)
    return matched


def _kind(path: Path) -> str:
    """Return the suffix that says how a file is read, the empty string for any other one."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    return suffix if suffix in _PLAIN + _LINES + _PARQUET else ""


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(str(path), f"a file that can't be read ({error})", "one that can")


def _blocks(text: str) -> Iterator[str]:
    return (text[start : start + PIECE] for start in range(0, len(text), PIECE))


def _pieces(blocks: Iterable[str]) -> Iterator[Piece]:
    held, begins = "", True
    for block in blocks:
        held += block
        if len(held) > PIECE:
            cut = place_to_cut(held, PIECE)
            yield Piece(held[:cut], begins, False)
            held, begins = held[cut:], False
    if held:
        yield Piece(held, begins, True)


def place_to_cut(text: str, near: int) -> int:
    """Return where text can be cut at ``near`` or before so that tokens of the two parts are those of the whole.

    That is before a blank between two letters, where pre-tokenizers of byte-level tokenizers cut too; in a text that has
    none there, it is ``near`` itself.
    """
    for place in range(near, max(near - 4096, 0), -1):
        if (
            text[place : place + 1] == " "
            and text[place - 1].isalpha()
            and text[place + 1 : place + 2].isalpha()
        ):
            return place
    return near
