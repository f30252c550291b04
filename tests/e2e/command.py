"""Run the installed command as a user does, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

COMMAND = Path(sys.executable).parent / "lowdimfa"
EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = EXAMPLES / "digits_mlp.yaml"
SECONDS = 240
"""That a command may take, or be silent if it is one that goes on: only one that hangs is."""


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

    @property
    def said(self) -> list[str]:
        """The lines of standard error, without what Ray's native code warns of, dated, on a machine that is too busy."""
        lines = self.stderr.splitlines()
        return [line for line in lines if not re.match(r"\[\d{4}-\d\d-\d\d .* W ", line)]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"} | more


def lowdimfa(*arguments: object, cwd: Path | None = None, command: Path = COMMAND, **more: str) -> Outcome:
    done = subprocess.run(
        [command, *map(str, arguments)],
        cwd=cwd,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def local(spec: Path, run_dir: Path | str) -> tuple[object, ...]:
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


HOLD = '''
import time
from pathlib import Path

from lowdimfa import Callback


class Hold(Callback):
    """Holds a run at an event, for its liveness at most, while a file is there that is named after event and step."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def started(self, event, run):
        while (self.folder / f"{event['event']}-{event['step']}").exists():
            time.sleep(0.01)

    checkpoint = started
'''


def held(spec: Path, *places: str) -> list[str]:
    """Return overrides with which a run stands where it is to be killed, until the file of that name has gone.

    Parameters
    ----------
    spec
        Its specification, which gets files beside it.
    places
        Events with their steps, such as ``checkpoint-20``.
    """
    (spec.parent / "hold.py").write_text(HOLD)
    for place in places:
        (spec.parent / place).touch()
    return settings(run__callbacks=[{"factory": "hold:Hold", "args": {"folder": str(spec.parent)}}])


class Process(Protocol):
    """A process, of `subprocess` or a fork."""

    pid: int
    stdout: IO[str] | None
    stderr: IO[str] | None

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int) -> None: ...

    def kill(self) -> None: ...


class Going:
    """A command that goes on while the test reads what it prints; a context manager that ends it.

    All is read through the streams' own buffers. `Popen.communicate` reads beside them, and loses what iteration over
    lines has read ahead. A command that says nothing for `SECONDS` is ended.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        assert process.stdout is not None
        self._stdout = process.stdout
        self._heard = time.monotonic()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._end_the_silent)
        self._watch.start()

    def until(self, kind: str) -> list[dict[str, Any]]:
        """Return the events up to the next one of a kind, or of a job's state."""
        events: list[dict[str, Any]] = []
        for event in self.events():
            events.append(event)
            if kind in (event["event"], event.get("state")):
                return events
        raise AssertionError(f"no {kind!r} before the end: {events[-3:]}")

    def events(self) -> Iterator[dict[str, Any]]:
        """Give what it prints as it comes."""
        return map(json.loads, self._lines())

    def said(self) -> str:
        """Return the next line of standard error."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal tells every process of the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> Outcome:
        """Wait for the end and return what was not read yet."""
        with ThreadPoolExecutor(1) as pool:  # so that it finds room for both
            errors = pool.submit(self.process.stderr.read) if self.process.stderr else None
            stdout = "".join(self._lines())
            return Outcome(self.process.wait(SECONDS), stdout, errors.result() if errors else "")

    def _lines(self) -> Iterator[str]:
        for line in self._stdout:
            self._heard = time.monotonic()
            yield line

    def _end_the_silent(self) -> None:
        while not self._over.wait(max(0.0, self._heard + SECONDS - time.monotonic())):
            if time.monotonic() >= self._heard + SECONDS:
                self.process.kill()
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watch.join()
        self.process.kill()
        self.process.wait(SECONDS)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def started(*arguments: object, **more: str) -> Going:
    """Run the installed command while the test goes on, in a session of its own, as in a terminal."""
    return Going(
        subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            env=environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    )


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
