"""What a network makes for its blocks beside hidden states, asked of the network itself."""

from __future__ import annotations

import inspect
from copy import copy, deepcopy
from typing import Any

from torch import Tensor, nn

_USUAL = {"attention_mask", "position_ids", "position_embeddings"}


def takes_more(block: nn.Module) -> bool:
    """Return whether a block has to be given more than hidden states, mask, positions and a rotary embedding."""
    _, *others = inspect.signature(block.forward).parameters.values()
    named = [each for each in others if each.kind is each.POSITIONAL_OR_KEYWORD]
    return any(each.default is each.empty and each.name not in _USUAL for each in named)


class Beside(nn.Module):
    """The forward of a network around its blocks, with nothing of weight in it.

    Kinds such as Falcon, BLOOM and MPT give their blocks a bias of attention (ALiBi), each one of its own making. So
    this runs what makes it, which is then the same in every version of the package.

    Parameters
    ----------
    original, blocks
        The network, and the name of its list of blocks.
    """

    def __init__(self, original: nn.Module, blocks: str) -> None:
        super().__init__()
        around, _, name = blocks.rpartition(".")
        network = original.get_submodule(around)
        hollow = copy(network)
        self.listener = _Listener()
        # A copy shares these with the network.
        hollow.__dict__ |= {"_parameters": {}, "_buffers": {}, "_modules": {}}
        for child, module in network.named_children():
            hollow.add_module(child, deepcopy(module) if "rotary" in child else nn.Identity())
        hollow.add_module(name, nn.ModuleList([self.listener]))
        self.network = hollow
        self.positioned = "position_ids" in inspect.signature(network.forward).parameters

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> dict[str, Any]:
        """Return what a block is given by name."""
        positions = {"position_ids": position_ids} if self.positioned else {}
        # In single precision, as the network's own embedding gives it.
        embedded = hidden_states.detach().float()
        self.network(inputs_embeds=embedded, attention_mask=attention_mask, use_cache=False, **positions)
        given, self.listener.heard = self.listener.heard, {}
        return given


class _Listener(nn.Module):
    """Stands in the place of all blocks, and notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, **named: Any) -> tuple[Tensor, None]:
        self.heard = named
        return hidden_states, None
