"""Factory of language modelling data from files of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowdimfa.config import IGNORED
from lowdimfa.data.base import Dataset
from lowdimfa.data.splits import Split
from lowdimfa.data.token_files import SPLITS, Manifest, TokenFile
from lowdimfa.errors import InputError
from lowdimfa.paths import expand
from lowdimfa.values import Inputs


@dataclass(frozen=True)
class PackedSplit:
    """Windows of ``context`` tokens, one after the other, whatever documents they are of.

    Attributes
    ----------
    file
        The tokens.
    context
        Tokens per window.
    masked
        Whether the first token of a document is no target, since nothing of its own document comes before it.
    positions
        Whether the inputs come with each token's position in its document, from the window's start at most.
    digest
        Of all tokens, so that nobody has to read them to compare two splits.
    vocabulary
        One more than the largest token.
    bytes_per_target
        Bytes of text for each token of the file, those that end documents included; None of a file without text.
    """

    file: TokenFile
    context: int
    masked: bool
    positions: bool
    digest: str
    vocabulary: int
    bytes_per_target: float | None

    def __len__(self) -> int:
        return max(0, len(self.file.tokens) - 1) // self.context

    def extremes(self) -> Tensor:
        """Return the smallest and the largest target that may occur."""
        return torch.tensor([0, self.vocabulary - 1])

    def inputs(self, indices: Tensor) -> Inputs:
        """Return the windows, int64 ``(batch, context)``, or a mapping with them and ``position_ids``."""
        windows = self._windows(indices, 0)
        if not self.positions:
            return windows
        rows, columns = self._starts(indices, 0)
        begun = np.zeros(windows.shape, np.int64)
        begun[rows, columns] = columns
        positions = np.arange(self.context) - np.maximum.accumulate(begun, axis=1)
        return {"input_ids": windows, "position_ids": torch.from_numpy(positions)}

    def targets(self, indices: Tensor) -> Tensor:
        """Return the windows moved on by one token, int64 ``(batch, context)``."""
        targets = self._windows(indices, 1)
        if self.masked:
            targets[tuple(map(torch.from_numpy, self._starts(indices, 1)))] = IGNORED
        return targets

    def _windows(self, indices: Tensor, shift: int) -> Tensor:
        found = np.empty((len(indices), self.context), np.int64)
        for row, window in zip(found, indices.tolist(), strict=True):
            first = window * self.context + shift
            row[:] = self.file.tokens[first : first + self.context]
        return torch.from_numpy(found)

    def _starts(self, indices: Tensor, shift: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and columns of the tokens that documents begin with."""
        firsts = indices.numpy() * self.context + shift
        begins, ends = (np.searchsorted(self.file.starts, place) for place in (firsts, firsts + self.context))
        rows = np.repeat(np.arange(len(firsts)), ends - begins)
        found = [self.file.starts[begin:end] for begin, end in zip(begins, ends, strict=True)]
        return rows, np.concatenate(found) - firsts[rows]


@dataclass(frozen=True)
class DocumentSplit:
    """Documents, filled up to ``context`` tokens; longer ones are cut into several samples.

    Attributes
    ----------
    file, context, positions, digest, vocabulary, bytes_per_target
        As those of `PackedSplit`.
    pad
        Token that fills up.
    """

    file: TokenFile
    context: int
    positions: bool
    digest: str
    vocabulary: int
    bytes_per_target: float | None
    pad: int
    _ends: NDArray[np.int64] = field(init=False, repr=False)
    """How many samples there are up to and with each document."""

    def __post_init__(self) -> None:
        lengths = np.diff(self.file.starts, append=len(self.file.tokens))
        object.__setattr__(self, "_ends", np.cumsum(-(-(lengths - 1) // self.context)))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def extremes(self) -> Tensor:
        """Return the smallest and the largest target that may occur."""
        return torch.tensor([0, self.vocabulary - 1])

    def inputs(self, indices: Tensor) -> Inputs:
        """Return ``input_ids`` and ``attention_mask`` (1, and 0 where it is filled up), int64 ``(batch, context)``."""
        tokens = self._padded(indices, 0, self.pad)
        lengths = torch.tensor([length for _, length in self._places(indices)])
        positions = torch.arange(self.context).expand(len(indices), -1)
        found = {"input_ids": tokens, "attention_mask": (positions < lengths.unsqueeze(1)).long()}
        return found | ({"position_ids": positions.clone()} if self.positions else {})

    def targets(self, indices: Tensor) -> Tensor:
        """Return each token's successor, −100 where it is filled up, int64 ``(batch, context)``."""
        return self._padded(indices, 1, IGNORED)

    def _padded(self, indices: Tensor, shift: int, value: int) -> Tensor:
        found = np.full((len(indices), self.context), value, np.int64)
        for row, (first, length) in zip(found, self._places(indices), strict=True):
            row[:length] = self.file.tokens[first + shift : first + shift + length]
        return torch.from_numpy(found)

    def _places(self, indices: Tensor) -> list[tuple[int, int]]:
        """Return of each sample its first token and its length."""
        samples = indices.numpy()
        documents = np.searchsorted(self._ends, samples, "right")
        starts = self.file.starts
        places = []
        for sample, document in zip(samples.tolist(), documents.tolist(), strict=True):
            before = int(self._ends[document - 1]) if document else 0
            first = int(starts[document]) + (sample - before) * self.context
            end = int(starts[document + 1]) if document + 1 < len(starts) else len(self.file.tokens)
            places.append((first, min(self.context, end - 1 - first)))
        return places


def tokens(
    path: str,
    context: int = 128,
    pack: bool = True,
    documents: Literal["cross", "mask"] = "cross",
    position_ids: bool = False,
) -> Dataset:
    """Return the text of a folder that ``lowdimfa data tokens`` made, for predicting the next token.

    Inputs and targets are int64 ``(context,)``; a model needs as many outputs as the vocabulary has tokens. The files are
    mapped into memory: nothing is read before it is drawn, and processes of one machine share what was.

    Parameters
    ----------
    path
        The folder; ``~`` and variables are filled in.
    context
        Tokens per sample.
    pack
        Windows of the text one after the other, so that every token counts. Else a sample is one document, or a part of
        a longer one: filled up with targets of −100, which don't count, and with the side input ``attention_mask``.
    documents
        Of packed windows: ``cross`` predicts also the first token of a document, from the one before; ``mask`` makes its
        target −100.
    position_ids
        Whether inputs are a mapping of ``input_ids`` and ``position_ids``, which begin again in every document: by them
        many networks of Hugging Face keep the documents of a window apart.

    Raises
    ------
    InputError
        The folder isn't whole, an argument is out of range, or a split is shorter than one sample.
    """
    folder = _checked(path, context, pack, documents)
    manifest = Manifest.read(folder)

    def split(name: str) -> Split:
        part, file = manifest.part(name), TokenFile.open(folder, name, manifest.dtype)
        known = " ".join(part.sha256), manifest.vocabulary, part.bytes_per_token
        made: Split = (
            PackedSplit(file, context, documents == "mask", position_ids, *known)
            if pack
            else DocumentSplit(file, context, position_ids, *known, manifest.pad)
        )
        if len(made) == 0:
            found = f"a {name} split of {part.tokens:,} tokens"
            raise InputError(str(folder), found, f"more than the {context:,} of tokens: context")
        return made

    train, test = map(split, SPLITS)
    return Dataset(folder.name, train, test, "tokens")


def _checked(path: str, context: int, pack: bool, documents: str) -> Path:
    if context < 1:
        raise InputError("tokens: context", str(context), "at least 1")
    if documents not in ("cross", "mask"):
        raise InputError("tokens: documents", repr(documents), "'cross' or 'mask'")
    if documents == "mask" and not pack:
        raise InputError(
            "tokens: documents", "'mask' with pack: false", "pack: true, since a sample is one document"
        )
    try:
        return expand(path)
    except ValueError as error:
        raise InputError("tokens: path", f"{path!r} ({error})", "the path of a folder") from error
