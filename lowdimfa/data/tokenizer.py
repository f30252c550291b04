"""Tokenizers of text: byte-level BPE that is trained here, or any that is read from a ``tokenizer.json``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowdimfa.data.extra import package
from lowdimfa.errors import InputError

END = "<|endoftext|>"
"""Ends each document, for a tokenizer that is trained here."""

SMALLEST = 257
"""Tokens of a byte-level vocabulary without any merge: the bytes and `END`."""

_FILE, _CONFIG, _MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "[SEP]")


@dataclass(frozen=True)
class Tokenizer:
    """Turns text into tokens.

    Attributes
    ----------
    implementation
        A ``tokenizers.Tokenizer``.
    end, pad
        Tokens that end a document and that fill up a sample.
    files
        What it was read from, or what it is to be read from, by name.
    """

    implementation: Any
    end: int
    pad: int
    files: dict[str, bytes]

    @property
    def vocabulary(self) -> int:
        """One more than the largest token."""
        return 1 + int(max(self.implementation.get_vocab(with_added_tokens=True).values()))

    def encode(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Yield each text's tokens, none of them special: a name such as `END` in a text is text."""
        # A property, not saved: without it a text could end documents, or start a turn of a chat.
        self.implementation.encode_special_tokens = True
        encoded = self.implementation.encode_batch_fast(list(texts), add_special_tokens=False)
        return (one.ids for one in encoded)


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer of at most so many tokens, the first of them `END`.

    It has fewer where no two tokens occur beside each other twice any more.

    Parameters
    ----------
    texts
        Gone through once.
    vocabulary
        `SMALLEST` at least.
    """
    library = package("tokenizers")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(iter(texts), trainer)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
    files = {_FILE: made.to_str(pretty=True).encode(), _CONFIG: json.dumps(config, indent=2).encode()}
    return Tokenizer(made, 0, 0, files)


def read(path: Path, end: str | None = None) -> Tokenizer:
    """Read a tokenizer.

    Parameters
    ----------
    path
        Of a ``tokenizer.json``, or of a folder with one.
    end
        The token that ends a document; by default what ``tokenizer_config.json`` beside it names as ``eos_token``, or
        a usual one.

    Raises
    ------
    InputError
        There is none, it can't be read, or has no such token.
    """
    library = package("tokenizers")
    file = path / _FILE if path.is_dir() else path
    try:
        files = {_FILE: file.read_bytes()}
        made = library.Tokenizer.from_buffer(files[_FILE])
    except OSError as error:
        raise InputError(str(path), f"no tokenizer ({error})", f"a {_FILE} or a folder with one") from error
    except Exception as error:  # the package raises plain exceptions
        raise InputError(
            str(file), f"no tokenizer ({error})", f"a {_FILE} of the package tokenizers"
        ) from error
    made.no_truncation()
    made.no_padding()
    named: dict[str, str] = {}
    for name in (_MAP, _CONFIG):
        beside = file.with_name(name)
        if beside.is_file():
            files[name] = beside.read_bytes()
            named |= special_tokens(files[name], beside)
    ending = _end(made, end or named.get("eos_token"), file)
    pad = made.token_to_id(named["pad_token"]) if "pad_token" in named else None
    return Tokenizer(made, ending, ending if pad is None else pad, files)


def special_tokens(content: bytes, path: Path) -> dict[str, str]:
    """Return the special tokens that a file names, each by its text or by a mapping with the text."""
    try:
        values = dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise InputError(str(path), f"what is no JSON object ({error})", "one of the tokenizer") from error
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in values.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def _end(made: Any, named: str | None, file: Path) -> int:
    for token in _ENDS if named is None else (named,):
        number: int | None = made.token_to_id(token)
        if number is not None:
            return number
    found = f"none of {', '.join(_ENDS)}" if named is None else f"no token {named!r}"
    raise InputError(
        str(file), found, "a token that ends a document", "Name one of its tokens with --end-token."
    )
