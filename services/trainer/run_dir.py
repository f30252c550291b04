"""The directory of a run: made once, never overwritten, used by one trainer at a time."""

from __future__ import annotations

import json
import os
import secrets
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from lowdimfa.errors import InputError, LowdimfaError, PeerError, ResourceError
from lowdimfa.services.monitoring.journal import Journal
from lowdimfa.services.run.disk import no_room, refusal, replace_text
from lowdimfa.services.run.mirror import TARGETS, work_dir
from lowdimfa.services.run.naming import named, require_usable
from lowdimfa.services.run.objects import PATIENCE
from lowdimfa.services.run.storage import Place, located
from lowdimfa.services.spec import Specification, load_specification, to_yaml
from lowdimfa.services.spec.addresses import is_address


def new_run_dir(storage: str, name: str) -> str:
    """Return a place for a new run below ``storage``, named after the specification and the time.

    Raises
    ------
    InputError
        ``storage`` names a variable that is not set, or has credentials in it.
    """
    parent, named = located(storage), f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if is_address(parent):  # nobody is asked whether the name is free: it is nobody else's
        return f"{parent}/{named}-{secrets.token_hex(2)}"
    return str(next(path for path in _names(Path(parent) / named) if not path.exists()))


@contextmanager
def reserved(path: Path) -> Iterator[Path]:
    """Make the directory of a new run, of which nobody else has the name: ``path``, or one with a number after it.

    If nothing comes to lie in it, because the run is refused, it is removed again, with the folders made for it.

    Raises
    ------
    InputError
        Nothing can be written there.
    DiskFullError
        There is no room for it.
    """
    _require_writable(path)
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        own = next(folder for folder in _names(path) if _made(folder))
    except OSError as error:
        raise _refusal(path, error) from error
    try:
        yield own
    finally:
        with suppress(OSError):
            for folder in (own, *made):
                folder.rmdir()


def _names(path: Path) -> Iterator[Path]:
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}-{number}")


def _made(folder: Path) -> bool:
    """Make a folder; return False if there is one already."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


class RunDir:
    """An open run directory; a context manager that makes it and holds its lock.

    Parameters
    ----------
    place
        The directory, or the address.
    resume
        Whether an earlier run in it goes on.
    patience
        Seconds to wait for another trainer that uses it.

    Attributes
    ----------
    path
        The folder in which the run works.

    Raises
    ------
    InputError
        As `require_run_dir`, or another trainer uses it.
    DiskFullError
        There is no room for it.
    """

    def __init__(self, place: Place, resume: bool, patience: float = 0.0) -> None:
        self.path = work_dir(place)
        self._place, self._resume, self._patience = place, resume, patience
        self._lock = FileLock(self.path / "run.lock")

    def __enter__(self) -> RunDir:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=self._patience)
        except Timeout:
            if self._patience:
                raise PeerError(
                    f"run directory {self.path}: the trainer that was taken for lost still works on it after "
                    f"{self._patience:g} s; end its process, and those of its blocks"
                ) from None
            raise InputError(
                f"run directory {self.path}", "a run that another trainer is working on", "a run at rest"
            ) from None
        except OSError as error:
            raise _refusal(self.path, error) from error
        try:
            require_run_dir(self._place, self._resume)  # another trainer may have come and gone
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def describe(self, specification: Specification, plan: dict[str, Any]) -> None:
        """Write the resolved specification and the plan; `read_run` and `read_plan` read them.

        Raises
        ------
        ResourceError
            The disk refused; those of an earlier part of the run are still there.
        """
        what = "the run can't be described"
        replace_text(self.path / "plan.json", json.dumps(plan, indent=1), what)
        replace_text(self.path / "spec.yaml", to_yaml(specification), what)  # by which a run is known: last

    def description(self) -> dict[str, bytes]:
        """Return what `describe` has written before, by name."""
        files = [self.path / name for name in ("plan.json", "spec.yaml")]
        return {file.name: file.read_bytes() for file in files if file.is_file()}

    def restore(self, description: Mapping[str, bytes]) -> None:
        """Write a former description again, as far as the disk lets it; what is there already needs no room."""
        for name, text in description.items():
            with suppress(ResourceError, UnicodeDecodeError):
                replace_text(self.path / name, text.decode(), "the run can't be described")

    def keep_traceback(self, error: BaseException) -> str:
        """Write where an unexpected error came from into a file, and return its path, or why it could not be kept."""
        path = self.path / "traceback.txt"
        try:
            text = "".join(traceback.format_exception(error))
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as refused:
            return f"not kept, since {path} can't be written: {refused.strerror}"
        return str(path)

    def conclude(self, line: str) -> None:
        """Write the result, one line of JSON.

        Raises
        ------
        ResourceError
            The disk refused. The last checkpoint is there: a resumed run has nothing to do but to write its result.
        """
        what = "the run is done, but its result can't be kept"
        replace_text(self.path / "result.json", line + "\n", what)


def require_run_dir(place: Place, resume: bool, patience: float = PATIENCE) -> None:
    """Check that a run can use a directory, without leaving anything there.

    Raises
    ------
    InputError
        A run is there and isn't resumed, none is there to resume, or nothing can be written there.
    """
    if _written(place) != str(place):
        raise InputError(f"run directory {_written(place)}", "a name that is no UTF-8", "another name")
    apart = is_address(place)
    taken = require_usable(str(place), patience) if apart else named(place)
    if taken and not resume:
        raise InputError(
            f"run directory {place}",
            "a run that is already there",
            "a new directory",
            "Add --resume to continue that run.",
        )
    if resume and not taken:
        raise InputError(f"run directory {place}", "no run to resume", "the directory of an earlier run")
    if not apart:
        _require_writable(Path(place))


def _written(place: Place) -> str:
    """Return a place as files and messages can have it; a name on the disk may hold any bytes."""
    return str(place).encode(errors="replace").decode()


def _require_writable(path: Path) -> None:
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not nearest.is_dir():
        raise _not_writable(path, f"{nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _not_writable(path, f"{nearest} is read-only")


def _refusal(path: Path, error: OSError) -> LowdimfaError:
    if no_room(error):
        return refusal("the run can't begin before there is room", path, error)
    return _not_writable(path, str(error))


def _not_writable(path: Path, reason: str) -> InputError:
    return InputError(
        f"run directory {path}",
        f"a path that can't be written ({reason})",
        "a writable place",
        "Set --run-dir or run.storage.",
    )


@contextmanager
def opened(journal: Journal) -> Iterator[Journal]:
    """Open a journal, and close it at the end.

    Raises
    ------
    ResourceError
        It can't be opened.
    """
    try:
        journal.open()
    except OSError as error:
        raise refusal("the log of events can't be opened", journal.path, error) from error
    try:
        yield journal
    finally:
        journal.close()


def read_run(path: Path) -> Specification:
    """Return the resolved specification of a run.

    Raises
    ------
    InputError
        The directory isn't a run's.
    """
    if not (path / "spec.yaml").is_file():
        raise InputError(
            str(path),
            "a directory without spec.yaml" if path.is_dir() else "no directory",
            "the directory of a run",
        )
    return load_specification(path / "spec.yaml", kept=True)


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


def postmortem_file(path: Path) -> Path:
    """Return where a run that failed leaves every block's last words."""
    return path / "postmortem.txt"


def targets_file(place: Place) -> Path:
    """Return where a run lists what Prometheus can scrape: one file per run, in one folder for all runs beside it.

    Prometheus takes wildcards only in the last part of a path. Of a run at an address, a service alone reads the list.
    """
    if is_address(place):
        return work_dir(place) / TARGETS
    path = Path(place)
    return path.parent / "targets" / f"{path.name}.json"
