"""First layers of a network of Hugging Face: from tokens, or the pixels of images, to hidden states."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowdimfa.errors import InputError
from lowdimfa.models.hf.layers import Part, positions_of, refuse_other_mask


class TokenEmbedding(Part):
    """Map tokens to vectors.

    Attributes
    ----------
    vocabulary
        Different tokens that there is room for.
    has_types
        Whether it takes types of tokens.
    """

    residual_stream: ClassVar[bool] = True
    cut_after: ClassVar[bool] = False
    has_types: bool = False

    def __init__(self, original: nn.Module, names: Sequence[str]) -> None:
        super().__init__(original, names)
        self.vocabulary = _table(original).num_embeddings

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map integers ``(batch, length)`` to ``(batch, length, width)``."""
        name, *others = self.names
        embedded = self.get_submodule(name)(input_ids)
        # Of Granite and its kin.
        if (scale := getattr(self.config, "embedding_multiplier", 1)) != 1:
            embedded = embedded * scale
        return self.run(embedded, others)


def _table(original: Any) -> nn.Embedding:
    """Return the table of tokens."""
    with suppress(NotImplementedError):
        if isinstance(table := original.get_input_embeddings(), nn.Embedding):
            return table
    found = f"a {type(original).__name__}, which has no one table of tokens"
    raise InputError("model.args.config", found, "a kind of network whose tokens are rows of an nn.Embedding")


class PositionedEmbedding(TokenEmbedding):
    """Map tokens to vectors and add those of positions, and of token types if there are any."""

    def __init__(self, original: nn.Module, names: Sequence[str]) -> None:
        super().__init__(original, names)
        self.has_types = _takes(self.get_submodule(names[0]), "token_type_ids")

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Map integers ``(batch, length)`` to ``(batch, length, width)``."""
        name, *others = self.names
        first: Any = self.get_submodule(name)
        # Those of RoBERTa and its kin count positions from behind that of padding.
        counted = hasattr(first, "create_position_ids_from_inputs_embeds")
        _refuse_long(input_ids, self.config, position_ids, first.padding_idx + 1 if counted else 0)
        # DistilBERT has none.
        if token_type_ids is not None and not self.has_types:
            found = f"inputs called 'token_type_ids', which a {self.config.model_type} doesn't know"
            raise InputError("data.factory", found, "inputs without them: its tokenizer makes none")
        # What wasn't given isn't named.
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.run(first(input_ids=input_ids, position_ids=position_ids, **types), others)


class SummedEmbedding(TokenEmbedding):
    """Add the vectors of tokens, of positions, and of token types, for which GPT-2 and its kin have no table."""

    has_types = True

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Map integers ``(batch, length)`` to ``(batch, length, width)``."""
        _refuse_long(input_ids, self.config, position_ids)
        name, second, *others = self.names
        tokens, places = self.get_submodule(name), self.get_submodule(second)
        embedded = tokens(input_ids) + places(positions_of(input_ids, position_ids))
        if token_type_ids is not None:
            embedded = embedded + tokens(token_type_ids)
        return self.run(embedded, others)


class MaskedEmbedding(TokenEmbedding):
    """Add the vectors of tokens and of positions, which OPT counts without padding; those of tokens may be narrower."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Map integers ``(batch, length)`` to ``(batch, length, width)``."""
        _refuse_long(input_ids, self.config, position_ids)
        refuse_other_mask(attention_mask, input_ids.shape[1])
        name, second, *others = self.names
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        places: Tensor = self.get_submodule(second)(mask, position_ids=position_ids)
        return self.run(self.get_submodule(name)(input_ids), others) + places


class ImageEmbedding(Part):
    """Map images to vectors of their patches."""

    residual_stream: ClassVar[bool] = True
    cut_after: ClassVar[bool] = False

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map ``(batch, channels, height, width)`` to ``(batch, tokens, width)``."""
        return self.run(pixel_values, self.names)


def _refuse_long(input_ids: Tensor, config: Any, position_ids: Tensor | None, unused: int = 0) -> None:
    most = config.max_position_embeddings - unused
    if position_ids is None and input_ids.shape[1] > most:
        found = f"positions for {most} tokens"
        raise InputError("model.args", found, f"room for the data's sequences of {input_ids.shape[1]}")


def token_embedding(original: Any, names: tuple[str, ...]) -> TokenEmbedding:
    """Return the first layer of a network of tokens, by what its first modules take."""
    first, *others = (original.get_submodule(name) for name in names)
    if _takes(first, "position_ids"):
        return PositionedEmbedding(original, names)
    if others and type(others[0]) is nn.Embedding:
        return SummedEmbedding(original, names)
    if others and isinstance(others[0], nn.Embedding) and _takes(others[0], "attention_mask"):
        return MaskedEmbedding(original, names)
    return TokenEmbedding(original, names)


def _takes(module: nn.Module, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters
