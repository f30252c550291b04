"""A process that has imported the command and runs it in forks: many cases without the seconds that imports take.

A message to it is one case as JSON: arguments, folder and environment; with it come the descriptors of standard output,
standard error and of what it answers by: the command's process id, and its exit code when it has ended. Each command
leads a session of its own, as in a terminal. `Forks` is the tests' side of it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import typer
from command import DIGITS, Going, Outcome, environment

MESSAGE_BYTES = 1 << 17
ANSWERS, OUTPUTS = 1, 2
"""How many descriptors of each kind come with a case."""


class Forked:
    """A command in a fork, with as much of the interface of `subprocess.Popen` as the tests need."""

    def __init__(self, stdout: int, stderr: int, answers: int) -> None:
        self.stdout, self.stderr = os.fdopen(stdout), os.fdopen(stderr)
        self._answers = os.fdopen(answers)
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, negative for a signal."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            self.returncode = int(self._answers.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None and not select.select([self._answers], [], [], 0)[0]:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close its streams."""
        for stream in (self.stdout, self.stderr, self._answers):
            stream.close()


class Forks:
    """Runs commands; a context manager.

    Parameters
    ----------
    folder
        Where the processes work, if nothing else is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=environment(PYTHONDONTWRITEBYTECODE="1", GRPC_VERBOSITY="NONE"),
            stdin=theirs,
        )
        theirs.close()

    def start(self, *arguments: object, cwd: Path | None = None, **more: str) -> Forked:
        """Run ``lowdimfa`` in a folder with arguments and more environment variables, while the test goes on."""
        pipes = [os.pipe() for _ in range(OUTPUTS + ANSWERS)]
        case = {
            "arguments": [*map(str, arguments)],
            "folder": str(cwd or self._folder),
            "environment": environment(**more),
        }
        theirs = [write for _, write in pipes]
        socket.send_fds(self._socket, [json.dumps(case).encode()], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        return Forked(*(read for read, _ in pipes))

    def run(self, *arguments: object, cwd: Path | None = None, **more: str) -> Outcome:
        """Run ``lowdimfa`` to its end."""
        with Going(self.start(*arguments, cwd=cwd, **more)) as going:
            return going.end()

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


def _serve() -> None:
    import lowdimfa.services.cli.forecast
    import lowdimfa.services.coordinator.client
    import lowdimfa.services.lab.drill.drill
    import lowdimfa.services.trainer.evaluate  # noqa: F401
    from lowdimfa.services.cli.app import app
    from lowdimfa.services.trainer.api import DecoupledTrainer

    commands: Any = typer.main.get_command(app)
    for name in commands.list_commands(None):
        commands.get_command(None, name)
    DecoupledTrainer(DIGITS, engine="local").plan()  # imports what is imported late
    asked = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    keepers: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, MESSAGE_BYTES, OUTPUTS + ANSWERS)
        if not message:
            return
        if (keeper := os.fork()) == 0:
            asked.close()
            _keep(json.loads(message), *descriptors)
        keepers.add(keeper)
        for descriptor in descriptors:
            os.close(descriptor)
        keepers -= {kept for kept in keepers if os.waitpid(kept, os.WNOHANG)[0]}


def _keep(case: Mapping[str, object], stdout: int, stderr: int, answers: int) -> NoReturn:
    """Fork the command, and answer with its id and its exit code."""
    command = os.fork()
    if command == 0:
        os.setsid()
        os.close(answers)
        for descriptor, stream in enumerate((stdout, stderr), start=1):
            os.dup2(stream, descriptor)
            os.close(stream)
        _run(case)
    os.close(stdout)
    os.close(stderr)
    with os.fdopen(answers, "w", buffering=1) as answer:
        print(command, file=answer)
        _, status = os.waitpid(command, 0)
        print(os.waitstatus_to_exitcode(status), file=answer)
    os._exit(0)


def _run(case: Mapping[str, object]) -> NoReturn:
    from lowdimfa.services.cli.main import main

    os.environ.clear()
    os.environ.update(case["environment"])  # type: ignore[call-overload]
    os.chdir(str(case["folder"]))
    sys.argv = ["lowdimfa", *case["arguments"]]  # type: ignore[misc]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:  # without taking everything down, which takes a second
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
