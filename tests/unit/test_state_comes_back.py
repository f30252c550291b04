"""Every optimiser and schedule of torch, and some of a user's: half of a run, a checkpoint, and the other half."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from lowdimfa.config import FactoryConfig, UpdateConfig
from lowdimfa.errors import InputError
from lowdimfa.optim import Updater

STEPS, HALF = 12, 6
SHAPES = {"0.weight": (4, 3), "0.bias": (4,), "1.weight": (2, 3, 2, 2), "1.bias": (2,), "1.Q": (5, 3)}


def by_dimension(parameters: list[nn.Parameter], **settings: Any) -> Optimizer:
    """Biases first, without decay, in a group with a setting of its own."""
    groups = [
        {"params": [one for one in parameters if one.dim() == 1], "weight_decay": 0.0, "kind": ("bias", 1)},
        {"params": [one for one in parameters if one.dim() > 1]},
    ]
    return AdamW(groups, **settings)


def muon(parameters: list[nn.Parameter], **settings: Any) -> Optimizer:
    """Leaves out what Muon doesn't take."""
    return torch.optim.Muon([one for one in reversed(parameters) if one.dim() == 2], **settings)


def tensor_rate(parameters: list[nn.Parameter]) -> Optimizer:
    return Adam(parameters, lr=torch.tensor(0.01), fused=True)


def named(parameters: list[nn.Parameter]) -> Optimizer:
    return SGD(((f"p{place}", one) for place, one in enumerate(parameters)), lr=0.1, momentum=0.9)


def drawn(parameters: list[nn.Parameter]) -> Optimizer:
    """Another optimiser each time that nobody seeds the random numbers."""
    return SGD(parameters, lr=0.1 * (random.random() + numpy.random.rand() + float(torch.rand(()))))


class Nested(Optimizer):
    """Keeps of each parameter what torch's own load would turn into something else."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "bounds": (0.5, math.inf), "calls": {1: "one"}})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["calls"][1] += "+"
            for parameter in group["params"]:
                own = self.state[parameter]
                count = own.setdefault("count", torch.zeros((), dtype=torch.int64))
                history: dict[int, Tensor] = own.setdefault("history", {})
                own["word"], own["best"] = f"step {int(count)}", own.get("best", math.inf)
                own["mean"] = (
                    own.get("mean", torch.zeros_like(parameter, dtype=torch.float64))
                ) * 0.9 + parameter.grad
                count += 1
                history[int(count) % 3] = parameter.grad.clone()
                own["best"] = min(own["best"], float(parameter.grad.norm()))
                parameter -= (
                    group["lr"]
                    * (sum(history.values()) * len(own["word"]) + own["mean"]).float()
                    / own["best"]
                )


class Whole(SGD):
    """Keeps something beside what belongs to parameters and groups."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, table: bool = False) -> None:
        super().__init__(parameters, lr=lr)
        self.calls: Any = {"all": 0} if table else 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls = {"all": self.calls["all"] + 1} if isinstance(self.calls, dict) else self.calls + 1
        self.param_groups[0]["lr"] = 0.1 / (self.calls["all"] if isinstance(self.calls, dict) else self.calls)
        super().step()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"calls": self.calls}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state_dict = dict(state_dict)
        self.calls = state_dict.pop("calls")
        super().load_state_dict(state_dict)


class Table(LRScheduler):
    """Keeps a dictionary with integer keys, a tuple and a tensor."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.seen: dict[int, tuple[int, Tensor]] = {}
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        self.seen[len(self.seen)] = len(self.seen), torch.tensor(0.5)
        return [0.1 * float(math.prod(float(half) for _, half in self.seen.values())) for _ in self.base_lrs]


class Warming:
    """A callable whose attributes are state: torch keeps them."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, step: int) -> float:
        self.steps += 1
        return 1 / (1 + self.steps)


def sequential(optimizer: Optimizer) -> LRScheduler:
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
        lr_scheduler.MultiStepLR(optimizer, [1, 2, 2, 5]),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, [5])


def chained(optimizer: Optimizer) -> LRScheduler:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.3, 7), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts, optimizer)


def nested_sequence(optimizer: Optimizer) -> LRScheduler:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 3), lr_scheduler.CosineAnnealingLR(optimizer, 9)]
    return lr_scheduler.SequentialLR(optimizer, [lr_scheduler.ChainedScheduler(parts), Table(optimizer)], [8])


def by_function(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)


def by_callable(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, Warming())


def by_factor(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.MultiplicativeLR(optimizer, lambda step: 0.8 + 0.01 * step)


def cyclic_by_function(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, 3, scale_fn=lambda x: 0.7**x, cycle_momentum=False)


T = "torch.optim."
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (T + name, {})
    for name in (
        "ASGD",
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
    )
} | {
    "SGD": (T + "SGD", {"lr": 0.1, "momentum": 0.9}),
    "SGD foreach": (T + "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "foreach": True}),
    "AdamW plain": (T + "AdamW", {"fused": False, "foreach": False, "amsgrad": True}),
    "AdamW fused": (T + "AdamW", {"fused": True, "amsgrad": True}),
    "AdamW foreach": (T + "AdamW", {"foreach": True}),
    "Adagrad fused": (T + "Adagrad", {"fused": True}),
    "RMSprop centred": (T + "RMSprop", {"centered": True, "momentum": 0.5}),
    "Muon": (f"{__name__}:muon", {"lr": 0.01}),
    "groups": (f"{__name__}:by_dimension", {"lr": 0.01}),
    "tensor rate": (f"{__name__}:tensor_rate", {}),
    "named": (f"{__name__}:named", {}),
    "drawn": (f"{__name__}:drawn", {}),
    "nested": (f"{__name__}:Nested", {"lr": 1e-3}),
    "whole": (f"{__name__}:Whole", {"lr": 0.1}),
    "whole table": (f"{__name__}:Whole", {"lr": 0.1, "table": True}),
}
L = "torch.optim.lr_scheduler."
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ConstantLR": (L + "ConstantLR", {"total_iters": 8}),
    "CosineAnnealingLR": (L + "CosineAnnealingLR", {"T_max": STEPS}),
    "CosineAnnealingWarmRestarts": (L + "CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2}),
    "CyclicLR": (
        L + "CyclicLR",
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4, "mode": "exp_range", "gamma": 0.9},
    ),
    "ExponentialLR": (L + "ExponentialLR", {"gamma": 0.9}),
    "LinearLR": (L + "LinearLR", {"total_iters": 8}),
    "MultiStepLR": (L + "MultiStepLR", {"milestones": [2, 8, 8]}),
    "OneCycleLR": (L + "OneCycleLR", {"max_lr": 0.05}),
    "OneCycleLR in phases": (
        L + "OneCycleLR",
        {"max_lr": 0.05, "three_phase": True, "anneal_strategy": "linear"},
    ),
    "PolynomialLR": (L + "PolynomialLR", {"total_iters": 10, "power": 2.0}),
    "StepLR": (L + "StepLR", {"step_size": 4}),
    "SWALR": ("torch.optim.swa_utils.SWALR", {"swa_lr": 0.02, "anneal_epochs": 8}),
    "SWALR linear": ("torch.optim.swa_utils.SWALR", {"swa_lr": 0.02, "anneal_strategy": "linear"}),
    "SequentialLR": (f"{__name__}:sequential", {}),
    "ChainedScheduler": (f"{__name__}:chained", {}),
    "nested": (f"{__name__}:nested_sequence", {}),
    "LambdaLR": (f"{__name__}:by_function", {}),
    "LambdaLR of a callable": (f"{__name__}:by_callable", {}),
    "MultiplicativeLR": (f"{__name__}:by_factor", {}),
    "CyclicLR of a function": (f"{__name__}:cyclic_by_function", {}),
    "table": (f"{__name__}:Table", {}),
}


def configured(optimizer: str, scheduler: str | None) -> UpdateConfig:
    if optimizer == "Muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    return UpdateConfig(
        FactoryConfig(*OPTIMIZERS[optimizer]),
        None if scheduler is None else FactoryConfig(*SCHEDULERS[scheduler]),
    )


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def laid_out(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


class Learner:
    """Some parameters under an updater, with made-up gradients that depend on names and steps alone."""

    def __init__(self, update: UpdateConfig, names: Iterable[str] = SHAPES) -> None:
        self.parameters = {
            name: nn.Parameter(laid_out(normal(*SHAPES[name], seed=list(SHAPES).index(name))))
            for name in names
        }
        self.updater = Updater(self.parameters, [], update, STEPS, seed=7)

    def run(self, first: int, last: int) -> None:
        for step in range(first, last):
            for name, parameter in self.parameters.items():
                parameter.grad = laid_out(
                    normal(*parameter.shape, seed=100 + 10 * step + list(SHAPES).index(name))
                )
            self.updater.step()

    def kept(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state as a checkpoint has it: contiguous copies, and JSON."""
        tensors, scalars = self.updater.state()
        copies = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        return copies, json.loads(json.dumps(scalars, allow_nan=False))

    def follow(self, *others: Learner) -> None:
        """Go on from the states of others, each of which had some of the parameters."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(next(one.parameters[name] for one in others if name in one.parameters).data)
        kept = [one.kept() for one in others]
        self.updater.load(
            {name: t for tensors, _ in kept for name, t in tensors.items()}, *(part for _, part in kept)
        )


def assert_same(learner: Learner, expected: Learner) -> None:
    for name, parameter in learner.parameters.items():
        assert torch.equal(parameter, expected.parameters[name]), name
    ours, theirs = learner.updater.state().tensors, expected.updater.state().tensors
    for name in ours.keys() & theirs.keys():
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [(name, None) for name in OPTIMIZERS]
    + [("SGD", name) for name in SCHEDULERS]
    + [("groups", name) for name in SCHEDULERS]
    + [("tensor rate", name) for name in ("OneCycleLR", "SequentialLR", "LambdaLR")],
)
def test_half_and_half_have_the_bits_of_the_whole(optimizer: str, scheduler: str | None) -> None:
    update = configured(optimizer, scheduler)
    whole, first, second = Learner(update), Learner(update), Learner(update)
    whole.run(0, STEPS)
    first.run(0, HALF)
    second.follow(first)
    assert first.updater.state().scalars == second.updater.state().scalars
    second.run(HALF, STEPS)
    assert_same(second, whole)
    # In torch 2.6 a schedule's first rate and its last one are one tensor, which has two names; values are the same.
    if scheduler != "SequentialLR" or not torch.__version__.startswith("2.6."):
        assert whole.updater.state().scalars == second.updater.state().scalars


def test_sparse_gradients_have_their_optimiser_too() -> None:
    update = UpdateConfig(FactoryConfig("torch.optim.SparseAdam", {"lr": 0.1}))
    whole, first, second = (Learner(update, ["0.weight"]) for _ in range(3))

    def run(learner: Learner, first: int, last: int) -> None:
        for step in range(first, last):
            rows = torch.tensor([[step % 4, (step + 2) % 4]])
            gradient = torch.sparse_coo_tensor(rows, normal(2, 3, seed=step), (4, 3))
            learner.parameters["0.weight"].grad = gradient
            learner.updater.step()

    run(whole, 0, STEPS)
    run(first, 0, HALF)
    second.follow(first)
    run(second, HALF, STEPS)
    assert_same(second, whole)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        ("groups", None),
        ("groups", "SequentialLR"),
        ("Adam", "OneCycleLR"),
        ("nested", "table"),
        ("Muon", None),
        ("whole", None),
        ("tensor rate", "StepLR"),
    ],
)
def test_other_boundaries_have_the_bits_of_the_whole(optimizer: str, scheduler: str | None) -> None:
    """Two blocks become one, and one becomes two."""
    update, names = configured(optimizer, scheduler), list(SHAPES)
    parts = [names[:2], names[2:]]
    whole, one = Learner(update), Learner(update)
    whole.run(0, STEPS)
    before = [Learner(update, part) for part in parts]
    for learner in before:
        learner.run(0, HALF)
    one.follow(*before)
    one.run(HALF, STEPS)
    assert_same(one, whole)
    first = Learner(update)
    first.run(0, HALF)
    for part in parts:
        after = Learner(update, part)
        after.follow(first)
        after.run(HALF, STEPS)
        assert_same(after, whole)


class Early(SGD):
    """Keeps something of each parameter from its construction on, as Adagrad does, in a type of its own."""

    def __init__(self, parameters: list[nn.Parameter], lr: float = 0.1) -> None:
        super().__init__(parameters, lr)
        for parameter in parameters:
            self.state[parameter]["sum"] = torch.full_like(parameter, 0.1, dtype=torch.float64)

    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["sum"] += parameter.grad**2
        super().step()


def test_what_no_checkpoint_has_keeps_the_state_that_it_was_built_with() -> None:
    update = UpdateConfig(FactoryConfig(f"{__name__}:Early"))
    known, new = list(SHAPES)[:2], list(SHAPES)[2:]
    before, after = Learner(update, known), Learner(update)
    before.run(0, HALF)
    after.updater.load(*before.kept())
    found = after.updater.state().tensors
    for name, value in before.updater.state().tensors.items():
        assert torch.equal(found[name], value)
    for name in new:
        assert torch.equal(found[f"optimizer/{name}/sum"], torch.full(SHAPES[name], 0.1, dtype=torch.float64))
    after.run(HALF, HALF + 1)


def test_state_is_under_the_name_of_its_parameter() -> None:
    learner = Learner(configured("groups", None))
    learner.run(0, 1)
    for name, value in learner.updater.state().tensors.items():
        _, parameter, key = name.split("/")
        assert key == "step" or value.shape == SHAPES[parameter]


def test_what_the_optimiser_leaves_out_has_no_state_and_no_gradient() -> None:
    learner = Learner(configured("Muon", None))
    learner.run(0, 2)
    assert {name.split("/")[1] for name in learner.updater.state().tensors} == {"0.weight", "1.Q"}
    assert all(parameter.grad is None for parameter in learner.parameters.values())
    assert torch.equal(learner.parameters["0.bias"], normal(4, seed=1))


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "words"),
    [
        ("whole table", None, "train.optimizer.factory: found a state of the whole block (calls)"),
        ("Adam", "different", "train.scheduler.factory: found schedules in different states"),
        (
            "different",
            None,
            "train.optimizer.factory: found one group of parameters that had different settings",
        ),
    ],
)
def test_blocks_that_do_not_agree_are_refused_by_name(
    optimizer: str, scheduler: str | None, words: str
) -> None:
    names, updates = list(SHAPES), []
    for number in range(2):
        rate = 0.1 / (number + 1) if optimizer == "different" else 0.1
        used = (
            ("torch.optim.Adam", {"lr": rate})
            if optimizer in ("Adam", "different")
            else OPTIMIZERS[optimizer]
        )
        schedule = FactoryConfig(L + "StepLR", {"step_size": HALF + 1 + number}) if scheduler else None
        updates.append(UpdateConfig(FactoryConfig(*used), schedule))
    before = [Learner(update, part) for update, part in zip(updates, (names[:2], names[2:]), strict=True)]
    for learner in before:
        learner.run(0, HALF)
    with pytest.raises(InputError) as caught:
        Learner(updates[0]).follow(*before)
    assert str(caught.value).startswith(words)
    assert "0.weight" in str(caught.value)


def test_the_state_of_another_optimiser_is_refused_under_the_key_that_was_written() -> None:
    first = Learner(configured("SGD", None))
    given = FactoryConfig("torch.optim.Adam", {}, "train.per_block.0.optimizer")
    with pytest.raises(
        InputError, match=r"train\.per_block\.0\.optimizer\.factory: found 'torch\.optim\.Adam'"
    ):
        Learner(UpdateConfig(given)).follow(first)


def test_factories_draw_the_same_in_every_process() -> None:
    rates = []
    for seed in range(3):
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        optimizer = Learner(configured("drawn", None)).updater.optimizer
        assert optimizer is not None
        rates.append(optimizer.param_groups[0]["lr"])
    assert len(set(rates)) == 1


def strange(parameters: list[nn.Parameter]) -> Optimizer:
    return SGD([*parameters, nn.Parameter(torch.ones(3))], lr=0.1)


def nothing(parameters: list[nn.Parameter]) -> None:
    return None


def greedy(parameters: list[nn.Parameter], options: dict[str, float]) -> Optimizer:
    return SGD(parameters, lr=options.pop("lr"))


class Opaque(SGD):
    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 0.1) -> None:
        super().__init__([{"params": list(parameters), "owner": object()}], lr=lr)


@pytest.mark.parametrize(
    ("factory", "args", "words"),
    [
        ("torch.optim.LBFGS", {}, "whose step needs the argument 'closure'"),
        (f"{__name__}:strange", {}, "an optimiser that trains a tensor of shape (3,) of its own"),
        (f"{__name__}:nothing", {}, "which returned a NoneType without param_groups"),
        (f"{__name__}:Opaque", {}, "is a builtins.object"),
        ("torch.optim.AdamW", {"lr": -1.0}, "{'lr': -1.0} (ValueError"),
    ],
)
def test_what_is_no_optimiser_for_a_block_is_refused_when_it_is_built(
    factory: str, args: dict[str, Any], words: str
) -> None:
    given = FactoryConfig(factory, args, "train.per_block.1.optimizer")
    with pytest.raises(InputError) as caught:
        Learner(UpdateConfig(given))
    assert str(caught.value).startswith("train.per_block.1.optimizer.") and words in str(caught.value)
    assert "fused" not in str(caught.value)  # which nobody wrote


def test_a_factory_may_use_up_its_arguments() -> None:
    update = UpdateConfig(FactoryConfig(f"{__name__}:greedy", {"options": {"lr": 0.1}}))
    for _ in range(2):
        Learner(update).run(0, 1)
