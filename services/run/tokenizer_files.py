"""Tokenizers of the data and of a network of Hugging Face: whether they are one, and how an export gets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lowdimfa.data.tokenizer import special_tokens
from lowdimfa.errors import InputError, in_words
from lowdimfa.models.hf.configuration import quiet
from lowdimfa.models.hf.layers import Part
from lowdimfa.paths import expand
from lowdimfa.services.run.network_plan import NetworkPlan

GENERATION = "generation_config.json"
_TEXT = 'It\'s 2,026:\n\n  "tokens"  and 12345 words\tof Ünïcode…\r\n'
"""What tokenizers of different habits cut differently."""
_FILE = "tokenizer.json"
_VOCABULARIES = ("vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
"""What a tokenizer is read from that has no `_FILE`."""
_BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates",
    *_VOCABULARIES,
)


def check_tokenizer(network: NetworkPlan, place: object) -> None:
    """Compare the tokenizer in the data's folder with that beside the network's weights.

    Raises
    ------
    InputError
        A number is another token in the other one: the network would learn its words anew, and be exported so.
    """
    folders = _folders(network, place)
    if folders is None or (found := unlike(*folders)) is None:
        return
    raise InputError(
        "data.args.path",
        f"tokens of another tokenizer than that of model.args.path ({found})",
        "those that the network knows",
        f"Make them by it: lowdimfa data tokens TEXT --tokenizer {folders[1]} --out DIR. If another one is meant, give a "
        "copy of the network's folder without its tokenizer.",
    )


def cut_otherwise(network: NetworkPlan, place: object) -> str:
    """Return a warning where two tokenizers have the same tokens, and cut a text otherwise; empty if they don't."""
    folders = _folders(network, place)
    if folders is None or not all((folder / _FILE).is_file() for folder in folders):
        return ""
    try:
        data, own = (_plain(folder).encode(_TEXT, add_special_tokens=False).ids for folder in folders)
    except Exception:  # each kind has its own
        return ""
    if data == own:
        return ""
    return (
        "the tokenizer of data.args.path has the tokens of that of model.args.path, and cuts text otherwise: "
        "lowdimfa data tokens TEXT --tokenizer takes the latter"
    )


def unlike(folder: Path, other: Path) -> str | None:
    """Return a token that has another number in the second folder's tokenizer; None if there is none, or no tokenizer."""
    one, two = _tokens(folder), _tokens(other)
    differing = sorted(number for number in one.keys() & two.keys() if one[number] != two[number])
    if not differing:
        return None
    first = differing[0]
    more = f", and {len(differing) - 1:,} more" if len(differing) > 1 else ""
    return f"{first} is {one[first]!r} in place of {two[first]!r}{more}"


def _folders(network: NetworkPlan, place: object) -> tuple[Path, Path] | None:
    """Return the folders of the data and of the network, where both have one."""
    first = network.blocks[0].layers[0].module
    if not isinstance(first, Part) or first.folder is None or not isinstance(place, str):
        return None
    try:
        return expand(place), expand(first.folder)
    except ValueError:  # whoever reads it says so
        return None


def _plain(folder: Path) -> Any:
    from tokenizers import Tokenizer  # the extra brings it

    tokenizer = Tokenizer.from_file(str(folder / _FILE))
    # What a text is filled up or cut to is no matter of how it is cut into tokens.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _usual(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _tokens(folder: Path) -> dict[int, str]:
    """Return each number's token; nothing where there is no tokenizer that can be read."""
    try:
        if (folder / _FILE).is_file():
            found = _plain(folder).get_vocab(with_added_tokens=True)
        elif any((folder / name).is_file() for name in _VOCABULARIES):
            found = _usual(folder).get_vocab()
        else:
            return {}
    except Exception:  # each kind has its own
        return {}
    return {number: token for token, number in found.items()}


def name_special_tokens(folder: Path) -> None:
    """Let configurations that have none name the tokenizer's first and last token, so that a text ends where it does."""
    beside = folder / "tokenizer_config.json"
    if not all(path.is_file() for path in (beside, folder / _FILE, folder / GENERATION)):
        return
    tokens, numbered = special_tokens(beside.read_bytes(), beside), _plain(folder)
    for name in ("config.json", GENERATION):
        values = json.loads((folder / name).read_text("utf-8"))
        for key in ("bos_token", "eos_token"):
            number = numbered.token_to_id(tokens[key]) if key in tokens else None
            if number is not None and values.get(f"{key}_id") is None:
                values[f"{key}_id"] = number
        (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_otherwise(folder: Path) -> list[str]:
    """Say if the tokenizer that `transformers` takes for this kind of network makes other tokens than the file's."""
    if not (folder / _FILE).is_file():
        return []
    try:
        usual = _usual(folder)
        with quiet():
            found = usual(_TEXT, add_special_tokens=False)["input_ids"]
        name = type(usual).__name__
    except Exception as error:  # each kind has its own
        return [f"transformers' AutoTokenizer can't read the tokenizer ({in_words(error)})"]
    if found == _plain(folder).encode(_TEXT, add_special_tokens=False).ids:
        return []
    return [
        f"transformers' AutoTokenizer takes a {name} for this kind of network, which makes other tokens than those of "
        f"training: read them with tokenizers.Tokenizer.from_file('{_FILE}')"
    ]


def copy_tokenizer(data: object, network: str | None, folder: Path) -> list[str]:
    """Copy the tokenizer of the data's folder, or what the network came with; return what is to be told."""
    notices = []
    for place in (data, network):
        if not isinstance(place, str):
            continue
        try:
            source = expand(place)
        except ValueError as error:  # a variable of the machine that trained
            notices.append(f"no tokenizer was copied from {place}: {error}")
            continue
        if _is_that_of(source, folder, alone=place is network):
            # Of the same tokenizer the network's folder may have what that of the data has left out, such as a template.
            for name in (_FILE, *_BESIDE):
                _copy_missing(source / name, folder / name)
    return notices


def _is_that_of(source: Path, folder: Path, alone: bool) -> bool:
    """Whether a folder has the tokenizer of an export, or one and the export has none yet.

    Parameters
    ----------
    source, folder
        The folder, and that of the export.
    alone
        Whether files count from which `_FILE` could be made: in a folder of data they may be anything.
    """
    if (source / _FILE).is_file():
        there = folder / _FILE
        return not there.exists() or there.read_bytes() == (source / _FILE).read_bytes()
    return (
        alone and not (folder / _FILE).exists() and any((source / name).is_file() for name in _VOCABULARIES)
    )


def _copy_missing(source: Path, target: Path) -> None:
    if target.exists():
        return
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copyfile(source, target)
