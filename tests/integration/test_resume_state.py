"""Runs that go on from a checkpoint have the bits of runs that were never interrupted, whatever their parts keep."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim import AdamW, Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler
from typer.testing import CliRunner

from lowdimfa.build import build_stages
from lowdimfa.config import FactoryConfig, TrainingConfig, UpdateConfig
from lowdimfa.encoding import same
from lowdimfa.errors import InputError
from lowdimfa.network import decouple
from lowdimfa.services.block.building import Checkpointed, restore
from lowdimfa.services.block.snapshot import SnapshotShelf
from lowdimfa.services.cli.app import app
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.manifest import Manifest, export_state
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.run.state import copied, load_stage
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.evaluate import evaluate_run
from lowdimfa.services.trainer.execute import prepare
from lowdimfa.services.trainer.request import RunRequest
from lowdimfa.stage import Stage

STEPS, HALF = 8, 4


def data() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 8, generator=generator)
    targets = torch.randint(4, (80,), generator=generator)
    return inputs[:64], targets[:64], inputs[64:], targets[64:]


class Extra(nn.Linear):
    """Scales by what it has seen, which it keeps as a dictionary with a tensor in it."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.seen: dict[int, tuple[str, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + sum(float(value) for _, value in self.seen.values()) / 100
        if self.training and torch.is_grad_enabled():
            self.seen[len(self.seen)] = f"batch of {len(x)}", x.detach().mean()
        return super().forward(x) * scale

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": dict(self.seen)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen = dict(state["seen"])


class Count(nn.Linear):
    """Has a tensor as extra state, and a number that looks the same for another module."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.count = torch.zeros((), dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        self.count += int(self.training and torch.is_grad_enabled())
        return super().forward(x)

    def get_extra_state(self) -> Tensor:
        return self.count.clone()

    def set_extra_state(self, state: Tensor) -> None:
        self.count = state.clone()


class SecondFormat(nn.Linear):
    """Once had its weights the other way round, and turns what has no number of its format."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version", 1) < 2:
            state[f"{prefix}weight"] = state[f"{prefix}weight"].t()
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def layers() -> list[nn.Module]:
    return [nn.Linear(8, 8), nn.Tanh(), Extra(), Count(), SecondFormat(8, 8), nn.Tanh(), nn.Linear(8, 4)]


def by_dimension(parameters: list[nn.Parameter], lr: float) -> Optimizer:
    weights, biases = ([one for one in parameters if (one.dim() > 1) == many] for many in (True, False))
    return AdamW([{"params": biases, "weight_decay": 0.0}, {"params": weights}], lr)


def sequential(optimizer: Optimizer) -> LRScheduler:
    parts = [lr_scheduler.LinearLR(optimizer, total_iters=2), lr_scheduler.MultiStepLR(optimizer, [2, 3])]
    return lr_scheduler.SequentialLR(optimizer, parts, [2])


class Table(LRScheduler):
    def __init__(self, optimizer: Optimizer) -> None:
        self.seen: dict[int, float] = {}
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        self.seen[len(self.seen)] = 0.5
        return [0.1 * 0.5 ** len(self.seen) for _ in self.base_lrs]


def own(name: str, **args: Any) -> dict[str, Any]:
    return {"factory": f"{__name__}:{name}", "args": args}


OPTIMIZERS = [
    own("by_dimension", lr=0.05),
    {"factory": "lowdimfa.muon:Muon", "args": {"lr": 0.05, "muon": ["*.Q"]}},
]


def specification(blocks: Any = 3, form: str = "broadcast", **train: Any) -> dict[str, Any]:
    return {
        "model": {"factory": f"{__name__}:layers", "blocks": blocks},
        "data": {"factory": f"{__name__}:data"},
        "feedback": {"form": form},
        "train": {
            "steps": STEPS,
            "batch_size": 16,
            "microbatches": 2,
            "optimizer": own("by_dimension", lr=0.05),
        }
        | train,
        "run": {"checkpoint_every": HALF, "keep": 2, "tensorboard": False, "timeline": False},
    }


def run(given: dict[str, Any], folder: Path, resume_step: int | None = None) -> Manifest:
    DecoupledTrainer(given, engine="local", run_dir=folder, resume_step=resume_step).fit()
    return CheckpointStore(folder).load(None)


def assert_same(found: Manifest, expected: Manifest, kinds: tuple[str, ...] = ("",)) -> None:
    ours, theirs = (one.tensors(lambda name: name.startswith(kinds)) for one in (found, expected))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("schedule", ["sequential", "Table", None])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_halfway_the_run_has_the_bits_of_the_whole(
    optimizer: dict[str, Any], schedule: str | None, tmp_path: Path
) -> None:
    given = specification(optimizer=optimizer, scheduler=None if schedule is None else own(schedule))
    whole = run(given, tmp_path / "run")
    state = [entry.model_dump(exclude={"file"}) for entry in whole.entries]
    kept = whole.tensors(lambda name: True)
    again = run(given, tmp_path / "run", HALF)
    assert same(again.tensors(lambda name: True), kept)
    assert [entry.model_dump(exclude={"file"}) for entry in again.entries] == state


def test_resumed_halfway_packed_activations_are_the_same(tmp_path: Path) -> None:
    given = specification(activations={"rank": 1}) | {"feedback": {"broadcast": "bf16", "every_layer": True}}
    kept = run(given, tmp_path / "run").tensors(lambda name: True)
    assert same(run(given, tmp_path / "run", HALF).tensors(lambda name: True), kept)


@pytest.mark.parametrize("schedule", ["sequential", None])
@pytest.mark.parametrize("blocks", [1, ["3"], ["1", "4", "6"]])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_with_other_boundaries_it_has_them_too(
    optimizer: dict[str, Any], blocks: Any, schedule: str | None, tmp_path: Path
) -> None:
    """By exact gradients, for which boundaries make no difference to what is learned."""
    if "Muon" in optimizer["factory"]:  # there is no Q with exact gradients
        optimizer = {"factory": optimizer["factory"], "args": {"lr": 0.05}}
    train = {"optimizer": optimizer, "scheduler": None if schedule is None else own(schedule)}
    whole = run(specification(3, "backprop", **train), tmp_path / "run")
    expected = whole.tensors(lambda name: True)
    again = run(specification(blocks, "backprop", **train), tmp_path / "run", HALF)
    found = again.tensors(lambda name: not name.startswith("feedback/"))
    assert same(found, {name: expected[name] for name in found})
    assert len(found) >= 3 * len([name for name in expected if name.startswith("model/")])
    extra = [[entry.scalars["extra"] for entry in one.entries] for one in (again, whole)]
    assert {k: v for part in extra[0] for k, v in part.items()} == {
        k: v for part in extra[1] for k, v in part.items()
    }


def test_extra_state_is_evaluated_exported_and_told(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finished = DecoupledTrainer(specification(), engine="local", run_dir=folder).fit()
    assert evaluate_run(folder)["test_loss"] == finished.metrics["test_loss"]
    file = tmp_path / "model.safetensors"
    told = CliRunner().invoke(app, ["export", str(folder), "--output", str(file)])
    assert told.exit_code == 0, told.output
    assert (
        "left out, since such a file holds tensors alone: 2._extra_state; load it with strict=False"
        in told.output
    )
    exported = load_file(file)
    assert int(exported["3._extra_state"]) == 2 * STEPS
    model = nn.Sequential(*layers())
    assert model.load_state_dict(exported, strict=False).missing_keys == ["2._extra_state"]


def stages(trained: bool) -> list[Stage]:
    torch.manual_seed(0)
    network = decouple(layers(), torch.zeros(2, 8), blocks=3, total_steps=STEPS)
    inputs, targets, *_ = data()
    for step in range(2 if trained else 0):
        network.train_step(step, [(inputs[:8], targets[:8])])
    return network.stages


def test_the_copies_kept_for_a_loss_have_it_too() -> None:
    for before, own_copy, fetched in zip(stages(True), stages(False), stages(False), strict=True):
        restore(own_copy, copied(before.state()), "", 0)
        shelf = SnapshotShelf(1)
        shelf.offer(before, 2)
        snapshot = shelf.fetch(-1, 0)
        assert snapshot is not None
        restore(fetched, snapshot, "", 0)
        for after in (own_copy, fetched):
            assert after.state().scalars == before.state().scalars
            assert same(after.state().tensors, before.state().tensors)


def test_an_infinite_mask_is_no_reason_to_keep_no_copy() -> None:
    (stage, *_) = stages(False)
    stage.module.get_submodule("_layers.0").register_buffer("mask", torch.full((2, 2), -torch.inf))
    shelf = SnapshotShelf(1)
    shelf.offer(stage, 0)
    assert shelf.fetch(-1, 0) is not None
    with torch.no_grad():
        stage.module.get_parameter("_layers.0.weight").fill_(torch.nan)
    shelf.offer(stage, 1)
    assert shelf.fetch(0, 0) is None


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8, torch.complex64])
def test_a_frozen_weight_of_any_type_is_copied_too(kind: torch.dtype) -> None:
    (stage, *_) = stages(False)
    weight = nn.Parameter(torch.ones(2).to(kind), requires_grad=False)
    stage.module.get_submodule("_layers.0").register_parameter("packed", weight)
    shelf = SnapshotShelf(1)
    shelf.offer(stage, 0)
    assert shelf.fetch(-1, 0) is not None


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (
            {"steps": 2},
            "train.steps (or epochs): found 2 in a run that is resumed at step 8; expected 8 or more",
        ),
        (
            {"per_block": {0: {"optimizer": {"factory": "torch.optim.Adam"}}}},
            "train.per_block.0.optimizer.factory: found 'torch.optim.Adam' in a run that is resumed; "
            f"expected '{__name__}:by_dimension'",
        ),
        (
            {"per_block": {1: {"scheduler": own("sequential")}}},
            "train.per_block.1.scheduler.factory: found",
        ),
        ({"steps": 20, "scheduler": own("Table")}, "train.scheduler.factory: found"),
    ],
)
def test_what_a_checkpoint_does_not_fit_is_refused(train: dict[str, Any], words: str, tmp_path: Path) -> None:
    run(specification(), tmp_path / "run")
    with pytest.raises(InputError) as caught:
        DecoupledTrainer(specification(**train), engine="local", run_dir=tmp_path / "run", resume=True).fit()
    assert str(caught.value).startswith(words)


def test_a_schedule_of_one_block_spans_the_run_too(tmp_path: Path) -> None:
    per_block = {0: {"scheduler": own("sequential")}}
    run(specification(per_block=per_block), tmp_path / "run")
    longer = specification(per_block=per_block, steps=2 * STEPS)
    with pytest.raises(InputError, match=r"train\.steps \(or epochs\): found 16"):
        DecoupledTrainer(longer, engine="local", run_dir=tmp_path / "run", resume=True).fit()


def test_extra_state_that_nothing_takes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(specification(), tmp_path / "run")
    monkeypatch.delattr(Count, "get_extra_state")
    with pytest.raises(InputError, match=r"extra state of 3\._extra_state, which the model doesn't have"):
        DecoupledTrainer(specification(), engine="local", run_dir=tmp_path / "run", resume=True).fit()


def test_a_block_reads_what_is_its_own(tmp_path: Path) -> None:
    """Of the tensors of a checkpoint, a block that takes part of another's layers takes their state alone."""
    manifest = run(specification(1), tmp_path / "run")
    plan = make_run_plan(parse_specification(specification(["6"]), "test"))
    *_, head = build_stages(
        plan.network.blocks, plan.network.feedback, plan.network.training, "classification"
    )
    read: list[str] = []
    select = type(manifest).tensors

    class Watched(Manifest):
        def tensors(self, chosen: Any) -> dict[str, Tensor]:
            found = select(self, chosen)
            read.extend(found)
            return found

    load_stage(head, Watched(manifest.step, manifest.path, manifest.meta, manifest.entries))
    optimizer = {name.split("/")[1] for name in read if name.startswith("optimizer/")}
    assert optimizer == {"6.weight", "6.bias"}


def test_a_block_looks_at_no_file_but_its_own(tmp_path: Path) -> None:
    """The trainer has verified all of them; to read all in each block would take longer than it may."""
    manifest = run(specification(), tmp_path / "run")
    next(manifest.path.glob("block-1-*")).write_bytes(b"damaged")
    plan = make_run_plan(parse_specification(specification(), "test"))
    first, second, *_ = build_stages(
        plan.network.blocks, plan.network.feedback, plan.network.training, "classification"
    )[0]
    source = Checkpointed(manifest.step)
    restore(first, source, str(tmp_path / "run"), 0)
    with pytest.raises(InputError, match=r"block-1-\S*: found 7 bytes"):
        restore(second, source, str(tmp_path / "run"), 0)


def test_a_block_that_comes_back_has_the_learning_rate_of_the_runs_step() -> None:
    """Updates since its snapshot are lost; the schedule is that of the run's steps all the same."""
    torch.manual_seed(0)
    schedule = FactoryConfig("torch.optim.lr_scheduler.StepLR", {"step_size": 1})
    training = TrainingConfig(STEPS, update=UpdateConfig(scheduler=schedule))
    before, after = (
        decouple(layers(), torch.zeros(2, 8), blocks=3, total_steps=STEPS, training=training).stages[0]
        for _ in range(2)
    )
    shelf = SnapshotShelf(1)
    shelf.offer(before, 2)
    snapshot = shelf.fetch(-1, 0)
    assert snapshot is not None
    restore(after, snapshot, "", 3)
    assert after.updater.optimizer is not None and before.updater.optimizer is not None
    rates = [stage.updater.optimizer.param_groups[0]["lr"] for stage in (before, after)]
    assert rates[1] == pytest.approx(rates[0] * 0.1**3)


def test_a_lost_trainers_replacement_passes_over_a_damaged_checkpoint(tmp_path: Path) -> None:
    """A person is told of it and chooses; of a run that recovers by itself nobody is there to."""
    newest = run(specification(), tmp_path / "run")
    next(newest.path.glob("block-1-*")).write_bytes(b"damaged")
    plain = parse_specification(specification(), "test").model_dump()
    request = RunRequest(plain, str(tmp_path / "run"), "local", True, UserCode())
    with pytest.raises(InputError, match="The older checkpoint of step 4 is good"):
        prepare(request)
    prepared = prepare(request.again(lost_at=1.0))
    assert prepared.manifest is not None and prepared.manifest.step == HALF


def test_another_learning_rate_counts_in_a_resumed_run(tmp_path: Path) -> None:
    """Where it says so: the run's description has the new one too."""
    for name, rate in (("same", 0.05), ("other", 0.5)):
        shutil.copytree(tmp_path / "same", tmp_path / name) if name != "same" else run(
            specification(), tmp_path / "same"
        )
        run(specification(optimizer=own("by_dimension", lr=rate)), tmp_path / name, HALF)
    same_rate, other = (
        CheckpointStore(tmp_path / name).load(None).tensors(lambda name: "model" in name)
        for name in ("same", "other")
    )
    assert any(not torch.equal(other[name], value) for name, value in same_rate.items())


def test_a_resume_that_is_refused_leaves_what_describes_the_run(tmp_path: Path) -> None:
    given = specification(scheduler=own("sequential"))
    run(given, tmp_path / "run")
    before = (tmp_path / "run" / "spec.yaml").read_text()
    other = specification(scheduler=own("sequential"), optimizer=own("by_dimension", lr=0.5))
    with pytest.raises(InputError, match="from which its schedule has planned its course"):
        run(other, tmp_path / "run", HALF)
    assert (tmp_path / "run" / "spec.yaml").read_text() == before
    evaluate_run(tmp_path / "run")


def test_layers_whose_state_has_other_names_are_kept(tmp_path: Path) -> None:
    """As those of torch's checkpoint wrapper, which drops its own part of them."""
    model = [checkpoint_wrapper(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 4)]
    trainer = DecoupledTrainer(
        model=model, data=data(), blocks=2, batch_size=16, steps=2, engine="local", run_dir=tmp_path / "run"
    )
    trainer.fit()
    names = export_state(CheckpointStore(tmp_path / "run").load(None))
    assert len(names) == 4
