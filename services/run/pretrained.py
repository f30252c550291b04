"""A run's network as a folder of Hugging Face."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from lowdimfa.block_module import BlockModule
from lowdimfa.data.tokenizer import special_tokens
from lowdimfa.errors import InputError, in_words
from lowdimfa.layers import list_layers
from lowdimfa.models.hf.network import HuggingFaceNetwork
from lowdimfa.models.hf.saving import save_pretrained
from lowdimfa.models.hf.source import quiet
from lowdimfa.paths import appearing, expand
from lowdimfa.services.run.described import PREPROCESSOR, name_labels, write_preprocessor
from lowdimfa.services.run.large import build_shapes
from lowdimfa.services.run.manifest import Manifest, export_state
from lowdimfa.services.run.model import build_model, require_configuration
from lowdimfa.services.spec import Specification

_GENERATION = "generation_config.json"
_SETTINGS = (_GENERATION, PREPROCESSOR)
_TEXT = 'It\'s 2,026:\n\n  "tokens"  and 12345 words\tof Ünïcode…\r\n'
"""What tokenizers of different habits cut differently."""
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

    The weights go from the checkpoint to files of `lowdimfa.models.hf.saving.PART` bytes, with memory for one.

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
        The model isn't one of Hugging Face, or another than when the checkpoint was written, or the folder can't be
        written.
    """
    network = build_shapes(partial(build_model, specification))
    if not isinstance(network, HuggingFaceNetwork):
        found = f"a run whose model is {specification.model.factory}"
        raise InputError("--format hugging-face", found, "one of lowdimfa.models:hugging_face")
    layers = list_layers(network)
    require_configuration(layers, manifest)
    kept = BlockModule(layers).plain_state_dict()
    manifest.require_same_model({name: tuple(value.shape) for name, value in kept.items()})
    told = manifest.meta.get("described") or {}
    name_labels(network.config, told.get("classes"))
    if output.exists():
        raise InputError(str(output), "something that is already there", "a folder to be made")
    try:
        with appearing(output) as folder:
            save_pretrained(network, folder, partial(_read, manifest, average))
            own = _copy_settings(network.folder, folder)
            notices = _copy_tokenizer([specification.data.args.get("path"), network.folder], folder)
            if not own:
                _name_special_tokens(folder)
            notices += _read_otherwise(folder) + write_preprocessor(told.get("images"), folder)
    except OSError as error:
        found = f"a path that can't be written ({error})"
        raise InputError(str(output), found, "a writable folder") from error
    notices += [layer.notice for layer in layers if layer.notice]
    return sorted(path.name for path in output.iterdir()), notices


def _read(manifest: Manifest, average: bool, layer: str, module: nn.Module) -> dict[str, Tensor]:
    """Return a layer's state as a checkpoint has it, where a tensor of two names is kept under the first."""
    state = module.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    kept = {name: f"{layer}.{first.setdefault(id(value), name)}" for name, value in state.items()}
    found = export_state(manifest, average, set(kept.values()).__contains__)
    # Copies of what has another name already.
    return {
        name: found[kept[name]].to(value.dtype, copy=first[id(value)] != name)
        for name, value in state.items()
    }


def _copy_settings(source: str | None, folder: Path) -> bool:
    """Copy how text is generated and images are prepared, if the network came with that; return whether the first is."""
    there = [name for name in _SETTINGS if source is not None and (expand(source) / name).is_file()]
    for name in there:
        shutil.copyfile(expand(str(source)) / name, folder / name)
    return _GENERATION in there


def _name_special_tokens(folder: Path) -> None:
    """Let configurations that have none name the tokenizer's first and last token, so that a text ends where it does."""
    beside, path = folder / "tokenizer_config.json", folder / _TOKENIZER
    if not (beside.is_file() and path.is_file() and (folder / _GENERATION).is_file()):
        return
    from tokenizers import Tokenizer  # the extra brings it

    tokens, numbered = special_tokens(beside.read_bytes(), beside), Tokenizer.from_file(str(path))
    for name in ("config.json", _GENERATION):
        values = json.loads((folder / name).read_text("utf-8"))
        for key in ("bos_token", "eos_token"):
            number = numbered.token_to_id(tokens[key]) if key in tokens else None
            if number is not None and values.get(f"{key}_id") is None:
                values[f"{key}_id"] = number
        (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_otherwise(folder: Path) -> list[str]:
    """Say if the tokenizer that `transformers` takes for this kind of network makes other tokens than the file's."""
    if not (folder / _TOKENIZER).is_file():
        return []
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    plain = Tokenizer.from_file(str(folder / _TOKENIZER))
    try:
        with quiet():
            usual = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            found = usual(_TEXT, add_special_tokens=False)["input_ids"]
            name = type(usual).__name__
    except Exception as error:  # each kind has its own
        return [f"transformers' AutoTokenizer can't read the tokenizer ({in_words(error)})"]
    if found == plain.encode(_TEXT, add_special_tokens=False).ids:
        return []
    return [
        f"transformers' AutoTokenizer takes a {name} for this kind of network, which makes other tokens than those of "
        f"training: read them with tokenizers.Tokenizer.from_file('{_TOKENIZER}')"
    ]


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
            if not (folder / _TOKENIZER).exists():
                shutil.copyfile(source / _TOKENIZER, folder / _TOKENIZER)
            elif (source / _TOKENIZER).read_bytes() != (folder / _TOKENIZER).read_bytes():
                continue
            # Of the same tokenizer the network's folder may have what that of the data has left out, such as a template.
            for name in _BESIDE:
                if (source / name).is_file() and not (folder / name).exists():
                    shutil.copyfile(source / name, folder / name)
    return notices
