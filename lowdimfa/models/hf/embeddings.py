"""First layers of a network of Hugging Face: from tokens, or the pixels of images, to hidden states."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

from torch import Tensor, nn

from lowdimfa.errors import InputError
from lowdimfa.models.hf.layers import Part, positions_of


class TokenEmbedding(Part):
    """Map tokens to vectors.

    Attributes
    ----------
    vocabulary
        Different tokens that there is room for.
    """

    residual_stream: ClassVar[bool] = True
    cut_after: ClassVar[bool] = False

    def __init__(self, original: nn.Module, names: Sequence[str]) -> None:
        super().__init__(original, names)
        self.vocabulary = _table(original).num_embeddings

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map integers ``(batch, length)`` to ``(batch, length, width)``."""
        return self.run(input_ids, self.names)


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
        known = inspect.signature(self.get_submodule(names[0]).forward).parameters
        self.has_types = "token_type_ids" in known

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


class GPT2Embedding(TokenEmbedding):
    """Add the vectors of tokens, of positions, and of token types, which GPT-2 takes from the tokens' table."""

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Map integers ``(batch, length)`` to ``(batch, length, width)``."""
        _refuse_long(input_ids, self.config, position_ids)
        tokens, places, dropout = (self.get_submodule(name) for name in self.names)
        embedded = tokens(input_ids) + places(positions_of(input_ids, position_ids))
        if token_type_ids is not None:
            embedded = embedded + tokens(token_type_ids)
        output: Tensor = dropout(embedded)
        return output


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
