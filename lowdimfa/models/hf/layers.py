"""Layers made of the modules of a network of Hugging Face; each makes what it needs, such as masks, by itself.

A layer keeps its modules under their names in the original network: ``transformer.h.0.ln_1.weight`` there is
``layer_0.transformer.h.0.ln_1.weight`` in the layers' state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowdimfa.errors import InputError
from lowdimfa.models.hf.beside import Beside, takes_more


class Part(nn.Module):
    """Some modules of the original network, under their names there.

    Parameters
    ----------
    original
        The network; the part shares their parameters.
    names
        Of the modules, in the order in which they run.

    Attributes
    ----------
    notice
        What whoever starts a run has to know of the layer; empty if there is nothing.
    labels
        Of the output of a network that classifies: how many there are; 0 elsewhere.
    predicts
        Of the embedding of a language model, which tokens it is trained for: the ``next`` ones, or those that are
        ``hidden``; empty elsewhere.
    folder
        Of the embedding, where the network's weights came from; None if they were drawn.
    problem
        The configuration's ``problem_type``, where one says what they are for.
    """

    notice: str = ""
    labels: int = 0
    predicts: str = ""
    folder: str | None = None
    problem: str | None = None

    def __init__(self, original: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.config: Any = original.config
        self.names = tuple(names)
        for name in names:
            self.keep(name, original.get_submodule(name))

    def keep(self, name: str, module: nn.Module) -> None:
        """Register a module under a dotted name."""
        *parents, last = name.split(".")
        holder: nn.Module = self
        for parent in parents:
            if parent not in holder._modules:
                holder.add_module(parent, nn.Module())
            holder = holder.get_submodule(parent)
        holder.add_module(last, module)

    def run(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """Run modules one after the other."""
        for name in names:
            x = self.get_submodule(name)(x)
        return x


def positions_of(sequence: Tensor, position_ids: Tensor | None) -> Tensor:
    """Return the positions, by default those from the start of each sequence, shape ``(1, length)``."""
    if position_ids is None:
        return torch.arange(sequence.shape[1], device=sequence.device).unsqueeze(0)
    return position_ids


def refuse_other_mask(attention_mask: Tensor | None, tokens: int) -> None:
    """Refuse a mask of another length than the sequences.

    The package would fill up a shorter one with padding, and cut a longer one, without a word.
    """
    if attention_mask is not None and attention_mask.shape[-1] != tokens:
        found = f"an attention_mask of length {attention_mask.shape[-1]} for sequences of {tokens}"
        raise InputError("data.factory", found, "one number for each token")


class TransformerBlock(Part):
    """One transformer block with what the original makes once for all of them: its mask and its rotary embedding.

    Parameters
    ----------
    original, name
        The network, and the block's name in it.
    index
        Position of the block.
    rotary
        Name of the network's rotary embedding, of which the block gets a copy; None if there is none.
    packed
        Whether its mask keeps texts apart by positions that begin again, as `looks_for_packed` tells.
    """

    residual_stream: ClassVar[bool] = True

    def __init__(self, original: nn.Module, name: str, index: int, rotary: str | None, packed: bool) -> None:
        super().__init__(original, [name])
        block = self.get_submodule(name)
        self.beside = Beside(original, name.rpartition(".")[0]) if takes_more(block) else None
        self.rotary, self.packed = None if self.beside else rotary, packed
        self.layer_type: str | None = None
        if self.rotary is not None:
            self.keep(self.rotary, deepcopy(original.get_submodule(self.rotary)))
            # Gemma 3 and its kin rotate otherwise in blocks that see all tokens.
            if "layer_type" in inspect.signature(self.get_submodule(self.rotary).forward).parameters:
                self.layer_type = self.config.layer_types[index]
        self.positioned = "position_ids" in inspect.signature(original.forward).parameters
        parameters = inspect.signature(block.forward).parameters.values()
        self.takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self.takes = frozenset(parameter.name for parameter in parameters)
        self.causal = any(getattr(module, "is_causal", False) for module in block.modules())
        if self.beside is None:
            self.make_mask = _mask_maker(self.config, index, self.causal)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Map ``(batch, tokens, width)`` to the same shape.

        Parameters
        ----------
        hidden_states
            Of the block before.
        attention_mask
            1 for tokens and 0 for padding, ``(batch, tokens)``; None if there is no padding.
        position_ids
            Of the tokens, ``(batch, tokens)``; None for 0, 1, ….
        """
        if position_ids is not None and not self.positioned:
            found = f"inputs called 'position_ids', which a {self.config.model_type} doesn't take"
            raise InputError("data.factory", found, "inputs without them")
        refuse_other_mask(attention_mask, hidden_states.shape[1])
        if self.beside is None:
            given = self._given(hidden_states, attention_mask, position_ids)
        else:
            given = self.beside(hidden_states, attention_mask, position_ids)
        if not self.takes_all:
            given = {name: value for name, value in given.items() if name in self.takes}
        output = self.get_submodule(self.names[0])(hidden_states, **given)
        result: Tensor = output[0] if isinstance(output, tuple | list) else output
        return result

    def _given(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> dict[str, Any]:
        """Return what a block is given by name, as most kinds make it."""
        # No cache; its name differs between versions. Positions only of the data: in them the package looks for texts
        # that are packed together, which takes time, and when it is compiled makes it form the whole mask.
        more = (None, position_ids if self.packed else None) if self.causal else ()
        positions = positions_of(hidden_states, position_ids)
        given: dict[str, Any] = {
            "attention_mask": self.make_mask(self.config, hidden_states, attention_mask, *more),
            "position_ids": positions,
        }
        if self.rotary is not None:
            kind = {} if self.layer_type is None else {"layer_type": self.layer_type}
            given["position_embeddings"] = self.get_submodule(self.rotary)(hidden_states, positions, **kind)
        return given


def _mask_maker(config: Any, index: int, causal: bool) -> Callable[..., Any]:
    """Return what makes a block's mask of that of the data."""
    masks = import_module("transformers.masking_utils")
    types = getattr(config, "layer_types", None)
    windowed = causal and getattr(config, "sliding_window", None)
    pattern = types[index] if types else "sliding_attention" if windowed else "full_attention"
    known = masks.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING
    # Blocks with a state in place of attention, for which older versions have no mask.
    recurrent = pattern in ("linear_attention", "conv")
    usable = pattern in ("full_attention", "sliding_attention") or (recurrent and pattern in known)
    if not usable and (causal or recurrent):
        expected = "blocks with full or sliding attention"
        raise InputError("model.args.layers", f"block {index} with {pattern}", expected)
    if causal or recurrent:
        return known[pattern]  # type: ignore[no-any-return]
    # Of ModernBERT and its kin, of which some blocks see their neighbours alone.
    near = pattern == "sliding_attention"
    name = "create_bidirectional_sliding_window_mask" if near else "create_bidirectional_mask"
    return getattr(masks, name)  # type: ignore[no-any-return]


class Output(Part):
    """The last layers: from the hidden states of all tokens, or of the first, to the network's output.

    Attributes
    ----------
    by_position
        Whether there is an output for each token, so that the loss can be computed in chunks.
    """

    def __init__(
        self, original: nn.Module, names: Sequence[str], first: bool, by_position: bool = False
    ) -> None:
        super().__init__(original, names)
        self.first = first
        self.by_position = by_position and not first

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map ``(batch, tokens, width)`` to ``(batch, tokens, outputs)`` or ``(batch, outputs)``."""
        output = self.run(hidden_states[:, 0] if self.first else hidden_states, self.names)
        return _rescaled(output, self.config) if self.by_position else output


def _rescaled(logits: Tensor, config: Any) -> Tensor:
    """Return a language model's logits scaled as Granite and Cohere do it, and capped as Gemma does."""
    if (scale := getattr(config, "logits_scaling", 1)) != 1:
        logits = logits / scale
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


class LastTokenOutput(Part):
    """The last layers: from the hidden states of each sequence's last token that isn't padding to the output."""

    def __init__(self, original: nn.Module, names: Sequence[str]) -> None:
        super().__init__(original, names)
        self.padding = getattr(self.config, "pad_token_id", None)
        if self.padding is None:
            expected = "one: the output is that of the last token before padding"
            raise InputError("model.args.config.pad_token_id", "none", expected)

    def forward(self, hidden_states: Tensor, input_ids: Tensor | None = None) -> Tensor:
        """Map ``(batch, tokens, width)`` to ``(batch, outputs)``.

        Raises
        ------
        InputError
            There is no telling what is padding.
        """
        if input_ids is None:
            expected = "this name too: the output is that of the last token before padding"
            raise InputError("data.factory", "inputs without the name 'input_ids'", expected)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (places * (input_ids != self.padding)).argmax(-1)
        return self.run(hidden_states[torch.arange(len(last), device=last.device), last], self.names)
