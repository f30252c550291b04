"""Formats of activations: what they keep, how many bytes they take, and that no tensor leads them astray."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowdimfa.config import FeedbackConfig, RankConfig, TrainingConfig
from lowdimfa.errors import InputError, NotFiniteError
from lowdimfa.formats import INT4, INT8, Factors, Format, Halves, Integers, format_of
from lowdimfa.network import DecoupledNetwork, decouple

FORMATS = [Halves(), INT8, INT4, Factors(1), Factors(7)]
SHAPES = st.lists(st.integers(0, 9), min_size=1, max_size=4) | st.tuples(
    st.integers(1, 3), st.integers(1, 600)
)


def travelled(form: Format, tensor: Tensor) -> Tensor:
    """Return what arrives, having looked at what travels."""
    shape = tuple(tensor.shape)
    packed, announced = form.pack(tensor), form.packed(shape)
    assert (tuple(packed.shape), packed.dtype) == announced
    assert packed.shape[:1] == tensor.shape[:1] and packed.is_contiguous()
    assert packed.nbytes <= form.largest(shape)
    found = form.unpack(packed, shape, tensor.dtype)
    assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
    assert found.is_contiguous()  # as what isn't packed: layers may call view
    return found


def drawn(shape: Any, seed: int, scale: float = 1.0, kind: str = "normal") -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return {"normal": values, "rectified": values.relu(), "constant": torch.full_like(values, scale)}[kind]


@settings(deadline=None, max_examples=20)
@given(
    form=st.sampled_from([INT8, INT4]),
    shape=SHAPES,
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-44, 1e-30, 1.0, 1e30]),
    kind=st.sampled_from(["normal", "rectified", "constant"]),
)
def test_integers_are_within_half_a_step_and_zero_stays_zero(
    form: Integers, shape: Any, seed: int, scale: float, kind: str
) -> None:
    tensor = drawn(tuple(shape), seed, scale, kind)
    found = travelled(form, tensor)
    if not tensor.numel():
        return
    flat, moved = tensor.reshape(len(tensor), -1), (found - tensor).reshape(len(tensor), -1)
    reach = flat.amax(1).clamp(min=0) - flat.amin(1).clamp(max=0)
    step = reach / (2**form.bits - 1) * (1 + 2.0**-6) + 1e-38
    assert bool((moved.abs().amax(1) <= 0.51 * step).all())
    assert bool((found[tensor == 0] == 0).all())


@settings(deadline=None, max_examples=25)
@given(form=st.sampled_from(FORMATS), shape=SHAPES, seed=st.integers(0, 99), value=st.floats(width=32))
def test_what_is_not_finite_never_becomes_a_number(form: Format, shape: Any, seed: int, value: float) -> None:
    tensor = drawn(tuple(shape), seed)
    if tensor.numel():
        tensor.view(-1)[seed % tensor.numel()] = value
    found = travelled(form, tensor)
    assert not bool(torch.isfinite(found)[~torch.isfinite(tensor)].any())


@settings(deadline=None, max_examples=20)
@given(
    rank=st.integers(1, 8),
    samples=st.integers(1, 12),
    own=st.sampled_from([(64,), (40, 24), (24, 6, 6)]),
    seed=st.integers(0, 9),
    scale=st.sampled_from([1e-25, 1.0, 1e25]),
)
def test_factors_keep_a_tensor_of_their_rank(
    rank: int, samples: int, own: tuple[int, ...], seed: int, scale: float
) -> None:
    features = own[0] if len(own) == 3 else own[-1]
    rows = drawn((samples * math.prod(own) // features, rank), seed) @ drawn((rank, features), seed + 1)
    tensor = rows.view(samples, *own) * scale
    if len(own) == 3:
        tensor = rows.view(samples, *own[1:], own[0]).permute(0, 3, 1, 2).contiguous() * scale
    found = travelled(Factors(rank), tensor)
    found, tensor = found.double(), tensor.double()
    assert float((found - tensor).norm() / tensor.norm()) < 0.02


@settings(deadline=None, max_examples=25)
@given(form=st.sampled_from(FORMATS), shape=SHAPES, data=st.data())
def test_no_bytes_make_another_shape(form: Format, shape: Any, data: st.DataObject) -> None:
    shape = tuple(shape)
    kind = form.packed(shape)
    size = math.prod(kind.shape) * kind.dtype.itemsize
    sent = torch.frombuffer(
        bytearray(data.draw(st.binary(min_size=size, max_size=size)) or b"\0"), dtype=torch.uint8
    )
    packed = sent[:size].view(kind.dtype).view(kind.shape)
    assert form.unpack(packed, shape, torch.float32).shape == shape


@settings(deadline=None, max_examples=50)
@given(form=st.sampled_from(FORMATS), shape=SHAPES, fewer=st.floats(0, 1))
def test_fewer_samples_never_take_more_than_the_largest(form: Format, shape: Any, fewer: float) -> None:
    samples = math.floor(fewer * shape[0])
    kind = form.packed((samples, *shape[1:])) if samples else form.packed((0, *shape[1:]))
    assert math.prod(kind.shape) * kind.dtype.itemsize <= form.largest(tuple(shape))


def test_a_sample_in_integers_does_not_depend_on_the_others() -> None:
    tensor = drawn((5, 3, 7, 11), 0)
    for form in (INT8, INT4):
        assert torch.equal(form.pack(tensor)[2:3], form.pack(tensor[2:3]))


def test_the_bytes_are_as_few_as_is_said() -> None:
    flat, tokens, maps = (128, 1024), (32, 128, 256), (32, 64, 16, 16)
    for shape in (flat, tokens, maps):
        for name, times in (("bf16", 2), ("int8", 3.9), ("int4", 7.3)):
            form = format_of(name)  # type: ignore[arg-type]
            assert form is not None and 4 * math.prod(shape) >= times * form.largest(shape), (name, shape)
    for shape, rank, times in ((flat, 16, 26), (tokens, 16, 50), (maps, 8, 30)):
        form = format_of(RankConfig(rank))
        assert form is not None and 4 * math.prod(shape) >= times * form.largest(shape), shape
    assert format_of("fp32") is None


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_half_precision_and_integers(form: Format) -> None:
    assert not form.takes(torch.int64)
    assert form.takes(torch.float32)
    if form.takes(torch.float16):
        assert float((travelled(form, torch.ones(3, 8, dtype=torch.float16)) - 1).abs().max()) < 0.05


def network(activations: Any, feedback: dict[str, Any] | None = None, classes: int = 4) -> DecoupledNetwork:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, classes)]
    training = TrainingConfig(total_steps=2, activations=activations)
    given = FeedbackConfig(**feedback or {})
    return decouple(layers, torch.zeros(2, 8), blocks=3, total_steps=2, feedback=given, training=training)


@pytest.mark.parametrize("activations", ["int8", "int4", RankConfig(2)], ids=str)
def test_what_a_block_puts_out_that_is_not_finite_is_told_of_that_block(activations: Any) -> None:
    found = network(activations)
    with torch.no_grad():
        next(found.blocks[1].module.parameters())[0, 0] = math.nan
    with pytest.raises(NotFiniteError, match="output of block 1") as raised:
        found.train_step(0, [(torch.randn(6, 8), torch.arange(6) % 4)])
    assert raised.value.block == 1


def test_the_baselines_send_nothing() -> None:
    batch = torch.randn(6, 8), torch.arange(6) % 4
    pair = [network(activations, {"form": "backprop"}) for activations in ("fp32", "int4")]
    assert len({(each.train_step(0, [batch]).loss, each.evaluate([batch]).loss) for each in pair}) == 1


@pytest.mark.parametrize(
    ("activations", "feedback", "classes", "words"),
    [
        (
            "int4",
            {"q_rule": "probed"},
            4,
            "train.activations: found int4 with the q_rule 'probed'; expected fp32",
        ),
        (RankConfig(2), {"q_rule": "probed"}, 4, "train.activations: found rank 2 with"),
        (
            "fp32",
            {"q_rule": "readout", "error_dim": 9, "broadcast": "bf16"},
            300,
            "feedback.broadcast: found 'bf16' with the numbers of 300 classes",
        ),
    ],
)
def test_what_a_format_would_lose_is_refused(
    activations: Any, feedback: dict[str, Any], classes: int, words: str
) -> None:
    with pytest.raises(InputError) as raised:
        network(activations, feedback, classes)
    assert words in raised.value.message
