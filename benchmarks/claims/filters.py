"""How much of a filter is a centre with a surround, and how much an oriented stripe pattern.

A filter's *spatial profile* is the one picture, times one colour, that is nearest to the filter: the first singular
vector of its channels × pixels. A template's *share* of a profile is the squared cosine between them: the part of the
profile's energy (sum of squares) that the template explains.

- **Centre-surround index**: the largest share of one difference of two round Gaussians, anywhere in the image and of
  several sizes, times the profile's *balance* ``1 − |Σ w| / Σ |w|``, which is 1 where positive and negative weights
  cancel, as a centre's and its surround's do, and 0 for a spot without a surround.
- **Oriented index**: the largest share of one Gabor pattern.

Both lie between 0 and 1. There are more Gabor patterns than differences of Gaussians, so each index compares filters
with each other, not with the other index.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

SIZES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Standard deviations of a centre, and of a Gabor pattern's envelope, in pixels."""
SURROUNDS = (1.4, 2.0)
"""Standard deviation of a surround, in those of the centre."""
ORIENTATIONS = 6
WAVELENGTH = 3.0
"""Of a Gabor pattern, in standard deviations of its envelope."""
STRIDE = 2
"""Pixels between the places of templates."""
TINY = 1e-12


def profiles(filters: Tensor) -> Tensor:
    """Return the spatial profiles, unit energy, ``(filters, pixels)``, of ``(filters, channels, height, width)``."""
    flat = filters.flatten(2).double()
    _, _, right = torch.linalg.svd(flat, full_matrices=False)
    first: Tensor = right[:, 0]
    return first


def centre_surround(filters: Tensor) -> Tensor:
    """Return the centre-surround index of every filter."""
    found = profiles(filters)
    balance = 1 - found.sum(1).abs() / found.abs().sum(1).clamp_min(TINY)
    return balance * _share(found, differences_of_gaussians(filters.shape[-1]))


def oriented(filters: Tensor) -> Tensor:
    """Return the oriented index of every filter."""
    return _share(profiles(filters), gabors(filters.shape[-1]))


@cache
def differences_of_gaussians(size: int) -> Tensor:
    """Return the templates for square images, ``(templates, pixels)``: centre less surround, each of unit sum."""
    across, down = _offsets(size)
    squared = across**2 + down**2
    found = []
    for width in SIZES:
        centre = _gaussian(squared, width)
        found += [centre - _gaussian(squared, width * ratio) for ratio in SURROUNDS]
    return _templates(torch.cat(found))


@cache
def gabors(size: int) -> Tensor:
    """Return the templates for square images, ``(templates, pixels)``: a wave under a round Gaussian, two phases."""
    across, down = _offsets(size)
    found = []
    for width in SIZES:
        envelope = _gaussian(across**2 + down**2, width)
        for number in range(ORIENTATIONS):
            angle = math.pi * number / ORIENTATIONS
            along = math.cos(angle) * across + math.sin(angle) * down
            phase = 2 * math.pi * along / (WAVELENGTH * width)
            found += [envelope * phase.cos(), envelope * phase.sin()]
    return _templates(torch.cat(found))


def _share(profiles: Tensor, templates: Tensor) -> Tensor:
    shares: Tensor = (profiles @ templates.t()).square().amax(1)
    return shares


def _offsets(size: int) -> tuple[Tensor, Tensor]:
    """Return each pixel's offset from each place, to the right and down, ``(places, pixels)``."""
    places = torch.arange(STRIDE // 2, size, STRIDE).double()
    pixels = torch.arange(size).double()
    offsets = pixels - places[:, None]
    across = offsets[None, :, None, :].expand(len(places), -1, size, -1)
    down = offsets[:, None, :, None].expand(-1, len(places), -1, size)
    return across.reshape(-1, size**2), down.reshape(-1, size**2)


def _gaussian(squared: Tensor, width: float) -> Tensor:
    """Return bells of unit sum over the image."""
    bell = torch.exp(-squared / (2 * width**2))
    return bell / bell.sum(1, keepdim=True)


def _templates(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    unit: Tensor = centred / centred.norm(dim=1, keepdim=True).clamp_min(TINY)
    return unit
