"""Networks as ``transformers`` makes them: of a configuration or a folder, never of a hub, never unpickled."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowdimfa.errors import InputError, in_words, some_of
from lowdimfa.models.hf.configuration import AUTO, CONFIG_KEY, PATH_KEY, folder_at, library, quiet
from lowdimfa.models.hf.outlines import Task

_BESIDE = re.compile(r"(^|\.)pooler\.dense\.|^cls\.seq_relationship\.")
"""Weights beside those of a network for another task, as BERT and RoBERTa were published; `transformers` takes none."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def kind_of(config: Any, task: Task) -> Any:
    """Return the class of the network of a configuration for a task.

    Raises
    ------
    InputError
        There is none.
    """
    classes = getattr(library(), AUTO[task])._model_mapping
    if type(config) not in classes:
        having = [
            task for task, name in AUTO.items() if type(config) in getattr(library(), name)._model_mapping
        ]
        found = f"{task!r} with a {config.model_type}"
        raise InputError("model.args.task", found, " or ".join(having) or "another kind of network")
    found = classes[type(config)]
    return found[0] if isinstance(found, tuple) else found


def text_part(config: Any, task: Task) -> Any:
    """Return the configuration of what a network does with text, where it takes images or sound too; else itself.

    Raises
    ------
    InputError
        The network can't do without the others.
    """
    text = config.get_text_config()
    if text is config or task == "image-classification":
        return config
    if kind_of(config, task).config_class is type(text):
        return text
    found = f"a {config.model_type}, which takes more than text"
    raise InputError("model.args", found, f"a network of text alone, such as a {text.model_type}")


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
        raise InputError(CONFIG_KEY, found, "one that fits together") from error
    return made


def load(config: Any, task: Task, path: str) -> tuple[nn.Module, str]:
    """Return the network of a folder with its weights, in single precision, and what is to be told of these.

    Raises
    ------
    InputError
        The folder has no safetensors, or others than the network's.
    """
    kind, folder = kind_of(config, task), folder_at(path)
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
            PATH_KEY, f"{folder}, which can't be loaded ({in_words(error)})", "safetensors"
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
        raise InputError(PATH_KEY, found, "the weights of the same network for the same task")
    left = f"a {kind.__name__} has no {some_of(beside)}: these weights of the folder are left out"
    return made, left if beside else ""


def _require_weights(folder: Path) -> None:
    if (folder / "adapter_config.json").exists() or (folder / ".metadata").exists():
        raise InputError(PATH_KEY, f"{folder}, which has an adapter or parts of weights", "whole weights")
    if any((folder / name).is_file() for name in _WEIGHTS):
        return
    pickled = sorted(file.name for file in folder.glob("*.bin"))
    raise InputError(
        PATH_KEY,
        f"{folder}, whose weights are pickled ({some_of(pickled)})"
        if pickled
        else f"{folder} without weights",
        " or ".join(_WEIGHTS),
        "Pickled files can run code and are never read: save them again with save_pretrained."
        if pickled
        else "",
    )


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
