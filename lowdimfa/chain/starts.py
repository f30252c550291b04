"""Where ``Q`` and ``P`` start: drawn, or from the singular vectors of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lowdimfa.chain.config import ChainConfig, Start
from lowdimfa.chain.maps import ConvMap, Map
from lowdimfa.feedback.projection import orthonormal_rows
from lowdimfa.generators import reproducible

WHOLE = 128
"""Size up to which all singular vectors are computed; of larger matrices only the leading ones, by random sketches."""
OVERSAMPLING, ITERATIONS = 16, 4


def start_rows(map_: Map, weight: Tensor, error_dim: int, start: Start, generator: torch.Generator) -> Tensor:
    """Return ``P`` with orthonormal rows, ``(*groups, r, outputs)``: random, or ``Uᵀ`` of ``W = U S Vᵀ``."""
    if start == "svd":
        return leading(map_.matrix(weight.detach()), error_dim, drawn_seed(generator))[0].mT.contiguous()
    width = len(weight) // map_.groups
    drawn = torch.stack([orthonormal_rows(error_dim, width, generator) for _ in range(map_.groups)])
    return (drawn if weight.dim() > 2 else drawn[0]).to(weight)


@torch.no_grad()
def leading(matrix: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading singular vectors and values ``U, S, Vᵀ`` of matrices of shape ``(*groups, outputs, inputs)``.

    At most so many as there are. Large matrices are sketched (Halko, Martinsson and Tropp, 2011), the same way for the
    same seed; the default generators are left as they are.
    """
    single = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    smaller = min(matrix.shape[-2:])
    if smaller <= WHOLE or 2 * (count + OVERSAMPLING) >= smaller:
        left, values, right = torch.linalg.svd(single, full_matrices=False)
    else:
        with reproducible(seed, matrix.device):
            left, values, transposed = torch.svd_lowrank(single, count + OVERSAMPLING, ITERATIONS)
        right = transposed.mT
    found = left[..., :count], values[..., :count], right[..., :count, :]
    return found[0].to(matrix), found[1].to(matrix), found[2].to(matrix)


def svd_factors(map_: Map, weight: Tensor, error_dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return ``P = (U √S)ᵀ`` and the kernel ``√S Vᵀ`` of ``Q``: ``(Q P)ᵀ`` is the best approximation of ``W``.

    A direction that ``W`` doesn't have, as if it starts at zero, has a unit row in ``P``: from two zeros nothing learns.
    """
    left, values, right = leading(map_.matrix(weight), error_dim, seed)
    root = values.sqrt().unsqueeze(-1)
    kernel = (root * right).reshape(-1, *weight.shape[1:])
    return (torch.where(root > 0, root, 1.0) * left.mT).contiguous(), kernel.contiguous()


def drawn_seed(generator: torch.Generator) -> int:
    """Return a seed drawn from a generator."""
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))


def drawn_like(weight: Tensor, generator: torch.Generator, shape: torch.Size | None = None) -> Tensor:
    """Draw values at the scale of a weight; where it is all zeros, at that of one with outputs of unit variance."""
    scale = float(weight.detach().double().square().mean().sqrt()) or weight[0].numel() ** -0.5
    drawn = torch.randn(
        shape or weight.shape, generator=generator, device=generator.device, dtype=torch.float32
    )
    return (drawn * scale).to(weight)


def clamp_of(map_: Map, config: ChainConfig) -> float | None:
    """Return the bound of a layer's gradients, or None."""
    if config.clamp is None or isinstance(config.clamp, int | float):
        return config.clamp
    return config.clamp[int(isinstance(map_, ConvMap))]


def clamped(gradient: Tensor, bound: float | None) -> Tensor:
    """Return a gradient with no element beyond a bound."""
    return gradient if bound is None else gradient.clamp(-bound, bound)
