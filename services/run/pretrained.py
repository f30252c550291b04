"""A run's network as a folder of Hugging Face."""

from __future__ import annotations

import shutil
from pathlib import Path

from lowdimfa.errors import InputError
from lowdimfa.layers import list_layers
from lowdimfa.models.hf.network import HuggingFaceNetwork
from lowdimfa.models.hf.saving import save_pretrained
from lowdimfa.paths import appearing, expand
from lowdimfa.services.run.manifest import Manifest
from lowdimfa.services.run.model import trained_model
from lowdimfa.services.spec import Specification

_SETTINGS = ("generation_config.json", "preprocessor_config.json")
_TOKENIZER = "tokenizer.json"
_BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def export_folder(
    specification: Specification, manifest: Manifest, output: Path, average: bool = False
) -> tuple[list[str], list[str]]:
    """Write a folder that ``from_pretrained`` loads, whole or not at all; return its files and what is to be said.

    Parameters
    ----------
    specification
        Of the run; its model's factory is called once more.
    manifest
        Of the checkpoint.
    output
        A folder that isn't there yet.

    Raises
    ------
    InputError
        The model isn't one of Hugging Face, or the folder can't be written.
    """
    network = trained_model(specification, manifest, average)
    if not isinstance(network, HuggingFaceNetwork):
        found = f"a run whose model is {specification.model.factory}"
        raise InputError("--format hugging-face", found, "one of lowdimfa.models:hugging_face")
    if output.exists():
        raise InputError(str(output), "something that is already there", "a folder to be made")
    try:
        with appearing(output) as folder:
            save_pretrained(network, folder)
            _copy_settings(network.folder, folder)
            notices = _copy_tokenizer([specification.data.args.get("path"), network.folder], folder)
    except OSError as error:
        found = f"a path that can't be written ({error})"
        raise InputError(str(output), found, "a writable folder") from error
    notices += [layer.notice for layer in list_layers(network) if layer.notice]
    return sorted(path.name for path in output.iterdir()), notices


def _copy_settings(source: str | None, folder: Path) -> None:
    """Copy how text is generated and images are prepared, if the network came with that."""
    for name in _SETTINGS:
        if source is not None and (expand(source) / name).is_file():
            shutil.copyfile(expand(source) / name, folder / name)


def _copy_tokenizer(places: list[object], folder: Path) -> list[str]:
    """Copy the tokenizer of the first place that has one: the data's own, or what the network came with; say if not."""
    notices = []
    for place in places:
        if not isinstance(place, str):
            continue
        try:
            source = expand(place)
        except ValueError as error:  # a variable of the machine that trained
            notices.append(f"no tokenizer was copied from {place}: {error}")
            continue
        if (source / _TOKENIZER).is_file():
            for name in (_TOKENIZER, *_BESIDE):
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
            break
    return notices
