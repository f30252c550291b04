"""Files of tokens: how ``lowdimfa data tokens`` writes them, and their manifest.

A folder has for each split, ``train`` and ``test``, the tokens one after the other (``train.bin``, little-endian uint16
or uint32) and the position at which each document begins (``train.documents.bin``, little-endian int64); the tokenizer;
and ``tokens.json``, which says what they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lowdimfa.errors import InputError, in_words

MANIFEST = "tokens.json"
SPLITS = ("train", "test")
_FORMAT = 1
_POSITION = np.dtype("<i8")


@dataclass(frozen=True)
class Part:
    """What a split has.

    Attributes
    ----------
    tokens, documents
        How many; a document that is cut in two counts in both splits.
    bytes
        Of the text in UTF-8.
    sha256
        Of the tokens, then of the documents' positions.
    """

    tokens: int
    documents: int
    bytes: int
    sha256: tuple[str, str]

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of text for each token, those that end documents included; None where there is no text."""
        return self.bytes / self.tokens if self.bytes else None


@dataclass(frozen=True)
class Manifest:
    """What a folder of token files has.

    Attributes
    ----------
    vocabulary
        One more than the largest token that may occur.
    dtype
        Of the tokens, ``uint16`` or ``uint32``.
    end, pad
        Tokens that end a document and that fill up a sample.
    train, test
        The splits.
    made_from
        The files and options, by which the same is known again.
    """

    vocabulary: int
    dtype: str
    end: int
    pad: int
    train: Part
    test: Part
    made_from: dict[str, Any]

    def part(self, split: str) -> Part:
        """Return one of the splits."""
        return {"train": self.train, "test": self.test}[split]

    def write(self, folder: Path) -> None:
        """Write the manifest into a folder."""
        text = json.dumps({"format": _FORMAT} | asdict(self), indent=2)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of a folder, and compare the sizes of its files.

        Raises
        ------
        InputError
            There is none, or the files aren't of the sizes that it says.
        """
        try:
            fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if fields.pop("format") != _FORMAT:
                raise ValueError("of another version")
            for split in SPLITS:
                part = fields[split]
                fields[split] = Part(**part | {"sha256": tuple(part["sha256"])})
            manifest = cls(**fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = error.strerror if isinstance(error, OSError) else in_words(error)
            found, expected = (
                f"no {MANIFEST} to read ({reason})",
                "a folder that 'lowdimfa data tokens' wrote",
            )
            hint = f"Make it: lowdimfa data tokens FILES --out {folder}"
            raise InputError(str(folder), found, expected, hint) from error
        manifest._check_sizes(folder)
        return manifest

    def _check_sizes(self, folder: Path) -> None:
        for split in SPLITS:
            part = self.part(split)
            sizes = part.tokens * np.dtype(self.dtype).itemsize, part.documents * _POSITION.itemsize
            for path, size in zip(_paths(folder, split), sizes, strict=True):
                found = path.stat().st_size if path.is_file() else None
                if found != size:
                    raise InputError(
                        str(path),
                        "no file" if found is None else f"{found:,} bytes",
                        f"the {size:,} bytes that {MANIFEST} tells of",
                        "Copy it again, or delete the folder and make it anew.",
                    )

    def check_contents(self, folder: Path) -> None:
        """Refuse files whose contents aren't those that were written."""
        for split in SPLITS:
            for path, expected in zip(_paths(folder, split), self.part(split).sha256, strict=True):
                with path.open("rb") as opened:
                    found = hashlib.file_digest(opened, "sha256").hexdigest()
                if found != expected:
                    hint = "Delete the folder and make it anew."
                    raise InputError(str(path), f"contents with SHA-256 {found}", expected, hint)


@dataclass(frozen=True)
class TokenFile:
    """A split's tokens in a memory map, whose pages processes of one machine share.

    Attributes
    ----------
    tokens
        All of them, one after the other.
    starts
        Where each document begins.
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    _opened: tuple[Path, str, str]

    @classmethod
    def open(cls, folder: Path, split: str, dtype: str) -> TokenFile:
        """Map the files of a split."""
        tokens, starts = _paths(folder, split)
        return cls(_mapped(tokens, np.dtype(dtype)), _mapped(starts, _POSITION), (folder, split, dtype))

    def __reduce__(self) -> tuple[Any, ...]:  # a pickled memory map would carry its contents
        return TokenFile.open, self._opened


class PartWriter:
    """Writes a split's files, piece by piece.

    Parameters
    ----------
    folder, split, dtype
        Of the files.
    end
        Token that ends a document.
    """

    def __init__(self, folder: Path, split: str, dtype: str, end: int) -> None:
        self._files = [path.open("wb") for path in _paths(folder, split)]
        self._hashes = [hashlib.sha256(), hashlib.sha256()]
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._end = end
        self._tokens = self._documents = self._bytes = 0

    def add(self, tokens: Sequence[int], text_bytes: int, begins: bool, ends: bool) -> None:
        """Add a piece of a document."""
        if begins or not self._documents:
            self._write(1, np.array([self._tokens], _POSITION))
            self._documents += 1
        self._write(0, np.array([*tokens, self._end] if ends else tokens, self._dtype))
        self._tokens += len(tokens) + ends
        self._bytes += text_bytes

    def close(self) -> Part:
        """Close the files and return what they have."""
        for file in self._files:
            file.close()
        first, second = (digest.hexdigest() for digest in self._hashes)
        return Part(self._tokens, self._documents, self._bytes, (first, second))

    def _write(self, index: int, values: NDArray[Any]) -> None:
        content = values.tobytes()
        self._files[index].write(content)
        self._hashes[index].update(content)


def _paths(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / f"{split}.bin", folder / f"{split}.documents.bin"


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.memmap(path, dtype.newbyteorder("<"), "r") if path.stat().st_size else np.empty(0, dtype)
