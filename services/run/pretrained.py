"""A run's network as a folder of Hugging Face."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from lowdimfa.block_module import BlockModule
from lowdimfa.errors import InputError
from lowdimfa.layers import list_layers
from lowdimfa.models.hf.network import HuggingFaceNetwork
from lowdimfa.models.hf.saving import save_pretrained
from lowdimfa.paths import appearing, expand
from lowdimfa.services.run.described import PREPROCESSOR, name_labels, write_preprocessor
from lowdimfa.services.run.large import build_shapes
from lowdimfa.services.run.manifest import Manifest, export_state
from lowdimfa.services.run.model import build_model, require_configuration
from lowdimfa.services.run.tokenizer_files import (
    GENERATION,
    copy_tokenizer,
    name_special_tokens,
    read_otherwise,
    unlike,
)
from lowdimfa.services.spec import Specification


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
            notices = copy_tokenizer(specification.data.args.get("path"), network.folder, folder)
            _copy_setting(network.folder, folder, PREPROCESSOR)
            # Whose numbers mean tokens of the tokenizer beside it.
            own = network.folder is None or unlike(folder, expand(network.folder)) is None
            if not (own and _copy_setting(network.folder, folder, GENERATION)):
                name_special_tokens(folder)
            notices += read_otherwise(folder) + write_preprocessor(told.get("images"), folder)
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


def _copy_setting(source: str | None, folder: Path, name: str) -> bool:
    """Copy a file of how text is generated or images are prepared; return whether the network came with it."""
    there = source is not None and (expand(source) / name).is_file()
    if there:
        shutil.copyfile(expand(str(source)) / name, folder / name)
    return there
