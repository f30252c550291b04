"""Transformers whose layers take a padding mask and positions by name, or hand on named sets, and padded sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

LENGTH, VOCABULARY, WIDTH = 8, 11, 12


class Sequences(Dataset[dict[str, Tensor]]):
    """Counts in steps of 1 to 3, padded behind; items are as in the data sets of Hugging Face."""

    def __init__(self, samples: int, seed: int) -> None:
        self._samples, self._seed = samples, seed

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(10_000 * self._seed + index)
        start, step, length = (int(torch.randint(low, high, (), generator=generator)) for low, high in RANGES)
        mask = torch.arange(LENGTH) < length
        tokens = (start + step * torch.arange(LENGTH + 1)) % (VOCABULARY - 1) + 1
        return {
            "input_ids": torch.where(mask, tokens[:-1], 0),
            "attention_mask": mask,
            "position_ids": torch.arange(LENGTH).flip(0) if index % 2 else torch.arange(LENGTH),
            "labels": torch.where(mask, tokens[1:], -100),
        }


RANGES = ((0, VOCABULARY), (1, 4), (3, LENGTH + 1))


def sequences() -> tuple[Sequences, Sequences]:
    return Sequences(192, 0), Sequences(40, 1)


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        embedded: Tensor = self.tokens(input_ids) + self.positions(position_ids)
        return embedded


class Layer(nn.Module):
    residual_stream = True

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attend, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.mlp = nn.LayerNorm(WIDTH), nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU())
        self.down, self.dropout = nn.Linear(2 * WIDTH, WIDTH), nn.Dropout(dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        query, key, value = self.attend(self.norm(hidden_states)).unflatten(-1, (3, WIDTH)).unbind(2)
        causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        allowed = (
            causal
            if attention_mask is None
            else causal & attention_mask[:, None, :] | torch.eye(LENGTH).bool()
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        hidden_states = hidden_states + self.dropout(self.out(mixed))
        output: Tensor = hidden_states + self.down(self.mlp(hidden_states))
        return output


class Masked(nn.Module):
    """A model with a forward of its own."""

    def __init__(self, depth: int, dropout: float) -> None:
        super().__init__()
        self.embed, self.head = Embed(), nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY))
        self.blocks = nn.ModuleList(Layer(dropout) for _ in range(depth))

    def layers(self) -> list[nn.Module]:
        return [self.embed, *self.blocks, self.head]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids, position_ids)
        for block in self.blocks:
            hidden = block(hidden, attention_mask)
        output: Tensor = self.head(hidden)
        return output


def masked(depth: int = 3, dropout: float = 0.0) -> nn.Module:
    return Masked(depth, dropout)


class Begin(Embed):
    """Puts out two tensors that learn, one of integers, one that is infinite where nothing is to be seen, and none."""

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> dict[str, Tensor | None]:  # type: ignore[override]
        seen = torch.zeros(input_ids.shape).masked_fill(input_ids == 0, float("-inf"))
        return {
            "words": self.tokens(input_ids),
            "places": self.positions(position_ids),
            "ids": input_ids,
            "seen": seen,
            "cache": None,
        }


class Both(nn.Module):
    """Changes two members of a set; the others go on unchanged."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layer, self.turn = Layer(dropout), nn.Linear(WIDTH, WIDTH)

    def forward(
        self,
        words: Tensor,
        places: Tensor,
        seen: Tensor,
        cache: Tensor | None = None,
        attention_mask: Any = None,
    ) -> dict[str, Tensor]:
        assert cache is None
        mask = attention_mask & (seen == 0)
        return {"words": self.layer(words + places, mask), "places": torch.tanh(self.turn(places)) + places}


class End(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, words: Tensor, ids: Tensor, seen: Tensor, places: Tensor) -> Tensor:
        output: Tensor = self.out(self.norm(words + places + seen.exp()[..., None])) + 0.01 * ids[..., None]
        return output


def sets(depth: int = 3, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(Begin(), *(Both(dropout) for _ in range(depth)), End())
