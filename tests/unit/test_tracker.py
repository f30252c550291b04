"""What all trackers share: a run of theirs over all parts of one of ours, each number once, how it ended."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from lossy_engine import SAVE, STEPS, LossyEngine, drive, events, of

from lowdimfa.callback import Run
from lowdimfa.errors import InputError
from lowdimfa.services.callbacks.mlflow import MLflow
from lowdimfa.services.callbacks.tracker import Ending, Numbers, Tracker

PATIENT = {"liveness_seconds": 60.0, "alignment_every": 0}


class Keeping(Tracker):
    """Keeps all in memory, over all objects of the class."""

    name = "json"  # any package that can be imported
    begun: ClassVar[list[str | None]] = []
    kept: ClassVar[list[Numbers]] = []
    ends: ClassVar[list[tuple[Ending, set[str]]]] = []

    def begin(self, known: str | None, run: Run) -> str:
        self.begun.append(known)
        return "the-run"

    def log(self, numbers: list[Numbers]) -> None:
        self.kept.extend(numbers)

    def end(self, ending: Ending, files: list[Path], run: Run) -> None:
        self.ends.append((ending, {path.name for path in files if path.is_file()}))


@pytest.fixture(autouse=True)
def fresh() -> None:
    for each in (Keeping.begun, Keeping.kept, Keeping.ends):
        each.clear()  # type: ignore[attr-defined]


def test_what_a_recovery_takes_back_from_before_a_resume_is_told_again(tmp_path: Path) -> None:
    run, tracker = Run({}, tmp_path, lambda reason: None), Keeping()
    tracker.started({"event": "started", "step": 8}, run)
    for loss in (1.0, 2.0):
        tracker.progress({"event": "progress", "time": 0.0, "step": 6, "loss": loss}, run)
        tracker.recovered({"event": "recovered", "step": 4}, run)
    tracker._send()
    assert [each.values["train/loss"] for each in Keeping.kept] == [2.0]


@pytest.mark.usefixtures("undrawn")
def test_a_resumed_run_goes_on_in_the_same_run_with_each_number_once(tmp_path: Path) -> None:
    path, engine = tmp_path / "run", LossyEngine()
    path.mkdir()
    (path / "spec.yaml").write_text("a: 1")
    engine.script.append(("run_steps", SAVE + 2, KeyboardInterrupt()))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        drive(engine, path, callbacks=[Keeping()], **PATIENT)
    engine.close()
    drive(engine, path, callbacks=[Keeping()], resume=True, **PATIENT)
    assert Keeping.begun == [None, "the-run"]
    shown = {(each.step, name): value for each in Keeping.kept for name, value in each.values.items()}
    logged = events(path)
    assert {step for step, name in shown if name == "train/loss"} == set(range(1, STEPS + 1))
    tested = sorted(step for step, name in shown if name == "test/loss")
    assert tested == sorted({step for _, step in of(logged, "evaluated")})
    times = [(each.step, name) for each in Keeping.kept for name in each.values]
    again = {step for step, _ in times if times.count((step, "train/loss")) > 1}
    assert again <= {SAVE + 1, SAVE + 2}  # they were done twice: what a checkpoint had is not told again
    assert Keeping.ends == [("finished", {"spec.yaml", "index.html", "result.json"})]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("code", "ending"), [("stopped", "stopped"), ("peer_lost", "failed")])
def test_it_says_how_a_run_ended_that_has_no_result(code: str, ending: Ending, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("a: 1")
    tracker, run = Keeping(), Run({}, tmp_path)
    failed: dict[str, Any] = {"event": "failed", "time": 2.0, "code": code, "message": "over", "exit_code": 1}
    tracker.failed(failed, run)  # before it started there is nothing to end
    assert Keeping.ends == []
    tracker.started({"event": "started", "time": 1.0, "step": 0}, run)
    tracker.failed(failed, run)
    assert Keeping.ends == [(ending, {"spec.yaml", "index.html"})]


class Refused(Exception):
    """What MLflow raises."""

    def __init__(self, error_code: str) -> None:
        super().__init__(error_code)
        self.error_code = error_code


class Store:
    """Stands for MLflow's package, with one store that has a run ``here``."""

    def __init__(self, trouble: str = "RESOURCE_DOES_NOT_EXIST") -> None:
        self.trouble = trouble
        self.running: list[str] = []
        self.entities = SimpleNamespace(Param=lambda *fields: fields)
        self.exceptions = SimpleNamespace(MlflowException=Refused)

    def MlflowClient(self, tracking_uri: str) -> Store:
        return self

    def update_run(self, known: str, status: str) -> None:
        if known != "here":
            raise Refused(self.trouble)
        self.running.append(known)

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1")

    def create_run(self, experiment: str, **named: Any) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="new"))

    def log_batch(self, run: str, **named: Any) -> None:
        assert run == "new"


@pytest.mark.parametrize(("known", "goes_on_in"), [("here", "here"), ("elsewhere", "new"), (None, "new")])
def test_mlflow_goes_on_in_a_run_that_its_store_knows_and_begins_another_with_a_warning(
    known: str | None,
    goes_on_in: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(MLflow, "name", "json")
    store = Store()
    monkeypatch.setattr(MLflow, "_package", store)
    run = Run({"train": {"steps": 1}}, tmp_path / "run")
    assert MLflow().begin(known, run) == goes_on_in
    assert store.running == (["here"] if known == "here" else [])
    assert ("elsewhere" in caplog.text) == (known == "elsewhere")


def test_mlflow_begins_no_other_run_where_its_store_has_other_troubles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(MLflow, "name", "json")
    monkeypatch.setattr(MLflow, "_package", Store("TEMPORARILY_UNAVAILABLE"))
    with pytest.raises(Refused, match="UNAVAILABLE"):
        MLflow().begin("elsewhere", Run({}, tmp_path / "run"))


@pytest.mark.parametrize(
    ("storage", "uri", "environment", "refused"),
    [
        ("s3://bucket/runs", None, None, True),
        ("s3://bucket/runs", "tracked", None, True),
        ("s3://bucket/runs", "/tracked", None, False),
        ("s3://bucket/runs", "https://host", None, False),
        ("s3://bucket/runs", None, "https://host", False),
        ("runs", None, None, False),
    ],
)
def test_mlflow_refuses_a_folder_that_nothing_keeps(
    storage: str, uri: str | None, environment: str | None, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MLflow, "name", "json")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if environment is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    with pytest.raises(InputError, match="tracking_uri") if refused else nullcontext():
        MLflow(tracking_uri=uri).check({"run": {"storage": storage}})


def test_an_address_with_a_password_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MLflow, "name", "json")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        MLflow(tracking_uri="https://me:secret@host")
    assert "secret" not in str(caught.value)
