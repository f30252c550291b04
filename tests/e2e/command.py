"""Run the installed command as a user does, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).parent / "lowdimfa"
EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = EXAMPLES / "digits_mlp.yaml"
SECONDS = 240


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every line of standard output, which has to be one JSON object."""
        events = [json.loads(line) for line in self.stdout.splitlines()]
        assert all(isinstance(event, dict) for event in events)
        return events

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"} | more


def lowdimfa(*arguments: object, cwd: Path | None = None, **more: str) -> Outcome:
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def local(spec: Path, run_dir: Path) -> tuple[object, ...]:
    """Return the arguments of a training in one process."""
    return ("train", spec, "--engine", "local", "--format", "json", "--run-dir", run_dir)


def train(spec: Path, run_dir: Path, *arguments: object) -> Outcome:
    return lowdimfa(*local(spec, run_dir), *arguments)


def settings(**values: object) -> list[str]:
    """Return overrides; ``__`` stands for the dot."""
    return [
        part
        for key, value in values.items()
        for part in ("--set", f"{key.replace('__', '.')}={json.dumps(value)}")
    ]


class Training:
    """A training that goes on while the test looks at it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def until(self, kind: str) -> dict[str, Any]:
        """Return the next event of a kind."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == kind:
                return event
        raise AssertionError(f"no event {kind!r} before the end")

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal tells every process of the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> Outcome:
        """Wait for the end and return what was not read yet."""
        stdout, stderr = self.process.communicate(timeout=SECONDS)
        return Outcome(self.process.returncode, stdout, stderr)


@contextmanager
def training(spec: Path, run_dir: Path, *arguments: object) -> Iterator[Training]:
    process = subprocess.Popen(
        [COMMAND, *map(str, (*local(spec, run_dir), *arguments))],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a test can signal the whole group, as a terminal does
    )
    try:
        yield Training(process)
    finally:
        process.kill()
        process.communicate()


def refused(outcome: Outcome, *words: str, code: int = 2) -> None:
    """Check a refusal: its exit code, one message with the words, and no traceback."""
    assert outcome.code == code, outcome
    assert outcome.stderr.startswith("lowdimfa: "), outcome.stderr
    assert outcome.stderr.count("lowdimfa: ") == 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    for word in words:
        assert word in outcome.stderr, (word, outcome.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, to see whether anything was touched."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
