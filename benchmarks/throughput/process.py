"""The measuring side of worker processes: one JSON line to each, one JSON line back, with a deadline.

A worker that has nothing to do sleeps in a read of its standard input, so it costs nothing while others are measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
END_SECONDS = 20.0
Answer = dict[str, Any]


class WorkerError(Exception):
    """A worker failed; the message says why, in one line."""


class Worker:
    """One process of a system.

    Parameters
    ----------
    configuration
        What it is to build: see `benchmarks.throughput.worker`.
    log
        File for what it prints.
    prefix
        Command that runs the process elsewhere, such as in a network namespace.
    environment
        Added to this process's.
    """

    def __init__(
        self,
        configuration: Mapping[str, Any],
        log: Path,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self._buffer = b""
        with log.open("w") as sink:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "benchmarks.throughput.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                cwd=ROOT,
                env=os.environ | dict(environment or {}),
            )
        self.tell(configuration)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message.

        Raises
        ------
        WorkerError
            The process has ended.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise WorkerError(f"its process ended with {self.process.wait()}") from error

    def fileno(self) -> int:
        """Return the descriptor of its answers, for `select`."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def take(self) -> Answer | None:
        """Read what is there; return an answer once it is whole.

        Raises
        ------
        WorkerError
            The answer is an error, or the process has ended.
        """
        read = os.read(self.fileno(), 1 << 16)
        if not read:
            raise WorkerError(f"its process ended with {self.process.wait()}{self._last_line()}")
        self._buffer += read
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return None
        self._buffer = rest
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self, patience: float = END_SECONDS) -> None:
        """Let it end by itself, or else kill it."""
        with contextlib.suppress(WorkerError):
            self.tell({"do": "quit"})
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f" ({lines[-1][:200]})" if lines else ""


class Team:
    """The processes of one system, which are told the same and answer together."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = list(workers)

    def ask(self, message: Mapping[str, Any], seconds: float) -> list[Answer]:
        """Send a message to all; return their answers in order.

        Raises
        ------
        WorkerError
            One failed, or did not answer in time.
        """
        for worker in self.workers:
            worker.tell(message)
        return self.hear(seconds)

    def hear(self, seconds: float) -> list[Answer]:
        """Wait for one answer of each."""
        deadline = time.monotonic() + seconds
        answers: dict[int, Answer] = {}
        while len(answers) < len(self.workers):
            waiting = [worker for number, worker in enumerate(self.workers) if number not in answers]
            ready, _, _ = select.select(waiting, [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise WorkerError(f"no answer within {seconds:g} s")
            for worker in ready:
                answer = worker.take()
                if answer is not None:
                    answers[self.workers.index(worker)] = answer
        return [answers[number] for number in range(len(self.workers))]

    def close(self) -> None:
        """End all of them."""
        for worker in self.workers:
            with contextlib.suppress(WorkerError):
                worker.tell({"do": "quit"})
        for worker in self.workers:
            worker.close()

    def kill(self) -> None:
        """End all of them at once, since one failed."""
        for worker in self.workers:
            worker.kill()
