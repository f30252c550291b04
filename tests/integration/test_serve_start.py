"""A service that can't start, or is told to end while it starts, leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rpc_helpers import eventually

from lowdimfa.errors import InputError, LowdimfaError, ResourceError
from lowdimfa.services.coordinator import process
from lowdimfa.services.coordinator.jobs import JobState, Submission
from lowdimfa.services.coordinator.local_cluster import LocalCluster
from lowdimfa.services.coordinator.process import serve
from lowdimfa.services.coordinator.settings import ServeSettings
from lowdimfa.services.coordinator.sqlite_store import SqliteJobStore
from lowdimfa.services.trainer.families import lives

STUB = """
import os, pathlib, subprocess, sys, time, types

class ObjectRef: pass
folder = pathlib.Path(__file__).parent

def init(**_):
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (folder / "child").write_text(str(child.pid))
    match (folder / "how").read_text():
        case "hang": time.sleep(600)
        case "fail": raise RuntimeError("no Ray today")
    return types.SimpleNamespace(address_info={"gcs_address": "127.0.0.1:1", "session_dir": str(folder / "session")})

def get_runtime_context():
    return types.SimpleNamespace(gcs_address=(folder / "address").read_text())

def shutdown(): pass
"""


class Cluster:
    """Stands in for a local cluster: says what was asked of it."""

    def __init__(self, fresh: bool = True, address: Callable[[], str] = lambda: "127.0.0.1:1") -> None:
        self.fresh, self._address = fresh, address
        self.asked: list[str] = []

    def address(self) -> str:
        self.asked.append("start")
        return self._address()

    def end(self) -> None:
        self.asked.append("end")


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    return ServeSettings(
        port=0, http_port=0, storage=tmp_path / "runs", state=tmp_path / "state", liveness=6.0
    )


def use(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> Cluster:
    monkeypatch.setattr(process, "LocalCluster", lambda *_: cluster)
    return cluster


def active_job(settings: ServeSettings) -> None:
    store = SqliteJobStore(settings.state / "jobs.sqlite3", settings.storage)
    job, _ = store.create(Submission("a", "", "model: 1", {}, ""), 1, 0)
    store.transition(job.id, JobState.starting, "")
    store.close()


def fail(*_: str) -> None:
    raise BrokenPipeError


def change(settings: ServeSettings, what: str, folder: Path, port: int) -> ServeSettings:
    nonsense = folder / "nonsense"
    nonsense.write_text("not a token file, nor a certificate")
    changes = {
        "port": {"port": port},
        "http_port": {"http_port": port},
        "page_port": {"page_port": port},
        "tokens": {"tokens": nonsense},
        "certificate": {"tls_cert": nonsense, "tls_key": nonsense},
        "storage": {"storage": nonsense},
        "storage below a file": {"storage": nonsense / "runs"},
        "state": {"state": nonsense},
        "storage in the state": {"storage": settings.state / "runs"},
        "storage is the state": {"storage": settings.state},
        "storage in memory": {"storage": "memory://runs"},
        "host": {"host": "192.0.2.1", "insecure": True},
    }
    return replace(settings, **changes[what])


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("port", ResourceError),
        ("http_port", ResourceError),
        ("page_port", ResourceError),
        ("host", ResourceError),
        *(
            (what, InputError)
            for what in ("tokens", "certificate", "storage", "storage below a file", "state")
        ),
        *(
            (what, InputError)
            for what in ("storage in the state", "storage is the state", "storage in memory")
        ),
    ],
)
def test_whatever_is_wrong_is_found_before_anything_is_started(
    settings: ServeSettings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    what: str,
    kind: type[LowdimfaError],
) -> None:
    cluster = use(monkeypatch, Cluster())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wrong = change(settings, what, tmp_path, taken.getsockname()[1])
        with pytest.raises(kind):
            serve(wrong, fail)
    assert "start" not in cluster.asked
    store = SqliteJobStore(settings.state / "jobs.sqlite3", settings.storage)  # nobody holds it
    store.close()


def test_a_second_service_on_one_store_touches_nothing_of_the_first(
    settings: ServeSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = use(monkeypatch, Cluster())
    first = SqliteJobStore(settings.state / "jobs.sqlite3", settings.storage)
    (tmp_path / "link").symlink_to(settings.state)
    for state in (settings.state, tmp_path / "link"):
        with pytest.raises(InputError, match="another coordinator"):
            serve(replace(settings, state=state), fail)
    assert cluster.asked == []
    first.close()


def test_a_cluster_that_does_not_start_ends_the_service_and_is_ended(
    settings: ServeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> str:
        raise ResourceError("Ray did not start")

    cluster = use(monkeypatch, Cluster(address=refuse))
    with pytest.raises(ResourceError, match="Ray did not start"):
        serve(settings, fail)
    assert cluster.asked == ["start", "end"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_cluster_starts_ends_both(
    settings: ServeSettings, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    given_up = threading.Event()

    class Starting(Cluster):
        def address(self) -> str:
            super().address()
            os.kill(os.getpid(), number)
            assert given_up.wait(60)
            raise ResourceError("the service ends")

        def end(self) -> None:
            super().end()
            given_up.set()

    cluster = use(monkeypatch, Starting())
    assert serve(settings, fail) == []
    assert cluster.asked[:2] == ["start", "end"]


@pytest.mark.parametrize(
    ("fresh", "active", "kept"),
    [(True, False, False), (False, False, False), (False, True, True)],
    ids=["started here", "found idle", "found at work"],
)
def test_a_service_that_fails_when_it_is_up_leaves_only_what_has_jobs(
    settings: ServeSettings, monkeypatch: pytest.MonkeyPatch, fresh: bool, active: bool, kept: bool
) -> None:
    if active:
        active_job(settings)
    cluster = use(monkeypatch, Cluster(fresh))
    with pytest.raises(BrokenPipeError):
        serve(settings, fail)
    assert ("end" not in cluster.asked) == kept


def test_a_failed_start_ends_the_cluster_that_it_began_though_the_store_has_jobs(
    settings: ServeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those were in another cluster, which is gone."""
    active_job(settings)
    cluster = use(monkeypatch, Cluster())

    async def refuse(_: object) -> str:
        raise OSError("no threads left")

    monkeypatch.setattr(process.Coordinator, "start", refuse)
    with pytest.raises(OSError, match="no threads left"):
        serve(settings, fail)
    assert cluster.asked == ["start", "end"]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put something into the place of Ray that starts a process and then does as it is told."""
    folder = tmp_path / "stub"
    folder.mkdir()
    (folder / "ray.py").write_text(STUB)
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    child = int((folder / "child").read_text())
    assert not psutil.pid_exists(child) or not lives(
        psutil.Process(child)
    )  # init may take it off the list later
    left = [process for process in psutil.process_iter() if str(tmp_path) in " ".join(command(process))]
    for process_left in left:
        process_left.kill()
    assert not left


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_cluster_is_ended_while_it_starts(stub: Path, tmp_path: Path) -> None:
    (stub / "how").write_text("hang")
    cluster = LocalCluster(tmp_path / "state", 120.0)
    raised: list[Exception] = []

    def start() -> None:
        try:
            cluster.address()
        except ResourceError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    eventually(lambda: (stub / "child").exists() and (stub / "child").read_text() != "", 100)
    cluster.end()
    thread.join(60)
    assert not thread.is_alive() and raised
    with pytest.raises(ResourceError, match="the service ends"):
        cluster.address()  # of a supervisor that has not heard of the end


def test_a_cluster_that_fails_to_start_ends_what_it_has_started(stub: Path, tmp_path: Path) -> None:
    (stub / "how").write_text("fail")
    with pytest.raises(ResourceError, match=r"exit code 1.*ray\.log"):
        LocalCluster(tmp_path / "state", 120.0).address()
    assert "no Ray today" in (tmp_path / "state" / "ray.log").read_text()


def test_a_cluster_is_found_again_whatever_the_clock_says_and_one_that_is_lost_is_not(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stub / "how").write_text("run")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        (stub / "address").write_text(f"127.0.0.1:{listening.getsockname()[1]}")
        first = LocalCluster(tmp_path / "state", 120.0)
        address = first.address()
        monkeypatch.setattr(psutil.Process, "create_time", lambda _: 1.0)  # as after the clock was set
        second = LocalCluster(tmp_path / "state", 120.0)
        assert second.address() == address
        assert (first.fresh, second.fresh) == (True, False)
        second.end()
        assert LocalCluster(tmp_path / "state", 120.0)._running() is None


def test_who_holds_a_cluster_is_not_kept_from_it_by_what_it_does_not_need() -> None:
    script = "import sys, lowdimfa.services.coordinator.ray_holder; print({'torch', 'ray', 'grpc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "set()"), done
