"""Python objects in place of import paths: what they become, what is refused, what can be written down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowdimfa import DecoupledTrainer, FactoryConfig, FeedbackConfig, InputError, QRule
from lowdimfa.services.spec import load_specification, parse_specification, to_yaml
from lowdimfa.services.spec.given import Given
from lowdimfa.services.spec.load import parse_text, violations
from lowdimfa.services.trainer.copying import Copies
from lowdimfa.services.trainer.objects import model_section
from lowdimfa.services.trainer.run_dir import read_run


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def data() -> tuple[Tensor, ...]:
    inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    return inputs[:24], inputs[:24, :3].argmax(1), inputs[24:], inputs[24:, :3].argmax(1)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


class Rule(QRule):
    """A rule of one's own."""


def trainer(**given: Any) -> DecoupledTrainer:
    usual = {"model": network(), "data": data(), "blocks": 2, "steps": 2, "batch_size": 8, "engine": "local"}
    return DecoupledTrainer(**usual | given)  # type: ignore[arg-type]


def test_what_can_be_written_down_is_and_the_rest_is_shown() -> None:
    specification = trainer(
        data=partial(data),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.0),
        loss=loss,
        feedback=FeedbackConfig(error_dim=2, q_rule=FactoryConfig(Rule)),
        seed=3,
        overrides={"run.checkpoint_every": 1, "model.frozen": ["0.*"]},
    ).specification
    assert repr(specification.model.factory) == "<object Sequential>"
    assert repr(specification.data.factory) == "<object data>"
    assert (specification.train.optimizer.factory, specification.train.optimizer.args) == (
        "torch.optim.SGD",
        {"lr": 0.1},
    )
    assert specification.train.scheduler is not None
    assert repr(specification.train.scheduler.factory) == "<object LambdaLR>"
    assert repr(specification.train.loss) == "<object loss>"
    assert "<object Rule>" in repr(specification.feedback.q_rule)
    assert (specification.feedback.error_dim, specification.train.seed) == (2, 3)
    assert (specification.run.checkpoint_every, specification.model.frozen) == (1, ["0.*"])
    again = parse_specification(specification.model_dump(), "test")
    assert again == specification


def test_what_can_all_be_written_down_is_a_specification_like_any() -> None:
    from lowdimfa.data import digits
    from lowdimfa.models import mlp

    made = trainer(
        model=partial(mlp, in_features=64, width=8, depth=2, classes=10),
        data=digits,
        optimizer=torch.optim.SGD,
        scheduler={"factory": "torch.optim.lr_scheduler.StepLR", "args": {"step_size": 3}},
        loss="cross_entropy",
    )
    text = to_yaml(made.specification)
    assert parse_text(text, "spec.yaml") == made.specification
    # A class has its own defaults, and not the arguments of the optimiser that it takes the place of.
    assert made.specification.train.optimizer.args == {}


def test_numbers_may_be_numpys_as_those_of_a_search_are() -> None:
    rate = np.float64(0.1)
    made = trainer(
        blocks=np.int64(2),
        seed=np.int32(3),
        optimizer=partial(torch.optim.SGD, lr=rate),
        loss="cross_entropy",
        overrides={"train.grad_clip": np.float32(0.5)},
    ).specification
    assert (made.model.blocks, made.train.seed, made.train.grad_clip) == (2, 3, 0.5)
    assert "lr: 0.1\n" in to_yaml(made)


def test_a_file_can_hold_no_object_but_a_run_knows_that_it_had_some(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(to_yaml(trainer().specification))
    with pytest.raises(
        InputError, match=r"model\.factory: found the string '<object Sequential>'.*no file can hold"
    ):
        load_specification(file)
    ((key, words), _) = violations(file.read_text())  # as the job service answers
    assert key == "model.factory" and "no file can hold" in words
    kept = read_run(tmp_path)
    assert isinstance(kept.model.factory, Given)
    with pytest.raises(InputError, match=r"<object Sequential>, an object of the program that began the run"):
        kept.model.factory.load()


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = nn.Parameter(self.first.weight.data)
        self.layers = [self.first, self.second]


def remembering() -> nn.Module:
    """Return a network with a tensor that belongs to a graph, which no copy can have."""
    made = network()
    made[0].kept = made[0].weight * 2
    return made


class Only(nn.Linear):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return self


def hooked() -> nn.Module:
    made = network()
    made[2].weight.register_hook(torch.zeros_like)
    return made


OPTIMISER = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
ELSEWHERE = nn.Linear(4, 4, device="meta")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": 3}, r"model: found a int; expected an nn\.Module"),
        ({"model": []}, r"model: found a list"),
        ({"model": Odd()}, r"model: found 'first\.weight' and 'second\.weight', which share memory"),
        ({"model": remembering()}, r"model: found a Sequential that can't be copied"),
        ({"model": hooked()}, r"model: found a hook on '2\.weight'"),
        ({"model": [Only(4, 3)]}, r"model: found a list that can't be copied .*parameters of the original"),
        ({"model": ELSEWHERE}, r"model: found 'weight' on the meta device"),
        ({"model": lambda: 3}, r"model: found a int; expected an nn\.Sequential"),
        ({"model": lambda: 1 / 0}, r"model: found '.*<lambda>', which fails .*division by zero"),
        ({"model": "nowhere"}, r"model: found the string 'nowhere'; expected an import path"),
        ({"model": None}, r"model: found nothing"),
        ({"blocks": None}, r"^blocks: found nothing"),
        ({"blocks": 9}, r"^blocks: "),
        ({"data": 3}, r"data: found int; expected a lowdimfa\.data\.Dataset, four tensors"),
        ({"data": lambda: data()[:3]}, r"data: found tuple of Tensor, Tensor, Tensor;"),
        ({"data": (torch.zeros(4, 4), torch.zeros(3), *data()[2:])}, r"data: found 4 inputs and 3 targets"),
        (
            {"optimizer": OPTIMISER},
            r"optimizer: found a SGD that is already made.*partial\(torch\.optim\.SGD, lr=…\)",
        ),
        ({"optimizer": 0.1}, r"optimizer: found a float"),
        ({"optimizer": lambda parameters: 3}, r"optimizer: found .*which returned a int"),
        ({"optimizer": partial(torch.optim.SGD, rate=1)}, r"optimizer\.args\.rate: found an argument"),
        (
            {"scheduler": torch.optim.lr_scheduler.StepLR(OPTIMISER, 1)},
            r"scheduler: found a StepLR that is already made.*partial\(torch\.optim\.lr_scheduler\.StepLR, …\)",
        ),
        ({"loss": nn.CrossEntropyLoss}, r"loss: found the class CrossEntropyLoss"),
        ({"loss": nn.Linear(1, 1)}, r"loss: found a Linear with parameters"),
        ({"loss": lambda outputs, targets: outputs}, r"loss: found a loss that returns shape"),
        ({"steps": None}, r"epochs: found neither 'epochs' nor 'steps'"),
        ({"batch_size": 99}, r"batch_size: found 99; expected at most the 24 training samples"),
        ({"feedback": {"error_dims": 3}}, r"feedback\.error_dims: .*Did you mean 'error_dim'"),
        ({"feedback": FeedbackConfig(error_dim=0)}, r"feedback\.error_dim: found 0"),
        ({"feedback": FeedbackConfig(tap=FactoryConfig(Rule))}, r"feedback\.tap\.factory: found .*Rule"),
        ({"feedback": "fixed"}, r"feedback: found 'fixed'; expected a FeedbackConfig"),
        ({"engine": "locall"}, r"engine: found 'locall'; expected 'ray' or 'local'"),
        ({"run_dir": 3}, r"run_dir: found 3; expected the path"),
        ({"run_dir": ""}, r"run_dir: found ''; expected the path"),
        ({"user_code": 3}, r"user_code: found 3; expected the path"),
        ({"user_code": "no/such"}, r"user_code: found 'no/such'; expected .* folder that is there"),
        ({"user_code": Path(__file__)}, r"user_code: found .*; expected .* folder that is there"),
        ({"on_event": "print"}, r"on_event: found 'print'; expected a function"),
        ({"address": "auto"}, r"--address: found auto and --engine local"),
        ({"callbacks": Rule}, r"callbacks: found .*Rule.*; expected a list"),
        ({"overrides": "run.keep=1"}, r"overrides: found 'run\.keep=1'; expected a mapping"),
        ({"overrides": {3: 1}}, r"overrides: found 3; expected a mapping"),
        ({"overrides": {"run.keeps": 1}}, r"^overrides\['run\.keeps'\]: .*Did you mean 'keep'"),
        ({"overrides": {"train.steps": "x"}}, r"^overrides\['train\.steps'\]: found the string 'x'"),
        ({"overrides": {"train.steps.x": 1}}, r"^overrides\['train\.steps\.x'\]: found .* at steps"),
        ({"overrides": ["run.keeps=1"]}, r"^--set run\.keeps: .*Did you mean 'keep'"),
        ({"specification": {}}, r"model, data, blocks, steps, batch_size: found a specification beside it"),
    ],
)
def test_refusals_name_the_argument(given: Mapping[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refused:
        trainer(**given).plan()
    assert re.search(words, str(refused.value)), str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optimiser", "Did you mean 'optimizer'"),
        ("checkpoint_every", r"overrides=\{'run\.checkpoint_every'"),
        ("zzz", "'zzz'$"),
    ],
)
def test_an_unknown_argument_is_refused_as_python_does(name: str, words: str) -> None:
    with pytest.raises(
        TypeError, match=rf"DecoupledTrainer\.__init__\(\) got an unexpected keyword .*{words}"
    ):
        trainer(**{name: 3})


class Count:
    """A metric of one's own, which is no function."""

    def __init__(self, times: int = 1) -> None:
        self.seen, self.times = 0, times

    def reset(self) -> None:
        self.seen = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.seen += self.times * len(targets)

    def compute(self) -> int:
        return self.seen


def highest(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.max()


class Fixed:
    """A class that has a metric."""

    @staticmethod
    def score(outputs: Tensor, targets: Tensor) -> float:
        return 1.0


def test_metrics_are_objects_classes_and_functions_and_those_that_are_given_stay_as_they_are(
    tmp_path: Path,
) -> None:
    count = Count()
    count.seen = 99
    metrics = {"a": count, "b": Count, "c": partial(Count, times=2), "d": partial(Count, 3), "e": highest}
    run = trainer(metrics=metrics, run_dir=tmp_path / "run").fit()
    found = run.metrics["metrics"]
    assert [found[name] for name in "abcd"] == [8, 8, 16, 24] and count.seen == 99
    assert isinstance(found["e"], float)
    named = trainer(metrics=[count, highest, lambda outputs, targets: 1.0, Fixed.score]).specification.train
    assert list(named.named_metrics) == ["Count", "highest", "lambda", "score"]
    assert repr(named.named_metrics["Count"].factory) == "<object Count>"


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ([highest, highest], r"^metrics\[1\]: found .*highest.*, a second 'highest'; expected a mapping"),
        ([{"factory": "a.b:c"}], r"^metrics\[0\]: found .*; expected a mapping from names"),
        (highest, r"^metrics: found a function; expected a mapping from names to metrics, or a list"),
        ({"x": 3}, r"^metrics\.x: found a int; expected an object with reset, update"),
        ({"x y": highest}, r"^metrics\.x y: found the key 'x y'; expected a mapping from names \(letters"),
        (["accuracy"], r"^metrics\[0\]: found 'accuracy'; expected an object with reset, update"),
        ({"x": lambda outputs: 1}, r"^metrics\.x: found a metric that fails on outputs"),
    ],
)
def test_what_measures_nothing_is_refused_by_the_name_of_the_argument(metrics: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        trainer(metrics=metrics).plan()


def test_copies_are_of_the_weights_alone() -> None:
    original = network().eval()
    original[0].weight.requires_grad_(False)
    original(torch.ones(1, 4)).sum().backward()
    made = Copies(original)()
    assert isinstance(made, nn.Sequential) and not made.training
    for name, value in made.named_parameters():
        before = original.get_parameter(name)
        assert torch.equal(value, before) and value.data_ptr() != before.data_ptr() and value.grad is None
        assert value.requires_grad == before.requires_grad
    assert original[2].weight.grad is not None


def test_copies_of_copies_have_what_the_user_noted_on_parameters() -> None:
    """Such as which of them decay, which an optimiser of the user's own looks up."""
    original = network()
    original[0].weight.group = [original[0].bias]
    made = deepcopy(Copies([original, nn.Linear(3, 2)]))()
    assert made[0][0].weight.group == [made[0][0].bias] and not vars(made[0][2].weight)


def test_a_factory_that_returns_what_an_earlier_run_may_have_trained_is_refused() -> None:
    same = network()
    trainer(model=lambda: same).plan()
    with pytest.raises(
        InputError, match=r"model: found a factory that returns the module '0' of an earlier call"
    ):
        trainer(model=lambda: same).plan()
    frozen = same[0].requires_grad_(False)  # what stays as it is may be shared
    trainer(model=lambda: [frozen, nn.Tanh(), nn.Linear(6, 3)]).plan()


def test_functions_that_hold_parts_of_the_model_are_refused() -> None:
    """A copy has the same functions, which would compute with the original's weights: nothing would be trained."""

    def patched(layer: nn.Linear, other: nn.Module) -> nn.Module:
        plain = layer.forward
        layer.forward = lambda x: plain(x) + other(x)  # type: ignore[method-assign, assignment]
        return layer

    adapter, side = nn.Linear(8, 8), nn.Linear(8, 8)
    layer = patched(nn.Linear(8, 8), adapter)
    layer.adapter = adapter
    hooked = nn.Linear(8, 8)
    hooked.side = side
    hooked.register_forward_hook(lambda module, given, output: output + side(given[0]))
    for part in (layer, hooked):
        with pytest.raises(InputError, match="that holds parts of the model itself"):
            model_section(nn.Sequential(part, nn.Linear(8, 3)))
    plain = nn.Linear(8, 8)
    plain.register_forward_hook(lambda module, given, output: output * 2)
    model_section(nn.Sequential(nn.utils.parametrizations.spectral_norm(plain), nn.Linear(8, 3)))
