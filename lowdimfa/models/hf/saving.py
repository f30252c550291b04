"""A network in layers as a folder that ``from_pretrained`` loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lowdimfa.errors import InputError
from lowdimfa.models.hf.network import HuggingFaceNetwork
from lowdimfa.models.hf.source import quiet


def save_pretrained(network: HuggingFaceNetwork, folder: Path) -> None:
    """Write configuration and weights of the original network; weights that were untied are two in it.

    Parameters
    ----------
    network
        On any device.
    folder
        It is made if it isn't there.

    Raises
    ------
    InputError
        Its state isn't that of a network of its configuration.
    """
    # Copies, since a safetensors file has no two names for one tensor.
    state = {name: value.to("cpu", copy=True) for name, value in network.original_state().items()}
    with quiet():
        with torch.device("meta"):
            original = network.kind(network.config)
        _refuse_others(state, original.state_dict())
        original.load_state_dict(state, strict=True, assign=True)
        original.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # which the library leaves for its owner alone
        file.chmod((folder / "config.json").stat().st_mode)


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
