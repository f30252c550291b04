"""The last batch of an epoch, which the data don't fill: left out, or a smaller one as in plain torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from lowdimfa import sparse
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.data import BatchOrder, Dataset, TensorSplit
from lowdimfa.data.base import LastBatch
from lowdimfa.errors import InputError
from lowdimfa.network import decouple
from lowdimfa.services.cli.app import app
from lowdimfa.services.run import large
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.tickets import Ticket
from lowdimfa.trainer import InProcessTrainer

WIDTH, CLASSES, TOKENS = 6, 4, 3


def sizes(order: BatchOrder, step: int) -> list[int]:
    return [len(order.indices(Ticket(step, part))) for part in range(order.microbatches)]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 40), st.sampled_from(["drop", "keep"]))
def test_an_epoch_draws_what_is_not_left_out_once(
    microbatches: int, size: int, extra: int, last_batch: LastBatch
) -> None:
    batch_size = microbatches * size
    samples = batch_size + extra
    rest = samples % batch_size
    if last_batch == "keep" and 0 < rest < microbatches:
        with pytest.raises(InputError, match=rf"^data\.last_batch: found 'keep' with .* {rest} samples"):
            BatchOrder(samples, batch_size, microbatches, 0, last_batch)
        return
    order = BatchOrder(samples, batch_size, microbatches, 0, last_batch)
    assert order.left_out == (rest if last_batch == "drop" else 0)
    steps = [sizes(order, step) for step in range(2 * order.steps_per_epoch + 1)]
    for number, parts in enumerate(steps):
        assert max(parts) - min(parts) <= 1 and min(parts) >= order.smallest_microbatch
        assert order.drawn(number) == sum(map(sum, steps[:number]))
    epoch = [
        order.indices(Ticket(order.steps_per_epoch + step, part))
        for step in range(order.steps_per_epoch)
        for part in range(microbatches)
    ]
    assert len(torch.cat(epoch).unique()) == sum(map(len, epoch)) == samples - order.left_out
    assert min(map(len, epoch)) == order.smallest_microbatch


def test_other_steps_of_an_epoch_are_those_without_it() -> None:
    drop, keep = (BatchOrder(50, 12, 2, 3, last_batch) for last_batch in ("drop", "keep"))
    assert (drop.steps_per_epoch, keep.steps_per_epoch) == (4, 5)
    for step in range(4):
        for epoch in range(2):
            one, other = Ticket(4 * epoch + step, 1), Ticket(5 * epoch + step, 1)
            assert torch.equal(drop.indices(one), keep.indices(other))


def model() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh()), nn.Linear(8, CLASSES))


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 20),
    st.sampled_from(["classification", "tokens", "regression"]),
    st.integers(0, 99),
)
@settings(max_examples=25)
def test_epochs_are_those_of_plain_torch(
    microbatches: int, size: int, extra: int, task: Any, seed: int
) -> None:
    batch_size = microbatches * size
    samples = batch_size + extra
    if 0 < samples % batch_size < microbatches:
        return
    generator = torch.Generator().manual_seed(seed)
    per_sample = (samples, TOKENS) if task == "tokens" else (samples,)
    inputs = torch.randn(*per_sample, WIDTH, generator=generator)
    targets = torch.randint(CLASSES, per_sample, generator=generator)
    if task == "regression":
        targets = torch.randn(samples, CLASSES, generator=generator)
    elif task == "tokens":
        targets[torch.rand(per_sample, generator=generator) < 0.4] = -100
        targets[:, 0] = 1  # plain torch has no mean over nothing
    torch.manual_seed(seed)
    plain, order = model(), BatchOrder(samples, batch_size, microbatches, seed, "keep")
    whole = BatchOrder(samples, batch_size, 1, seed, "keep")
    steps = 2 * order.steps_per_epoch
    rate = 0.02 if task == "regression" else 0.1  # where an error grows, so does its rounding
    training = TrainingConfig(
        total_steps=steps,
        microbatches=microbatches,
        update=UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": rate, "momentum": 0.9})),
    )
    feedback = FeedbackConfig(form="backprop")
    found = decouple(
        model(), inputs[:2], blocks=2, total_steps=steps, feedback=feedback, training=training, task=task
    )
    for stage in found.stages:
        stage.module.load_state_dict(_of_stage(plain, stage.module.state_dict(), stage.index))
    trainer = InProcessTrainer(found, Dataset("made up", *[TensorSplit(inputs, targets)] * 2, task), order)
    optimizer = torch.optim.SGD(plain.parameters(), lr=rate, momentum=0.9)
    for step in range(steps):
        batch = whole.indices(Ticket(step, 0))
        outputs = plain(inputs[batch])
        if task == "regression":
            loss = (outputs - targets[batch]).square().sum(-1).mean() / 2
        else:
            loss = functional.cross_entropy(outputs.flatten(0, -2), targets[batch].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert trainer.step(step).loss == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def _of_stage(plain: nn.Sequential, own: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    values = plain[index].state_dict().values()
    return dict(zip(own, values, strict=True))


def data() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(70, WIDTH, generator=generator)
    targets = torch.randint(CLASSES, (70,), generator=generator)
    return inputs[:53], targets[:53], inputs[53:], targets[53:]


def normed() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Tanh()), nn.Linear(8, CLASSES)
    )


def settings_of(last_batch: str, factory: str = "model", **train: Any) -> dict[str, Any]:
    return {
        "model": {"factory": f"{__name__}:{factory}", "blocks": 2},
        "data": {"factory": f"{__name__}:data", "last_batch": last_batch},
        "train": {"epochs": 3, "batch_size": 10, "microbatches": 2} | train,
        "run": {"evaluate_every_epochs": 0, "tensorboard": False},
    }


@pytest.mark.parametrize("whole", [True, False])
def test_a_smaller_batch_that_layers_can_not_take_is_refused_before_training(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three samples in two parts are one that has a batch of its own, which batch norm refuses to take."""
    if not whole:  # as in a network that no process holds
        monkeypatch.setattr(large, "LARGE", 0)
        monkeypatch.setattr(sparse, "SMALLEST", 8)
    with pytest.raises(InputError, match=r"model\.factory.*step of 1 sample, as data\.last_batch: keep"):
        make_run_plan(parse_specification(settings_of("keep", "normed"), "test"), whole=whole)
    plan = make_run_plan(parse_specification(settings_of("drop", "normed"), "test"), whole=whole)
    assert (plan.network.outline is None) == whole
    make_run_plan(parse_specification(settings_of("keep", "normed", microbatches=1), "test"), whole=whole)


def test_the_plan_says_what_becomes_of_it(tmp_path: Path) -> None:
    for last_batch, said in (
        ("keep", "18 steps of 10 samples in 2 micro-batches, 6 steps per epoch, the last of 3 samples"),
        ("drop", "3 samples of each epoch left out (data.last_batch: drop)"),
    ):
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(settings_of(last_batch)))
        shown = CliRunner().invoke(app, ["train", str(tmp_path / "spec.yaml"), "--dry-run"])
        assert said in shown.stdout, shown.output


@pytest.mark.parametrize("half", [4, 5, 6, 8])
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(half: int, tmp_path: Path) -> None:
    def fit(name: str, steps: int, resume: bool = False) -> dict[str, Any]:
        plain = settings_of("keep", epochs=None, steps=steps)
        return DecoupledTrainer(plain, engine="local", run_dir=tmp_path / name, resume=resume).fit().metrics

    def weights(name: str) -> dict[str, Tensor]:
        return export_state(CheckpointStore(tmp_path / name).load(None))

    whole = fit("whole", 14)
    fit("parts", half)
    parts = fit("parts", 14, resume=True)
    assert parts["samples"] == whole["samples"] == 2 * 53 + 20
    assert parts["test_loss"] == whole["test_loss"] and math.isfinite(whole["test_loss"])
    expected = weights("whole")
    assert all(torch.equal(value, expected[name]) for name, value in weights("parts").items())
    other = settings_of("drop", epochs=None, steps=20)
    with pytest.raises(InputError, match=r"data\.last_batch"):
        DecoupledTrainer(other, engine="local", run_dir=tmp_path / "parts", resume=True).fit()
