"""What Prometheus sees of a trainer whose run loses blocks, checkpoints, or the trainer itself."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lowdimfa.services.monitoring.journal import Journal
from lowdimfa.services.trainer.watch import TrainerWatch

Values = Callable[[], dict[tuple[str, ...], float]]


@pytest.fixture
def watch() -> Iterator[TrainerWatch]:
    watched = TrainerWatch("run-1")
    yield watched
    watched.close()


@pytest.fixture
def values(watch: TrainerWatch) -> Values:
    """Read the page: values by name, without its beginning, and the labels beyond the job."""
    address = watch.serve("127.0.0.1")

    def read() -> dict[tuple[str, ...], float]:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        return {
            (
                sample.name.removeprefix("lowdimfa_trainer_"),
                *(value for label, value in sample.labels.items() if label != "job"),
            ): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }

    return read


def started(run_dir: Path) -> dict[str, Any]:
    return {"event": "started", "run_dir": str(run_dir), "steps": 1000, "step": 0}


def recovering(policy: str) -> dict[str, Any]:
    return {"event": "recovering", "policy": policy, "blocks": [1], "reason": "", "step": 412, "recovery": 1}


def recovered(policy: str, step: int, seconds: float) -> dict[str, Any]:
    return {
        "event": "recovered",
        "policy": policy,
        "blocks": [1],
        "step": step,
        "missed": {},
        "seconds": seconds,
    }


def test_a_recovery_is_a_state_while_it_goes_on_and_counted_from_its_beginning(
    watch: TrainerWatch, values: Values, tmp_path: Path
) -> None:
    watch.saw(started(tmp_path))
    watch.steps_per_epoch = 100
    watch.saw({"event": "progress", "step": 412, "epoch": 5, "samples_per_second": 1.0, "eta_seconds": 588.0})
    watch.saw(recovering("restart"))
    seen = values()
    assert seen["completed_epochs",] == 4.12 and seen["remaining_seconds",] == 588
    assert seen["job_state", "recovering"] == 1 and seen["job_state", "running"] == 0
    assert seen["job_recoveries_total", "restart"] == 1 and seen["recovery_seconds",] == 0
    watch.saw(recovered("restart", 400, 4.25))
    seen = values()
    assert seen["job_state", "recovering"] == 0 and seen["job_state", "running"] == 1
    assert seen["job_recoveries_total", "restart"] == 1 and seen["job_recoveries_total", "rejoin"] == 0
    assert seen["recovery_seconds",] == 4.25 and seen["completed_steps",] == 400


def evaluated(step: int, accuracy: float) -> dict[str, Any]:
    return {
        "event": "evaluated",
        "step": step,
        "test_loss": 1 - accuracy,
        "test_accuracy": accuracy,
        "test_perplexity": 8.0,
        "metrics": {"f1": [accuracy, accuracy]},
    }


def aligned(step: int, angle: float) -> dict[str, Any]:
    return {"event": "alignment", "step": step, "blocks": [{"block": 0, "angle_degrees": angle}]}


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize(("step", "accuracy", "angle"), [(50, None, None), (150, 0.25, 80), (200, 0.5, 70)])
def test_what_was_measured_after_the_step_where_a_run_goes_on_is_given_up(
    watch: TrainerWatch,
    values: Values,
    tmp_path: Path,
    step: int,
    accuracy: float | None,
    angle: float | None,
    replaced: bool,
) -> None:
    log = Journal(tmp_path)
    before = TrainerWatch("run-1") if replaced else watch
    progress = {"samples_per_second": 1.0, "eta_seconds": 7.0, "perplexity": 9.0}
    for event in (
        started(tmp_path),
        *(found for k in (100, 200, 300) for found in (evaluated(k, k / 400), aligned(k, 90 - k / 10))),
        {"event": "progress", "step": 310} | progress,
    ):
        before.saw(log.emit(**event))
    watch.steps_per_epoch = 100
    going_on = started(tmp_path) | {"step": step} if replaced else recovered("restart", step, 1.0)
    watch.saw(log.emit(**going_on))
    log.close()
    seen = values()
    measured = ("test_accuracy_ratio",), ("test_metric_value", "1", "f1"), ("test_metric_value", "f1", "1")
    assert {seen[key] for key in measured if key in seen} == ({accuracy} - {None})
    assert seen.get(("test_loss_value",)) == (accuracy and 1 - accuracy)
    assert seen.get(("test_perplexity_value",)) == (accuracy and 8.0)
    assert seen.get(("alignment_angle_degrees", "0")) == angle
    assert ("remaining_seconds",) not in seen and ("training_perplexity_value",) not in seen
    if not replaced:
        assert seen["completed_steps",] == step and seen["completed_epochs",] == step / 100


def test_a_recovery_before_the_start_counts_once(watch: TrainerWatch, values: Values, tmp_path: Path) -> None:
    log = Journal(tmp_path)
    watch.saw(log.emit(**recovering("rejoin")))
    watch.saw(log.emit(**started(tmp_path)))
    log.close()
    seen = values()
    assert seen["job_recoveries_total", "rejoin"] == 1 and seen["job_state", "running"] == 1


def test_checkpoints_that_failed_are_counted(watch: TrainerWatch, values: Values) -> None:
    assert values()["checkpoint_failures_total",] == 0
    for step in (10, 20):
        watch.saw({"event": "checkpoint_failed", "step": step, "message": "no room"})
    assert values()["checkpoint_failures_total",] == 2


def test_the_replacement_of_a_lost_trainer_goes_on_counting(
    watch: TrainerWatch, values: Values, tmp_path: Path
) -> None:
    log = Journal(tmp_path)
    for event in (
        started(tmp_path),
        recovering("rejoin"),
        recovered("rejoin", 412, 4.25),
        recovering("restart"),  # of the trainer: nobody was there to count it
        started(tmp_path),
        recovered("restart", 400, 9.5),
        recovering("a policy of another version"),
        {"event": "recovered"},
    ):
        log.emit(**event)
    log.close()
    for _ in range(2):  # what it has counted it doesn't count again
        watch.saw(started(tmp_path))
    seen = values()
    assert seen["job_recoveries_total", "rejoin"] == 1 and seen["job_recoveries_total", "restart"] == 1
    assert seen["recovery_seconds",] == 9.5
    assert seen["job_state", "running"] == 1


@pytest.mark.parametrize(("step", "last"), [(0, None), (200, 2.0), (250, 2.0), (300, 4.0)])
def test_a_resumed_run_has_the_last_checkpoint_of_what_it_goes_on_from(
    watch: TrainerWatch, values: Values, tmp_path: Path, step: int, last: float | None
) -> None:
    log = Journal(tmp_path)
    for at, saved in ((1.0, 100), (2.0, 200), (3.0, 310), (4.0, 290), (5.0, 400)):
        log.emit("checkpoint", step=saved, path="", seconds=at / 2, pause_seconds=at / 4, time=at)
    log.emit("checkpoint")
    log.close()
    watch.saw(started(tmp_path) | {"step": step})
    seen = values()
    assert seen.get(("checkpoint_last_success_timestamp_seconds",)) == last
    assert seen.get(("checkpoint_duration_seconds",)) == (last and last / 2)
    assert seen.get(("checkpoint_pause_seconds",)) == (last and last / 4)


@pytest.mark.parametrize(
    ("code", "state", "failures"), [("stopped", "stopped", 0), ("internal", "failed", 1)]
)
def test_a_stop_is_no_failure(
    watch: TrainerWatch, values: Values, code: str, state: str, failures: int
) -> None:
    watch.saw({"event": "failed", "code": code})
    seen = values()
    assert seen["job_state", state] == 1 and seen.get(("job_failures_total", code), 0) == failures
