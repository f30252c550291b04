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

from lowdimfa.services.run.loading import load
from lowdimfa.services.trainer import fork_client, fork_server

NOT_FOR_RAY = ("PYTHONOPTIMIZE", "PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
"""Settings of Python and Prometheus under which Ray's own processes don't start, or leave files where others count."""


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
    def start(cls, make: Callable[[socket.socket, int], Callable[[], object]]) -> ForkServer:
        """Start one.

        Parameters
        ----------
        make
            Starts the process, given its socket and the descriptor that says when to end; returns what waits for it.

        Raises
        ------
        OSError
            The temporary folder can't be written, its path is too long for a socket, or no program in it may run.
        """
        folder = Path(tempfile.mkdtemp(prefix="lowdimfa-"))
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
                listening.bind(str(folder / "socket"))
                listening.listen(64)
                _write_executable(folder)
                end, kept = os.pipe()
                wait = make(listening, end)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        os.close(end)
        return cls(folder, wait, kept)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Let a Ray that the body starts make its workers by this server."""
        before, sys.executable = sys.executable, str(self.folder / "python")
        try:
            yield
        finally:
            sys.executable = before

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


def prepare() -> None:
    """Import what workers need, and fork a server for a Ray that this process starts later: both import it once.

    For the process of a command that has done nothing yet: whatever was changed in it is so in the workers too.
    """
    if not _possible() or any(name in os.environ for name in NOT_FOR_RAY):
        return
    load(*fork_server.MODULES)
    if "ray" not in sys.modules and fork_server.threads() == 1:
        with contextlib.suppress(OSError):
            _prepared.append(ForkServer.start(_forked))


def take() -> ForkServer | None:
    """Return the server that was prepared, or a new one, which first has to import everything; None if there is none."""
    if _prepared:
        return _prepared.pop()
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
