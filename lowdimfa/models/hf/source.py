"""Networks as ``transformers`` makes them: of a configuration or a folder, never of a hub, never unpickled."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowdimfa.data.extra import package
from lowdimfa.errors import InputError, in_words, some_of
from lowdimfa.models.hf.outlines import Task
from lowdimfa.paths import expand

_CONFIG_KEY = "model.args.config"
_PATH_KEY = "model.args.path"
_AUTO: dict[Task, str] = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}
_READ_HERE = {"image_size"}
"""What is read here of configurations whose kind doesn't know it."""
_ATTENTION = ("sdpa", "eager")
_BESIDE = re.compile(r"(^|\.)pooler\.dense\.|^cls\.seq_relationship\.")
"""Weights beside those of a network for another task, as BERT and RoBERTa were published; `transformers` takes none."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


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
    key = _CONFIG_KEY if path is None else _PATH_KEY
    if path is not None:
        values = _read_json(_folder(path) / "config.json", key)
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
    for name in ("AutoModel", *_AUTO.values()):
        classes = getattr(library(), name)._model_mapping
        if kind in classes:
            found = classes[kind]
            return _ATTENTION[not (found[0] if isinstance(found, tuple) else found)._supports_sdpa]
    return _ATTENTION[0]


def unread_keys(config: Any) -> str:
    """Return a warning that names what a configuration has and its kind doesn't know; empty if there is nothing.

    The package keeps such keys, and computes nothing by them.
    """
    try:
        usual = type(config)()
    except Exception:  # some kinds have no defaults
        return ""
    names = {*vars(usual), *type(config).attribute_map}
    told = []
    for key in sorted(vars(config).keys() - names - _READ_HERE):
        if not (key.startswith("_") or hasattr(usual, key)):
            near = get_close_matches(key, [name for name in names if not name.startswith("_")], 1)
            told.append(f"{key!r}{f' (is {near[0]!r} meant?)' if near else ''}")
    return f"nothing in a {config.model_type} reads the configuration's {', '.join(told)}" if told else ""


def _forget_foreign_tokens(config: Any, values: Mapping[str, Any]) -> None:
    """Let special tokens that a default means for another vocabulary be none: of padding what lies beyond this one.

    A text that is generated would end at whatever token has the number of another tokenizer's end.
    """
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(config, name, None)
        if name in values or not isinstance(token, int):
            continue
        if name != "pad_token_id" or token >= getattr(config, "vocab_size", token + 1):
            # Some kinds insist on a number.
            with suppress(Exception):
                setattr(config, name, None)


def kind_of(config: Any, task: Task) -> Any:
    """Return the class of the network of a configuration for a task.

    Raises
    ------
    InputError
        There is none.
    """
    classes = getattr(library(), _AUTO[task])._model_mapping
    if type(config) not in classes:
        having = [
            task for task, name in _AUTO.items() if type(config) in getattr(library(), name)._model_mapping
        ]
        found = f"{task!r} with a {config.model_type}"
        raise InputError("model.args.task", found, " or ".join(having) or "another kind of network")
    found = classes[type(config)]
    return found[0] if isinstance(found, tuple) else found


def make(config: Any, task: Task) -> nn.Module:
    """Return a network with weights that are drawn from torch's default generator.

    Raises
    ------
    InputError
        There is no network of this kind for the task, or the configuration doesn't fit together.
    """
    kind = kind_of(config, task)
    try:
        with quiet():
            made: nn.Module = kind._from_config(config, dtype=torch.float32)
    except Exception as error:  # each kind checks in its own way
        found = f"a configuration of which {kind.__name__} makes nothing ({in_words(error)})"
        raise InputError(_CONFIG_KEY, found, "one that fits together") from error
    return made


def load(config: Any, task: Task, path: str) -> tuple[nn.Module, str]:
    """Return the network of a folder with its weights, in single precision, and what is to be told of these.

    Raises
    ------
    InputError
        The folder has no safetensors, or others than the network's.
    """
    kind, folder = kind_of(config, task), _folder(path)
    _require_weights(folder)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "weights_only": True}
    try:
        with quiet(), _in_this_thread():
            made, info = kind.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # whatever a damaged file brings about
        raise InputError(
            _PATH_KEY, f"{folder}, which can't be loaded ({in_words(error)})", "safetensors"
        ) from error
    beside = [name for name in sorted(info["unexpected_keys"]) if _BESIDE.search(name)]
    other = {
        "missing": sorted(info["missing_keys"]),
        "not of it": sorted(set(info["unexpected_keys"]) - set(beside)),
        "of another shape": sorted(str(entry[0]) for entry in info["mismatched_keys"]),
    }
    differing = [f"{what}: {some_of(names)}" for what, names in other.items() if names]
    if differing:
        found = f"{folder}, whose weights aren't those of a {kind.__name__} ({'; '.join(differing)})"
        raise InputError(_PATH_KEY, found, "the weights of the same network for the same task")
    left = f"a {kind.__name__} has no {some_of(beside)}: these weights of the folder are left out"
    return made, left if beside else ""


def _require_weights(folder: Path) -> None:
    if (folder / "adapter_config.json").exists() or (folder / ".metadata").exists():
        raise InputError(_PATH_KEY, f"{folder}, which has an adapter or parts of weights", "whole weights")
    if any((folder / name).is_file() for name in _WEIGHTS):
        return
    pickled = sorted(file.name for file in folder.glob("*.bin"))
    raise InputError(
        _PATH_KEY,
        f"{folder}, whose weights are pickled ({some_of(pickled)})"
        if pickled
        else f"{folder} without weights",
        " or ".join(_WEIGHTS),
        "Pickled files can run code and are never read: save them again with save_pretrained."
        if pickled
        else "",
    )


def _folder(path: str) -> Path:
    folder = _expanded(path, _PATH_KEY)
    if not folder.is_dir():
        raise InputError(
            _PATH_KEY, f"{path!r}, where no folder is", "a folder with config.json and safetensors"
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
def _in_this_thread() -> Iterator[None]:
    """Let ``transformers`` read weights in this thread, where a mode of torch sees them that keeps some alone."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


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
