"""Ray's workers as forks of one process that has imported what they need.

The trainer and every block import torch and its compiler, which takes seconds of processor time in each. A Ray that
is started for a run gets a fork server beside it (`lowdimfa.services.trainer.fork_server`), and starts its workers by
that: they begin with all of it in memory, which they share.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lowdimfa.services.trainer import fork_client, fork_server

NOT_FOR_RAY = ("PYTHONOPTIMIZE", "PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
"""Settings of Python and Prometheus under which Ray's own processes don't start, or leave files where others count."""


@dataclass(frozen=True)
class Door:
    """Where Ray's workers come for a fork. A server may open it later: until then they wait.

    Attributes
    ----------
    folder
        Its own, which nobody else may enter.
    listening
        Socket for requests. Once it is closed and nobody serves it, workers are ordinary processes.
    """

    folder: Path
    listening: socket.socket

    @classmethod
    def make(cls) -> Door:
        """Make one.

        Raises
        ------
        OSError
            The temporary folder can't be written, its path is too long for a socket, or no program in it may run.
        """
        folder = Path(tempfile.mkdtemp(prefix="lowdimfa-"))
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(folder / "socket"))
            listening.listen(64)
            _write_executable(folder)
        except BaseException:
            listening.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(folder, listening)


@contextlib.contextmanager
def used(folder: Path) -> Iterator[None]:
    """Let a Ray that the body starts make its workers by the door in a folder."""
    before, sys.executable = sys.executable, str(folder / "python")
    try:
        yield
    finally:
        sys.executable = before


@dataclass(frozen=True)
class ForkServer:
    """A fork server that this process has started.

    Attributes
    ----------
    folder
        Its own, which nobody else may enter.
    wait
        Waits for its end.
    kept
        Descriptor with which it ends, so that it does so with this process, however that ends.
    """

    folder: Path
    wait: Callable[[], object]
    kept: int

    @classmethod
    def start(
        cls, make: Callable[[socket.socket, int], Callable[[], object]], door: Door | None = None
    ) -> ForkServer:
        """Start one.

        Parameters
        ----------
        make
            Starts the process, given its socket and the descriptor that says when to end; returns what waits for it.
        door
            That it opens, by default one of its own.

        Raises
        ------
        OSError
            There can't be a process, or a door.
        """
        own = door or Door.make()
        end, kept = os.pipe()
        try:
            wait = make(own.listening, end)
        except BaseException:
            os.close(kept)
            if door is None:
                shutil.rmtree(own.folder, ignore_errors=True)
            raise
        finally:
            own.listening.close()
            os.close(end)
        return cls(own.folder, wait, kept)

    def end(self) -> None:
        """End it; the processes that it has made are Ray's."""
        os.close(self.kept)
        self.wait()
        shutil.rmtree(self.folder, ignore_errors=True)  # of one that was killed, and did not do so itself


def _write_executable(folder: Path) -> None:
    client = (sys.executable, "-I", "-S", fork_client.__file__, str(folder / "socket"))
    executable = folder / "python"
    executable.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n', encoding="utf-8")
    executable.chmod(0o700)
    if not os.access(executable, os.X_OK):  # the file system may be mounted so
        raise PermissionError(f"{executable} can't be run")


_GPUS = ("/dev/nvidiactl", "/dev/kfd")
"""Where they are, what is imported may look for them, and a fork can't use them then."""

_prepared: list[ForkServer] = []


def prepare(door: Door | None = None) -> None:
    """Import what workers need, and fork a server for the Ray of this process: both import it once.

    For the process of a command that has done nothing yet: whatever was changed in it is so in the workers too.

    Parameters
    ----------
    door
        At which workers of a Ray that has begun to start may wait already.
    """
    if not wanted():
        return
    fork_server.load_modules()
    if "ray" not in sys.modules and fork_server.threads() == 1:
        with contextlib.suppress(OSError):
            _prepared.append(ForkServer.start(_forked, door))
    if door:
        door.listening.close()


def wanted() -> bool:
    """Return whether a server that `prepare` forks can be used here."""
    return _possible() and not any(name in os.environ for name in NOT_FOR_RAY)


def prepared() -> ForkServer | None:
    """Return the server that was prepared, if there is one."""
    return _prepared.pop() if _prepared else None


def take() -> ForkServer | None:
    """Return the server that was prepared, or a new one, which first has to import everything; None if there is none."""
    if server := prepared():
        return server
    with contextlib.suppress(OSError):
        return ForkServer.start(_spawned) if _possible() else None
    return None


def _possible() -> bool:
    return sys.platform == "linux" and not any(Path(path).exists() for path in _GPUS)


def _spawned(listening: socket.socket, end: int) -> Callable[[], object]:
    handed = (listening.fileno(), end)
    # `-P`: modules in this folder are the user's, and not there for ours to find in place of the standard library's.
    command = [sys.executable, "-P", "-m", fork_server.__name__, *map(str, handed)]
    nothing = subprocess.DEVNULL
    return subprocess.Popen(
        command, stdin=nothing, stdout=nothing, stderr=nothing, pass_fds=handed, start_new_session=True
    ).wait


def _forked(listening: socket.socket, end: int) -> Callable[[], object]:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    process = os.fork()
    if process:
        return partial(os.waitpid, process, 0)
    with contextlib.suppress(BaseException):  # nothing of the command's may run on here
        _forget_the_command(listening, end)
        fork_server.serve(listening, end)
    os._exit(1)


def _forget_the_command(listening: socket.socket, end: int) -> None:
    os.setsid()
    atexit._clear()
    sys.excepthook = sys.__excepthook__
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python itself has it
    if not sys.flags.safe_path:
        sys.path[0:1] = []  # the folder of the command's script
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor not in (0, 1, 2, listening.fileno(), end):
            with contextlib.suppress(OSError):
                os.close(descriptor)
