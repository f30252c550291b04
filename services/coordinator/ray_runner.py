"""Jobs in a Ray cluster, by way of an agent process that may be lost and replaced."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TextIO

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.coordinator.runner import AgentCall, Capacity, ClusterError, Condition, Look
from lowdimfa.services.trainer.cluster import unreachable
from lowdimfa.services.trainer.request import RunRequest

START_LIVENESS = 2.0
"""An agent may take this many times the liveness to start: it imports torch and joins the cluster."""

_log = logging.getLogger(__name__)


class RayRunner:
    """A `JobRunner` for a Ray cluster.

    Parameters
    ----------
    find
        Returns the cluster's address; called whenever an agent has to be started, so that a cluster may come back
        elsewhere. ``host:port`` of its head, with this machine a node of it, or ``ray://host:port`` from outside.
    liveness
        Seconds after which a call that was not answered counts as failed; the agent is then replaced.
    log
        File for what the agent and Ray print.
    environment
        Settings of Ray for the agent, beyond those of this process.
    """

    def __init__(
        self,
        find: Callable[[], str],
        liveness: float,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._find, self._liveness, self._log = find, liveness, log
        self._environment = os.environ | dict(environment or {})
        self._address = ""
        self._process: subprocess.Popen[str] | None = None
        self._answers: SimpleQueue[str | None] = SimpleQueue()

    def capacity(self) -> Capacity:
        """Return what the cluster has."""
        return Capacity(**self._call("capacity"))

    def start(self, trainer: str, request: RunRequest) -> None:
        """Start a job's trainer."""
        self._call("start", trainer=trainer, request=asdict(request))

    def look(self, trainers: Collection[str]) -> Mapping[str, Look]:
        """Say what has become of each job's trainer."""
        if not trainers:
            return {}
        answer = self._call("look", trainers=list(trainers))
        return {name: Look(Condition(found["condition"]), found["outcome"]) for name, found in answer.items()}

    def stop(self, trainer: str, now: bool) -> None:
        """Ask a trainer to write a checkpoint and end, or end it and its blocks at once."""
        self._call("stop", trainer=trainer, now=now)

    def release(self, trainer: str) -> None:
        """Free what an ended job still holds."""
        self._call("release", trainer=trainer)

    def close(self) -> None:
        """Let the agent go."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(self._liveness / 6)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _call(self, call: AgentCall, **arguments: Any) -> Any:
        process = self._agent()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"call": call, "arguments": arguments}) + "\n")
            process.stdin.flush()
        except OSError:
            raise self._lost("its agent ended") from None
        return self._answer(self._liveness, call)

    def _answer(self, seconds: float, call: str) -> Any:
        line = self._line(seconds, call)
        if line is None:
            raise self._lost(f"its agent ended during '{call}'")
        reply = json.loads(line)
        if "error" in reply:
            raise self._lost(reply["error"])
        return reply["answer"]

    def _line(self, seconds: float, call: str) -> str | None:
        """Return what the agent says, None at its end; a cluster that has gone is noticed before the time is up."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            try:
                return self._answers.get(timeout=max(0.0, min(left, self._liveness / 12)))
            except Empty:
                pass
            if left <= 0:
                raise self._lost(f"no answer to '{call}' within {seconds:g} s")
            reason = unreachable(self._address, self._liveness / 6)  # Ray itself keeps trying for a minute
            if reason:
                raise self._lost(f"nothing answers at {self._address} any more ({reason})")

    def _agent(self) -> subprocess.Popen[str]:
        """Return the agent, started anew where there is none."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        try:
            address = self._address = self._find()
        except LowdimfaError as error:
            raise ClusterError(error.message) from error
        reason = unreachable(address, self._liveness / 6)  # cheaper to find out than with an agent
        if reason:
            raise ClusterError(f"nothing answers at {address} ({reason})")
        command = [
            sys.executable,
            "-m",
            "lowdimfa.services.coordinator.ray_agent",
            address,
            str(self._liveness),
        ]
        with self._log.open("ab") as log:
            # A session of its own: a Ctrl-C on the terminal is for the coordinator to handle.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._answers = SimpleQueue()
        reader = threading.Thread(
            target=_read, args=(self._process.stdout, self._answers), name="ray-agent", daemon=True
        )
        reader.start()
        process = self._process
        self._answer(START_LIVENESS * self._liveness, "join the cluster")
        return process

    def _lost(self, reason: str) -> ClusterError:
        """End an agent that can't be trusted to be of use again, and return the error."""
        _log.warning("the Ray cluster can't be reached: %s", reason)
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        return ClusterError(reason)


def _read(stdout: TextIO, answers: SimpleQueue[str | None]) -> None:
    """Hand on each line, and None at the end."""
    for line in stdout:
        answers.put(line)
    stdout.close()
    answers.put(None)
