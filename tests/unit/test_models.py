"""The reference networks: shapes, learnability, initialisation, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa.models import char_transformer, cnn, mlp, resnet, vit
from lowdimfa.models.transformer import EncoderBlock

IMAGES = torch.rand(3, 1, 12, 12)
TOKENS = torch.randint(0, 9, (3, 7))
SMALL: dict[str, tuple[Callable[..., nn.Sequential], dict[str, Any], Tensor, tuple[int, ...], int]] = {
    "mlp": (mlp, {"in_features": 144, "width": 6, "depth": 3, "classes": 5}, IMAGES, (3, 5), 3),
    "mlp-linear": (mlp, {"in_features": 144, "width": 6, "depth": 1, "classes": 5}, IMAGES, (3, 5), 1),
    "cnn": (
        cnn,
        {
            "in_channels": 1,
            "channels": [4, 6],
            "classes": 5,
            "image_size": 12,
            "convs_per_block": 2,
            "dropout": 0.2,
        },
        IMAGES,
        (3, 5),
        3,
    ),
    "resnet": (resnet, {"in_channels": 1, "channels": [4, 6], "classes": 5}, IMAGES, (3, 5), 6),
    "vit": (
        vit,
        {
            "image_size": 12,
            "patch_size": 4,
            "in_channels": 1,
            "width": 8,
            "depth": 2,
            "heads": 2,
            "classes": 5,
        },
        IMAGES,
        (3, 5),
        4,
    ),
    "char_transformer": (
        char_transformer,
        {"vocabulary": 9, "context": 8, "width": 8, "depth": 2, "heads": 2, "dropout": 0.1},
        TOKENS,
        (3, 7, 9),
        4,
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_network_has_its_stages_and_learns_everywhere(name: str) -> None:
    factory, args, inputs, shape, stages = SMALL[name]
    model = factory(**args)
    assert type(model) is nn.Sequential
    assert len(model) == stages
    output = model(inputs)
    assert output.shape == shape
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_every_stage_of_an_mlp_but_the_last_ends_in_relu() -> None:
    *hidden, output = mlp(4, 6, 3, 2)
    assert [type(stage[-1]) for stage in hidden] == [nn.ReLU, nn.ReLU]
    assert type(output[-1]) is nn.Linear


def test_residual_streams_are_marked() -> None:
    def marks(name: str) -> list[bool]:
        factory, args, *_ = SMALL[name]
        return [getattr(stage, "residual_stream", False) for stage in factory(**args)]

    assert marks("vit") == [True, True, True, False]
    assert marks("char_transformer") == [True, True, True, False]
    assert marks("resnet") == [False, True, True, True, True, False]
    assert not any(marks("cnn") + marks("mlp"))


def test_a_residual_network_halves_the_image_once_per_further_group() -> None:
    model = resnet(1, [4, 6, 8], 5)
    assert model[:-1](torch.rand(2, 1, 12, 12)).shape == (2, 8, 3, 3)


def test_no_position_sees_later_tokens() -> None:
    model = char_transformer(9, 8, 8, 2, 2).eval()
    changed = TOKENS.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 9
    before, after = model(TOKENS), model(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_attention_equals_its_definition() -> None:
    attention = EncoderBlock(8, 2, 4.0, 0.0, causal=False).attention
    x = torch.randn(2, 5, 8)
    query, key, value = (part.view(2, 5, 2, 4).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1))
    weights = (query @ key.transpose(-1, -2) / 2).softmax(-1)
    expected = attention.proj((weights @ value).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(attention(x), expected)


def test_transformers_start_narrow_and_narrower_where_they_write_to_the_stream() -> None:
    block = char_transformer(9, 8, 64, 8, 2)[1]
    assert isinstance(block, EncoderBlock)
    assert float(block.expand.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(block.contract.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.1)
    assert float(block.attention.proj.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.1)
    assert not block.expand.bias.any()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: mlp(4, 4, 0, 2), "depth is 0"),
        (lambda: cnn(1, [4] * 4, 5, image_size=12), "at least 16 pixels"),
        (lambda: cnn(1, [], 5, image_size=12), "at least 1"),
        (lambda: resnet(1, [4], 5, blocks_per_stage=0), "at least 1"),
        (lambda: vit(12, 5, 1, 8, 1, 2, 5), "don't tile"),
        (lambda: char_transformer(9, 8, 9, 1, 2), "multiple of heads"),
    ],
)
def test_impossible_networks_are_refused(build: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()
