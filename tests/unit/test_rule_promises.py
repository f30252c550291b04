"""What rules of the user's own may not do without being told: each would train to another result in silence."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from test_rules import Growing, Probing, Squashed, Traced, own, plan
from torch import Tensor, nn

import lowdimfa
from lowdimfa import (
    ChainRule,
    Errors,
    FeedbackConfig,
    InputError,
    PRule,
    QRule,
    convert,
    decouple,
    feedback_parameters,
)
from lowdimfa.feedback.projection import OjaProjection
from lowdimfa.feedback.readout import ReadoutFeedback
from lowdimfa.models import mlp


class Unset(Traced):
    set_pending = QRule.set_pending


class KeptLocally(Traced):
    kept = ("trace", "seen")
    seen = 0.0

    def accumulate(self, tapped: Tensor, error: Tensor) -> None:
        super().accumulate(tapped, error)
        self.local = float(error.square().sum())

    def step(self) -> None:
        super().step()
        self.seen += self.__dict__.pop("local", 0.0)


class Doubled(Traced):
    def pending(self) -> Tensor:
        return self.sum.double()


class Graded(Traced):
    """Works: its update is in the gradient, which it changes itself before the optimiser takes it."""

    trained_by_optimizer = True
    pending = QRule.pending

    def accumulate(self, tapped: Tensor, error: Tensor) -> None:
        change = tapped.flatten(0, -2).t() @ error.flatten(0, -2)
        self.weights.grad = change if self.weights.grad is None else self.weights.grad + change

    def step(self) -> None:
        assert self.weights.grad is not None
        self.weights.grad += 1e-3 * self.weights


class HastyProbe(Probing):
    def accumulate_probe(self, moved: Tensor, response: Tensor) -> None:
        self.weights += 0.01 * response.abs().sum()


class LostProbe(Probing):
    kept = ()

    def step(self) -> None:
        super().step()
        self.weights += 0.001 * self.responses


class Asked(Traced):
    def errors(self, tapped: Tensor, error: Tensor) -> Errors:
        self.sum += tapped.flatten(0, -2).t() @ error.flatten(0, -2)
        return Errors(error, error)

    accumulate = QRule.accumulate


class Late(Traced):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.steps = 0

    def step(self) -> None:
        super().step()
        self.steps += 1
        if self.steps > 6:
            self.weights *= 0.9


class DefaultList(Traced):
    """Works all the same: each rule gets a list of its own when it is moved to its device."""

    kept = ("trace", "history")

    def __init__(self, *given: Any, history: list[int] = []) -> None:  # noqa: B006 - the mistake
        super().__init__(*given)
        self.history = history

    def step(self) -> None:
        super().step()
        self.history.append(1)


class DefaultSet(DefaultList):
    def __init__(self, *given: Any, history: set[int] = set()) -> None:  # noqa: B006 - the mistake
        Traced.__init__(self, *given)
        self.history = history  # type: ignore[assignment]

    def step(self) -> None:
        Traced.step(self)
        self.history.add(1)  # type: ignore[attr-defined]


class OfTheClass(Growing):
    kept = ("steps", "size")
    size = torch.ones(1)


class AskedToProject(PRule):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.sum = 0.0

    def project(self, error: Tensor) -> Tensor:
        self.sum += float(error.square().sum())
        return super().project(error)

    def step(self) -> None:
        self.weights *= 1 + 1e-3 * self.sum
        self.sum = 0.0


class Cut(Squashed):
    def __call__(self, output: Tensor) -> Tensor:
        return super().__call__(output).detach()


class Parametrised(Squashed):
    def __init__(self, position_dims: int = 0) -> None:
        super().__init__(position_dims)
        self.map = nn.Linear(12, 12)

    def __call__(self, output: Tensor) -> Tensor:
        return self.map(super().__call__(output))


class Unprepared(Squashed):
    def __init__(self, position_dims: int = 0) -> None:
        self.scale = 1.0


class Single(Traced):
    def errors(self, tapped: Tensor, error: Tensor) -> Any:
        return error


class Text(Traced):
    kept = "trace"  # type: ignore[assignment]


def refusal(*given: Any, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        plan(*given, **settings)
    return str(caught.value)


@pytest.mark.parametrize("kind", [Unset, KeptLocally, Doubled], ids=lambda kind: kind.__name__)
def test_replicas_that_would_drift_apart_are_refused(kind: type) -> None:
    plan({"q_rule": own(kind)})
    assert refusal({"q_rule": own(kind)}, replicas=2).startswith(
        "placement.replicas: found 2 of block 0, and "
    )


def test_what_works_is_taken() -> None:
    plan({"q_rule": own(DefaultList)})
    plan({"q_rule": own(Graded)})


@pytest.mark.parametrize("kind", [Traced, Graded], ids=lambda kind: kind.__name__)
def test_replicas_that_stay_alike_train(kind: type) -> None:
    plan({"q_rule": own(kind)}, replicas=2)


@pytest.mark.parametrize(
    ("key", "kind", "said"),
    [
        (
            "q_rule",
            HastyProbe,
            "delivers or keeps something else once it has taken in a micro-batch or a probe",
        ),
        ("q_rule", LostProbe, "goes on otherwise from a checkpoint"),
        ("q_rule", Asked, "delivers or keeps something else|where it is asked more often"),
        ("q_rule", Late, "goes on otherwise from a checkpoint"),
        ("q_rule", DefaultSet, "of which all objects share one 'history'"),
        ("q_rule", Single, r"whose errors\(\) returns Tensor"),
        ("q_rule", Text, "whose 'kept' is text"),
        ("p_rule", OfTheClass, "of which all objects share one 'size'"),
        ("p_rule", AskedToProject, "where it is asked more often"),
        ("tap", Cut, "whose value autograd can't trace back"),
        ("tap", Parametrised, "which has parameters of its own in 'map'"),
        ("tap", Unprepared, "which fails on outputs of shape"),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_what_a_rule_may_not_do_is_refused(key: str, kind: type, said: str) -> None:
    with pytest.raises(InputError, match=rf"^feedback.{key}: found .*({said})"):
        plan({key: own(kind), "error_dim": 4 if key == "p_rule" else 10})


class Sub(ReadoutFeedback):
    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)


class SubOja(OjaProjection):
    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)


class Rotated(PRule):
    def __init__(self, task_dim: int, error_dim: int, generator: torch.Generator) -> None:
        super().__init__(task_dim, error_dim, generator)
        self.weights = torch.linalg.qr(torch.randn(task_dim, error_dim, generator=generator))[0]


def made(**feedback: Any) -> Any:
    return decouple(
        mlp(6, 8, 3, 4), torch.zeros(2, 6), blocks=2, total_steps=4, feedback=FeedbackConfig(**feedback)
    )


def test_settings_of_the_run_reach_a_rule_that_passes_them_on() -> None:
    network = made(q_rule=own(Sub), own_error=0.9)
    assert network.blocks[0].sites[0].feedback.own_error == 0.9
    assert made(p_rule=own(SubOja), p_lr=0.7, q_rule="hebbian").head.projection.p_lr == 0.7


def test_targets_are_not_told_from_what_a_rule_of_ones_own_makes_of_errors() -> None:
    rule = made(p_rule=own(Rotated)).blocks[0].sites[0].feedback
    assert not isinstance(rule, ReadoutFeedback)
    with pytest.raises(InputError, match=r"^feedback.q_rule: found 'readout' with a p_rule of your own"):
        made(p_rule=own(Rotated), q_rule="readout")


@pytest.mark.parametrize("setting", ["q_rule", "p_rule", "tap"])
def test_a_class_itself_is_answered_with_its_path(setting: str) -> None:
    with pytest.raises(InputError, match=rf"For this class: '{__name__}:Sub'"):
        made(**{setting: Sub})


def test_rules_move_all_their_tensors() -> None:
    rule = Traced(3, 2, torch.Generator())
    rule.weights = rule.weights.data  # type: ignore[assignment]  # a parameter can't change to this device
    rule.means = {"a": [torch.zeros(2), 1], "b": (torch.ones(1),)}  # type: ignore[attr-defined]
    rule.map = nn.Linear(2, 2)  # type: ignore[attr-defined]
    rule.to(torch.device("meta"))
    found = [rule.weights, rule.trace, rule.means["a"][0], rule.means["b"][0], rule.map.weight]  # type: ignore[attr-defined]
    assert {tensor.device.type for tensor in found} == {"meta"}


class Live(ChainRule):
    def kernel(self, map_: Any, weight: Tensor) -> Tensor:
        return weight * 0.5


class Holding(ChainRule):
    def __init__(self, map_: Any, weight: Tensor, *given: Any) -> None:
        super().__init__(map_, weight, *given)
        self.weight = weight


class Uninitialised(ChainRule):
    def __init__(self, *_: Any) -> None:
        pass


class Wide(ChainRule):
    def deliver(self, incoming: Any) -> tuple[Tensor, None]:
        return torch.stack([super().deliver(incoming)[0]] * 2), None


def converted(rule: type) -> nn.Module:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), rule=own(rule))


def test_the_gradient_of_the_weights_is_exact_whatever_the_kernel() -> None:
    model, x = converted(Live), torch.randn(5, 3)
    (found,) = torch.autograd.grad(model(x).square().sum(), [model[1].weight])
    plain = nn.Linear(4, 2)
    plain.load_state_dict(
        {name: value for name, value in model[1].state_dict().items() if name in ("weight", "bias")}
    )
    (expected,) = torch.autograd.grad(plain(model[0](x)).square().sum(), [plain.weight])
    torch.testing.assert_close(found, expected)


def test_forward_weights_are_no_feedback_weights() -> None:
    assert list(feedback_parameters(converted(Holding))) == []


def test_a_chain_rule_that_was_not_made_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"^convert: rule: found .*doesn't call that of its base class"):
        convert(model, rule=own(Uninitialised))
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


def test_an_error_of_another_shape_is_refused_where_it_is_delivered() -> None:
    with pytest.raises(InputError, match=r"a rule that delivers an error of shape \(2, 5, 4\)"):
        converted(Wide)(torch.randn(5, 3)).sum().backward()


def test_every_offered_name_is_what_its_module_has() -> None:
    """Also after all modules are loaded, of which one of the same name would hide it."""
    for name in [*lowdimfa.__all__]:
        found = getattr(lowdimfa, name)
        importlib.import_module(found.__module__)
        assert getattr(lowdimfa, name) is found and callable(found), name
