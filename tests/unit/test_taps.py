"""Taps: their shapes, the error they deliver, and the noise by which a block is probed."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from lowdimfa.grid_tap import GridNormalisedTap
from lowdimfa.rules import TAPS
from lowdimfa.taps import FlatTap, choose_tap

KINDS: dict[str, tuple[tuple[int, ...], int]] = {
    "vector": ((12,), 0),
    "feature map": ((6, 4, 5), 0),
    "sequence": ((7, 6), 0),
    "per token": ((7, 6), 1),
    "large map": ((6, 12, 9), 0),
    "volume": ((6, 9, 1, 3), 0),
    "a map per token": ((2, 6, 2, 16), 1),
}
NAMES = list(TAPS.built_in)
POOLED_FEATURES = {
    "vector": 12,
    "feature map": 6,
    "sequence": 6,
    "per token": 6,
    "large map": 6,
    "volume": 6,
    "a map per token": 6,
}
FULL_FEATURES = {kind: math.prod(shape[position_dims:]) for kind, (shape, position_dims) in KINDS.items()}
GRID_FEATURES = FULL_FEATURES | {
    "large map": 6 * 6 * 5,
    "volume": 6 * 5 * 1 * 3,
    "a map per token": 6 * 2 * 8,
}
FEATURES = {
    "identity": FULL_FEATURES,
    "pooled": POOLED_FEATURES,
    "normalised": FULL_FEATURES,
    "pooled-normalised": POOLED_FEATURES,
    "grid-normalised": GRID_FEATURES,
}

each_kind = pytest.mark.parametrize("kind", KINDS)
each_name = pytest.mark.parametrize("name", NAMES)


def make_tap(name: str, kind: str) -> FlatTap:
    shape, position_dims = KINDS[kind]
    tap = choose_tap(name, shape, position_dims, residual=False)
    assert isinstance(tap, FlatTap)
    return tap


def draw_output(kind: str, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *KINDS[kind][0], generator=generator) * 3 + 1


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def without_mean_and_scale(change: Tensor, tapped: Tensor) -> Tensor:
    """Take out of a change what layer normalisation takes out of its input's."""
    along_scale = (change * tapped).mean(-1, keepdim=True) * tapped
    return change - change.mean(-1, keepdim=True) - along_scale


@each_kind
@each_name
def test_a_tap_has_as_many_features_as_it_announces(name: str, kind: str) -> None:
    tap, (shape, position_dims) = make_tap(name, kind), KINDS[kind]
    tapped = tap(draw_output(kind))
    expected = FEATURES[name][kind]
    assert tapped.shape == (3, *shape[:position_dims], expected)
    assert tap.features(shape) == expected
    assert tap.name == name


@each_name
def test_a_tap_is_float32_whatever_the_output_is(name: str) -> None:
    assert make_tap(name, "large map")(draw_output("large map").bfloat16()).dtype is torch.float32


def test_pooling_averages_pixels_of_a_map_and_tokens_of_a_sequence_and_nothing_of_a_vector() -> None:
    image, tokens, vector = (draw_output(kind) for kind in ("feature map", "sequence", "vector"))
    torch.testing.assert_close(make_tap("pooled", "feature map")(image), image.flatten(2).mean(-1))
    torch.testing.assert_close(make_tap("pooled", "sequence")(tokens), tokens.mean(1))
    assert torch.equal(make_tap("pooled", "vector")(vector), vector)
    assert torch.equal(make_tap("pooled", "per token")(tokens), tokens)


@each_kind
@pytest.mark.parametrize("name", ["normalised", "pooled-normalised", "grid-normalised"])
def test_a_normalised_tap_delivers_an_error_orthogonal_to_the_activity(name: str, kind: str) -> None:
    tap = make_tap(name, kind)
    output = draw_output(kind).requires_grad_()
    tapped = tap(output)
    delivered = torch.randn(tapped.shape, generator=generator())
    (gradient,) = torch.autograd.grad(tapped, output, delivered)
    start = 1 + tap.position_dims
    ours = gradient.flatten(start)
    centred = output.detach().flatten(start)
    norms = ours.norm(dim=-1) * centred.norm(dim=-1)
    # Neither growing nor shifting the activity as a whole can follow this error.
    assert ((ours * centred).sum(-1) / norms).abs().max() < 1e-4
    assert (ours.sum(-1) / ours.norm(dim=-1)).abs().max() < 1e-4
    (raw,) = torch.autograd.grad((output.flatten(start) ** 2).sum(), output)
    assert (raw.flatten(start) * centred).sum() > 1  # the check sees what isn't orthogonal


def test_an_identity_tap_delivers_the_error_unchanged() -> None:
    output = draw_output("feature map").requires_grad_()
    delivered = torch.randn(3, 120, generator=generator())
    (gradient,) = torch.autograd.grad(make_tap("identity", "feature map")(output), output, delivered)
    assert torch.equal(gradient.flatten(1), delivered)


def cells(size: int) -> list[range]:
    """Return the pixels of each cell along a dimension of a map."""
    window = next(window for window in range(1, size + 1) if window * 8 >= size)
    return [range(first, min(first + window, size)) for first in range(0, size, window)]


@pytest.mark.parametrize("size", [1, 7, 8, 9, 14, 16, 17, 28, 65, 224])
def test_a_grid_has_at_most_eight_cells_and_none_that_is_empty(size: int) -> None:
    found = GridNormalisedTap()(torch.ones(1, 1, size, 2)).shape[-1]
    assert found == 2 * len(cells(size)) <= 2 * 8
    assert len(cells(size)) > 4 or size <= 4


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 20, 9), (2, 16, 16), (4, 6, 11)])
def test_a_grid_averages_cells_and_spreads_what_is_delivered_over_their_pixels(
    shape: tuple[int, int, int], memory_format: torch.memory_format
) -> None:
    drawn = torch.randn(3, *shape, generator=generator(), dtype=torch.float64) * 3 + 1
    rows, columns = cells(shape[1]), cells(shape[2])
    means = [[drawn[:, :, row][..., column].mean((2, 3)) for column in columns] for row in rows]
    averaged = torch.stack([torch.stack(row, -1) for row in means], -2).flatten(1)
    deviation = (averaged.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    expected = (averaged - averaged.mean(-1, keepdim=True)) / deviation
    output = drawn.float().contiguous(memory_format=memory_format).requires_grad_()
    tapped = choose_tap("grid-normalised", shape, 0, residual=False)(output)
    torch.testing.assert_close(tapped.double(), expected, rtol=1e-4, atol=1e-5)
    delivered = torch.randn(expected.shape, generator=generator(), dtype=torch.float64)
    tapped.backward(delivered.float())
    each = (without_mean_and_scale(delivered, expected) / deviation).unflatten(
        1, (-1, len(rows), len(columns))
    )
    wanted = torch.zeros_like(drawn)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            share = each[:, :, i, j, None, None] / (len(row) * len(column))
            wanted[:, :, row.start : row.stop, column.start : column.stop] = share
    assert output.grad is not None
    torch.testing.assert_close(output.grad.double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["vector", "feature map", "sequence", "per token"])
def test_a_grid_changes_nothing_of_a_small_map_or_of_what_is_none(kind: str) -> None:
    grid, plain = make_tap("grid-normalised", kind), make_tap("normalised", kind)
    values = []
    for tap in (grid, plain):
        output = draw_output(kind).requires_grad_()
        tapped = tap(output)
        tapped.backward(torch.randn(tapped.shape, generator=generator()))
        values.append([tapped.detach(), output.grad, *tap.perturb(draw_output(kind), 0.1, generator())])
    for one, other in zip(*values, strict=True):
        assert torch.equal(one, other)
    assert grid.keeps_places(KINDS[kind][0]) == plain.keeps_places(KINDS[kind][0])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *product(("identity", "normalised"), ("feature map", "large map", "volume")),
        *product(("grid-normalised",), ("feature map", "large map")),
    ],
)
def test_a_map_with_channels_last_gets_such_a_gradient_of_the_same_bits(name: str, kind: str) -> None:
    tap, drawn = make_tap(name, kind), draw_output(kind)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}[drawn.dim()]
    gradients = []
    for memory_format in (torch.contiguous_format, last):
        start = drawn.contiguous(memory_format=memory_format).requires_grad_()
        output = start * 2  # as of a layer: a leaf's gradient always lies as the leaf does
        output.register_hook(gradients.append)
        tapped = tap(output)
        tapped.backward(torch.randn(tapped.shape, generator=generator()))
        assert gradients[-1].is_contiguous(memory_format=memory_format)
    first, second = gradients
    assert not first.is_contiguous(memory_format=last)
    assert torch.equal(first, second)


@each_kind
@each_name
def test_moved_is_the_first_order_change_of_the_tap(name: str, kind: str) -> None:
    tap, output = make_tap(name, kind), draw_output(kind)
    noise = 1e-3
    perturbed, moved = tap.perturb(output, noise, generator())
    change = tap(perturbed) - tap(output)
    if tap.normalised:
        moved = without_mean_and_scale(moved, tap(output))
    assert moved.shape == change.shape
    assert (change - moved).norm() / moved.norm() < 10 * noise


@each_kind
def test_noise_has_the_asked_share_of_each_samples_own_deviation(kind: str) -> None:
    tap, output = make_tap("identity", kind), draw_output(kind, batch=400)
    output = output * torch.linspace(0.1, 10, 400).view(-1, *[1] * (output.dim() - 1))
    perturbed, _ = tap.perturb(output, 0.05, generator())
    start = 1 + tap.position_dims
    noise, clean = (perturbed - output).flatten(start), output.flatten(start)
    relative = noise / clean.std(-1, keepdim=True, correction=0)
    assert relative.mean().abs() < 5 * 0.05 / math.sqrt(relative.numel())
    assert relative.std().item() == pytest.approx(0.05, rel=0.05)
    early, late = relative[:100].std().item(), relative[-100:].std().item()
    assert early == pytest.approx(late, rel=0.1)


def test_the_pixels_of_a_cell_share_its_noise() -> None:
    tap, output = make_tap("grid-normalised", "large map"), draw_output("large map")
    perturbed, _ = tap.perturb(output, 0.1, generator())
    noise = perturbed - output
    for row in cells(12):
        for column in cells(9):
            cell = noise[:, :, row.start : row.stop, column.start : column.stop]
            torch.testing.assert_close(cell, cell[:, :, :1, :1].expand_as(cell), rtol=0, atol=1e-5)
    assert (noise[:, :, 0, 0] - noise[:, :, 3, 0]).abs().min() > 1e-4
    assert torch.equal(tap.perturb(output, 0.1, generator())[0], perturbed)


def test_noise_is_the_generators_alone_and_shared_by_what_a_pooled_tap_averages() -> None:
    tap, output = make_tap("pooled", "feature map"), draw_output("feature map")
    state = torch.get_rng_state()
    noise, again = (tap.perturb(output, 0.1, generator())[0] - output for _ in range(2))
    other = tap.perturb(output, 0.1, torch.Generator().manual_seed(8))[0] - output
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noise, again)
    assert not torch.allclose(noise, other)
    torch.testing.assert_close(noise, noise[:, :, :1, :1].expand_as(noise), rtol=0, atol=1e-5)
    assert (noise[:, 0, 0, 0] - noise[:, 1, 0, 0]).abs().min() > 1e-3


@each_name
def test_an_output_without_any_activity_is_perturbed_by_nothing_and_stays_finite(name: str) -> None:
    perturbed, moved = make_tap(name, "vector").perturb(torch.zeros(2, 12), 0.05, generator())
    assert torch.equal(perturbed, torch.zeros(2, 12))
    assert torch.equal(moved, torch.zeros(2, 12))


@pytest.mark.parametrize(
    ("shape", "position_dims", "residual", "expected"),
    [
        ((12,), 0, False, "normalised"),
        ((12,), 0, True, "normalised"),
        ((6, 4, 5), 0, False, "normalised"),
        ((6, 4, 5), 0, True, "normalised"),
        ((6, 8, 8), 0, False, "normalised"),
        ((6, 9, 1), 0, False, "grid-normalised"),
        ((6, 28, 28), 0, True, "grid-normalised"),
        ((2, 9, 9, 9), 0, False, "grid-normalised"),
        ((5, 3, 4, 9), 1, False, "grid-normalised"),
        ((900,), 0, False, "normalised"),
        ((7, 6), 0, False, "normalised"),
        ((7, 6), 0, True, "pooled-normalised"),
        ((7, 6), 1, True, "normalised"),
    ],
)
def test_auto_pools_residual_streams_of_tokens_and_large_maps(
    shape: tuple[int, ...], position_dims: int, residual: bool, expected: str
) -> None:
    tap = choose_tap("auto", shape, position_dims, residual)
    assert tap.name == expected
    assert tap.position_dims == position_dims


def test_only_the_mean_over_nothing_is_the_same_wherever_the_channels_are() -> None:
    """What docs/concepts.md advises for outputs of shape (height, width, channels)."""
    maps = torch.randn(3, 6, 16, 16, generator=torch.Generator().manual_seed(0))
    for name, alike in (("normalised", True), ("grid-normalised", False), ("pooled", False)):
        first, last = (
            choose_tap(name, shape, 0, residual=False)(output)
            for shape, output in (((6, 16, 16), maps), ((16, 16, 6), maps.movedim(1, -1)))
        )
        if alike:
            torch.testing.assert_close(last.view(3, 16, 16, 6).movedim(-1, 1).flatten(1), first)
        else:
            assert last.shape != first.shape
