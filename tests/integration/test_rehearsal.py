"""What can't train or can't resume is refused before a run directory is made, and a rehearsal leaves no trace."""

from __future__ import annotations

import math
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from lowdimfa import sparse
from lowdimfa.errors import InputError
from lowdimfa.services.run import in_turn, large, rehearsal
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import Specification, parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer

STEPS = 8


def data() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 8, generator=generator)
    targets = torch.randint(4, (64,), generator=generator)
    return inputs[:48], targets[:48], inputs[48:], targets[48:]


def one_to_test() -> tuple[Tensor, ...]:
    *training, inputs, targets = data()
    return *training, inputs[:1], targets[:1]


def layers(*second: nn.Module) -> list[nn.Module]:
    return [nn.Linear(8, 8), nn.Linear(8, 8), *second, nn.Linear(8, 4)]


class Extra(nn.Linear):
    """Counts its forward passes, and keeps a dictionary of them."""

    lost = False
    """Whether loading forgets."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.seen: dict[int, Any] = {0: (1.5, math.nan), 1: torch.zeros(2)}

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.seen[len(self.seen)] = torch.tensor(float(x.detach().sum()))
        return super().forward(x)

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": dict(self.seen)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"] if not self.lost else {}


class Forgetful(Extra):
    lost = True


class Opaque(Extra):
    def get_extra_state(self) -> Any:
        return {"owner": object()}

    def set_extra_state(self, state: Any) -> None:
        pass


class Growing(nn.Linear):
    """Makes a buffer when it has trained, which a new one lacks."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.register_buffer("late", torch.ones(2))
        return super().forward(x)


class Looked(nn.Module):
    """Adds a row of a table whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table((x > 0).sum(dim=1))  # type: ignore[no-any-return]


class Renormed(nn.Module):
    """Adds a row of a table whose rows the forward cuts down to a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8, max_norm=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table((x > 0).sum(dim=1))  # type: ignore[no-any-return]


class Failing(nn.Linear):
    """Works on the four samples on which shapes are found."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 4:
            raise KeyError("lost")
        return super().forward(x)


class Greedy(nn.Linear):
    """Finds no memory in training, as on a machine that is smaller than those of the blocks."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(x) > 4:
            torch.empty(2**60, dtype=torch.uint8)
        return super().forward(x)


class Locked(nn.Linear):
    """Can't be copied."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.lock = threading.Lock()


class Scripted(nn.Sequential):
    """Its copy has parameters that are computed from the original's, which no optimiser takes."""

    def __init__(self) -> None:
        super().__init__(torch.jit.script(nn.Linear(8, 8)))


class FailingBackward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        class Gone(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                raise KeyError("gone")

        return Gone.apply(x)  # type: ignore[no-any-return]


class Squeezing(nn.Module):
    """Takes away a dimension that a sample alone has too."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2).squeeze()


def made_of(kind: str, first: bool = False) -> list[nn.Module]:
    sizes = (8, 8) if kind in ("Growing", "Failing", "Greedy") else ()
    made = globals()[kind](*sizes)
    return [made, *layers()] if first else layers(made)


def unseeded() -> list[nn.Module]:
    made = layers()
    with torch.no_grad():
        made[0].weight.copy_(torch.from_numpy(numpy.random.default_rng().normal(size=(8, 8))))
    return made


def failing_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.abs().sum() > 0:
        raise ZeroDivisionError("nothing counts")
    return outputs.sum()


class FailingStep(SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise KeyError("momentum")


class Metric:
    """A schedule that wants to be told something."""

    def __init__(self, optimizer: Optimizer) -> None:
        pass

    def step(self, loss: float) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Holder(LRScheduler):
    """Keeps another schedule in its state, as popular warm-ups do."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.after = lr_scheduler.StepLR(optimizer, 3)
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return [0.1 for _ in self.base_lrs]


class Late(lr_scheduler.StepLR):
    """Keeps something strange from its fifth step on."""

    def step(self, epoch: int | None = None) -> None:
        super().step()
        if self.last_epoch == 5:
            self.strange = object()


class Forgetting(lr_scheduler.StepLR):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"last_epoch": 0})


def late_group(optimizer: Optimizer) -> LRScheduler:
    """Unfreezes what the optimiser was not to train."""

    class Unfreezing(lr_scheduler.StepLR):
        def step(self, epoch: int | None = None) -> None:
            super().step()
            if self.last_epoch == 5:
                optimizer.add_param_group({"params": [optimizer.left_out]})  # type: ignore[attr-defined]

    return Unfreezing(optimizer, 3)


def without_first(parameters: list[nn.Parameter]) -> Optimizer:
    optimizer = SGD(parameters[1:], lr=0.1)
    optimizer.left_out = parameters[0]  # type: ignore[attr-defined]
    return optimizer


def specification(**train: Any) -> dict[str, Any]:
    model, args, placement, factory = (
        train.pop(key, default)
        for key, default in (
            ("model", f"{__name__}:layers"),
            ("args", {}),
            ("placement", {}),
            ("data", f"{__name__}:data"),
        )
    )
    return {
        "model": {"factory": model, "args": args, "blocks": 3},
        "data": {"factory": factory},
        "train": {"steps": STEPS, "batch_size": 16, "microbatches": 2} | train,
        "run": {"tensorboard": False, "timeline": False},
        "placement": placement,
    }


def own(name: str, **args: Any) -> dict[str, Any]:
    return {"factory": name if "." in name else f"{__name__}:{name}", "args": args}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (
        {"model": f"{__name__}:made_of", "args": {"kind": "Squeezing"}, "data": f"{__name__}:one_to_test"},
        "model.factory",
        "failing in an evaluation's last batch, of 1 sample (",
    ),
    ({"optimizer": own("torch.optim.LBFGS")}, "train.optimizer.factory", "needs the argument 'closure'"),
    (
        {"scheduler": own("torch.optim.lr_scheduler.OneCycleLR", max_lr=0.1, total_steps=4)},
        "train.scheduler.args",
        "fails at step 5 of 8 (ValueError",
    ),
    (
        {
            "per_block": {
                1: {"scheduler": own("torch.optim.lr_scheduler.OneCycleLR", max_lr=0.1, total_steps=4)}
            }
        },
        "train.per_block.1.scheduler.args",
        "fails at step 5 of 8",
    ),
    (
        {"per_block": {0: {"optimizer": own("torch.optim.AdamW", lr=-1.0)}}},
        "train.per_block.0.optimizer.args",
        "found {'lr': -1.0} (ValueError",
    ),
    (
        {"per_block": {0: {"scheduler": own("torch.optim.lr_scheduler.StepLR", step_size=3, last_epoch=5)}}},
        "train.per_block.0.scheduler.args",
        "found {'step_size': 3, 'last_epoch': 5} (KeyError",
    ),
    ({"optimizer": own("FailingStep", lr=0.1)}, "train.optimizer.factory", "the optimiser of block 0"),
    ({"scheduler": own("Metric")}, "train.scheduler.factory", "the schedule of block 0"),
    ({"scheduler": own("Holder")}, "train.scheduler.factory", "/after is a torch.optim.lr_scheduler.StepLR"),
    ({"scheduler": own("Late", step_size=3)}, "train.scheduler.factory", "/strange is a builtins.object"),
    (
        {"scheduler": own("Forgetting", step_size=3)},
        "train.scheduler.factory",
        "scheduler/last_epoch of block 0",
    ),
    (
        {"scheduler": own("late_group"), "optimizer": own("without_first")},
        "train.optimizer.factory",
        "parameters in other groups than before",
    ),
    (
        {"loss": f"{__name__}:failing_loss"},
        "train.loss",
        "a loss failing in a first training step (ZeroDivisionError",
    ),
    ({"model": f"{__name__}:made_of", "args": {"kind": "Failing"}}, "model.factory", "layer '2' of block 2"),
    (
        {"model": f"{__name__}:made_of", "args": {"kind": "FailingBackward"}},
        "model.factory",
        "KeyError: 'gone'",
    ),
    (
        {"model": f"{__name__}:made_of", "args": {"kind": "Opaque"}},
        "model.factory",
        "2._extra_state/owner is",
    ),
    (
        {"model": f"{__name__}:made_of", "args": {"kind": "Forgetful"}},
        "model.factory",
        "extra/2._extra_state/seen",
    ),
    (
        {"model": f"{__name__}:made_of", "args": {"kind": "Growing"}},
        "model.factory",
        "model/2.late of block 2",
    ),
    (
        {"model": f"{__name__}:unseeded", "placement": {"replicas": {0: 2}}},
        "model.factory",
        "makes another block 0 each time",
    ),
    (
        {
            "model": f"{__name__}:made_of",
            "args": {"kind": "Extra", "first": True},
            "placement": {"replicas": {0: 2}},
        },
        "placement.replicas",
        "changes 0._extra_state while it trains",
    ),
    (
        {
            "model": f"{__name__}:made_of",
            "args": {"kind": "Looked", "first": True},
            "placement": {"replicas": {0: 2}},
            "optimizer": own("torch.optim.SGD", lr=0.1),
        },
        "placement.replicas",
        "block 0, whose layers make sparse gradients",
    ),
    (
        {
            "model": f"{__name__}:made_of",
            "args": {"kind": "Looked", "first": True},
            "optimizer": own("torch.optim.SparseAdam", lr=0.1),
        },
        "train.optimizer.factory",
        "SparseAdam does not support dense gradients",
    ),
    (
        {
            "model": f"{__name__}:made_of",
            "args": {"kind": "Renormed", "first": True},
            "placement": {"replicas": {0: 2}},
        },
        "placement.replicas",
        "block 0, whose layer '0' changes its parameter 'table.weight' in its forward",
    ),
]


@pytest.mark.parametrize(("train", "key", "words"), REFUSED)
def test_refused_before_anything_of_the_run_is_there(
    train: dict[str, Any], key: str, words: str, tmp_path: Path
) -> None:
    given = specification(**train)
    with pytest.raises(InputError) as caught:
        DecoupledTrainer(given, engine="local", run_dir=tmp_path / "run").fit()
    assert str(caught.value).startswith(f"{key}: "), caught.value
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def no_process_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every network for a large one."""
    monkeypatch.setattr(large, "LARGE", 0)
    monkeypatch.setattr(sparse, "SMALLEST", 64)
    monkeypatch.setattr(in_turn, "PIECE", 0)


@pytest.mark.usefixtures("no_process_holds_it")
@pytest.mark.parametrize(("train", "key", "words"), REFUSED)
def test_refused_with_memory_for_one_piece_at_a_time(train: dict[str, Any], key: str, words: str) -> None:
    parsed = parse_specification(specification(**train), "test")
    with pytest.raises(InputError) as caught:
        make_run_plan(parsed, whole=False)
    assert str(caught.value).startswith(f"{key}: "), caught.value


@pytest.mark.usefixtures("no_process_holds_it")
@pytest.mark.parametrize("kind", ["Locked", "Extra"])
@pytest.mark.parametrize("every_layer", [False, True])
def test_a_plan_of_a_network_that_no_process_holds_is_that_of_one_that_it_does(
    kind: str, every_layer: bool
) -> None:
    given = specification(model=f"{__name__}:made_of", args={"kind": kind})
    given["feedback"] = {"every_layer": every_layer}
    parsed = parse_specification(given, "test")
    ours, theirs = make_run_plan(parsed, whole=False), make_run_plan(parsed)
    assert ours.network.outline is not None and theirs.network.outline is None
    assert ours.describe() == theirs.describe()
    assert all(
        p.device.type == "meta" for b in ours.network.blocks for p in b.build().parameters() if p.dim() > 1
    )


def test_an_error_of_the_users_code_is_told_with_its_place() -> None:
    with pytest.raises(InputError, match=r"KeyError: 'lost', in .*test_rehearsal\.py, line \d+"):
        planned(model=f"{__name__}:made_of", args={"kind": "Failing"})


def planned(**train: Any) -> Any:
    return make_run_plan(parse_specification(specification(**train), "test"))


def test_a_rehearsal_leaves_no_trace() -> None:
    """Random states, threads, weights, buffers and what modules count are as without it."""

    def states() -> list[Any]:
        numbers = numpy.random.get_state(legacy=False)
        return [random.getstate(), str(numbers), torch.get_rng_state().tolist(), torch.get_num_threads()]

    parsed = parse_specification(specification(model=f"{__name__}:made_of", args={"kind": "Extra"}), "test")
    before = states()
    with_one, without = make_run_plan(parsed), make_run_plan(parsed, rehearsed=False)
    assert states() == before
    for one, other in zip(with_one.network.blocks, without.network.blocks, strict=True):
        ours, theirs = one.build().plain_state(), other.build().plain_state()
        assert str(ours) == str(theirs)
        assert all(parameter.grad is None for parameter in one.build().parameters())
        assert one.build().training == other.build().training


def test_long_schedules_are_followed_for_a_short_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "PATIENCE", 0.05)
    began = time.monotonic()
    planned(steps=10**7, scheduler=own("torch.optim.lr_scheduler.OneCycleLR", max_lr=0.1))
    assert time.monotonic() - began < 60  # 10^7 steps would take minutes


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("kind", ["Locked", "Scripted"])
def test_what_can_not_be_copied_is_built_again(kind: str, tmp_path: Path) -> None:
    given = specification(model=f"{__name__}:made_of", args={"kind": kind})
    finished = DecoupledTrainer(given, engine="local", run_dir=tmp_path / "run").fit()
    assert finished.metrics["steps"] == STEPS


def test_memory_that_a_rehearsal_does_not_find_is_for_the_run_to_find() -> None:
    assert planned(model=f"{__name__}:made_of", args={"kind": "Greedy"}).network.blocks


def test_further_checks_see_trained_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[rehearsal.Rehearsal] = []
    monkeypatch.setattr(rehearsal, "CHECKS", [seen.append])
    plan = planned()
    (found,) = seen
    assert isinstance(found.specification, Specification)
    for stage, block in zip(found.stages, plan.network.blocks, strict=True):
        trained, own_state = stage.module.plain_state_dict(), block.build().plain_state_dict()
        assert trained.keys() == own_state.keys()
        assert not all(torch.equal(trained[name], own_state[name]) for name in trained)
