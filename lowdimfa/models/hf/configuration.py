"""Configurations of networks of Hugging Face: as they are given, or as a folder has them, never from a hub."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from inspect import getmodule, getsource
from pathlib import Path
from typing import Any

from torch import nn

from lowdimfa.data.extra import package
from lowdimfa.errors import InputError, in_words
from lowdimfa.models.hf.outlines import Task
from lowdimfa.paths import expand

CONFIG_KEY = "model.args.config"
PATH_KEY = "model.args.path"
AUTO: dict[Task, str] = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}
"""Names of what chooses the class of a network for a task."""

_READ_HERE = {"image_size"}
"""What is read here of configurations whose kind doesn't know it."""
_ATTENTION = ("sdpa", "eager")


def library() -> Any:
    """Return the package ``transformers``.

    Raises
    ------
    InputError
        It isn't installed.
    """
    return package("transformers", "model.factory")


def read_config(given: Mapping[str, Any] | str | None, path: str | None) -> Any:
    """Return the configuration that was given, or that of a folder.

    Raises
    ------
    InputError
        Both or neither are given, there is no such file, or it is of no known kind of network.
    """
    if (given is None) == (path is None):
        found = "neither config nor path" if given is None else "both config and path"
        raise InputError("model.args", found, "config for random weights, or path for those of a folder")
    key = CONFIG_KEY if path is None else PATH_KEY
    if path is not None:
        values = _read_json(folder_at(path) / "config.json", key)
    else:
        values = _read_json(_expanded(given, key), key) if isinstance(given, str) else dict(given or {})
    return _parsed(values, key, own=isinstance(given, Mapping))


def _parsed(values: dict[str, Any], key: str, own: bool) -> Any:
    transformers = library()
    kinds = transformers.CONFIG_MAPPING
    kind = values.get("model_type")
    if kind not in kinds:
        found = "no model_type" if kind is None else f"the model_type {kind!r}"
        expected = "one that transformers knows, such as gpt2, llama, bert or vit"
        raise InputError(key, found, expected)
    if values.get("quantization_config"):
        raise InputError(key, "quantised weights", "weights that can be trained")
    # What a folder brings of its own code is never run.
    values = {
        name: value for name, value in values.items() if name not in ("auto_map", "transformers_weights")
    }
    attention = values["attn_implementation"] = values.get("attn_implementation") or _usual_attention(
        kinds[kind]
    )
    if attention not in _ATTENTION:
        raise InputError(key, f"attn_implementation {attention!r}", " or ".join(_ATTENTION))
    try:
        with quiet():
            config = kinds[kind].from_dict(values)
    except Exception as error:  # each kind checks in its own way
        raise InputError(
            key, f"a configuration that {kind} refuses ({in_words(error)})", "another"
        ) from error
    if own:
        _forget_foreign_tokens(config, values)
    return config


def _usual_attention(kind: type) -> str:
    """Return what a kind of configuration gets where none is named: some networks have no ``sdpa``."""
    for name in ("AutoModel", *AUTO.values()):
        classes = getattr(library(), name)._model_mapping
        if kind in classes:
            found = classes[kind]
            return _ATTENTION[not (found[0] if isinstance(found, tuple) else found)._supports_sdpa]
    return _ATTENTION[0]


def unread_keys(config: Any, original: nn.Module) -> str:
    """Return a warning that names what a configuration has and its network doesn't read; empty if there is nothing.

    The package keeps such keys, and computes nothing by them. Of some, such as ``head_dim``, only the network knows.
    """
    try:
        usual = type(config)()
    except Exception:  # some kinds have no defaults
        return ""
    names = {*vars(usual), *type(config).attribute_map}
    told = []
    for key in sorted(vars(config).keys() - names - _READ_HERE - _read_by(type(original))):
        if not (key.startswith("_") or hasattr(usual, key)):
            near = get_close_matches(key, [name for name in names if not name.startswith("_")], 1)
            told.append(f"{key!r}{f' (is {near[0]!r} meant?)' if near else ''}")
    return f"nothing in a {config.model_type} reads the configuration's {', '.join(told)}" if told else ""


def _read_by(network: type) -> set[str]:
    """Return the keys of its configuration that the code of a kind of network names."""
    modules = {module for kind in network.__mro__ if (module := getmodule(kind)) is not None}
    code = "\n".join(getsource(module) for module in modules if module.__name__.startswith("transformers."))
    return set(re.findall(r"config(?:\.|, \")(\w+)", code))


def _forget_foreign_tokens(config: Any, values: Mapping[str, Any]) -> None:
    """Let special tokens that a default means for another vocabulary be none: of padding what lies beyond this one.

    A text that is generated would end at whatever token has the number of another tokenizer's end.
    """
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id"):
        token = getattr(config, name, None)
        if name in values or not isinstance(token, int):
            continue
        if name != "pad_token_id" or token >= getattr(config, "vocab_size", token + 1):
            # Some kinds insist on a number.
            with suppress(Exception):
                setattr(config, name, None)


def folder_at(path: str) -> Path:
    """Return the folder of a path.

    Raises
    ------
    InputError
        There is none.
    """
    folder = _expanded(path, PATH_KEY)
    if not folder.is_dir():
        raise InputError(
            PATH_KEY, f"{path!r}, where no folder is", "a folder with config.json and safetensors"
        )
    return folder


def _expanded(path: str, key: str) -> Path:
    try:
        return expand(path)
    except ValueError as error:
        raise InputError(key, f"{path!r} ({error})", "a path") from error


def _read_json(file: Path, key: str) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InputError(key, f"no {file} ({error.strerror})", "a readable config.json") from error
    except ValueError as error:
        raise InputError(key, f"{file}, which is no JSON ({error})", "a config.json") from error
    if not isinstance(values, dict):
        raise InputError(key, f"{file} with a {type(values).__name__}", "a mapping")
    return values


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what ``transformers`` says to itself: what matters of it is an error here."""
    own = import_module("transformers.utils.logging")
    before, bars = own.get_verbosity(), own.is_progress_bar_enabled()
    own.set_verbosity(logging.CRITICAL)
    own.disable_progress_bar()
    try:
        yield
    finally:
        own.set_verbosity(before)
        if bars:
            own.enable_progress_bar()
