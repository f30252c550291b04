"""The indices of C8 on filters whose kind is known."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.claims.c8 import measures, strongest
from benchmarks.claims.c8_figure import decoded, encoded
from benchmarks.claims.filters import centre_surround, oriented, profiles

pytestmark = pytest.mark.slow

GRID = torch.arange(32.0)
DOWN, ACROSS = torch.meshgrid(GRID, GRID, indexing="ij")


def bell(width: float, across: float = 13, down: float = 17) -> Tensor:
    squared = (ACROSS - across) ** 2 + (DOWN - down) ** 2
    return torch.exp(-squared / (2 * width**2)) / width**2


def coloured(picture: Tensor, colour: tuple[float, float, float] = (1.0, 0.5, -0.2)) -> Tensor:
    return picture * torch.tensor(colour)[None, :, None, None]


SPOT = bell(2)
RING = bell(2) - bell(4)
WAVE = bell(3) * torch.cos(2 * torch.pi * (ACROSS - 13) / 9)
NOISE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_centre_with_a_surround_is_told_from_what_is_none() -> None:
    found = {
        name: float(centre_surround(coloured(picture)))
        for name, picture in {"ring": RING, "spot": SPOT, "wave": WAVE, "ramp": ACROSS - 15.5}.items()
    }
    assert found["ring"] > 0.99
    assert found["spot"] < 0.05
    assert found["wave"] < 0.6
    assert found["ramp"] < 0.3
    assert float(centre_surround(NOISE)) < 0.05


def test_an_oriented_pattern_is_told_from_a_round_one() -> None:
    assert float(oriented(coloured(WAVE))) > 0.99
    assert float(oriented(coloured(WAVE.t()))) > 0.99
    assert float(oriented(coloured(RING))) < 0.7
    assert float(oriented(NOISE)) < 0.05


@pytest.mark.parametrize("index", [centre_surround, oriented])
def test_scale_sign_and_colour_change_nothing(index: Callable[[Tensor], Tensor]) -> None:
    filters = torch.cat(
        [coloured(RING), coloured(-3 * RING), coloured(RING, (0, 0, 0.1)), coloured(RING, (1, -1, 1))]
    )
    found = index(filters)
    assert torch.allclose(found, found[0].expand(4), atol=1e-6)


def test_noise_lowers_the_index_in_proportion_to_its_energy() -> None:
    clean = coloured(RING / RING.norm(), (1, 0, 0))
    noise = torch.zeros(1, 3, 32, 32)
    noise[:, 0] = NOISE[:, 0] / NOISE[:, 0].norm()
    assert float(centre_surround(clean + noise)) == pytest.approx(0.5, abs=0.1)


def test_a_profile_is_the_nearest_picture_times_a_colour() -> None:
    (profile,) = profiles(coloured(RING))
    assert profile.norm() == pytest.approx(1)
    assert abs(float(profile @ RING.flatten().double() / RING.norm())) == pytest.approx(1, abs=1e-6)


def test_directions_count_how_many_filters_differ() -> None:
    alike = torch.cat([coloured(RING)] * 8)
    assert measures(alike)["rank"] == pytest.approx(1, abs=1e-3)
    different = torch.eye(8, 3 * 32 * 32).view(8, 3, 32, 32)
    assert measures(different)["rank"] == pytest.approx(8, abs=1e-3)


def test_filters_are_stored_as_text_that_the_figure_reads() -> None:
    filters = torch.cat([coloured(RING), 2 * coloured(WAVE)])
    chosen = strongest(filters, 1)
    assert torch.equal(chosen, 2 * coloured(WAVE))
    (text,) = json.loads(json.dumps(encoded(chosen)))
    expected = (chosen[0] / chosen.abs().max() * 127 + 128).permute(1, 2, 0).numpy()
    assert np.abs(decoded(text).astype(float) - expected).max() <= 0.5 + 1e-4
