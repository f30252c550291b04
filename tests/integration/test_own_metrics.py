"""Metrics of the user's own: over all samples at once, the same on every way, and refused where they can't be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from torch import Tensor

from lowdimfa.config import FactoryConfig
from lowdimfa.errors import InputError
from lowdimfa.metrics import Metrics
from lowdimfa.models import mlp
from lowdimfa.services.callbacks.numbers import scalars
from lowdimfa.services.coordinator.messages import event_to_message, message_to_event
from lowdimfa.services.coordinator.store import JobEvent
from lowdimfa.services.monitoring.report.page import write_report
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.run.data import load_dataset
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.evaluate import evaluate_run
from lowdimfa.services.trainer.watch import TrainerWatch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torchmetrics")
PER_CLASS = {
    "factory": "torchmetrics.classification:MulticlassF1Score",
    "args": {"num_classes": 10, "average": None},
}
RANKED = {"factory": "torchmetrics.classification:MulticlassAUROC", "args": {"num_classes": 10}}
SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 32, "depth": 2, "classes": 10},
        "blocks": 2,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "train": {
        "epochs": 2,
        "batch_size": 64,
        "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.01}},
        "metrics": {"f1": PER_CLASS, "auroc": RANKED, "margin": "test_own_metrics:margin"},
    },
    "run": {"tensorboard": False, "timeline": False},
}


def margin(outputs: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
    """Return by how much the right output is above the mean one, for both halves of the outputs."""
    right = outputs.gather(1, targets[:, None])
    return scale * torch.stack([(right - part.mean(1)[:, None]).mean() for part in outputs.chunk(2, 1)])


def worst(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.new_zeros(2, 2)


def each(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.argmax(1) == targets


def writing(outputs: Tensor, targets: Tensor) -> float:
    outputs.zero_()
    return 1.0


class Half:
    def update(self, outputs: Tensor, targets: Tensor) -> None: ...


@given(data=st.data())
def test_batches_are_the_whole_evaluation_at_once(data: st.DataObject) -> None:
    """Property: cut as you like, over positions or not, with some that don't count, as torchmetrics of all at once."""
    from torchmetrics import (
        classification,  # late: it takes seconds, and other files of tests share the process
    )

    count, positions, classes = data.draw(st.integers(2, 30)), data.draw(st.integers(0, 3)), 4
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    shape = (count, positions) if positions else (count,)
    outputs = torch.randn(*shape, classes, generator=generator)
    outputs[..., 0] -= 9  # torchmetrics takes a batch that lies in [0, 1] for probabilities
    targets = torch.randint(classes, shape, generator=generator)
    counted = torch.rand(shape, generator=generator) < 0.7 if data.draw(st.booleans()) else None
    arguments = {"num_classes": classes, "average": None}
    metrics = Metrics(
        {
            "f1": FactoryConfig("torchmetrics.classification:MulticlassF1Score", arguments),
            "auroc": FactoryConfig("torchmetrics.classification:MulticlassAUROC", arguments),
            "margin": FactoryConfig("test_own_metrics:margin", {"scale": 2.0}),
        }
    )
    for _ in range(2):  # an evaluation forgets the one before
        metrics.reset()
        cuts = sorted(data.draw(st.sets(st.integers(1, count - 1), max_size=4)))
        for first, last in zip([0, *cuts], [*cuts, count], strict=True):
            mask = None if counted is None else counted[first:last]
            metrics.update(outputs[first:last], targets[first:last], mask)
        found = metrics.compute()
        rows, labels = outputs.reshape(-1, classes), targets.reshape(-1)
        if counted is not None:
            rows, labels = rows[counted.reshape(-1)], labels[counted.reshape(-1)]
        if not len(labels):
            assert found == {}
            continue
        assert found["f1"] == classification.MulticlassF1Score(**arguments)(rows, labels).double().tolist()  # type: ignore[arg-type]
        assert found["auroc"] == classification.MulticlassAUROC(**arguments)(rows, labels).double().tolist()  # type: ignore[arg-type]
        assert found["margin"] == pytest.approx(
            margin(rows, labels, 2.0).double().tolist(), rel=1e-5, abs=1e-6
        )


def test_targets_of_numbers_come_as_they_are_and_what_is_not_finite_is_none() -> None:
    from torchmetrics import regression  # late: it takes seconds, and other files of tests share the process

    metrics = Metrics({"r": FactoryConfig("torchmetrics.regression:PearsonCorrCoef", {})})
    outputs, targets = torch.randn(20, 1), torch.randn(20, 1)
    with pytest.raises(InputError, match=r"train\.metrics\.r: .*outputs \(20, 3\).*targets \(20, 1\)"):
        metrics.update(torch.randn(20, 3), targets, None)
    metrics.reset()
    metrics.update(outputs, targets, None)
    assert metrics.compute()["r"] == pytest.approx(
        float(regression.PearsonCorrCoef()(outputs.squeeze(), targets.squeeze()))
    )
    metrics.reset()
    metrics.update(torch.full((4, 1), torch.nan), torch.ones(4, 1), None)
    assert metrics.compute() == {"r": None}


def test_a_metric_may_write_to_what_it_gets() -> None:
    outputs, targets = torch.ones(3, 4), torch.zeros(3, dtype=torch.int64)
    metrics = Metrics({"writing": FactoryConfig("test_own_metrics:writing", {})})
    metrics.update(outputs, targets, None)
    assert outputs.sum() == 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    path = tmp_path_factory.mktemp("runs") / "run"
    seen: list[dict[str, Any]] = []
    DecoupledTrainer(SPECIFICATION, engine="local", run_dir=path, on_event=seen.append).fit()
    return path, seen


def test_a_run_measures_what_torchmetrics_does_of_its_plain_model(
    run: tuple[Path, list[dict[str, Any]]],
) -> None:
    from torchmetrics import (
        classification,  # late: it takes seconds, and other files of tests share the process
    )

    path, seen = run
    evaluated = [event for event in seen if event["event"] == "evaluated"]
    assert len(evaluated) == 2 and evaluated[0]["metrics"] != evaluated[1]["metrics"]
    model = mlp(**SPECIFICATION["model"]["args"])
    model.load_state_dict(export_state(CheckpointStore(path).load(None)))
    test = load_dataset(parse_specification(SPECIFICATION, "test")).test
    everything = torch.arange(len(test))
    outputs, targets = (
        model.eval()(test.inputs(everything)).detach(),
        test.targets(everything),
    )
    found = evaluated[-1]["metrics"]
    assert found["f1"] == pytest.approx(
        classification.MulticlassF1Score(10, average=None)(outputs, targets).tolist(), abs=1e-6
    )
    assert found["auroc"] == pytest.approx(
        float(classification.MulticlassAUROC(10)(outputs, targets)), abs=1e-6
    )
    assert found["margin"] == pytest.approx(margin(outputs, targets).tolist(), rel=1e-4)
    assert seen[-1]["metrics"] == found == evaluate_run(path)["metrics"]


def test_they_are_wherever_a_run_is_watched(
    run: tuple[Path, list[dict[str, Any]]], undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = run
    evaluated = [event for event in seen if event["event"] == "evaluated"][-1]
    f1, auroc = evaluated["metrics"]["f1"], evaluated["metrics"]["auroc"]
    for event in (evaluated, seen[-1]):  # the service's protocol
        assert message_to_event(event_to_message(JobEvent(1, event)))["metrics"] == evaluated["metrics"]
    watch = TrainerWatch("run")
    watch.saw(evaluated)
    shown = {
        (sample.labels["metric"], sample.labels["class"]): sample.value
        for family in text_string_to_metric_families(generate_latest(watch._metrics.registry).decode())
        for sample in family.samples
        if sample.name == "lowdimfa_trainer_test_metric_value"
    }
    assert {("f1", str(index)): value for index, value in enumerate(f1)}.items() <= shown.items()
    assert shown["auroc", ""] == auroc
    assert dict(scalars(evaluated))["test/f1/3"] == f1[3] and dict(scalars(evaluated))["test/auroc"] == auroc
    page = write_report(path).read_text()
    assert "<h2>Metrics" in page and f"auroc {auroc:.4g}" in page


@pytest.mark.parametrize(
    ("metrics", "key", "words"),
    [
        ({"f1": PER_CLASS | {"args": {"num_classes": 7}}}, "train.metrics.f1", "preds.shape"),
        ({"f1": PER_CLASS | {"args": {"classes": 7}}}, "train.metrics.f1.factory", "classes"),
        ({"bad": "test_own_metrics:worst"}, "train.metrics.bad", r"a metric of shape \(2, 2\)"),
        ({"rows": "test_own_metrics:each"}, "train.metrics.rows", r"its shape is \(\d+,\) after \(\d,\)"),
        ({"half": "test_own_metrics:Half"}, "train.metrics.half.factory", "no reset and no compute"),
        ({"gone": "test_own_metrics:gone"}, "train.metrics.gone.factory", "no such name"),
        ({"test_loss": PER_CLASS}, "train.metrics", "the name 'test_loss'"),
        (["a.b:f", "c.d:f"], "train.metrics", "the name 'f'"),
        ({"a b": PER_CLASS}, "train.metrics", "a b"),
    ],
)
def test_what_can_not_be_measured_is_refused_before_the_run(
    metrics: Any, key: str, words: str, tmp_path: Path
) -> None:
    changed = SPECIFICATION | {"train": SPECIFICATION["train"] | {"metrics": metrics}}
    with pytest.raises(InputError, match=words) as caught:
        DecoupledTrainer(changed, engine="local", run_dir=tmp_path / "run").fit()
    assert key in str(caught.value) and not (tmp_path / "run").exists()


def test_a_number_per_class_is_no_best(tmp_path: Path) -> None:
    best = {"keep_best": {"metric": "f1", "mode": "max"}}
    changed = SPECIFICATION | {"run": SPECIFICATION["run"] | best}
    with pytest.raises(
        InputError, match=r"run\.keep_best\.metric: found 'f1', which has one number per class"
    ):
        DecoupledTrainer(changed, engine="local", run_dir=tmp_path / "run").fit()
