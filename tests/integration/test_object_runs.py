"""Objects give the bits of the import paths that they stand for, in one process and on Ray, also after losses."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowdimfa import Callback, DecoupledTrainer, FactoryConfig, FeedbackConfig, InputError, QRule
from lowdimfa.callback import Run
from lowdimfa.data import digits
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.manifest import export_file
from lowdimfa.services.trainer.evaluate import evaluate_run
from lowdimfa.services.trainer.results import Result

ADAMW = partial(torch.optim.AdamW, lr=0.003)
ONE_CYCLE = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.003)


def network() -> nn.Sequential:
    """Dropout and batch norm: random draws and running statistics must agree too."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Dropout(0.1),
            nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 10),
        )  # fmt: skip


def drawn() -> list[nn.Module]:
    """Another one with each seed of a run."""
    return [nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 10)]


class NoisySGD(torch.optim.SGD):
    """Draws random numbers in each step."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.add_(1e-3 * torch.randn_like(parameter))
        super().step(closure)


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, targets)


def highest(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.max(1).values.mean()


def used() -> Any:
    """Return a metric that has seen something else before."""
    from torchmetrics.classification import MulticlassF1Score  # late: it takes seconds

    metric = MulticlassF1Score(num_classes=10)
    metric.update(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4]))
    return metric


class Slower(QRule):
    """A rule of one's own, which is as fixed as that which it is made of."""


OBJECTS: list[dict[str, Any]] = [
    {
        "model": network(),
        "data": digits,
        "optimizer": ADAMW,
        "scheduler": ONE_CYCLE,
        "loss": "auto",
        "metrics": {"highest": highest},
    },
    {
        "model": drawn,
        "data": digits(),
        "optimizer": partial(NoisySGD, lr=0.1),
        "scheduler": None,
        "loss": loss,
    },
]
PATHS: list[dict[str, Any]] = [
    {
        "model": "test_object_runs:network",
        "data": "lowdimfa.data:digits",
        "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.003}},
        "scheduler": {"factory": "torch.optim.lr_scheduler.OneCycleLR", "args": {"max_lr": 0.003}},
        "loss": "auto",
        "metrics": {"highest": "test_object_runs:highest"},
    },
    {
        "model": {"factory": "test_object_runs:drawn"},
        "data": {"factory": "lowdimfa.data:digits", "args": {}},
        "optimizer": {"factory": "test_object_runs:NoisySGD", "args": {"lr": 0.1}},
        "scheduler": None,
        "loss": "test_object_runs:loss",
    },
]


def fit(run_dir: Path, given: dict[str, Any], **options: Any) -> Result:
    usual = {
        "blocks": 2,
        "batch_size": 64,
        "microbatches": 2,
        "engine": "local",
        "user_code": Path(__file__).parent,
    }
    usual |= {"feedback": FeedbackConfig(q_rule="hebbian")} | ({} if "steps" in options else {"steps": 8})
    return DecoupledTrainer(run_dir=run_dir, **usual | given | options).fit()  # type: ignore[arg-type]


def assert_same(ours: Result, theirs: Result) -> None:
    found, expected = ours.model().state_dict(), theirs.model().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert ours.metrics["test_loss"] == theirs.metrics["test_loss"]
    assert ours.metrics.get("metrics") == theirs.metrics.get("metrics")


@pytest.mark.parametrize("case", [0, 1])
def test_objects_and_their_import_paths_train_the_same_bits(case: int, tmp_path: Path) -> None:
    given, paths = OBJECTS[case], PATHS[case]
    if "metrics" in given:
        f1 = {"factory": "torchmetrics.classification:MulticlassF1Score", "args": {"num_classes": 10}}
        given = given | {"metrics": given["metrics"] | {"f1": used()}}
        paths = paths | {"metrics": paths["metrics"] | {"f1": f1}}
    before = [value.clone() for value in network().state_dict().values()]
    assert_same(fit(tmp_path / "objects", given), fit(tmp_path / "paths", paths))
    if isinstance(given["model"], nn.Module):
        assert all(map(torch.equal, before, given["model"].state_dict().values()))


def test_a_resumed_run_is_given_its_objects_again(tmp_path: Path) -> None:
    given = OBJECTS[1] | {"feedback": FeedbackConfig(q_rule=FactoryConfig(Slower))}
    whole = fit(tmp_path / "whole", given)
    fit(tmp_path / "parts", given, steps=3)
    resumed = fit(tmp_path / "parts", given, resume=True)
    assert_same(resumed, whole)
    assert [row["step"] for row in resumed.metrics_by_epoch] == [3, 8]


def test_a_second_run_in_another_thread_of_the_process_is_refused(tmp_path: Path) -> None:
    refused: list[str] = []

    def try_another() -> None:
        with pytest.raises(InputError) as caught:
            fit(tmp_path / "second", OBJECTS[0])
        refused.append(str(caught.value))

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "started":
            thread = threading.Thread(target=try_another)
            thread.start()
            thread.join()

    fit(tmp_path / "first", OBJECTS[0], on_event=on_event)
    assert ["another thread" in words for words in refused] == [True]
    assert not (tmp_path / "second").exists()


def test_the_trained_model_predicts_what_the_run_evaluated(tmp_path: Path) -> None:
    result = fit(tmp_path / "run", OBJECTS[0])
    model, split = result.model(), digits().test
    indices = torch.arange(len(split))
    predicted = model(split.inputs(indices)).argmax(1)
    assert type(model) is nn.Sequential and not model.training
    assert (predicted == split.targets(indices)).double().mean() == pytest.approx(
        result.metrics["test_accuracy"]
    )
    with pytest.raises(InputError, match="an object of the program that began the run"):
        evaluate_run(result.path)
    export_file(CheckpointStore(result.path).load(None), tmp_path / "model.safetensors")
    (row,) = result.metrics_by_epoch
    assert row["test_loss"] == result.metrics["test_loss"] and row["loss"] > 0


class Remembering(nn.Linear):
    """Keeps what is no tensor beside its weights: how often it was trained."""

    kept = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept += self.training
        return super().forward(x)

    def get_extra_state(self) -> int:
        return self.kept

    def set_extra_state(self, state: int) -> None:
        self.kept = state


def test_the_trained_model_has_what_lazy_and_odd_layers_keep(tmp_path: Path) -> None:
    layers = [nn.Flatten(), nn.LazyLinear(16), nn.Tanh(), Remembering(16, 10)]
    model = fit(tmp_path / "run", OBJECTS[0] | {"model": layers}).model()
    assert isinstance(model, nn.Sequential) and isinstance(model[3], Remembering)
    assert model[1].weight.shape == (16, 64) and model[3].kept == 16 and layers[3].kept == 0  # type: ignore[union-attr]
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text("utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 4
    names: dict[str, Any] = {}
    for example in examples:
        exec(example, names)
    assert names["again"].metrics["steps"] == 120
    assert [row["step"] for row in names["again"].metrics_by_epoch] == [20, 40, 60, 80, 100, 120]
    assert names["again"].metrics["test_accuracy"] > 0.8


@pytest.mark.usefixtures("cluster")
def test_on_ray_they_come_back_with_a_lost_trainer(tmp_path: Path) -> None:
    """What is defined in a function has no import path, so it travels whole."""

    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    class Confused:
        """A metric, and what it has seen of something else before; torchmetrics' take seconds to import."""

        def __init__(self) -> None:
            self.seen = torch.ones(10, 10)

        def reset(self) -> None:
            self.seen.zero_()

        def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
            self.seen.index_put_((targets, outputs.argmax(1)), torch.ones(()), accumulate=True)

        def compute(self) -> torch.Tensor:
            return self.seen.diag() / self.seen.sum(1).clamp(min=1)

    class Hold(Callback):
        """Holds the run where it is killed, so that it can't end before."""

        def checkpoint(self, event: dict[str, Any], run: Run) -> None:
            if event["step"] == 20:
                time.sleep(600)

    with torch.random.fork_rng():
        torch.manual_seed(8)
        model = nn.Sequential(nn.Flatten(), Doubled(64, 16), nn.Tanh(), Doubled(16, 10))
    train, test = digits().train, digits().test
    data = tuple(
        whole(torch.arange(len(part))).numpy()
        for part in (train, test)
        for whole in (part.inputs, part.targets)
    )
    own_loss = lambda outputs, targets: nn.functional.cross_entropy(outputs, targets)  # noqa: E731
    given = {"model": model, "data": data, "optimizer": partial(NoisySGD, lr=0.1), "loss": own_loss}
    given["metrics"] = [Confused(), lambda outputs, targets: (outputs.argmax(1) == targets).double().mean()]
    events: list[dict[str, Any]] = []

    def kill(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "checkpoint" and event["step"] == 20:
            os.kill(
                next(one for one in events if one["event"] == "started")["pids"]["trainer"], signal.SIGKILL
            )

    settings = {"run.on_failure": "restart", "run.checkpoint_every": 20, "train.log_every": 5}
    options = {"overrides": settings, "on_event": kill, "callbacks": [Hold()]}
    ours = fit(tmp_path / "ray", given, engine="ray", steps=200, **options)
    assert [event["event"] for event in events].count("recovering") == 1
    assert_same(ours, fit(tmp_path / "local", given, steps=200))
    for file in (tmp_path / "ray").rglob("*"):
        assert file.suffix not in (".pkl", ".pickle", ".pt"), file


@pytest.mark.usefixtures("cluster")
def test_on_ray_what_cannot_be_sent_is_refused_before_training(tmp_path: Path) -> None:
    lock = threading.Lock()

    def locked(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with lock:
            return nn.functional.cross_entropy(outputs, targets)

    with pytest.raises(
        InputError, match=r"^loss: found <object locked>, which can't be sent .*lock.*engine="
    ) as refused:
        fit(tmp_path / "run", OBJECTS[0] | {"loss": locked}, engine="ray")
    assert "\n" not in refused.value.message
    assert not (tmp_path / "run").exists()
