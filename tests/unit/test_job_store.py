from __future__ import annotations

import secrets
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lowdimfa.errors import InputError
from lowdimfa.services.coordinator.jobs import ACTIVE, ENDS, TRANSITIONS, JobState, Submission
from lowdimfa.services.coordinator.refusals import RefusedError
from lowdimfa.services.coordinator.sqlite_store import SqliteJobStore
from lowdimfa.services.coordinator.store import (
    JobFilter,
    KeyConflictError,
    NotWrittenError,
    QueueFullError,
    TransitionError,
    UnknownJobError,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteJobStore]:
    made = SqliteJobStore(tmp_path / "jobs.sqlite3", tmp_path / "runs", max_queued=5)
    yield made
    made.close()


def submission(name: str = "mnist", owner: str = "ada", key: str = "", text: str = "model: 1") -> Submission:
    return Submission(name, owner, text, {"my.py": "x = 1\n"}, key)


def test_a_job_begins_queued_with_one_event_and_keeps_what_was_submitted(store: SqliteJobStore) -> None:
    job, created = store.create(submission(), 4, 1)
    assert created
    assert (job.state, job.cpus, job.gpus, job.attempt) == (JobState.queued, 4, 1, 0)
    assert job.id.startswith("mnist-") and job.run_dir.endswith(f"runs/{job.id}")
    assert store.submission(job.id) == submission()
    ((sequence, event),) = store.events(job.id, 0, 10)
    assert (sequence, event["event"], event["state"]) == (1, "state", "queued")


def test_a_client_key_makes_submission_idempotent_for_its_owner_alone(store: SqliteJobStore) -> None:
    first, _ = store.create(submission(key="k"), 1, 0)
    again, created = store.create(submission(key="k"), 1, 0)
    other, other_created = store.create(submission(owner="bob", key="k"), 1, 0)
    assert (again.id, created) == (first.id, False)
    assert other_created and other.id != first.id
    with pytest.raises(KeyConflictError, match=first.id):
        store.create(submission(key="k", text="model: 2"), 1, 0)
    assert len(store.in_states({JobState.queued})) == 2


def test_without_a_key_equal_submissions_are_different_jobs(store: SqliteJobStore) -> None:
    assert store.create(submission(), 1, 0)[0].id != store.create(submission(), 1, 0)[0].id


def test_the_queue_takes_so_many_and_no_more(store: SqliteJobStore) -> None:
    for _ in range(5):
        store.create(submission(), 1, 0)
    with pytest.raises(QueueFullError, match="5 jobs are queued"):
        store.create(submission(), 1, 0)


def test_what_a_full_disk_can_not_keep_is_refused_with_the_reason(store: SqliteJobStore) -> None:
    store._db.execute("PRAGMA max_page_count = 1")  # no more than there are
    job, _ = store.create(submission(), 1, 0)
    large = Submission("large", "ada", "model: 1", {"my.py": "x" * 100_000})
    with pytest.raises(NotWrittenError, match=r"full.*nothing has changed; make room") as caught:
        store.create(large, 1, 0)
    refused = RefusedError.of(caught.value)
    assert (refused.status, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "resources")
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert store.create(large, 1, 0)[1]
    assert [one.name for one in store.in_states([JobState.queued])] == [job.name, "large"]


def test_a_storage_that_hangs_holds_up_nobody_but_who_submits(
    store: SqliteJobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = store.create(submission(), 1, 0)
    free = []

    def meanwhile() -> None:
        free.append(store.update(job.id, step=7).step)

    def looked(path: Path) -> bool:
        other = Thread(target=meanwhile, daemon=True)
        other.start()
        other.join(30)
        return False

    monkeypatch.setattr(Path, "exists", looked)
    store.create(submission(), 1, 0)
    assert free == [7]


def test_the_name_of_a_job_or_of_a_folder_that_is_there_is_not_given_again(
    store: SqliteJobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "mnist-bbbbbb").mkdir(parents=True)
    drawn = iter("aaaaaa" + "aaaaaabbbbbbcccccc")
    monkeypatch.setattr(secrets, "choice", lambda letters: next(drawn))
    assert [store.create(submission(), 1, 0)[0].id for _ in range(2)] == ["mnist-aaaaaa", "mnist-cccccc"]


@pytest.mark.parametrize("start", JobState)
@pytest.mark.parametrize("to", JobState)
def test_only_the_transitions_of_the_table_are_possible(
    store: SqliteJobStore, start: JobState, to: JobState
) -> None:
    job, _ = store.create(submission(), 1, 0)
    store.update(job.id, state=start)
    if to in TRANSITIONS[start]:
        assert store.transition(job.id, to, "why").state is to
    else:
        with pytest.raises(TransitionError, match=f"is {start} and can't become {to}"):
            store.transition(job.id, to, "why")
        assert store.get(job.id).state is start
        assert store.get(job.id).last_sequence == 1


def test_an_attempt_begins_clean_and_ends_with_a_time(store: SqliteJobStore) -> None:
    job, _ = store.create(submission(), 1, 0)
    store.transition(job.id, JobState.starting, "")
    store.update(job.id, stop_requested="now")
    failed = store.transition(job.id, JobState.failed, "it broke", error={"code": "internal"})
    assert failed.ended is not None and failed.error == {"code": "internal"}
    waiting = store.transition(job.id, JobState.queued, "")
    assert (waiting.started, waiting.ended, waiting.error) == (None, None, None), "as the contract has it"
    again = store.transition(job.id, JobState.starting, "")
    assert (again.attempt, again.error, again.ended, again.stop_requested) == (2, None, None, "")


def test_what_a_run_logs_is_taken_in_with_its_position_and_tells_the_progress(store: SqliteJobStore) -> None:
    job, _ = store.create(submission(), 1, 0)
    events: list[dict[str, Any]] = [
        {"event": "started", "steps": 100, "step": 0},
        {"event": "progress", "step": 10, "steps": 100, "loss": 0.5},
        {"event": "evaluated", "test_accuracy": 0.75},
        {"event": "progress", "step": "ten", "loss": None},
    ]
    job = store.append(job.id, events, 1234)
    assert (job.step, job.steps, job.loss, job.test_accuracy, job.log_position) == (10, 100, 0.5, 0.75, 1234)
    assert [event for _, event in store.events(job.id, 1, 10)] == events
    assert store.append(job.id, [{"event": "recovered", "policy": "restart", "step": 8}], 1300).step == 8


def test_events_that_can_not_be_kept_leave_neither_events_nor_position(store: SqliteJobStore) -> None:
    job, _ = store.create(submission(), 1, 0)
    store.append(job.id, [{"event": "warning"}], 10)
    circular: dict[str, Any] = {"event": "warning"}
    circular["self"] = circular
    with pytest.raises(ValueError, match="Circular"):
        store.append(job.id, [{"event": "warning"}, circular], 20)
    after = store.get(job.id)
    assert (after.log_position, after.last_sequence) == (10, 2)
    assert len(store.events(job.id, 0, 10)) == 2


def test_a_description_is_an_event_only_when_it_is_new(store: SqliteJobStore) -> None:
    job, _ = store.create(submission(), 1, 0)
    for detail in ("waits", "waits", "waits longer"):
        store.describe(job.id, detail)
    assert [event["detail"] for _, event in store.events(job.id, 0, 10)] == ["", "waits", "waits longer"]


def test_unknown_jobs_are_said_to_be_unknown(store: SqliteJobStore) -> None:
    for call in (store.get, store.submission, store.queued_before):
        with pytest.raises(UnknownJobError, match="no job 'x'"):
            call("x")
    with pytest.raises(UnknownJobError):
        store.events("x", 0, 1)


def test_pages_are_complete_and_without_doubles_while_jobs_are_added(tmp_path: Path) -> None:
    store = SqliteJobStore(tmp_path / "jobs.sqlite3", tmp_path)
    ids = [store.create(submission(), 1, 0)[0].id for _ in range(10)]
    seen: list[str] = []
    before = None
    while True:
        page, before = store.page(JobFilter(), 3, before)
        seen += [job.id for job in page]
        store.create(submission(name="later"), 1, 0)
        if before is None:
            break
    assert seen == ids[::-1]
    store.close()


def test_a_filter_takes_states_owner_and_the_name_s_beginning_literally(store: SqliteJobStore) -> None:
    a, _ = store.create(submission(name="a_1"), 1, 0)
    b, _ = store.create(submission(name="ab1", owner="bob"), 1, 0)
    store.transition(b.id, JobState.starting, "")

    def found(which: JobFilter) -> list[str]:
        return [job.id for job in store.page(which, 10)[0]]

    assert found(JobFilter(name_prefix="a_")) == [a.id]
    assert found(JobFilter(owner="bob")) == [b.id]
    assert found(JobFilter(states=frozenset({JobState.starting}))) == [b.id]
    assert found(JobFilter(frozenset(ACTIVE), "ada")) == []


def test_jobs_survive_and_the_file_has_one_user(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    store = SqliteJobStore(path, tmp_path)
    job, _ = store.create(submission(), 1, 0)
    with pytest.raises(InputError, match="another coordinator"):
        SqliteJobStore(path, tmp_path)
    store.close()
    again = SqliteJobStore(path, tmp_path)
    assert again.get(job.id) == job
    again.close()


def test_a_file_that_is_no_store_or_of_another_version_is_refused_and_left(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(
        "not a database, though as long as the header of one has to be to be looked at at all" * 3
    )
    with pytest.raises(InputError, match="a file that isn't one"):
        SqliteJobStore(text, tmp_path)
    later = tmp_path / "later"
    database = sqlite3.connect(later)
    database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(InputError, match="version 99"):
        SqliteJobStore(later, tmp_path)
    assert text.read_text().startswith("not a database")


class StoreMachine(RuleBasedStateMachine):
    """Any calls in any order: streams stay gapless, states follow the table, and a reopened store is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "jobs.sqlite3"
        self.store = SqliteJobStore(self.path, Path(self.folder.name))
        self.states: dict[str, JobState] = {}
        self.lengths: dict[str, int] = {}

    @rule()
    def submit(self) -> None:
        job, _ = self.store.create(submission(), 1, 0)
        self.states[job.id], self.lengths[job.id] = JobState.queued, 1

    @rule(to=st.sampled_from(JobState), which=st.integers(0))
    def change(self, to: JobState, which: int) -> None:
        if not self.states:
            return
        job_id = list(self.states)[which % len(self.states)]
        try:
            self.store.transition(job_id, to, "")
        except TransitionError:
            assert to not in TRANSITIONS[self.states[job_id]]
        else:
            assert to in TRANSITIONS[self.states[job_id]]
            self.states[job_id] = to
            self.lengths[job_id] += 1

    @rule(count=st.integers(0, 3), which=st.integers(0))
    def log(self, count: int, which: int) -> None:
        if self.states:
            job_id = list(self.states)[which % len(self.states)]
            self.store.append(job_id, [{"event": "warning"}] * count, count)
            self.lengths[job_id] += count

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = SqliteJobStore(self.path, Path(self.folder.name))

    @invariant()
    def as_expected(self) -> None:
        for job_id, state in self.states.items():
            job = self.store.get(job_id)
            assert job.state is state
            assert (job.ended is not None) == (state in ENDS) or state is JobState.queued
            sequences = [sequence for sequence, _ in self.store.events(job_id, 0, 1000)]
            assert sequences == list(range(1, self.lengths[job_id] + 1))
            assert job.last_sequence == self.lengths[job_id]

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_job_waits_since_it_was_last_put_into_the_queue(store: SqliteJobStore) -> None:
    job, _ = store.create(submission(), 1, 0)
    assert job.queued == job.created
    for state in (JobState.starting, JobState.running, JobState.queued):
        job = store.transition(job.id, state, "")
    assert job.queued > job.created
