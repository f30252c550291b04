"""A job service as a user runs it: `lowdimfa serve` with a Ray cluster of its own, and the commands that talk to it."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from command import COMMAND, DIGITS, Going, Outcome, environment, settings
from forks import Forks

START_SECONDS = 240


class Service:
    """A coordinator's process, which can be killed and started again, and its clients."""

    def __init__(
        self, folder: Path, forks: Forks, *arguments: object, command: Path = COMMAND, **more: str
    ) -> None:
        self.storage = folder / "runs"
        self._folder, self._forks, self._arguments, self._command = folder, forks, arguments, command
        self._environment = environment(**more)
        self._port = self._page_port = "0"
        self.start()

    def start(self) -> None:
        """Start it, on the same port after the first time."""
        command = [self._command, "serve", "--format", "json", "--port", self._port, "--http-port", "0"]
        command += ["--page-port", self._page_port]
        command += ["--storage", self.storage, "--liveness", "60", *self._arguments]
        with (self._folder / "serve.log").open("a") as log:
            self.process = subprocess.Popen(
                [*map(str, command)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        timer = threading.Timer(START_SECONDS, self.process.kill)
        timer.start()
        assert self.process.stdout is not None
        events = map(json.loads, self.process.stdout)
        event = next((event for event in events if event["event"] == "serving"), None)
        timer.cancel()
        if event is None:
            self.process.kill()
            raise AssertionError(f"the service did not start: {(self._folder / 'serve.log').read_text()}")
        self.address, self.http, self.page = event["address"], event["http"], event["page"]
        self._port, self._page_port = (name.rpartition(":")[2] for name in (self.address, self.page))

    def kill(self) -> None:
        """End it as a lost machine does."""
        self.process.kill()
        self.process.communicate()

    def end(self) -> dict[str, Any]:
        """End it in order; return its last word."""
        self.process.send_signal(signal.SIGTERM)
        with Going(self.process) as going:
            return going.end().events[-1]

    def run(self, *arguments: object) -> Outcome:
        """Run a client command."""
        return self._forks.run(*arguments, LOWDIMFA_COORDINATOR=self.address)

    def json(self, *arguments: object) -> dict[str, Any]:
        """Run a client command that prints one JSON object."""
        outcome = self.run(*arguments, "--format", "json")
        assert outcome.code == 0, outcome
        (line,) = outcome.stdout.splitlines()
        return json.loads(line)

    def submit(self, spec: Path = DIGITS, **overrides: object) -> str:
        """Submit a specification and return the job's id."""
        return str(self.json("submit", spec, *settings(**overrides))["job"]["id"])

    def stop_all(self) -> list[str]:
        """Stop every job that is under way; return their names."""
        jobs = map(json.loads, self.run("jobs", "--format", "json").stdout.splitlines())
        going = [str(job["id"]) for job in jobs if job["ended"] is None]
        for job in going:
            self.stop(job)
        return going

    def stop(self, job: str) -> None:
        """Stop a job at once, and wait until its processors are free again."""
        self.run("stop", job, "--now")
        with self.watching(job) as watch:
            watch.end()

    def watching(self, job: str) -> Going:
        """Watch a job, as JSON lines; the service may be away for as long as its start takes."""
        command = ("watch", job, "--format", "json", "--liveness", START_SECONDS)
        return Going(self._forks.start(*command, LOWDIMFA_COORDINATOR=self.address))


@contextmanager
def service(
    folder: Path, forks: Forks, *arguments: object, command: Path = COMMAND, **more: str
) -> Iterator[Service]:
    """Run a service, and leave no process of it or of its cluster behind."""
    running = Service(folder, forks, *arguments, command=command, **more)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop_all()
            running.end()
        left = processes_of(folder)
        for process in left:
            process.kill()
        assert not left, f"left behind: {left}"


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes whose arguments name a folder; not those that ended and wait for somebody to notice it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in argument for argument in process.info["cmdline"] or ()):
            with suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found
