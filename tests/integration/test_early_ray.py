"""A Ray that starts while a command still imports torch: however and whenever the command ends, nothing is left of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
from rpc_helpers import RAY_HANGS, eventually

from lowdimfa.errors import ResourceError
from lowdimfa.services.trainer import cluster, early_ray, forks, local_ray

pytestmark = pytest.mark.xdist_group("ray")

SPECIFICATION = """
model: {factory: 'lowdimfa.models:mlp', args: {in_features: 64, width: 8, depth: 2, classes: 10}, blocks: 2}
data: {factory: 'lowdimfa.data:digits'}
train: {steps: 100000}
"""
REFUSED = SPECIFICATION.replace("lowdimfa.models:mlp", "nowhere:model")
"""Fits the schema; that it can't be built is found once torch is there."""


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Keep what is set for a command from the other tests of this process, whose Ray may be there already."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a folder for temporary files, with a path that is short enough for Ray's sockets."""
    path = Path(tempfile.mkdtemp(prefix="early-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def holders(place: Path) -> list[psutil.Process]:
    """Return the processes that see to the end of a Ray with its door in a folder, and those which hold it below them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if early_ray.__name__ in words and any(word.startswith(f"{place}/lowdimfa-") for word in words):
            found.append(process)
    return found


@pytest.mark.parametrize(("how", "code"), [("refused", 2), ("killed", -signal.SIGKILL)])
def test_a_command_that_ends_while_its_ray_starts_leaves_nothing(how: str, code: int, place: Path) -> None:
    path = place / "spec.yaml"
    path.write_text(REFUSED if how == "refused" else SPECIFICATION)
    script = "from lowdimfa.services.cli.main import main; main()"
    os.environ.pop("RAY_TMPDIR", None)  # which would come before TMPDIR
    with subprocess.Popen(
        [sys.executable, "-c", script, "train", str(path), "--run-dir", str(place / "run")],
        env=os.environ | {"TMPDIR": str(place)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as command:
        eventually(lambda: bool(holders(place)))
        top = min(holders(place), key=lambda process: process.create_time())
        if how == "killed":
            eventually(lambda: any(place.glob("ray/session_*")) or not top.is_running())
        family = top.children(recursive=True)  # which may be gone at once when the command is
        if how == "killed":
            command.kill()
        assert command.wait() == code
    eventually(lambda: not holders(place), RAY_HANGS)
    assert not [process for process in family if process.is_running()]
    assert not [*place.glob("lowdimfa-*"), *place.glob("ray/session_*")]


def test_of_a_start_that_hears_no_interrupt_nothing_is_left_though_all_processes_get_one(place: Path) -> None:
    (place / "ray.py").write_text(
        "import os\n"
        "def init(**_):\n"
        "    session = os.environ['RAY_TMPDIR'] + f'/ray/session_2000-01-01_00-00-00_{os.getpid()}'\n"
        "    while True:\n"
        "        try:\n"
        "            os.makedirs(session, exist_ok=True)\n"
        "            os.close(os.open(f'{session}/{os.urandom(8).hex()}', os.O_CREAT))\n"
        "        except BaseException:\n"
        "            pass\n"
    )
    (door := place / "lowdimfa-door").mkdir()
    paths = f"{place}:{os.environ.get('PYTHONPATH', '')}"
    with subprocess.Popen(
        [sys.executable, "-P", "-m", early_ray.__name__, str(door), "1"],
        env=os.environ | {"PYTHONPATH": paths, "RAY_TMPDIR": str(place)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as holder:
        eventually(lambda: any(place.glob("ray/session_*")))
        for number in (signal.SIGTERM, signal.SIGINT):
            holder.send_signal(number)
    assert holder.returncode == 0
    assert not [*place.glob("lowdimfa-*"), *place.glob("ray/session_*")]


def test_a_start_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def init(address: str, **_: object) -> None:
        tried.append(address)
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ResourceError, match="timed out during startup"):
        local_ray.start_local(tmp_path)
    assert tried == ["local"] * 2


def test_nothing_is_begun_for_what_is_refused_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPECIFICATION.replace("blocks: 2", "blocks: none"))
    with early_ray.begun(path, []):
        assert early_ray.take() is None


def test_the_specification_is_read_for_it_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(REFUSED)
    script = (
        "import sys; from pathlib import Path; from lowdimfa.services.spec.load import load_unchecked\n"
        f"print(load_unchecked(Path({str(path)!r}), ['model.blocks=3']).workers)\n"
        "print({'torch', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "set()"]


@pytest.mark.parametrize(
    ("said", "told"),
    [('{"error": "Ray is out"}', "^Ray is out$"), ("", "its process has ended.*engine local")],
)
def test_why_it_did_not_start_is_told(said: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        f"import os, sys; print({said!r}, end='', flush=True); os.close(1); sys.stdin.read(); os._exit(0)"
    )
    real, command = subprocess.Popen, [sys.executable, "-c", script]
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda _, **rest: real(command, **rest))
        early = early_ray.EarlyRay(1)
    with pytest.raises(ResourceError, match=told):
        early.join(60.0)
    assert early._process.wait() == 0  # its standard input has ended
    shutil.rmtree(early.door.folder)


def test_why_its_process_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('half of it')")
    (door := tmp_path / "door").mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-m", early_ray.__name__, str(door), "1"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        stdin=(ends := os.pipe())[0],
        capture_output=True,
        check=True,
    )
    for end in ends:
        os.close(end)
    assert "could not be started on this machine (ImportError: half of it)" in done.stdout.decode()
    assert not door.exists()


@pytest.mark.parametrize(
    ("handler", "end"), [(lambda *_: None, KeyboardInterrupt), (signal.SIG_DFL, SystemExit)]
)
def test_a_sigterm_while_ray_has_its_own_handler_stops_a_command_as_any_other(
    handler: Callable[..., None], end: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(end):
            cluster.start_ray("auto")
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_workers_at_a_door_that_is_closed_are_ordinary_processes(tmp_path: Path) -> None:
    """As where the command could not fork a server."""
    worker = tmp_path / "default_worker.py"
    worker.write_text("import os, sys; print(os.getppid(), 'torch' in sys.modules)")
    door = forks.Door.make()
    waiting = subprocess.Popen([door.folder / "python", worker], stdout=subprocess.PIPE, text=True)
    connected = f"{door.folder}/socket"
    eventually(lambda: Path("/proc/net/unix").read_text().count(connected) > 1)
    door.listening.close()
    assert waiting.communicate()[0].split() == [str(os.getpid()), "False"]
    shutil.rmtree(door.folder)
