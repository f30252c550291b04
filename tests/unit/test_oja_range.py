"""Errors that are very small or very large leave ``P`` a projection, and what comes later goes on being learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa import convert
from lowdimfa.chain.oja import turn_towards
from lowdimfa.feedback.projection import OjaProjection, PcaProjection, orthonormal_rows

SIZES = [1e-23, 1e-22, 1e-21, 1e-20, 1e-19, 1e19, 1e20, 1e30, float("inf"), float("nan")]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def assert_near_orthonormal(rows: Tensor) -> None:
    torch.testing.assert_close(rows @ rows.t(), torch.eye(len(rows)), atol=0.05, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_a_step_of_ojas_rule_never_makes_p_infinite(size: float) -> None:
    rows, errors = orthonormal_rows(3, 8, generator()), size * drawn(4, 8)
    turn_towards(rows, errors, errors @ rows.t(), 0.1)
    assert_near_orthonormal(rows)


@pytest.mark.parametrize("size", [6e-8, 1e-5, 1.0, 1e4, 5e4])
def test_nor_in_half_precision_whose_range_is_smaller(size: float) -> None:
    rows = orthonormal_rows(3, 512, generator())
    errors = (size * drawn(4, 512).sign()).half()
    turn_towards(rows, errors, errors @ rows.t().half(), 0.1)
    assert_near_orthonormal(rows)


def test_one_group_out_of_range_leaves_the_others_their_step() -> None:
    rows = torch.stack([orthonormal_rows(3, 8, generator(seed)) for seed in range(2)])
    errors = drawn(2, 4, 8)
    alone, scaled = rows[1:].clone(), errors * torch.tensor([1e-22, 1.0])[:, None, None]
    turn_towards(alone, errors[1:], errors[1:] @ alone.mT, 0.1)
    both = rows.clone()
    turn_towards(both, scaled, scaled @ both.mT, 0.1)
    assert torch.equal(both[0], rows[0])
    torch.testing.assert_close(both[1], alone[0])


@pytest.mark.parametrize("settings", [{}, {"p_rule": "normalised-oja"}, {"rule": "direct"}])
@pytest.mark.parametrize("size", [1e-21, 1e-22])
def test_a_confident_model_keeps_its_projection(settings: dict[str, Any], size: float) -> None:
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8)), 3, **settings)
    (model(drawn(4, 6)).square().sum() * size).backward()
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize("size", SIZES)
def test_the_broadcast_projection_goes_on_learning_after_an_error_out_of_range(size: float) -> None:
    for projection in (
        OjaProjection(8, 3, generator(), 0.1),
        PcaProjection(8, 3, generator(), p_every=1),
    ):
        projection.accumulate(size * drawn(4, 8))
        projection.step()
        assert_near_orthonormal(projection.weights)
        before = projection.weights.clone()
        projection.accumulate(drawn(4, 8, seed=2))
        projection.step()
        assert_near_orthonormal(projection.weights)
        assert not torch.equal(projection.weights, before)


def test_finite_errors_whose_sum_overflows_are_left_out() -> None:
    pca = PcaProjection(8, 3, generator(), p_decay=0.999, p_every=1)
    for _ in range(60):
        pca.accumulate(1e18 * drawn(64, 8))
        pca.step()
    assert pca.running.isfinite().all()
    oja = OjaProjection(8, 3, generator(), 0.1)
    for _ in range(60):
        oja.accumulate(1e18 * drawn(64, 8))
    oja.step()
    assert_near_orthonormal(oja.weights)


def test_a_step_reads_no_value_for_which_it_would_wait_for_a_device() -> None:
    for projection in (OjaProjection(8, 3, generator()), PcaProjection(8, 3, generator())):
        projection.to(torch.device("meta"))
        vars(projection)["steps"] = 2  # after which no refresh is due
        projection.accumulate(torch.empty(4, 8, device="meta"))
        projection.step()
        assert projection.weights.is_meta
