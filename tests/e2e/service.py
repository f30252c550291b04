"""A job service as a user runs it: `lowdimfa serve` with a Ray cluster of its own, and the commands that talk to it."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from command import COMMAND, DIGITS, SECONDS, Outcome, environment, lowdimfa, settings

START_SECONDS = 120


class Service:
    """A coordinator's process, which can be killed and started again, and its clients."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.storage = folder / "runs"
        self._folder, self._arguments = folder, arguments
        self._port = "0"
        self.start()

    def start(self) -> None:
        """Start it, on the same port after the first time."""
        command = [COMMAND, "serve", "--format", "json", "--port", self._port, "--http-port", "0"]
        command += ["--storage", self.storage, "--liveness", "20", *self._arguments]
        with (self._folder / "serve.log").open("a") as log:
            self.process = subprocess.Popen(
                [*map(str, command)],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        timer = threading.Timer(START_SECONDS, self.process.kill)
        timer.start()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "serving":
                break
        else:
            raise AssertionError(f"the service did not start: {(self._folder / 'serve.log').read_text()}")
        timer.cancel()
        self.address, self.http = event["address"], event["http"]
        self._port = self.address.rpartition(":")[2]

    def kill(self) -> None:
        """End it as a lost machine does."""
        self.process.kill()
        self.process.communicate()

    def end(self) -> dict[str, Any]:
        """End it in order; return its last word."""
        self.process.send_signal(signal.SIGTERM)
        stdout, _ = self.process.communicate(timeout=60)
        return json.loads(stdout.splitlines()[-1])

    def run(self, *arguments: object) -> Outcome:
        """Run a client command."""
        return lowdimfa(*arguments, LOWDIMFA_COORDINATOR=self.address)

    def json(self, *arguments: object) -> dict[str, Any]:
        """Run a client command that prints one JSON object."""
        outcome = self.run(*arguments, "--format", "json")
        assert outcome.code == 0, outcome
        (line,) = outcome.stdout.splitlines()
        return json.loads(line)

    def submit(self, **overrides: object) -> str:
        """Submit the digits and return the job's id."""
        return str(self.json("submit", DIGITS, *settings(**overrides))["job"]["id"])

    @contextmanager
    def watching(self, job: str) -> Iterator[subprocess.Popen[str]]:
        """Watch a job in a process, as JSON lines."""
        process = subprocess.Popen(
            [COMMAND, "watch", job, "--format", "json"],
            env=environment(LOWDIMFA_COORDINATOR=self.address),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()
            process.communicate()


@contextmanager
def service(folder: Path, *arguments: object) -> Iterator[Service]:
    """Run a service, and leave no process of it or of its cluster behind."""
    running = Service(folder, *arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            for job in running.run("jobs", "--format", "json").stdout.splitlines():
                if json.loads(job)["ended"] is None:
                    running.run("stop", json.loads(job)["id"], "--now")
            running.end()
        left = processes_of(folder)
        for process in left:
            process.kill()
        assert not left, f"left behind: {left}"


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes whose arguments name a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in argument for argument in process.info["cmdline"] or ()):
            found.append(process)
    return found


def until(process: subprocess.Popen[str], kind: str) -> list[dict[str, Any]]:
    """Return what a watch prints up to the first event of a kind, or of a state."""
    assert process.stdout is not None
    events: list[dict[str, Any]] = []
    for line in process.stdout:
        events.append(json.loads(line))
        if kind in (events[-1]["event"], events[-1].get("state")):
            return events
    raise AssertionError(f"no {kind!r} before the end: {events[-3:]}")


def rest(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], int, str]:
    """Return what a watch prints until its end, its exit code, and what it said on standard error."""
    stdout, stderr = process.communicate(timeout=SECONDS)
    return [json.loads(line) for line in stdout.splitlines()], process.returncode, stderr
