"""A block's optimiser: state as plain data, schedules, clipping and refusals."""

from __future__ import annotations

import json
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa.config import FactoryConfig, UpdateConfig
from lowdimfa.errors import InputError
from lowdimfa.optim import Updater, _fused
from lowdimfa.optim_state import pack_state

STEPS = 12
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("torch.optim.SGD", {"lr": 0.1}),
    "momentum": ("torch.optim.SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": ("torch.optim.Adam", {"lr": 0.01, "betas": [0.8, 0.95]}),
    "amsgrad": ("torch.optim.Adam", {"lr": 0.01, "amsgrad": True}),
    "adamw": ("torch.optim.AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "muon": ("lowdimfa.muon:Muon", {"lr": 0.01, "muon": ["*"]}),
    "muon and adamw": ("lowdimfa.muon:Muon", {"lr": 0.01, "muon": ["*.Q"], "adamw_scale": 0.5}),
    "fused adamw": ("torch.optim.AdamW", {"lr": 0.01, "fused": True}),
}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "none": None,
    "one cycle": ("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": 0.05}),
    "cosine": ("torch.optim.lr_scheduler.CosineAnnealingLR", {"T_max": STEPS}),
    "step": ("torch.optim.lr_scheduler.StepLR", {"step_size": 3}),
    "milestones": ("torch.optim.lr_scheduler.MultiStepLR", {"milestones": [2, 8, 8]}),
}


def config(optimizer: str = "adamw", scheduler: str = "none", grad_clip: float | None = None) -> UpdateConfig:
    schedule = SCHEDULERS[scheduler]
    return UpdateConfig(
        FactoryConfig(*OPTIMIZERS[optimizer]),
        None if schedule is None else FactoryConfig(*schedule),
        grad_clip,
    )


class Learner:
    """Two parameters under an updater, one with channels last, with made-up gradients."""

    def __init__(self, update: UpdateConfig, names: tuple[str, ...] = ("0.weight", "0.Q")) -> None:
        shapes = [(4, 3), (2, 3, 2, 2)]
        self.parameters = {
            name: nn.Parameter(_laid_out(_normal(*shape, seed=index)))
            for index, (name, shape) in enumerate(zip(names, shapes, strict=True))
        }
        self.updater = Updater(self.parameters, [self.parameters[names[0]]], update, STEPS)

    def run(self, first: int, last: int) -> None:
        for step in range(first, last):
            for index, parameter in enumerate(self.parameters.values()):
                parameter.grad = _laid_out(_normal(*parameter.shape, seed=100 + 2 * step + index))
            self.updater.step()


def _laid_out(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_continued_training_has_the_bits_of_uninterrupted_training(
    optimizer: str, scheduler: str, stop: int
) -> None:
    whole, first, second = (Learner(config(optimizer, scheduler)) for _ in range(3))
    whole.run(0, STEPS)
    first.run(0, stop)
    # As a checkpoint keeps them: contiguous, whatever the parameter is.
    tensors = {name: value.clone().contiguous() for name, value in first.updater.state().tensors.items()}
    scalars = json.loads(json.dumps(first.updater.state().scalars, allow_nan=False))
    for name, parameter in second.parameters.items():
        parameter.data.copy_(first.parameters[name].data)
    second.updater.load(tensors, scalars)
    second.run(stop, STEPS)
    for name, parameter in whole.parameters.items():
        assert torch.equal(second.parameters[name], parameter), name
    ours, theirs = second.updater.state().tensors, whole.updater.state().tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert second.updater.state().scalars == whole.updater.state().scalars


def test_the_state_matters() -> None:
    """Without its state an optimiser goes elsewhere: the comparison above can fail."""
    whole, fresh = (Learner(config("adamw", "one cycle")) for _ in range(2))
    whole.run(0, 5)
    for name, parameter in fresh.parameters.items():
        parameter.data.copy_(whole.parameters[name].data)
    whole.run(5, STEPS)
    fresh.run(5, STEPS)
    assert not torch.allclose(whole.parameters["0.weight"], fresh.parameters["0.weight"])


def test_state_is_named_by_parameter_and_other_names_are_ignored() -> None:
    source, target = Learner(config(), ("3.weight", "3.Q")), Learner(config(), ("0.weight", "3.Q"))
    source.run(0, 3)
    assert set(source.updater.state().tensors) == {
        f"optimizer/{name}/{key}" for name in ("3.weight", "3.Q") for key in ("step", "exp_avg", "exp_avg_sq")
    }
    target.updater.load(source.updater.state().tensors, source.updater.state().scalars)
    loaded = target.updater.state().tensors
    assert set(loaded) == {f"optimizer/3.Q/{key}" for key in ("step", "exp_avg", "exp_avg_sq")}
    assert torch.equal(
        loaded["optimizer/3.Q/exp_avg"], source.updater.state().tensors["optimizer/3.Q/exp_avg"]
    )


def rates(update: UpdateConfig) -> list[float]:
    learner = Learner(update)
    assert learner.updater.optimizer is not None
    found = []
    for step in range(STEPS):
        found.append(float(learner.updater.optimizer.param_groups[0]["lr"]))
        learner.run(step, step + 1)
    return found


def test_a_one_cycle_schedule_spans_the_run_unless_it_is_told_otherwise() -> None:
    found = rates(config("adamw", "one cycle"))
    assert max(found) > 0.04
    assert found[-1] < 1e-4
    longer = UpdateConfig(
        FactoryConfig(*OPTIMIZERS["adamw"]),
        FactoryConfig("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": 0.05, "total_steps": 10 * STEPS}),
    )
    assert rates(longer) == sorted(rates(longer))
    epochs = UpdateConfig(
        FactoryConfig(*OPTIMIZERS["adamw"]),
        FactoryConfig(
            "torch.optim.lr_scheduler.OneCycleLR",
            {"max_lr": 0.05, "epochs": 2, "steps_per_epoch": STEPS // 2},
        ),
    )
    assert rates(epochs) == found


@pytest.mark.parametrize(
    ("update", "key"),
    [
        (UpdateConfig(FactoryConfig("torch.optim.NoSuch")), "train.optimizer.factory"),
        (UpdateConfig(FactoryConfig("SGD")), "train.optimizer.factory"),
        (UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": -1.0})), "train.optimizer.args"),
        (UpdateConfig(FactoryConfig("torch.optim.SGD", {"rate": 1.0})), "train.optimizer.args"),
        (
            UpdateConfig(scheduler=FactoryConfig("torch.optim.lr_scheduler.NoSuch")),
            "train.scheduler.factory",
        ),
        (
            UpdateConfig(scheduler=FactoryConfig("torch.optim.lr_scheduler.StepLR")),
            "train.scheduler.args",
        ),
    ],
)
def test_bad_factories_and_arguments_are_refused_under_their_key(update: UpdateConfig, key: str) -> None:
    with pytest.raises(InputError) as caught:
        Learner(update)
    assert str(caught.value).startswith(key)


class ScheduleFree(torch.optim.SGD):
    """As those of the package schedulefree: weights to evaluate are there only after `eval`."""

    def eval(self) -> None: ...

    def train(self) -> None: ...


def test_an_optimiser_with_other_weights_for_evaluation_is_refused() -> None:
    """Nobody would ask it for them, and evaluations and checkpoints would have those of training."""
    given = FactoryConfig(ScheduleFree, {"lr": 0.1})
    with pytest.raises(InputError, match=r"^train\.optimizer\.factory: .*ScheduleFree.* train\.average"):
        Learner(UpdateConfig(given))


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_clipping_is_of_the_forward_parameters_alone(clip: float) -> None:
    learner = Learner(config("sgd", grad_clip=clip))
    before = {name: parameter.detach().clone() for name, parameter in learner.parameters.items()}
    learner.run(0, 1)
    weight_step, feedback_step = (
        (before[name] - learner.parameters[name].detach()) / 0.1 for name in ("0.weight", "0.Q")
    )
    gradient = _normal(4, 3, seed=100)
    torch.testing.assert_close(feedback_step, _laid_out(_normal(2, 3, 2, 2, seed=101)))
    torch.testing.assert_close(
        weight_step, gradient * min(1.0, clip / float(gradient.norm())), rtol=1e-4, atol=1e-5
    )


def test_a_step_clears_the_gradients() -> None:
    learner = Learner(config())
    learner.run(0, 1)
    assert all(parameter.grad is None for parameter in learner.parameters.values())


def test_nothing_to_train_is_no_error() -> None:
    updater = Updater({}, [], config("adamw", "one cycle", grad_clip=1.0), STEPS)
    updater.step()
    assert updater.state().tensors == {}
    state = json.loads(json.dumps(updater.state().scalars))
    updater.load({}, state)
    updater.step()


@pytest.mark.parametrize(
    ("choice", "fused"), [({}, True), ({"fused": False}, False), ({"foreach": True}, None)]
)
def test_steps_are_fused_unless_somebody_chose(choice: dict[str, bool], fused: bool | None) -> None:
    learner = Learner(UpdateConfig(FactoryConfig("torch.optim.AdamW", {"lr": 0.01} | choice)))
    assert learner.updater.optimizer is not None
    assert learner.updater.optimizer.defaults["fused"] is fused


class OneWay(torch.optim.Adam):
    """Has fused steps too, and refuses them beside its default, as some libraries' optimisers do."""

    def __init__(self, params: Any, lr: float = 0.1, foreach: bool = True, fused: bool = False) -> None:
        if foreach and fused:
            raise ValueError("one of foreach and fused")
        super().__init__(params, lr, foreach=foreach, fused=fused)


@pytest.mark.parametrize(
    ("factory", "fused"),
    [
        *((f"torch.optim.{name}", True) for name in ("Adam", "AdamW", "SGD", "Adagrad")),
        (f"{__name__}:OneWay", False),
    ],
)
def test_steps_are_fused_only_of_optimisers_of_which_it_is_known_how(factory: str, fused: bool) -> None:
    learner = Learner(UpdateConfig(FactoryConfig(factory, {"lr": 0.01})))
    assert learner.updater.optimizer is not None
    assert learner.updater.optimizer.defaults["fused"] is fused


def test_adagrad_is_fused_on_processors_alone() -> None:
    on_gpu = SimpleNamespace(
        is_floating_point=lambda: True, device=torch.device("cuda"), dtype=torch.bfloat16
    )
    for factory, fused in ((torch.optim.Adagrad, {}), (torch.optim.AdamW, {"fused": True})):
        assert _fused(factory, [on_gpu], {}) == fused  # type: ignore[list-item]


WHOLE = [("SGD", {}), ("SGD", {"momentum": 0.9}), ("Adam", {}), ("AdamW", {}), ("Adagrad", {})]
"""Those after SGD compute in single precision where they are fused, in which plain torch's half overflows."""


@pytest.mark.parametrize("size", [3, 64, 1000])
@pytest.mark.parametrize(
    ("dtype", "factory", "args"),
    [
        (dtype, *each)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
        for each in (WHOLE if dtype.itemsize > 2 else WHOLE[:2])
    ],
)
def test_steps_of_any_precision_are_those_of_plain_torch(
    dtype: torch.dtype, factory: str, args: dict[str, Any], size: int
) -> None:
    args = {"lr": 0.1} | args
    generator = torch.Generator().manual_seed(0)
    start, *gradients = (torch.randn(size, generator=generator).to(dtype) for _ in range(4))
    own, plain = (nn.Parameter(start.clone()) for _ in range(2))
    config = UpdateConfig(FactoryConfig(f"torch.optim.{factory}", args))
    updater = Updater({"w": own}, [], config, 3)
    reference = getattr(torch.optim, factory)([plain], foreach=False, fused=False, **args)
    for gradient in gradients:
        own.grad, plain.grad = gradient.clone(), gradient.clone()
        updater.step()
        reference.step()
    assert not torch.equal(plain, start)
    torch.testing.assert_close(own, plain)


def test_fused_steps_of_half_precision_that_torch_gets_wrong_are_refused() -> None:
    half = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    config = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.1, "fused": True}))
    with pytest.raises(
        InputError, match=r"optimizer\.args: found fused: true for parameters of half precision"
    ):
        Updater({"w": half}, [], config, 3)


def test_a_fused_step_shows_in_the_parameters_versions() -> None:
    """Else autograd would take the changed weights for those of the forward."""
    learner = Learner(config())
    before = [parameter._version for parameter in learner.parameters.values()]
    learner.run(0, 1)
    assert all(value._version > b for value, b in zip(learner.parameters.values(), before, strict=True))


@pytest.mark.parametrize(
    ("factory", "args"),
    [
        ("torch.optim.SGD", {"lr": 0.1}),
        ("torch.optim.Adagrad", {"lr": 0.1}),
        ("torch.optim.SparseAdam", {"lr": 0.1}),
    ],
)
def test_sparse_gradients_are_applied_as_in_plain_torch(factory: str, args: dict[str, Any]) -> None:
    plain = nn.ModuleList([nn.Embedding(9, 4, sparse=True), nn.Linear(4, 2)])
    if factory.endswith("SparseAdam"):  # which takes nothing else
        del plain[1]
    ours = deepcopy(plain)
    updater = Updater(dict(ours.named_parameters()), [], UpdateConfig(FactoryConfig(factory, args)), STEPS)
    theirs = getattr(torch.optim, factory.rpartition(".")[2])(plain.parameters(), **args)
    settings = deepcopy(pack_state(updater).scalars["groups"])
    for step in range(3):
        ids = torch.tensor([step, 3, 3])  # a row twice: its gradient is a sum
        for layers in (ours, plain):
            nn.Sequential(*layers)(ids).square().sum().backward()
        updater.step()
        theirs.step()
        theirs.zero_grad()
    assert updater.sparse
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    # A checkpoint says what those of blocks without sparse gradients say, so that they may be resumed as one block.
    assert pack_state(updater).scalars["groups"] == settings


def test_gradients_that_begin_late_are_applied_as_in_plain_torch() -> None:
    args = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    ours, plain = ([nn.Parameter(_normal(3, 2, seed=seed)) for seed in (0, 1)] for _ in range(2))
    updater = Updater(
        dict(zip("ab", ours, strict=True)), ours, UpdateConfig(FactoryConfig("torch.optim.SGD", args)), STEPS
    )
    reference = torch.optim.SGD(plain, **args)
    for step in range(6):
        for number in range(1 + (step in (2, 4))):  # as an expert that is seldom asked
            for parameters in (ours, plain):
                parameters[number].grad = _normal(3, 2, seed=10 * step + number)
        updater.step()
        reference.step()
        reference.zero_grad()
    torch.testing.assert_close(ours, plain)
    assert updater.optimizer is not None and updater.optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "muon and adamw"])
def test_parameters_and_gradients_may_lie_in_memory_as_they_like(optimizer: str) -> None:
    """A fused step pairs values as they lie in memory, whatever the strides say."""

    def parameters(spread: bool) -> tuple[dict[str, nn.Parameter], Tensor]:
        table, turned = _normal(4, 6, seed=0), _normal(3, 4, seed=1)
        values = {"slice": table[:, :2], "turned slice": turned[:2].t(), "turned": _normal(5, 4, seed=2).t()}
        made = {name: nn.Parameter(value if spread else value.contiguous()) for name, value in values.items()}
        return made | {"plain": nn.Parameter(_normal(4, 3, seed=3))}, table

    (spread, table), (dense, untouched) = parameters(True), parameters(False)
    updaters = [Updater(given, [], config(optimizer), STEPS) for given in (spread, dense)]
    settings = deepcopy(pack_state(updaters[0]).scalars["groups"])
    for step in range(3):
        for name in spread:
            gradient = _normal(*dense[name].shape, seed=10 + step)
            spread[name].grad, dense[name].grad = gradient.t().contiguous().t(), gradient
        for updater in updaters:
            updater.step()
    torch.testing.assert_close(dict(spread), dict(dense))
    assert torch.equal(table[:, 2:], untouched[:, 2:])
    # A checkpoint says what those of other blocks say, so that they may be resumed as one block.
    assert pack_state(updaters[0]).scalars["groups"] == settings


def test_a_step_that_fails_leaves_its_groups_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = nn.Parameter(_normal(4, 6, seed=0)[:, :2])
    updater = Updater({"slice": parameter}, [], config("adamw"), STEPS)
    settings, seen = deepcopy(pack_state(updater).scalars["groups"]), []

    def fail() -> None:
        seen.append(updater.optimizer.param_groups[0]["fused"])
        raise MemoryError

    monkeypatch.setattr(updater.optimizer, "step", fail)
    parameter.grad = torch.ones(4, 2)
    with pytest.raises(MemoryError):
        updater.apply()
    assert seen == [None] and pack_state(updater).scalars["groups"] == settings


def test_a_fused_step_that_was_asked_for_is_not_undone_for_sparse_gradients() -> None:
    embedding = nn.Embedding(9, 4, sparse=True)
    update = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.1, "fused": True}))
    updater = Updater(dict(embedding.named_parameters()), [], update, STEPS)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"fused.*sparse"):
        updater.step()


def resumed(then: dict[str, Any], now: dict[str, Any], schedules: tuple[Any, Any] = (None, None)) -> Learner:
    """Return a learner with some arguments that goes on from one with others, after two steps."""
    first, second = (
        Learner(UpdateConfig(FactoryConfig("torch.optim.AdamW", args), scheduler))
        for args, scheduler in zip((then, now), schedules, strict=True)
    )
    first.run(0, 2)
    state = first.updater.state()
    with torch.no_grad():
        for name, parameter in second.parameters.items():
            parameter.copy_(first.parameters[name])
    second.updater.load({name: value.clone() for name, value in state.tensors.items()}, state.scalars)
    return second


def test_arguments_that_are_changed_for_a_resumed_run_count() -> None:
    then, now = {"lr": 0.1, "weight_decay": 0.3}, {"lr": 0.01, "weight_decay": 0.3, "betas": [0.5, 0.9]}
    learner = resumed(then, now)
    learner.run(2, 6)
    plain = Learner(UpdateConfig(FactoryConfig("torch.optim.AdamW", then)))
    plain.run(0, 2)
    for group in plain.updater.optimizer.param_groups:  # type: ignore[union-attr]
        group["lr"], group["betas"] = 0.01, [0.5, 0.9]
    plain.run(2, 6)
    for name, parameter in plain.parameters.items():
        assert torch.equal(parameter, learner.parameters[name])


def test_a_change_that_a_schedule_has_planned_otherwise_is_refused() -> None:
    steps = FactoryConfig("torch.optim.lr_scheduler.StepLR", {"step_size": 3})
    faster = FactoryConfig("torch.optim.lr_scheduler.StepLR", {"step_size": 3, "gamma": 0.5})
    same = FactoryConfig("torch.optim.lr_scheduler.StepLR", {"step_size": 3.0, "gamma": 0.1})
    resumed({"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.5, "betas": [0.9, 0.999]}, (steps, same))
    with pytest.raises(
        InputError, match=r"optimizer\.args: found (initial_lr|lr) 0\.2 in a run that is resumed"
    ):
        resumed({"lr": 0.1}, {"lr": 0.2}, (steps, steps))
    with pytest.raises(InputError, match=r"scheduler\.args: found .*gamma.: 0\.5.* in a run that is resumed"):
        resumed({"lr": 0.1}, {"lr": 0.1}, (steps, faster))


class Warmup:
    """A function with a state of its own, which no text holds."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.steps)


def test_a_change_in_what_no_text_holds_is_refused_too() -> None:
    short, again, long = (
        FactoryConfig("torch.optim.lr_scheduler.LambdaLR", {"lr_lambda": Warmup(steps)})
        for steps in (2, 2, 4)
    )
    resumed({"lr": 0.1}, {"lr": 0.1}, (short, again))
    with pytest.raises(InputError, match=r"scheduler\.args: found"):
        resumed({"lr": 0.1}, {"lr": 0.1}, (short, long))
