"""The chain form at full rank with transposed weights is backpropagation, for every layer, geometry and model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowdimfa import convert
from lowdimfa.models import char_transformer, cnn, mlp, resnet, vit

EXACT: dict[str, dict[str, Any]] = {
    "low-dimensional": {"error_dim": 1.0, "start": "transposed"},
    "kolen-pollack": {"start": "transposed"},
    "feedback-alignment": {"start": "transposed"},
    "backprop": {},
    "normative": {"error_dim": 1.0},
    "local": {"error_dim": 1.0},
    "follow": {"error_dim": 1.0, "start": "svd"},
}
"""The rules that are backpropagation as long as feedback weights are the transposed ones."""

Forward = Callable[[nn.Module], Tensor]

few = settings(max_examples=25)


def twins(build: Callable[[], nn.Module], rule: str = "low-dimensional") -> tuple[nn.Module, nn.Module]:
    """Return a model and a converted one with the same weights, in double precision."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build().double())
    return models[0], convert(models[1], rule=rule, **EXACT[rule])


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def passes(model: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor) -> dict[str, Tensor]:
    """Return output and all gradients, but those of feedback weights, for a loss with an uneven gradient."""
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    output = forward(model, *leaves)
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    found = {"output": output.detach()}
    found |= {f"input {number}": x.grad for number, x in enumerate(leaves) if x.grad is not None}
    parameters = model.named_parameters()
    return found | {name: p.grad for name, p in parameters if "feedback" not in name and p.grad is not None}


def assert_alike(plain: nn.Module, converted: nn.Module, forward: Callable[..., Tensor], *xs: Tensor) -> None:
    expected, found = passes(plain, forward, *xs), passes(converted, forward, *xs)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-9, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
        )


def call(model: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = model(x)
    return output


@few
@given(
    leading=st.lists(st.integers(1, 4), max_size=3),
    inputs=st.integers(1, 7),
    outputs=st.integers(1, 7),
    bias=st.booleans(),
    rule=st.sampled_from(list(EXACT)),
)
def test_linear_layers(leading: list[int], inputs: int, outputs: int, bias: bool, rule: str) -> None:
    plain, converted = twins(lambda: nn.Linear(inputs, outputs, bias), rule)
    assert_alike(plain, converted, call, drawn(*leading, inputs))


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.integers(1, 3))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    stride = draw(pairs)
    paddings: st.SearchStrategy[Any] = st.tuples(st.integers(0, 2), st.integers(0, 3))
    if stride == (1, 1):
        paddings |= st.just("same")
    return {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": draw(pairs),
        "stride": stride,
        "padding": draw(paddings | st.just("valid")),
        "dilation": draw(pairs),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": mode,
    }


@few
@given(geometry=convolutions(), batch=st.integers(1, 2), rule=st.sampled_from(list(EXACT)))
def test_convolutions(geometry: dict[str, Any], batch: int, rule: str) -> None:
    plain, converted = twins(lambda: nn.Conv2d(**geometry), rule)
    assert_alike(plain, converted, call, drawn(batch, geometry["in_channels"], 8, 7))


def test_a_convolution_of_one_image_without_a_batch() -> None:
    plain, converted = twins(lambda: nn.Conv2d(2, 3, 3, padding=1))
    assert_alike(plain, converted, call, drawn(2, 5, 6))


def test_images_with_channels_last() -> None:
    plain, converted = twins(lambda: nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 4, 3)))
    x = drawn(2, 4, 9, 9).to(memory_format=torch.channels_last)
    assert_alike(plain.to(memory_format=torch.channels_last), converted, call, x)


@st.composite
def attentions(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 3))
    width = heads * draw(st.integers(1, 3))
    own = draw(st.booleans())
    return {
        "embed_dim": width,
        "num_heads": heads,
        "bias": draw(st.booleans()),
        "add_bias_kv": draw(st.booleans()),
        "add_zero_attn": draw(st.booleans()),
        "kdim": width + 1 if own else None,
        "vdim": width + 2 if own else None,
        "batch_first": draw(st.booleans()),
    }


QUERIES, KEYS, BATCH = 3, 4, 2


def mask_of(kind: str | None, shape: tuple[int, ...]) -> Tensor | None:
    """Return a mask that hides some keys, never the first, or adds to scores."""
    if kind is None:
        return None
    values = drawn(*shape)
    if kind == "added":
        return values
    hidden = values > 0
    hidden[..., 0] = False
    return hidden


@few
@given(
    arguments=attentions(),
    batched=st.booleans(),
    attn=st.sampled_from([None, "hidden", "added", "hidden per head", "added per head"]),
    padding=st.sampled_from([None, "hidden", "added"]),
    need_weights=st.booleans(),
    average=st.booleans(),
    rule=st.sampled_from(list(EXACT)),
)
def test_attention(
    arguments: dict[str, Any],
    batched: bool,
    attn: str | None,
    padding: str | None,
    need_weights: bool,
    average: bool,
    rule: str,
) -> None:
    plain, converted = twins(lambda: nn.MultiheadAttention(**arguments), rule)
    width = arguments["embed_dim"]
    widths = (width, arguments["kdim"] or width, arguments["vdim"] or width)
    inputs = []
    for tokens, features in zip((QUERIES, KEYS, KEYS), widths, strict=True):
        shape = (BATCH, tokens) if arguments["batch_first"] else (tokens, BATCH)
        inputs.append(drawn(*(shape if batched else (tokens,)), features))
    per_head = attn is not None and attn.endswith("per head")
    rows = ((BATCH if batched else 1) * arguments["num_heads"],) if per_head else ()
    keywords = {
        "attn_mask": mask_of(attn and attn.split()[0], (*rows, QUERIES, KEYS)),
        "key_padding_mask": mask_of(padding, (BATCH, KEYS) if batched else (KEYS,)),
        "need_weights": need_weights,
        "average_attn_weights": average,
    }

    def both(model: nn.Module, *inputs: Tensor) -> Tensor:
        output, weights = model(*inputs, **keywords)
        return output.flatten() if weights is None else torch.cat([output.flatten(), weights.flatten()])

    assert_alike(plain, converted, both, *inputs)
    with torch.no_grad():  # PyTorch's own path
        torch.testing.assert_close(both(converted, *inputs), both(plain, *inputs))


def used_twice() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer)


def tied() -> nn.Module:
    first, second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, stride=2)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (lambda: mlp(12, 10, 4, 5), drawn(6, 3, 4)),
    "cnn": (lambda: cnn(3, (4, 6), 5, 8, 2), drawn(4, 3, 8, 8)),
    "resnet": (lambda: resnet(3, (4, 6), 5, 1), drawn(4, 3, 8, 8)),
    "vit": (lambda: vit(8, 4, 3, 8, 2, 2, 5), drawn(3, 3, 8, 8)),
    "char_transformer": (lambda: char_transformer(7, 6, 8, 2, 2), torch.arange(12).view(2, 6) % 7),
    "transformer encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
        ),
        drawn(3, 5, 8),
    ),
    "layer used twice": (used_twice, drawn(4, 6)),
    "tied weights": (tied, drawn(2, 2, 7, 7)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rule", EXACT)
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, rule: str, training: bool) -> None:
    build, x = MODELS[name]
    plain, converted = twins(build, rule)
    assert_alike(plain.train(training), converted.train(training), call, x)


@pytest.mark.parametrize("rule", ["low-dimensional", "kolen-pollack"])
def test_gradients_are_those_of_finite_differences(rule: str) -> None:
    _, converted = twins(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.Tanh(), nn.Conv2d(4, 2, 2)), rule
    )
    parameters = [p for name, p in converted.named_parameters() if ".Q" not in name]

    def loss(x: Tensor, *_: Tensor) -> Tensor:
        return call(converted, x).square().sum()

    assert torch.autograd.gradcheck(loss, (drawn(2, 2, 5, 6).requires_grad_(), *parameters))
