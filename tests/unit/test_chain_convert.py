"""Turning models into ones with feedback and back: what stays, what is copied, and what is drawn."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from lowdimfa import InputError, convert, feedback_parameters, revert
from lowdimfa.chain.starts import drawn_seed
from lowdimfa.feedback.projection import orthonormal_rows
from lowdimfa.models import cnn, mlp, vit

DOCUMENT = Path(__file__).parents[2] / "docs" / "chain-form.md"

BUILDS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (lambda: mlp(6, 8, 3, 4), torch.randn(5, 6)),
    "cnn": (lambda: cnn(1, (4, 6), 4, 8), torch.randn(5, 1, 8, 8)),
    "vit": (lambda: vit(8, 4, 1, 8, 1, 2, 4), torch.randn(5, 1, 8, 8)),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        torch.randn(3, 5, 8),
    ),
}
each_build = pytest.mark.parametrize("name", BUILDS)
each_rule = pytest.mark.parametrize(
    "rule", ["low-dimensional", "kolen-pollack", "sign-symmetry", "direct", "normative", "local", "follow"]
)


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, x = BUILDS[name]
    return make(), x


def feedback_of(layer: nn.Module) -> Any:
    return layer.feedback


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@each_rule
@each_build
def test_revert_gives_the_plain_model_back(name: str, rule: str) -> None:
    model, x = build(name)
    untouched, _ = build(name)
    expected = untouched(x)
    parameters = dict(model.named_parameters())
    convert(model, 2, rule=rule, example=x if rule == "direct" else None)
    assert all(dict(model.named_parameters())[name] is value for name, value in parameters.items())
    torch.testing.assert_close(model(x), expected)
    assert revert(model) is model
    assert [type(one) for one in model.modules()] == [type(one) for one in untouched.modules()]
    assert_equal(
        dict(model.state_dict()), dict(untouched.state_dict())
    )  # outputs moved the batch norms alike
    assert_equal(gradients(model, x), gradients(untouched, x))


@each_rule
@each_build
def test_copies_by_deepcopy_and_pickle_learn_alike_and_apart(name: str, rule: str) -> None:
    model, x = build(name)
    convert(model, 2, rule=rule, example=x if rule == "direct" else None)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = {key: value.clone() for key, value in twin.state_dict().items()}
        expected = gradients(copy.deepcopy(model), x)
        assert_equal(dict(twin.state_dict()), before)
        assert_equal(gradients(twin, x), expected)


@each_rule
@each_build
def test_the_state_of_a_converted_model_loads_into_another(name: str, rule: str) -> None:
    keywords: dict[str, Any] = {"rule": rule}
    models = []
    for seed in range(2):
        model, x = build(name)
        if rule == "direct":
            keywords["example"] = x
        models.append(convert(model, 2, seed=seed, **keywords))
    optimizer = torch.optim.SGD(models[0].parameters(), 0.01)
    gradients(models[0], x)
    optimizer.step()
    models[1].load_state_dict(models[0].state_dict())
    assert_equal(gradients(models[1], x), gradients(models[0], x))


def test_learned_feedback_weights_are_told_apart() -> None:
    layer = nn.Linear(3, 3)
    model = convert(nn.Sequential(layer, layer, nn.Linear(3, 3)), 2)
    found = list(feedback_parameters(model))
    assert len(found) == 2  # the layer that is used twice has one
    others = {id(p) for name, p in model.named_parameters() if "feedback" not in name}
    assert {id(p) for p in model.parameters()} - others == {id(p) for p in found}
    assert not list(feedback_parameters(convert(mlp(3, 3, 2, 3), rule="feedback-alignment")))


def test_layers_that_share_a_weight_share_its_feedback_and_no_others_do() -> None:
    first, tied, other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    tied.weight = first.weight
    attentions = [nn.MultiheadAttention(4, 2) for _ in range(4)]
    attentions[3].in_proj_weight = attentions[0].in_proj_weight
    convert(nn.Sequential(first, tied, other, *attentions), 2)
    assert feedback_of(first) is feedback_of(tied) is not feedback_of(other)
    found = [feedback_of(one)[part] for part in ("query", "key", "value") for one in attentions]
    assert len({id(feedback) for feedback in found}) == 9
    assert all(
        feedback_of(attentions[0])[part] is feedback_of(attentions[3])[part] for part in ("query", "value")
    )


def test_error_dimensions_are_numbers_or_shares_and_may_differ_by_layer() -> None:
    model = convert(
        nn.Sequential(nn.Linear(4, 16), nn.Conv2d(4, 16, 1, groups=4), nn.Linear(4, 8), nn.Linear(4, 3)),
        0.25,
        error_dims={"2": 3, "3": 64},
    )
    dimensions = [feedback_of(layer).P.shape[-2] for layer in model]
    assert dimensions == [4, 1, 3, 3]
    assert feedback_of(convert(nn.Linear(4, 3), 0.01)).P.shape == (1, 3)


def test_skipped_layers_and_all_below_them_stay_exact() -> None:
    model = convert(
        nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))), skip=["1"]
    )
    assert [type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)][1:] == [nn.Linear] * 2
    attention = convert(nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4)), skip=["0"])
    assert not hasattr(attention[0].out_proj, "feedback")
    only_heads = convert(nn.MultiheadAttention(4, 2), skip=["out_proj"])
    assert not hasattr(only_heads.out_proj, "feedback") and feedback_of(only_heads)["query"].P.shape == (4, 4)


def test_draws_depend_on_the_seed_and_the_layers_name_alone() -> None:
    choices: list[dict[str, Any]] = [{}, {"skip": ["0"]}, {"seed": 1}]
    first, same, other = (
        feedback_of(convert(build("mlp")[0], 2, **choice)[1][0]).state_dict() for choice in choices
    )
    assert_equal(same, first)
    assert not torch.equal(other["Q"], first["Q"]) and not torch.equal(other["P"], first["P"])
    deeper = feedback_of(convert(build("mlp")[0], 2)[2][0]).P
    assert not torch.equal(deeper[:, :4], first["P"][:, :4])


def test_converting_draws_nothing_from_the_global_generator() -> None:
    model, x = build("cnn")
    state = torch.get_rng_state()
    gradients(convert(model, 2), x)
    assert torch.equal(torch.get_rng_state(), state)


class Scaled(nn.Linear):
    """A linear layer that only adds to PyTorch's."""

    def scale(self) -> float:
        return float(self.weight.detach().norm())


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_subclass_keeps_what_it_adds_and_one_with_its_own_forward_stays_as_it_is() -> None:
    model = convert(nn.Sequential(Scaled(3, 3), Doubled(3, 3), Scaled(3, 3)), 2)
    first, second, third = model
    assert isinstance(first, Scaled) and type(first) is type(third) and first.scale() > 0
    assert type(second) is Doubled
    x = torch.randn(2, 3)
    assert_equal(gradients(copy.deepcopy(model), x), gradients(model, x))
    revert(model)
    assert [type(layer) for layer in model] == [Scaled, Doubled, Scaled]


def test_a_layer_whose_forward_was_replaced_stays_exact() -> None:
    wrapped: Any = nn.Linear(3, 3)
    plain = wrapped.forward
    wrapped.forward = lambda inputs: plain(inputs)
    model = convert(nn.Sequential(nn.Linear(3, 3), wrapped), 2)
    assert hasattr(model[0], "feedback") and not hasattr(model[1], "feedback")


def test_a_p_that_has_as_many_rows_as_it_may_still_learns_by_oja() -> None:
    for error_dim in (31, 64):  # a layer with 4 inputs has no more singular vectors
        layer: Any = convert(nn.Linear(4, 32), error_dim, start="svd")
        before = layer.feedback.P.clone()
        layer(torch.randn(8, 4, requires_grad=True)).square().sum().backward()
        assert before.shape[0] == 4 and not torch.equal(layer.feedback.P, before)


def test_parametrised_layers_stay_exact() -> None:
    model = nn.Sequential(nn.Linear(3, 3), parametrizations.weight_norm(nn.Linear(3, 3)))
    convert(model)
    assert not hasattr(model[1], "feedback")


@pytest.mark.parametrize("rule", ["low-dimensional", "backprop"])
@each_build
def test_autocast_computes_in_bfloat16_and_learns_in_float32(name: str, rule: str) -> None:
    found = []
    for converted in (True, False):
        model, x = build(name)
        if converted:
            convert(model, 1.0, start="transposed" if rule == "low-dimensional" else None, rule=rule)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
        output.float().square().sum().backward()
        plain = {n: p.grad for n, p in model.named_parameters() if ".Q" not in n}
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
        found.append((output.dtype, plain))
    assert found[0][0] == found[1][0]
    for key, expected in found[1][1].items():
        error = torch.dist(found[0][1][key], expected) / expected.norm().clamp_min(1e-3)
        assert error < 0.03, key


def test_recomputed_activations_give_the_same_gradients() -> None:
    model = convert(mlp(6, 8, 3, 4), 2, p_rule="fixed")
    x = torch.randn(5, 6)
    expected = gradients(model, x)
    model.zero_grad()
    checkpoint(model, x, use_reentrant=False).square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_equal(found, expected)


def test_the_first_layer_has_nothing_to_deliver_and_learns_no_feedback() -> None:
    model = convert(mlp(6, 8, 3, 4), 2)
    found = gradients(model, torch.randn(5, 6))
    assert [name for name, _ in model.named_parameters() if name not in found] == ["0.1.feedback.Q"]


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    layer = convert(nn.Linear(3, 3), 2)
    x = torch.randn(2, 3, requires_grad=True)
    for output in (
        layer(x).square().sum(),
        layer(x).sum(),
    ):  # whose error is a constant, as a linear critic's
        (gradient,) = torch.autograd.grad(output, x, create_graph=True)
        with pytest.raises(InputError, match="derivative of a gradient"):
            gradient.square().sum().backward()


@pytest.mark.parametrize("settings", [{"p_rule": "fixed"}, {"rule": "follow"}])
def test_transforms_of_torch_func_take_first_derivatives_and_leave_the_model(
    settings: dict[str, Any],
) -> None:
    model = convert(mlp(6, 8, 3, 4), 2, **settings).double()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(5, 6, dtype=torch.float64)
    weights = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        output: Tensor = torch.func.functional_call(model, weights, (x,))
        return output.square().mean()

    found = torch.func.grad(loss)(weights)
    pickle.dumps(model)  # which a wrapped tensor in it would not let
    assert_equal(dict(model.state_dict()), before)
    loss(weights).backward()
    for name, weight in weights.items():
        torch.testing.assert_close(
            found[name], torch.zeros_like(weight) if weight.grad is None else weight.grad
        )


def test_drawing_depends_on_no_default_of_torch() -> None:
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            drawn = orthonormal_rows(2, 5, torch.Generator().manual_seed(1))
            seed = drawn_seed(torch.Generator().manual_seed(1))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(drawn, orthonormal_rows(2, 5, torch.Generator().manual_seed(1)))
    assert seed == drawn_seed(torch.Generator().manual_seed(1))


def test_a_convolution_that_changes_its_weights_on_the_way_stays_as_it_is() -> None:
    class Standardised(nn.Conv2d):
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(x, (weight - weight.mean()) / weight.std(), bias)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Standardised(4, 4, 3))
    x = torch.randn(2, 3, 8, 8)
    before = model(x)
    converted = convert(model, 2)
    assert not hasattr(converted[1], "feedback")
    torch.testing.assert_close(converted(x), before)


def test_the_examples_of_the_document_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, str(DOCUMENT), "exec"), {})
