"""The service's state is its user's own, whatever the umask says and whatever lay there before."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lowdimfa.errors import InputError
from lowdimfa.services.coordinator.access import write_tokens
from lowdimfa.services.coordinator.jobs import Submission
from lowdimfa.services.coordinator.private import own_file, own_folder
from lowdimfa.services.coordinator.ray_holder import _note
from lowdimfa.services.coordinator.sqlite_store import SqliteJobStore
from lowdimfa.services.monitoring.targets import write_targets
from lowdimfa.services.rpc.certificates import write_certificates
from lowdimfa.services.run.checkpoint import BlockState, CheckpointStore, write_block

SUBMISSION = Submission("a", "ada", "model: 1", {}, "")


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def require_private(state: Path) -> None:
    assert rights(state) == 0o700
    assert {path.name: oct(rights(path)) for path in state.iterdir() if rights(path) != 0o600} == {}


def test_a_new_store_is_its_user_s_own_and_the_storage_is_as_the_umask_says(tmp_path: Path) -> None:
    state = tmp_path / "runs" / ".coordinator"
    store = SqliteJobStore(state / "jobs.sqlite3", tmp_path / "runs")
    store.create(SUBMISSION, 1, 0)
    assert {"jobs.sqlite3", "jobs.sqlite3-wal", "jobs.sqlite3-shm"} <= {path.name for path in state.iterdir()}
    own_file(state / "ray.log")
    _note(state, 1, "address")
    require_private(state)
    assert rights(tmp_path / "runs") == 0o777
    store.close()


def test_what_an_earlier_service_left_open_is_closed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    script = (
        "import os, sys, signal, sqlite3\n"
        "os.umask(0)\n"
        "db = sqlite3.connect(sys.argv[1])\n"
        "db.execute('PRAGMA journal_mode=WAL')\n"
        "db.execute('CREATE TABLE x (y)')\n"
        "db.commit()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"  # so that the log and its index stay
    )
    state.mkdir()
    path = state / "jobs.sqlite3"
    killed = subprocess.run([sys.executable, "-c", script, str(path)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert rights(path.with_name("jobs.sqlite3-wal")) == 0o644
    for name in ("jobs.sqlite3.lock", "ray.log"):
        (state / name).touch(0o666)
    own_file(state / "ray.log")
    store = SqliteJobStore(path, tmp_path / "runs")
    store.create(SUBMISSION, 1, 0)
    require_private(state)
    store.close()


def test_a_folder_of_somebody_else_and_a_link_of_somebody_else_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (tmp_path / "link").symlink_to(mine)
    assert own_folder(tmp_path / "link", "--state") == mine
    (tmp_path / "dangling").symlink_to(tmp_path / "later")
    assert own_folder(tmp_path / "dangling", "--state") == tmp_path / "later"
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    if mine.stat().st_uid == 0:  # what is root's is nobody's to change, and mounts are root's
        monkeypatch.setattr("lowdimfa.services.coordinator.private.ROOT", -1)
    for name in ("mine", "link"):
        with pytest.raises(InputError, match=r"--state .*of user \d+; expected .*own"):
            own_folder(tmp_path / name, "--state")
        with pytest.raises(InputError, match=r"--state .*of user"):
            SqliteJobStore(tmp_path / name / "jobs.sqlite3", tmp_path / "runs")
    assert list(mine.iterdir()) == []


def test_a_link_in_the_place_of_a_file_is_refused_and_what_it_names_is_left(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o644)
    state = tmp_path / "state"
    state.mkdir()
    (state / "jobs.sqlite3").symlink_to(victim)
    with pytest.raises(InputError, match=r"jobs\.sqlite3: found a link"):
        SqliteJobStore(state / "jobs.sqlite3", tmp_path / "runs")
    assert victim.read_text() == "precious" and rights(victim) == 0o644


def test_a_store_that_another_program_holds_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state" / "jobs.sqlite3"
    SqliteJobStore(path, tmp_path).close()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **named: connect(*given, **named, timeout=0))
    holder = connect(path, isolation_level=None)
    holder.execute("PRAGMA journal_mode=DELETE")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InputError, match=r"database is locked.*no program has open"):
        SqliteJobStore(path, tmp_path)
    holder.close()
    SqliteJobStore(path, tmp_path).close()


def test_a_place_that_can_not_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="--state"):
            own_folder(path, "--state")
    (tmp_path / "state" / "jobs.sqlite3").mkdir(parents=True)
    with pytest.raises(InputError, match="can't be used"):
        SqliteJobStore(tmp_path / "state" / "jobs.sqlite3", tmp_path)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_what_lies_in_the_storage_has_its_rights_by_the_umask(tmp_path: Path, umask: int) -> None:
    os.umask(umask)
    write_targets(tmp_path / "runs" / "targets" / "a.json", [])
    attempt = CheckpointStore(tmp_path).begin(1)
    entry = write_block(attempt, BlockState(0, ["a"], {"a": torch.ones(1)}, {}))
    for path in (
        tmp_path / "runs" / "targets" / "a.json",
        tmp_path / attempt.folder / entry["file"],
    ):
        assert rights(path) == 0o666 & ~umask


def test_tokens_and_keys_are_their_owner_s_alone(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").touch(0o666)
    (tmp_path / f".tokens.json.{os.getpid()}").touch(0o666)  # as a killed command leaves it
    write_tokens(tmp_path / "tokens.json", [])
    assert rights(tmp_path / "tokens.json") == 0o600
    keys = [path for path in write_certificates(tmp_path / "tls", ["localhost"], 1) if path.suffix == ".key"]
    assert len(keys) == 3 and all(rights(path) == 0o600 for path in keys)
    with pytest.raises(InputError, match="no place to write"):
        write_tokens(tmp_path / "nowhere" / "tokens.json", [])


def test_a_run_directory_that_is_there_is_no_new_job_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may be lost, and the runs not."""
    store = SqliteJobStore(tmp_path / "state" / "jobs.sqlite3", tmp_path / "runs")
    letters = iter("aaaaaabbbbbb")
    monkeypatch.setattr("secrets.choice", lambda _: next(letters))
    (tmp_path / "runs" / "a-aaaaaa").mkdir(parents=True)
    assert store.create(SUBMISSION, 1, 0)[0].id == "a-bbbbbb"
    store.close()
