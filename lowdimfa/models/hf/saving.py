"""A network in layers as a folder that ``from_pretrained`` loads, with memory for some of its layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from lowdimfa.errors import InputError
from lowdimfa.models.hf.configuration import quiet
from lowdimfa.models.hf.network import HuggingFaceNetwork

PART = 1 << 30
"""Bytes of weights in a file, where no layer has more: they are in memory together. Whoever loads them needs no less."""

Read = Callable[[str, nn.Module], Mapping[str, Tensor]]
"""Returns the state of a layer, given with its name: each tensor with memory of its own, on the processor."""


def own_state(name: str, layer: nn.Module) -> dict[str, Tensor]:
    """Return a copy of what a layer has: a safetensors file has no two names for one tensor."""
    return {key: value.to("cpu", copy=True) for key, value in layer.state_dict().items()}


def save_pretrained(network: HuggingFaceNetwork, folder: Path, read: Read = own_state) -> None:
    """Write configuration and weights of the original network; weights that were untied are two in it.

    Parameters
    ----------
    network
        On any device; its layers need no memory where others are read.
    folder
        It is made if it isn't there.
    read
        Is asked for each layer once.

    Raises
    ------
    InputError
        The network's state isn't that of a network of its configuration.
    """
    with quiet():
        # Shapes alone: of all that has memory the original is given some layers at a time.
        with torch.device("meta"):
            original = network.kind(network.config)
        state = {name: value.to("meta") for name, value in network.original_state().items()}
        _refuse_others(state, original.state_dict())
        original.load_state_dict(state, strict=True, assign=True)
        parts = _parts(network)
        names = {f"model-{n:05}-of-{len(parts):05}.safetensors": part for n, part in enumerate(parts, 1)}
        if len(parts) == 1:
            names = {"model.safetensors": parts[0]}
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in names.items():
            own = {
                key: value
                for layer in part
                for key, value in read(layer, network.get_submodule(layer)).items()
            }
            _write(original, own, folder / name)
            del own
    if len(parts) > 1:
        _write_index(original, [folder / name for name in names])


def _parts(network: HuggingFaceNetwork) -> list[list[str]]:
    """Return the layers' names as they go to files: a layer is in one file, since others may keep it in other tensors."""
    parts: list[list[str]] = []
    held = 0
    for name, layer in network.named_children():
        nbytes = sum(value.nbytes for value in layer.state_dict().values())
        if not parts or held + nbytes > PART:
            parts, held = [*parts, []], 0
        parts[-1].append(name)
        held += nbytes
    return parts


def _write(original: Any, state: Mapping[str, Tensor], file: Path) -> None:
    """Write some of the weights, and beside them what the network's folder has beside weights."""
    # Elsewhere first, as the library gives the file a name of its own and deletes what it takes for an earlier one's.
    with TemporaryDirectory(dir=file.parent) as own:
        original.save_pretrained(own, state_dict=dict(state), max_shard_size=1 << 60)
        for path in Path(own).iterdir():
            path.replace(file if path.suffix == file.suffix else file.parent / path.name)
    # Which the library leaves for its owner alone.
    file.chmod((file.parent / "config.json").stat().st_mode)


def _write_index(original: Any, files: list[Path]) -> None:
    """Say which file has which tensor, as its header names them."""
    found: dict[str, str] = {}
    nbytes = 0
    for path in files:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        found |= dict.fromkeys(entries, path.name)
        nbytes += sum(end - begin for begin, end in (entry["data_offsets"] for entry in entries.values()))
    index = {
        "metadata": {"total_parameters": original.num_parameters(), "total_size": nbytes},
        "weight_map": found,
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (files[0].parent / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _refuse_others(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    shapes = [{name: value.shape for name, value in each.items()} for each in (state, expected)]
    names = [name for name in shapes[0] | shapes[1] if len({each.get(name) for each in shapes}) > 1]
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise InputError(
            "model.factory",
            f"a network that differs from its configuration in {shown}",
            "the tensors that its configuration has",
            "Merge adapters into the weights first, or export without --format.",
        )
