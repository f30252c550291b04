"""A network in layers as a folder that ``from_pretrained`` loads."""

from __future__ import annotations

from pathlib import Path

import torch

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
    """
    # Copies, since a safetensors file has no two names for one tensor.
    state = {name: value.to("cpu", copy=True) for name, value in network.original_state().items()}
    with quiet():
        with torch.device("meta"):
            original = network.kind(network.config)
        original.load_state_dict(state, strict=True, assign=True)
        original.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # which the library leaves for its owner alone
        file.chmod((folder / "config.json").stat().st_mode)
