"""The directory of a run: made once, never overwritten, used by one trainer at a time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from lowdimfa.errors import InputError
from services.spec import Specification, load_specification, to_yaml


def new_run_dir(storage: str, name: str) -> Path:
    """Return a path for a new run below ``storage``, named after the specification and the time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = Path(storage).expanduser() / f"{name}-{stamp}"
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{name}-{stamp}-{number}")
    return path.resolve()


class RunDir:
    """An open run directory; a context manager that holds its lock.

    Parameters
    ----------
    path
        The directory.
    resume
        Whether an earlier run in it goes on.

    Raises
    ------
    InputError
        A run is there and isn't resumed, none is there to resume, or another trainer uses it.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        taken = (path / "spec.yaml").exists()
        if taken and not resume:
            raise InputError(
                f"--run-dir {path}",
                "a run that is already there",
                "a new directory",
                "Add --resume to continue it.",
            )
        if resume and not taken:
            raise InputError(f"--run-dir {path}", "no run to resume", "the directory of an earlier run")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--run-dir {path}", f"a path that can't be made ({error})", "a writable place"
            ) from error
        self._lock = FileLock(path / "run.lock")

    def __enter__(self) -> RunDir:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"--run-dir {self.path}", "a run that another trainer is working on", "a run at rest"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    @property
    def events(self) -> Path:
        """The log of events."""
        return self.path / "events.jsonl"

    def describe(self, specification: Specification, plan: dict[str, Any]) -> None:
        """Write the resolved specification and the plan; `read_run` and `read_plan` read them."""
        (self.path / "spec.yaml").write_text(to_yaml(specification), encoding="utf-8")
        (self.path / "plan.json").write_text(json.dumps(plan, indent=1), encoding="utf-8")

    def conclude(self, line: str) -> None:
        """Write the result, one line of JSON."""
        (self.path / "result.json").write_text(line + "\n", encoding="utf-8")


def read_run(path: Path) -> Specification:
    """Return the resolved specification of a run.

    Raises
    ------
    InputError
        The directory isn't a run's.
    """
    if not (path / "spec.yaml").is_file():
        raise InputError(str(path), "a directory without spec.yaml", "the directory of a run")
    return load_specification(path / "spec.yaml")


def read_plan(path: Path) -> dict[str, Any]:
    """Return the plan of a run.

    Raises
    ------
    InputError
        There is none, or it is damaged.
    """
    try:
        plan = json.loads((path / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            str(path / "plan.json"), f"no readable plan ({error})", "the plan of a run"
        ) from error
    return dict(plan)


def targets_file(path: Path) -> Path:
    """Return where a run lists what Prometheus can scrape: one file per run, in one folder for all runs beside it.

    Prometheus takes wildcards only in the last part of a path.
    """
    return path.parent / "targets" / f"{path.name}.json"
