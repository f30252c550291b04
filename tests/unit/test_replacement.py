"""Replacing a lost trainer: what the run's log tells, what the replacement is asked for, and when there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayActorError

from lowdimfa.errors import PeerError, StoppedError
from lowdimfa.services.monitoring.journal import Event, Journal, News, Position, Sink
from lowdimfa.services.recovery.policy import history_in
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.trainer import actor, replacement
from lowdimfa.services.trainer.request import RunRequest
from lowdimfa.services.trainer.stopping import StopRequest


def written(folder: Path, *events: dict[str, Any]) -> Path:
    log = folder / "events.jsonl"
    with log.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    return log


def of(kind: str, time: float = 0.0) -> dict[str, Any]:
    return {"event": kind, "time": time}


def test_recoveries_are_counted_since_a_person_last_resumed_the_run(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert list(history_in(journal.read()).begun) == []
    written(tmp_path, of("started"), of("recovering", 1), of("started"), of("recovered"))
    written(tmp_path, of("recovering", 2), of("recovered"), of("progress"))
    assert list(history_in(journal.read()).begun) == [1, 2]
    written(tmp_path, of("failed"), of("recovering", 3), of("started"))  # replaced after the cluster was lost
    assert list(history_in(journal.read()).begun) == [1, 2, 3]
    written(tmp_path, of("failed"))
    assert list(history_in(journal.read()).begun) == [1, 2, 3]
    written(tmp_path, of("started"))
    assert list(history_in(journal.read()).begun) == []
    written(tmp_path, of("recovering", 4))
    assert list(history_in(journal.read()).begun) == [4]


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    log = written(tmp_path, of("started"))
    with log.open("ab") as file:
        file.write(b'\n[1]\n{"event": "recovering", "ti\n\xff"recovering"\n7\n')
    written(tmp_path, of("recovering", 5) | {"reason": '"started"'})
    journal = Journal(tmp_path)
    assert [event["event"] for event in journal.read()] == ["started", "recovering"]
    assert list(history_in(journal.read()).begun) == [5]


def test_a_line_that_a_killed_trainer_left_without_its_end_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "started"}\n{"event": "progress", "st')
    for _ in range(2):
        log = Journal(tmp_path)
        log.emit("recovering")
        log.close()
    assert [event["event"] for event in Journal(tmp_path).read()] == ["started", "recovering", "recovering"]


def test_the_first_started_of_a_replacement_is_followed_by_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowdimfa.services.monitoring.journal.time.time", lambda: 104.5)
    told: list[Event] = []
    log = Journal(tmp_path, told.append, lost_at=100.0)
    log.emit("warning", message="x")
    log.emit("started", step=40)
    log.emit("started", step=50)
    log.close()
    assert [event["event"] for event in told] == ["warning", "started", "recovered", "started"]
    recovered = {"policy": "restart", "blocks": [], "step": 40, "missed": {}, "seconds": 4.5}
    assert told[2] == {"event": "recovered", "time": 104.5} | recovered
    assert list(Journal(tmp_path).read()) == told


@pytest.mark.parametrize("complete", [True, False])
def test_a_further_attempt_goes_on_from_a_complete_checkpoint_or_begins_anew(
    tmp_path: Path, complete: bool
) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (tmp_path / "spec.yaml").write_text("")
    if complete:
        (checkpoint / "manifest.json").write_text("{}")
    again = RunRequest({}, str(tmp_path), "ray", not complete, UserCode()).again(7.0)
    assert (again.resume, again.lost_at) == (complete, 7.0)
    assert (tmp_path / "spec.yaml").exists() == complete
    assert again == RunRequest({}, str(tmp_path), "ray", complete, UserCode(), 7.0)


class Fates:
    """Trainers that live as long as a test says: each fate is called with the log that the trainer writes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **run: Any) -> None:
        plain = {
            "model": {"factory": "users_own:model", "blocks": 2},
            "data": {"factory": "lowdimfa.data:digits"},
            "train": {"steps": 10},
            "run": {"liveness_seconds": 0.5, "max_recoveries": 3, "on_failure": "restart"} | run,
        }
        self.run_dir, self.plain = folder / "run", plain
        self.told: list[Event] = []
        self.requests: list[RunRequest] = []
        self.ended = 0
        self.stop = StopRequest()
        monkeypatch.setattr(replacement, "TrainerActor", self)
        monkeypatch.setattr(replacement, "follow", self._follow)
        monkeypatch.setattr(replacement, "end", self._end)

    def remote(self) -> Any:
        return SimpleNamespace(fit=SimpleNamespace(remote=lambda request: request))

    def _end(self, trainer: Any) -> None:
        self.ended += 1

    def _follow(
        self, trainer: Any, request: RunRequest, sink: Sink, stop: StopRequest, liveness: float
    ) -> Event:
        self.requests.append(request)
        self.liveness = liveness
        return self._fates.pop(0)(sink) if len(self._fates) > 1 else self._fates[0](sink)

    def run(self, *fates: Callable[[Sink], Event], resume_step: int | None = None) -> Any:
        self._fates = list(fates)
        resume = resume_step is not None
        request = RunRequest(
            self.plain, str(self.run_dir), "ray", resume, UserCode(), resume_step=resume_step
        )
        return replacement.run_in_actor(request, self.told.append, self.stop)

    def kinds(self) -> list[str]:
        return [event["event"] for event in self.told]


def dies(_sink: Sink) -> Event:
    raise RayActorError()


def finishes(_sink: Sink) -> Event:
    return {"event": "finished"}


def test_a_trainer_that_is_always_lost_is_replaced_as_often_as_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fates = Fates(tmp_path, monkeypatch)
    with pytest.raises(PeerError, match=r"makes 4 losses within 600 s, more than run.max_recoveries \(3\)"):
        fates.run(dies)
    assert fates.kinds() == ["recovering"] * 3 + ["failed"]
    assert [event["recovery"] for event in fates.told[:3]] == [1, 2, 3]
    assert fates.told[3]["setting"] == "run.max_recoveries"
    assert list(Journal(fates.run_dir).read()) == fates.told
    assert len(fates.requests) == fates.ended == 4
    assert [request.lost_at is None for request in fates.requests] == [True, False, False, False]


def is_silent(_sink: Sink) -> Event:
    raise GetTimeoutError()


def test_a_silent_trainer_is_ended_and_replaced_as_a_lost_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fates = Fates(tmp_path, monkeypatch)
    assert fates.run(is_silent, dies, finishes) == {"event": "finished"}
    assert fates.kinds() == ["recovering"] * 2 and fates.ended == 3
    silent, lost = (event["reason"] for event in fates.told)
    assert silent.startswith(lost) and "no answer" in silent and "run.liveness_seconds" in silent
    assert fates.liveness == 0.5


@pytest.mark.parametrize("asked", [False, True])
def test_no_answer_of_a_trainer_is_waited_for_without_end(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its events nor what it says to a request to stop: a Ctrl-C would wait as long."""
    waits: list[float] = []

    def get(answer: Any, timeout: float) -> Any:
        waits.append(timeout)
        if answer is None:
            raise GetTimeoutError()
        return answer

    answers: list[Any] = [News([], None, False), News([of("started")], Position(9), False), None]
    trainer = SimpleNamespace(
        events=SimpleNamespace(remote=lambda *arguments: answers.pop(0)),
        stop=SimpleNamespace(remote=lambda: None if len(answers) == 1 else "told"),
    )
    monkeypatch.setattr(actor, "ray", SimpleNamespace(get=get, wait=lambda running, timeout: ([], running)))
    stop = StopRequest()
    told: list[Event] = []

    def sink(event: Event) -> None:
        told.append(event)
        if asked:
            stop.make()

    with pytest.raises(GetTimeoutError):
        actor.follow(trainer, "running", sink, stop, 50.0)
    assert told == [of("started")]
    assert waits == [150.0, 150.0, 50.0]


def test_what_a_lost_trainer_logged_and_did_not_tell_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fates = Fates(tmp_path, monkeypatch)
    fates.run_dir.mkdir()
    written(fates.run_dir, of("failed"))  # of an earlier part of the run

    def logs_and_dies(sink: Sink) -> Event:
        log = Journal(fates.run_dir)
        sink(log.emit("started", step=0))
        log.emit("progress", step=10)
        log.close()
        raise RayActorError()

    assert fates.run(logs_and_dies, finishes) == {"event": "finished"}
    assert fates.kinds() == ["started", "progress", "recovering"]
    assert fates.told[2]["step"] == 10


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("last_words", [("failed",), ()])
def test_the_given_checkpoint_is_asked_for_until_the_run_has_one_of_its_new_course(
    last_words: tuple[str, ...], told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the earlier part, which went on beyond it, left as its last word."""
    fates = Fates(tmp_path, monkeypatch)
    for number in (10, 20):
        checkpoint = fates.run_dir / "checkpoints" / f"step-{number:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
    written(fates.run_dir, *map(of, ("started", "checkpoint", *last_words)))

    def trains(*kinds: str) -> Callable[[Sink], Event]:
        def fate(sink: Sink) -> Event:
            log = Journal(fates.run_dir, sink if told else None)
            for kind in kinds:
                log.emit(kind, step=12)
            log.close()
            raise RayActorError()

        return fate

    assert fates.run(
        dies, trains("started", "progress"), trains("started", "checkpoint"), finishes, resume_step=10
    )
    assert [request.resume_step for request in fates.requests] == [10, 10, 10, None]
    assert all(request.resume for request in fates.requests)


def test_without_a_policy_the_loss_ends_the_run_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fates = Fates(tmp_path, monkeypatch, on_failure="fail")
    with pytest.raises(PeerError, match="continue with --resume") as caught:
        fates.run(dies)
    assert caught.value.setting == "run.on_failure"
    assert fates.kinds() == ["failed"] and fates.ended == 1


def test_a_trainer_that_is_lost_after_somebody_asked_it_to_stop_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fates = Fates(tmp_path, monkeypatch)
    fates.stop.make()
    with pytest.raises(StoppedError):
        fates.run(dies)
    assert fates.kinds() == ["failed"] and fates.told[0]["code"] == "stopped"
