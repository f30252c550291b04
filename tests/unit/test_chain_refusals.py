"""Arguments, models and masks that the chain form refuses, each with a message that names what is wrong."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa import InputError, convert, parameter_groups, revert
from lowdimfa.models import char_transformer, mlp, vit
from lowdimfa.rules import CHAIN_RULES


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no error dimension": ({"error_dim": 0}, "error_dim: found 0"),
    "a share above all": ({"error_dim": 1.5}, "error_dim: found 1.5"),
    "a truth value": ({"error_dim": True}, "error_dim: found True"),
    "a layer's share": ({"error_dims": {"0.1": -0.5}}, re.escape("error_dims['0.1']: found -0.5")),
    "an unknown rule": ({"rule": "hebb"}, "one of low-dimensional"),
    "an unknown rule for Q": ({"q_rule": "oja"}, "q_rule: found 'oja'"),
    "an unknown rule for P": ({"p_rule": "hebbian"}, "p_rule: found 'hebbian'"),
    "an unknown start": ({"start": "zero"}, "start: found 'zero'"),
    "a start of a full matrix": ({"rule": "kolen-pollack", "start": "svd"}, "start: found 'svd'"),
    "a start that is never forgotten": ({"rule": "follow", "start": "random"}, "'transposed' or 'svd'"),
    "a rule that names what learns": ({"rule": "local", "q_rule": "fixed"}, "q_rule: .* no use for it"),
    "a full Q that learns, fixed": ({"rule": "kolen-pollack", "q_rule": "fixed"}, "q_rule: .* no use for it"),
    "a P of a full matrix": ({"rule": "feedback-alignment", "p_lr": 0.5}, "p_lr: .* no use for it"),
    "a start of signs": ({"rule": "sign-symmetry", "start": "svd"}, "start: .* no use for it"),
    "a start of nothing": ({"rule": "backprop", "start": "svd"}, "start: .* no use for it"),
    "a refresh of nothing": ({"rule": "backprop", "refresh_every": 3}, "refresh_every: .* no use for it"),
    "Oja's rule beside another": ({"rule": "normative", "p_lr": 0.5}, "p_lr: .* no use for it"),
    "a refresh of what follows": ({"rule": "follow", "refresh_every": 3}, "refresh_every: .* no use for it"),
    "a fit of what doesn't fit": ({"rule": "local", "fit_every": 3}, "fit_every: .* no use for it"),
    "no refreshes": ({"rule": "local", "refresh_every": 0}, "refresh_every: found 0"),
    "no fits": ({"rule": "normative", "fit_every": None}, "fit_every: found None"),
    "a bound of zero": ({"clamp": 0}, "clamp: found 0"),
    "three bounds": ({"clamp": (1, 2, 3)}, "clamp: found"),
    "three bounds in a list": ({"clamp": [1, 2, 3]}, "clamp: found"),
    "a truth value for a bound": ({"clamp": True}, "clamp: found True"),
    "a bound in words": ({"clamp": "authors"}, "clamp: found 'authors'"),
    "targets for a fixed P": ({"p_targets": ["1.0"], "p_rule": "fixed"}, "p_targets"),
    "targets for an unknown layer": ({"p_targets": ["9"]}, "p_targets: found the name '9'"),
    "a joint projection that isn't there": ({"joint": ["qkv"]}, "joint: found the name 'qkv'"),
    "text for names": ({"joint": "qkv"}, "joint: found the text"),
    "a rate of zero": ({"p_lr": 0.0}, "p_lr: found 0.0"),
    "a rate that isn't a number": ({"p_lr": float("nan")}, "p_lr: found nan"),
    "a rate in words": ({"p_lr": "0.1"}, "p_lr: found '0.1'"),
    "a truth value for a rate": ({"p_lr": True}, "p_lr: found True"),
    "a seed in words": ({"seed": "a"}, "seed: found 'a'"),
    "a seed between two": ({"seed": 1.5}, "seed: found 1.5"),
    "a number for a name": ({"skip": [3]}, re.escape("skip: found [3]")),
    "a number for a layer": ({"error_dims": {3: 4}}, "error_dims: found {3: 4}"),
    "a default that isn't": ({"rule": "local", "p_samples": None}, "the default, 64, under the rule 'local'"),
    "targets for a full P": ({"p_targets": ["0.1"]}, "'0.1', whose error dimension is all of its 3 outputs"),
    "parts of an epoch of no length": (
        {"rule": "local", "refresh_every": 0.5},
        re.escape("found 0.5 epochs, and no length of an epoch; expected")
        + ".*"
        + re.escape("batches_per_epoch=len(loader)"),
    ),
    "no part of an epoch": (
        {"rule": "local", "refresh_every": 0.0, "batches_per_epoch": 3},
        "refresh_every: found 0.0",
    ),
    "an epoch of nothing": (
        {"rule": "local", "refresh_every": 0.5, "batches_per_epoch": 0},
        "batches_per_epoch: found 0",
    ),
    "an epoch for nothing": ({"rule": "local", "batches_per_epoch": 3}, "batches_per_epoch: found 3"),
    "an epoch beside passes": (
        {"rule": "local", "refresh_every": 2, "batches_per_epoch": 3},
        "batches_per_epoch: found 3",
    ),
    "parts of an epoch where nothing is refreshed": (
        {"refresh_every": 0.5, "batches_per_epoch": 3},
        "refresh_every: .* no use for it",
    ),
    "a list for a mapping": ({"error_dims": ["0.1"]}, "error_dims: found"),
    "a single layer for a mapping": ({"error_dims": 4}, "error_dims: found 4"),
    "nothing for a list": ({"skip": None}, "skip: found None"),
    "no vectors": ({"p_samples": 0}, "p_samples: found 0"),
    "a name that isn't there": ({"skip": ["0.2.x"]}, re.escape("skip: found the name '0.2.x'")),
    "a near name": ({"error_dims": {"0.l": 4}}, re.escape("such as '0.1'")),
    "text for a list": ({"skip": "0"}, "a list of names"),
    "shares of a full matrix": ({"rule": "kolen-pollack", "error_dims": {"0.1": 4}}, "error_dims"),
    "everything skipped": ({"skip": ["0", "1"]}, "at least one nn.Linear"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_named_and_nothing_is_changed(case: str) -> None:
    keywords, message = REFUSED[case]
    model = mlp(3, 3, 2, 3)
    with pytest.raises(InputError, match=message):
        convert(model, **keywords)
    assert not any(hasattr(module, "feedback") for module in model.modules())


def test_models_that_cant_be_converted_or_reverted_are_refused() -> None:
    model = convert(mlp(3, 3, 2, 3))
    with pytest.raises(InputError, match="converted already"):
        convert(model)
    with pytest.raises(InputError, match="no converted layer"):
        revert(mlp(3, 3, 2, 3))
    with pytest.raises(InputError, match="Run one batch"):
        convert(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(InputError, match=re.escape("0 (Doubled)")):
        convert(nn.Sequential(Doubled(3, 3)))
    for found in (None, "mlp", nn.Linear, [nn.Linear(2, 2)]):
        with pytest.raises(InputError, match=r"expected an nn\.Module"):
            convert(found)  # type: ignore[type-var]


@pytest.mark.parametrize("rule", CHAIN_RULES.built_in)
def test_models_without_memory_are_refused_whatever_the_rule(rule: str) -> None:
    with pytest.raises(InputError, match=r"the layer '0\.1', a Linear without weights yet.*to_empty"):
        convert(mlp(3, 3, 2, 3).to("meta"), rule=rule)


def test_groups_need_a_converted_model_and_rates() -> None:
    with pytest.raises(InputError, match="no converted layer"):
        parameter_groups(mlp(3, 3, 2, 3), lr=1e-3, feedback_lr=1e-2)
    bad: list[Any] = [-1.0, "1e-3", True, float("nan")]
    for name, value in itertools.product(("lr", "feedback_lr", "feedback_decay"), bad):
        values = {"lr": 1e-3, "feedback_lr": 1e-2, name: value}
        with pytest.raises(InputError, match=f"{name}: found {value!r}"):
            parameter_groups(convert(mlp(3, 3, 2, 3)), **values)


def test_an_example_with_which_the_model_fails_is_named() -> None:
    for example in ([1], torch.ones(2, 4)):
        model = mlp(3, 3, 2, 3)
        with pytest.raises(InputError, match="example: found one with which the model fails"):
            convert(model, rule="direct", example=example)  # type: ignore[arg-type]
        assert model.training


def test_inputs_that_positions_would_be_broadcast_to_are_refused() -> None:
    images = vit(8, 4, 1, 8, 1, 2, 3)
    for size in ((4, 4), (9, 9), (4, 16)):
        with pytest.raises(InputError, match=f"{size[0]} by {size[1]} pixels; expected 8 by 8"):
            images(torch.randn(2, 1, *size))
    characters = char_transformer(5, 1, 8, 1, 2)
    with pytest.raises(InputError, match="7 in a row; expected at most the context, 1"):
        characters(torch.zeros(2, 7, dtype=torch.long))
    assert char_transformer(5, 4, 8, 1, 2)(torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3, 5)


def test_targets_that_errors_do_not_tell_are_refused() -> None:
    model = convert(mlp(3, 3, 2, 3), 2, p_targets=["1.0"])
    with pytest.raises(InputError, match="p_targets"):
        (-model(torch.ones(2, 3)).sum()).backward()


def test_masks_of_a_wrong_shape_are_named() -> None:
    attention = convert(nn.MultiheadAttention(4, 2, batch_first=True))
    x = torch.randn(2, 3, 4)
    for name, mask in (("attn_mask", torch.zeros(3, 4)), ("key_padding_mask", torch.zeros(3))):
        with pytest.raises(InputError, match=name):
            attention(x, x, x, **{name: mask})
    with pytest.raises(InputError, match="is_causal"):
        attention(x, x, x, is_causal=True)
