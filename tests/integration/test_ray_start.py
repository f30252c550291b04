"""Ray is started whatever the environment says, leaves nothing behind, and if it doesn't come up that is said."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import psutil
import pytest
import ray
from ray._private.node import Node

from lowdimfa.errors import InputError, ResourceError
from lowdimfa.services.coordinator.process import serve
from lowdimfa.services.coordinator.settings import ServeSettings
from lowdimfa.services.trainer.cluster import start_ray

pytestmark = pytest.mark.xdist_group("ray")


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def test_a_failed_start_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives up after its head processes are there, as on a machine that is too busy for its own deadline."""
    started: list[psutil.Process] = []

    def time_out(_node: Node) -> None:
        started.extend(children() - before)
        raise RuntimeError("The current node timed out during startup. This could happen for many reasons.")

    monkeypatch.setattr(Node, "start_ray_processes", time_out)
    before = children()  # among them the shared Ray's, which come and go
    with pytest.raises(
        ResourceError, match=r"could not be started on this machine .*timed out during startup"
    ):
        start_ray(None)
    assert started
    assert not [process for process in started if process.is_running()]


def test_ray_starts_in_an_environment_that_is_not_for_it_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "multi"
    folder.mkdir()
    settings = {"PYTHONOPTIMIZE": "2", "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    before = children()
    python = sys.executable
    disconnect = start_ray(None, blocks=1)
    assert {name: os.environ[name] for name in settings} == settings
    assert sys.executable == python
    try:

        @ray.remote(num_cpus=0)
        def there() -> tuple[int, bool, bool]:
            return (
                sys.flags.optimize,
                "PROMETHEUS_MULTIPROC_DIR" in os.environ,
                "torch._dynamo" in sys.modules,
            )

        assert ray.get(there.remote()) == (0, False, True)
        session = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1]
        assert session.name.startswith("session_")
        neighbour = session.with_name("session_of_somebody_else")
        neighbour.mkdir()
        started = children() - before
        assert session.is_dir() and started
        of_ray = {Path(word).name for process in started for word in process.cmdline()}
        assert "raylet" in of_ray and not of_ray & {"monitor.py", "log_monitor.py", "dashboard.py"}
    finally:
        disconnect()
    assert not [process for process in started if process.is_running()]
    assert not session.exists() and neighbour.exists()
    assert session.with_name("session_latest").resolve() != session
    assert not list(folder.iterdir())
    neighbour.rmdir()


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_program_starts_meanwhile_is_not_taken_for_rays(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine: list[subprocess.Popen[bytes]] = []
    start = Node.start_ray_processes

    def start_beside(node: Node) -> None:
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        mine.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        if fails:
            raise RuntimeError("The current node timed out during startup.")
        start(node)

    monkeypatch.setattr(Node, "start_ray_processes", start_beside)
    try:
        if fails:
            with pytest.raises(ResourceError):
                start_ray(None)
        else:
            start_ray(None)()
        assert mine and [process.poll() for process in mine] == [None] * len(mine)
    finally:
        for process in mine:
            process.communicate()


def test_a_ray_lasts_as_long_as_one_of_the_threads_that_need_it() -> None:
    """Two runs at a time in one program: whichever ends first leaves the other its Ray."""
    together = Barrier(2)

    def started(_number: int) -> Callable[[], None]:
        together.wait()
        return start_ray(None)

    before = children()
    with ThreadPoolExecutor(2) as threads:
        first, last = threads.map(started, range(2))
    try:
        raylets = [process for process in children() - before if process.name() == "raylet"]
        assert len(raylets) == 1
        first()
        assert ray.is_initialized() and ray.nodes()[0]["Alive"]
    finally:
        last()
    assert not ray.is_initialized()
    assert not raylets[0].is_running()


@pytest.mark.parametrize("name", ["lowdimfa/__init__.py", "lowdimfa.py"])
def test_a_package_that_the_actors_would_take_for_ours_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="Rename it") as caught:
        start_ray(None)
    assert str(tmp_path) in caught.value.message and name in caught.value.message
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["", "nonsense", "10.0.0.1", "10.0.0.1:abc", "10.0.0.1:"])
def test_what_is_no_address_of_a_cluster_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--address: found .*HOST:PORT"):
        start_ray(address)
    settings = ServeSettings(state=tmp_path / "state", storage=tmp_path / "runs", ray_address=address)
    with pytest.raises(InputError, match=r"--ray-address: found .*HOST:PORT"):
        serve(settings, lambda *_: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "tried"),
    [
        ("head:6379", "head"),
        ("[fd00::1]:6379", "fd00::1"),
        ("ray://[fd00::1]:10001", "fd00::1"),
        ("my_cloud://cluster", None),  # of a module that knows what it means
        ("local", None),
    ],
)
def test_where_ray_can_look_it_may(address: str, tried: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts: list[str | None] = []

    def connected(place: tuple[str, int], timeout: float) -> socket.socket:
        hosts.append(place[0])
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connected)
    monkeypatch.setattr(ray, "init", lambda address, **_: hosts.append(address))
    start_ray(address)()
    assert hosts == [*([tried] if tried else []), address]


REPORT = """Initialization failure from server:
Traceback (most recent call last):
  File "proxier.py", line 1, in Datapath
RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for detailed logs.

"""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "Could not find any running Ray instance. Please specify the one to connect to",
            "Could not find any running Ray instance",
        ),
        (
            REPORT,
            "Initialization failure from server: RuntimeError: Starting Ray client server failed. "
            "See ray_client_server_23000.err for detailed logs.",
        ),
    ],
)
def test_where_ray_finds_no_cluster_the_reason_is_told_in_a_line(
    said: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise ConnectionError(said)

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ResourceError) as raised:
        start_ray("auto")
    assert raised.value.message.startswith(f"no Ray cluster answers at auto ({reason}); give")
