"""`nn.MultiheadAttention` whose four projections pass errors back through feedback; softmax is differentiated exactly."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.chain.layers import LINEAR, Converted, Runner
from lowdimfa.errors import InputError

PARTS = ("query", "key", "value")


class ChainAttention(Converted, nn.MultiheadAttention):
    """An `nn.MultiheadAttention` with feedback for its query, key and value projections; `out_proj` has its own.

    Without gradients it runs as `nn.MultiheadAttention` itself, fast path included.
    """

    feedback: nn.ModuleDict

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments, shapes and results are those of `nn.MultiheadAttention`."""
        if not torch.is_grad_enabled():
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        if is_causal and attn_mask is None:
            raise InputError(
                "MultiheadAttention: is_causal", "True without attn_mask", "the mask that it hints at"
            )
        is_batched = query.dim() == 3
        projections = zip(PARTS, (query, key, value), input_projections(self), strict=True)
        queries, *keys_and_values = [self._heads(part, x, *own) for part, x, own in projections]
        keys, values = self._extended(*keys_and_values)
        mask = self._mask(attn_mask, key_padding_mask, queries, keys, is_batched)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = queries @ keys.mT / math.sqrt(self.head_dim)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, dropout)
            mixed = weights @ values
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        mixed = mixed.transpose(1, 2).flatten(2)
        output = self.out_proj(mixed if self.batch_first or not is_batched else mixed.transpose(0, 1))
        if is_batched and self.batch_first:
            # As PyTorch's lies in memory, time first: a dropout that follows draws in the order of the memory.
            output = output.transpose(0, 1).contiguous().transpose(0, 1)
        if is_batched:
            return output, weights
        return output[0], None if weights is None else weights[0]

    def _heads(self, part: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Project and split: ``(batch, heads, tokens, head_dim)``."""
        runner = cast(Runner, self.feedback[part])
        projected = runner.run(LINEAR, x, weight, bias)
        if x.dim() == 2:
            projected = projected[None]
        elif not self.batch_first:
            projected = projected.transpose(0, 1)
        return self._split(projected)

    def _split(self, tokens: Tensor) -> Tensor:
        """Return ``(batch, heads, tokens, head_dim)``."""
        return tokens.view(*tokens.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the learned key and value, and the zero key and value, if the module has them."""
        if self.bias_k is not None and self.bias_v is not None:
            keys, values = self._with_token(keys, self.bias_k), self._with_token(values, self.bias_v)
        if self.add_zero_attn:
            keys, values = (functional.pad(x, (0, 0, 0, 1)) for x in (keys, values))
        return keys, values

    def _with_token(self, tokens: Tensor, learned: Tensor) -> Tensor:
        token = self._split(learned).expand(len(tokens), -1, -1, -1)
        return torch.cat([tokens, token.to(tokens.dtype)], 2)

    def _mask(
        self,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        queries: Tensor,
        keys: Tensor,
        is_batched: bool,
    ) -> Tensor | None:
        """Return what is added to the scores, of a shape that broadcasts to ``(batch, heads, tokens, keys)``."""
        batch, heads, length = queries.shape[:3]
        extra = int(self.add_zero_attn) + (self.bias_k is not None)  # appended keys, which no mask hides
        own = keys.shape[2] - extra
        masks = []
        if attn_mask is not None:
            _require_shape("attn_mask", attn_mask, (length, own), (batch * heads, length, own))
            mask = _additive(attn_mask, queries.dtype)
            masks.append(mask if mask.dim() == 2 else mask.view(batch, heads, length, own))
        if key_padding_mask is not None:
            _require_shape("key_padding_mask", key_padding_mask, (batch, own) if is_batched else (own,))
            masks.append(_additive(key_padding_mask, queries.dtype).view(batch, 1, 1, own))
        return functional.pad(sum(masks[1:], masks[0]), (0, extra)) if masks else None


def input_projections(module: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    """Return weight and bias of the projections of query, key and value: parts of the packed ones, or their own."""
    packed: Tensor | None = module.in_proj_weight
    own = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    return list(zip(own if packed is None else packed.chunk(3), biases, strict=True))


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)
    return mask.to(dtype)


def _require_shape(name: str, mask: Tensor, *allowed: tuple[int, ...]) -> None:
    if tuple(mask.shape) not in allowed:
        expected = " or ".join(str(shape) for shape in allowed)
        raise InputError(f"MultiheadAttention: {name}", f"the shape {tuple(mask.shape)}", expected)
