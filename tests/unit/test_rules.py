"""Rules and taps of the user's own: what is refused before training, with its key, and what they may count on."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa import (
    ChainRule,
    FactoryConfig,
    FeedbackConfig,
    InputError,
    PRule,
    QRule,
    Tap,
    convert,
    decouple,
)
from lowdimfa.models import mlp
from lowdimfa.network import DecoupledNetwork
from lowdimfa.rules import CHAIN_RULES, P_RULES, Q_RULES, TAPS, Registry
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import parse_specification


class Traced(QRule):
    kept = ("trace",)

    def __init__(self, features: int, error_dim: int, generator: torch.Generator, rate: float = 0.05) -> None:
        super().__init__(features, error_dim, generator)
        self.rate = rate
        self.trace, self.sum = torch.zeros(2, features, error_dim)

    def accumulate(self, tapped: Tensor, error: Tensor) -> None:
        self.sum += tapped.flatten(0, -2).t() @ error.flatten(0, -2)

    def pending(self) -> Tensor | None:
        return self.sum

    def set_pending(self, total: Tensor) -> None:
        self.sum = total.clone()

    def step(self) -> None:
        self.trace = 0.9 * self.trace + self.sum
        self.weights -= self.rate * self.trace
        self.sum.zero_()


class Forgetful(Traced):
    kept = ()


class Hasty(Traced):
    def accumulate(self, tapped: Tensor, error: Tensor) -> None:
        super().accumulate(tapped, error)
        self.step()


class Early(Traced):
    def accumulate(self, tapped: Tensor, error: Tensor) -> None:
        super().accumulate(tapped, error)
        self.trace += 1


class Misshapen(Traced):
    def deliver(self, error: Tensor) -> Tensor:
        return error


class Failing(Traced):
    def accumulate(self, tapped: Tensor, error: Tensor) -> None:
        raise KeyError("lost")


class Unmade(QRule):
    def __init__(self, *_: Any) -> None:
        pass


class Opaque(Traced):
    kept = ("owner",)
    owner = object()


class Alone(Traced):
    pending = QRule.pending


class Drawing(Traced):
    def deliver(self, error: Tensor) -> Tensor:
        return super().deliver(error) * torch.rand(())

    def step(self) -> None:
        super().step()
        self.weights += 0.01 * torch.randn(self.weights.shape)


class Probing(QRule):
    probed = True
    kept = ("responses",)
    responses = 0.0

    def accumulate_probe(self, moved: Tensor, response: Tensor) -> None:
        assert moved.shape[-1] == self.weights.shape[0]
        self.found = float(moved.abs().sum() * response.abs().sum())

    def step(self) -> None:
        self.responses += self.__dict__.pop("found", 0.0)


class Squashed(Tap):
    def __call__(self, output: Tensor) -> Tensor:
        return torch.tanh(output.float()).flatten(1 + self.position_dims)


class Double(Tap):
    def __call__(self, output: Tensor) -> Tensor:
        return output.double()


class Abstract(Tap):
    pass


class Growing(PRule):
    kept = ("steps",)
    steps = 0

    def step(self) -> None:
        self.steps += 1
        self.weights *= 1 + 0.1 * self.steps


class Amnesic(Growing):
    kept = ()


class Whole(PRule):
    def project(self, error: Tensor) -> Tensor:
        return error


class Masked(ChainRule):
    def __init__(self, *given: Any, share: float) -> None:
        super().__init__(*given)
        *_, weight, _, _, generator = given
        self.register_buffer("mask", (torch.rand(weight.shape, generator=generator) > share).to(weight))

    def kernel(self, map_: Any, weight: Tensor) -> Tensor:
        return weight.detach() * self.mask


def own(kind: type) -> str:
    return f"{kind.__module__}:{kind.__name__}"


MLP = {"in_features": 64, "width": 12, "depth": 3, "classes": 10}


def plan(feedback: dict[str, Any], **placement: Any) -> None:
    """Check a run as it is checked before it begins."""
    given = {
        "model": {"factory": "lowdimfa.models:mlp", "args": MLP, "blocks": 3},
        "data": {"factory": "lowdimfa.data:digits"},
        "feedback": feedback,
        "train": {"steps": 3, "batch_size": 16, "microbatches": 2},
        "placement": placement,
    }
    make_run_plan(parse_specification(given, "spec.yaml"))


@pytest.mark.parametrize(
    "feedback",
    [
        {"q_rule": own(Traced)},
        {"q_rule": {"factory": own(Traced), "args": {"rate": 0.1}}, "every_layer": True},
        {"q_rule": own(Drawing)},
        {"q_rule": own(Probing), "tap": own(Squashed)},
        {"p_rule": own(Growing), "error_dim": 4},
        {"tap": {"factory": own(Squashed)}, "form": "local"},
        {"q_rule": "lowdimfa.feedback.rules:HebbianFeedback"},
    ],
    ids=str,
)
def test_what_keeps_the_promises_of_its_base_class_may_train(feedback: dict[str, Any]) -> None:
    plan(feedback)


BROKEN: list[tuple[str, type, str]] = [
    ("q_rule", Misshapen, "which delivers torch.float32 of shape (8, 10) at a tap of shape (8, 12)"),
    ("q_rule", Unmade, "whose constructor leaves no such 'weights'"),
    ("q_rule", Hasty, "which delivers or keeps something else once it has taken in a micro-batch"),
    ("q_rule", Early, "which delivers or keeps something else once it has taken in a micro-batch"),
    ("q_rule", Forgetful, "which goes on otherwise from a checkpoint"),
    ("p_rule", Traced, "which isn't a class derived from lowdimfa.PRule"),
    ("p_rule", Whole, "which makes torch.float32 of shape (8, 10) of an error"),
    ("p_rule", Amnesic, "which goes on otherwise from a checkpoint"),
    ("tap", Traced, "which isn't a class derived from lowdimfa.Tap"),
    ("tap", Double, "which makes torch.float64 of shape (2, 12) of 2 outputs"),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"q_rule": "hebian"},
        "spec.yaml: feedback.q_rule: found the string 'hebian'; expected 'auto', 'readout'",
    ),
    ({"tap": "own:a:b"}, "spec.yaml: feedback.tap: found the string 'own:a:b'; expected 'auto', 'identity'"),
    ({"p_rule": {"args": {}}}, "spec.yaml: feedback.p_rule.factory: found nothing; expected an import path"),
    ({"q_rule": {"factory": "a:b", "arg": {}}}, "spec.yaml: feedback.q_rule.arg: found an unknown key"),
    ({"p_rule": own(Growing), "form": "local"}, "spec.yaml: feedback.p_rule: found "),
    ({"q_rule": "nowhere:Rule"}, "feedback.q_rule: found 'nowhere:Rule', whose module fails to import"),
    ({"q_rule": {"factory": own(Squashed)}}, "feedback.q_rule.factory: found "),
    ({"q_rule": {"factory": own(Traced), "args": {"x": 1}}}, "feedback.q_rule.args: found {'x': 1}, with"),
    (
        {"q_rule": own(Failing)},
        "feedback.q_rule: found the rule for Q of block 0 failing in a first training",
    ),
    ({"q_rule": own(Opaque)}, "feedback.q_rule: found a state in which rule/0/owner is a builtins.object"),
    ({"tap": own(Abstract)}, "feedback.tap: found no arguments, with which Abstract can't be made"),
    *(
        (
            {"error_dim": 4 if key == "p_rule" else 10, key: own(kind)},
            f"feedback.{key}: found '{own(kind)}', {said}",
        )
        for key, kind, said in BROKEN
    ),
]


@pytest.mark.parametrize(("feedback", "message"), REFUSED, ids=str)
def test_what_cannot_train_or_resume_is_refused_with_its_key(feedback: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(feedback)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2


def test_replicas_need_sums_that_can_be_added_up() -> None:
    plan({"q_rule": own(Traced)}, replicas=2)
    plan({"q_rule": own(Alone)})
    with pytest.raises(InputError, match=r"^placement.replicas: found 2 of block 0"):
        plan({"q_rule": own(Alone)}, replicas=2)


def network(q_rule: str, seed: int = 0, **settings: Any) -> DecoupledNetwork:
    torch.manual_seed(0)
    feedback = FeedbackConfig(q_rule=q_rule, probe_every=2, **settings)
    made = decouple(mlp(6, 8, 3, 4), torch.zeros(2, 6), blocks=3, total_steps=4, feedback=feedback)
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(seed)  # no draw depends on who drew before
    for step in range(4):
        batch = torch.randn(8, 6, generator=generator), torch.randint(4, (8,), generator=generator)
        made.train_step(step, [batch])
    return made


def test_draws_are_seeded_and_probes_reach_a_rule() -> None:
    one, other = (network(own(Drawing), seed) for seed in (1, 2))
    for ours, theirs in zip(one.blocks, other.blocks, strict=True):
        assert torch.equal(ours.sites[0].feedback.weights, theirs.sites[0].feedback.weights)
    first, second = (block.sites[0].feedback for block in one.blocks)
    assert not torch.equal(first.weights[:4, :4], second.weights[:4, :4])
    assert all(block.sites[0].feedback.state()["responses"] > 0 for block in network(own(Probing)).blocks)


def test_what_another_rule_for_p_kept_is_left() -> None:
    heads = [network("hebbian", p_rule=rule).head for rule in (own(Growing), own(Growing), "fixed")]
    trained, again, fixed = heads
    trained.projection.step()
    for other in (again, fixed):
        other.load(*trained.state())
        assert torch.equal(other.projection.weights, trained.projection.weights)
    assert again.projection.state() == {"steps": 5}
    assert fixed.projection.state() == {}


@pytest.mark.parametrize("registry", [Q_RULES, P_RULES, TAPS, CHAIN_RULES], ids=lambda one: one.key)
def test_every_built_in_name_is_a_class_that_goes_by_it(registry: Registry[Any]) -> None:
    found = {name: registry.find(name) for name in registry.built_in}
    assert {name: registry.name_of(kind) for name, kind in found.items()} == {name: name for name in found}


@pytest.mark.parametrize("registry", [Q_RULES, CHAIN_RULES], ids=lambda one: one.key)
def test_every_rule_says_whether_it_reads_weights(registry: Registry[Any]) -> None:
    for name in registry.built_in:
        words = " ".join((registry.find(name).__doc__ or "").split()).lower()
        assert re.search(r"\b(never )?reads (the signs of the |)?(weights|them)", words), name


def test_a_chain_rule_comes_by_path_and_with_arguments() -> None:
    given = FactoryConfig(own(Masked), {"share": 1.0})
    model = convert(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), rule=given)
    model(torch.randn(4, 3)).sum().backward()
    assert not model[0].weight.grad.any()  # nothing passes the second layer
    assert model[1].weight.grad.any()
    for rule, message in (
        (own(Masked), "convert: rule: found no arguments, with which Masked can't be made"),
        (
            own(Traced),
            f"convert: rule: found '{own(Traced)}', which isn't a class derived from lowdimfa.ChainRule",
        ),
    ):
        with pytest.raises(InputError) as caught:
            convert(mlp(3, 3, 2, 3), rule=rule)
        assert str(caught.value).startswith(message)
