"""From text to files of tokens, in two passes that hold a few pieces at a time.

The first counts the text, finds what isn't any, and trains the tokenizer; the second writes the tokens.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lowdimfa.data import tokenizer as tokenizers
from lowdimfa.data.documents import Piece, TextFile, place_to_cut, text_files
from lowdimfa.data.token_files import MANIFEST, SPLITS, Manifest, Part, PartWriter
from lowdimfa.data.tokenizer import Tokenizer
from lowdimfa.errors import InputError, ResourceError
from lowdimfa.paths import appearing

VOCABULARY = 8192
"""Tokens of a tokenizer that is trained here, where nothing else is said."""

_TOGETHER = 16
"""Pieces that are encoded at once, by as many threads as there are."""

_SECONDS = 2.0
"""Between lines that say how far it is."""


@dataclass(frozen=True)
class Recipe:
    """What token files are to be made from.

    Attributes
    ----------
    sources, field, root
        As `lowdimfa.data.documents.text_files` takes them.
    tokenizer
        A ``tokenizer.json`` or a folder with one; None to train one.
    vocabulary
        Tokens of the one that is trained; None for `VOCABULARY`.
    end
        Token that ends a document, of a tokenizer that is read.
    validation
        Share of the text, its end, that is the test split.
    """

    sources: Sequence[str]
    field: str = "text"
    root: str | None = None
    tokenizer: Path | None = None
    vocabulary: int | None = None
    end: str | None = None
    validation: float = 0.1

    def check(self) -> None:
        """Refuse options that don't fit each other."""
        if self.tokenizer is not None and self.vocabulary is not None:
            raise InputError(
                "--vocabulary", str(self.vocabulary), "none together with --tokenizer, which has one"
            )
        if self.tokenizer is None and self.end is not None:
            raise InputError(
                "--end-token", repr(self.end), "none without --tokenizer", f"It is {tokenizers.END}."
            )
        if self.vocabulary is not None and self.vocabulary < tokenizers.SMALLEST:
            expected = f"at least {tokenizers.SMALLEST}, the 256 bytes and {tokenizers.END}"
            raise InputError("--vocabulary", str(self.vocabulary), expected)
        if not 0 < self.validation < 1:
            raise InputError("--validation", str(self.validation), "a fraction between 0 and 1")


def prepare(
    recipe: Recipe, out: Path, tell: Callable[[str], None] = lambda line: None
) -> tuple[Manifest, bool]:
    """Make a folder of token files.

    Parameters
    ----------
    recipe
        What of.
    out
        The folder, which appears when it is whole.
    tell
        Gets lines that say how far it is.

    Returns
    -------
    tuple
        The manifest, and whether the folder was there already, made from the same.

    Raises
    ------
    InputError
        The options or the text can't be used, or there is something else in the folder.
    ResourceError
        The folder can't be written.
    """
    recipe.check()
    files = text_files(recipe.sources, recipe.field, recipe.root)
    given = None if recipe.tokenizer is None else tokenizers.read(recipe.tokenizer, recipe.end)
    made_from = _made_from(recipe, files, given)
    if (existing := _existing(out, made_from)) is not None:
        return existing, True
    progress = _Progress(tell)
    texts = (piece.text for piece in progress.reading(files))
    if given is None:
        tokenizer = _trained(texts, recipe.vocabulary or VOCABULARY, tell)
    else:
        tokenizer = given
        deque(texts, maxlen=0)  # to count them
    if progress.characters < 2:
        raise InputError(", ".join(recipe.sources), "no text at all", "files with text")
    try:
        with appearing(out) as folder:
            pieces = chain.from_iterable(file.pieces() for file in files)
            parted = divided(pieces, progress.characters, recipe.validation)
            parts = _encoded(parted, tokenizer, folder, progress)
            _require_both(parts, recipe.validation, progress.characters)
            largest, dtype = tokenizer.vocabulary, _dtype(tokenizer.vocabulary)
            manifest = Manifest(largest, dtype, tokenizer.end, tokenizer.pad, *parts, made_from)
            for name, content in tokenizer.files.items():
                (folder / name).write_bytes(content)
            manifest.write(folder)
    except OSError as error:
        raise ResourceError(
            f"{out} can't be written ({error}); choose a folder with room by --out"
        ) from error
    return manifest, False


def divided(pieces: Iterable[Piece], characters: int, validation: float) -> Iterator[tuple[str, Piece]]:
    """Yield pieces with the name of their split.

    The test split is the end of the text. It begins with a document where one begins up to a tenth of its own length
    before that, or else within one.

    Parameters
    ----------
    pieces
        Of all documents.
    characters
        Of all pieces.
    validation
        Share of them in the test split.
    """
    target = characters - round(characters * validation)
    earliest = target - (characters - target) // 10
    done, split = 0, SPLITS[0]
    for piece in pieces:
        length = len(piece.text)
        if piece.begins and done and done >= earliest:
            split = SPLITS[1]
        elif split == SPLITS[0] and done + length > target:
            cut = place_to_cut(piece.text, target - done)
            if cut:
                yield split, Piece(piece.text[:cut], piece.begins, False)
            split = SPLITS[1]
            piece = Piece(piece.text[cut:], piece.begins and not cut, piece.ends)
        yield split, piece
        done += length


class _Progress:
    """Says every few seconds how far both passes are."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.characters = 0
        self._tell = tell
        self._last = time.monotonic()

    def reading(self, files: Sequence[TextFile]) -> Iterator[Piece]:
        """Yield all pieces and count them."""
        for number, file in enumerate(files):
            for piece in file.pieces():
                self.characters += len(piece.text)
                self._say(f"reading: {number:,} of {len(files):,} files, {self.characters:,} characters")
                yield piece

    def encoding(self, done: int, tokens: int, seconds: float) -> None:
        """Take in how many characters are encoded."""
        rate = tokens / seconds if seconds else 0.0
        self._say(f"encoding: {done / self.characters:.0%}, {tokens:,} tokens, {rate:,.0f} per second")

    def _say(self, line: str) -> None:
        if time.monotonic() - self._last >= _SECONDS:
            self._tell(line)
            self._last = time.monotonic()


def _trained(texts: Iterable[str], vocabulary: int, tell: Callable[[str], None]) -> Tokenizer:
    tokenizer = tokenizers.train(texts, vocabulary)
    if tokenizer.vocabulary < vocabulary:
        tell(f"{tokenizer.vocabulary:,} tokens, not {vocabulary:,}: no other two occur side by side twice")
    return tokenizer


def _encoded(
    pieces: Iterator[tuple[str, Piece]], tokenizer: Tokenizer, folder: Path, progress: _Progress
) -> tuple[Part, Part]:
    """Write the tokens of all pieces and return what each split has."""
    dtype = _dtype(tokenizer.vocabulary)
    writers = {split: PartWriter(folder, split, dtype, tokenizer.end) for split in SPLITS}
    began, characters, tokens = time.monotonic(), 0, 0
    while some := list(islice(pieces, _TOGETHER)):
        for (split, piece), own in zip(
            some, tokenizer.encode([piece.text for _, piece in some]), strict=True
        ):
            writers[split].add(own, len(piece.text.encode()), piece.begins, piece.ends)
            characters, tokens = characters + len(piece.text), tokens + len(own)
        progress.encoding(characters, tokens, time.monotonic() - began)
    return writers[SPLITS[0]].close(), writers[SPLITS[1]].close()


def _require_both(parts: tuple[Part, Part], validation: float, characters: int) -> None:
    for name, part in zip(SPLITS, parts, strict=True):
        if part.tokens == 0:
            raise InputError(
                "--validation",
                f"{validation:g} of {characters:,} characters, which leaves no token for {name}",
                "a part that leaves some for both",
                "Choose another one, or give more text.",
            )


def _dtype(vocabulary: int) -> str:
    return "uint16" if vocabulary <= 2**16 else "uint32"


def _made_from(recipe: Recipe, files: Sequence[TextFile], given: Tokenizer | None) -> dict[str, Any]:
    sources = hashlib.sha256("\n".join(file.fingerprint() for file in files).encode())
    if given is None:
        tokenizer: dict[str, Any] = {"vocabulary": recipe.vocabulary or VOCABULARY}
    else:
        contents = {name: hashlib.sha256(content).hexdigest() for name, content in given.files.items()}
        tokenizer = {"files": contents, "end": given.end}
    return {
        "files": len(files),
        "sources": sources.hexdigest(),
        "field": recipe.field,
        "tokenizer": tokenizer,
        "validation": recipe.validation,
    }


def _existing(out: Path, made_from: dict[str, Any]) -> Manifest | None:
    """Return the manifest of what is there already; None where nothing is."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    hint = "Name another folder with --out, or delete this one."
    if not (out / MANIFEST).is_file():
        raise InputError(str(out), "something else than token files", "a new or an empty folder", hint)
    manifest = Manifest.read(out)
    other = [key for key, value in made_from.items() if manifest.made_from.get(key) != value]
    if other:
        raise InputError(
            str(out), f"token files made otherwise ({', '.join(other)})", "the same or a new folder", hint
        )
    manifest.check_contents(out)
    return manifest
