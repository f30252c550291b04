"""The folder in which the processes of a run work, and the copy of it that an object store has.

Object stores can't append. So what grows (events, timeline, logs) and all other small files lie in a folder of the
machine, and whole copies of them go to the store: of the trainer's at each checkpoint and at the end, of a block's own
timeline and log by the block. What others follow while it grows is copied every few seconds as well.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from lowdimfa.errors import InputError
from lowdimfa.services.monitoring.journal import EVENTS
from lowdimfa.services.run.disk import refusal
from lowdimfa.services.run.objects import PATIENCE, Objects
from lowdimfa.services.run.storage import Place
from lowdimfa.services.spec.addresses import is_address

NAMED = "spec.yaml"
"""Name of the file by which a run is known."""

DESCRIPTION = {NAMED, "plan.json"}
"""Names of the files that say what a run is."""

TARGETS = "targets.json"
"""Name of the file that lists, of a run at an address, what Prometheus can scrape."""

COPY_SECONDS, COPY_SHARE = 2.0, 0.05
"""Least pause between copies of what is followed, and the most of the time that they may take."""

_APART = ("checkpoints", "run.lock")
"""What isn't copied: blocks write checkpoints to the store themselves."""


def work_dir(place: Place) -> Path:
    """Return the folder of this machine in which the processes of a run append to files and look things up.

    It is the run's own folder, or for an address one of this user's among the temporary files, which is made; all runs
    beside each other in a store are beside each other there.

    Raises
    ------
    InputError
        Somebody else has made that folder, or it can't be made.
    """
    if not is_address(place):
        return Path(place)
    parent, _, name = str(place).rstrip("/").rpartition("/")
    base = Path(tempfile.gettempdir()) / f"lowdimfa-{os.getuid()}"
    folder = base / hashlib.sha256(parent.encode()).hexdigest()[:16] / name
    try:
        if not base.is_symlink():
            base.mkdir(mode=0o700, exist_ok=True)
        if base.is_symlink() or base.stat().st_uid != os.getuid():
            raise InputError(str(base), "a folder that somebody else made", "your own", "Set TMPDIR.")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"a folder that can't be made ({error.strerror})"
        raise InputError(str(folder), found, "one for what grows", "Set TMPDIR.") from error
    return folder


def fetch(
    place: Place, wanted: Callable[[str], bool] = lambda name: True, patience: float = PATIENCE
) -> Path:
    """Bring a run's small files to this machine, and return the folder in which they are.

    A file that goes on from where its copy ends is left as it is: a process of this machine appends to it. Those of runs
    below this one, at longer addresses, stay where they are: they may go on elsewhere.

    Parameters
    ----------
    place
        Of the run; a folder is returned as it is.
    wanted
        Which files, by name.
    patience
        See `storage_of`.

    Raises
    ------
    StorageError
        The store can't be read.
    """
    folder = work_dir(place)
    if not is_address(place):
        return folder
    try:
        objects = Objects(str(place), patience)
        names = objects.files()
        others = tuple(name.removesuffix(NAMED) for name in names if name.endswith(f"/{NAMED}"))
        for name in names:
            parts = PurePosixPath(name).parts
            own = parts[0] not in _APART and not {"..", "/"} & {*parts} and not name.startswith(others)
            if own and wanted(name):
                with suppress(FileNotFoundError):  # it has gone since
                    _put(folder / name, objects.read(name))
    except OSError as error:
        raise refusal("the files of the run can't be fetched", str(place), error) from error
    return folder


def _put(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes().startswith(content):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    scratch.write_bytes(content)
    scratch.replace(path)


def forget(place: Place) -> None:
    """Empty the folder of this machine that belongs to an address, but for its lock: a run begins there."""
    if is_address(place):
        for path in work_dir(place).iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "run.lock":
                path.unlink()


def followed(name: str) -> bool:
    """Whether others look at a file while it grows: events, logs and what Prometheus can scrape."""
    return name in (EVENTS, TARGETS) or name.startswith("logs/")


def files_of(process: str) -> set[str]:
    """Return the names of the files to which a block's process appends."""
    return {f"timeline/{process}.jsonl", f"logs/{process}.log"}


class Mirror:
    """Copies what has changed to the store, in any thread; for a run in a folder there is nothing to do.

    Parameters
    ----------
    place
        Of the run.
    wanted
        Which files, by name.
    patience
        See `storage_of`.
    """

    def __init__(
        self, place: Place, wanted: Callable[[str], bool] = lambda name: True, patience: float = PATIENCE
    ) -> None:
        self._objects = Objects(str(place), patience) if is_address(place) else None
        self._folder, self._wanted = work_dir(place), wanted
        self._sent: dict[str, tuple[int, int]] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._require_own: Callable[[], None] = lambda: None

    def guard(self, require_own: Callable[[], None]) -> None:
        """Copy and delete nothing any more once this raises: the run is another trainer's, and so are the copies."""
        self._require_own = require_own

    def update(self, only: Callable[[str], bool] = lambda name: True) -> str:
        """Copy each file that is new, or has changed since it was copied last; return why that isn't possible, or ""."""
        if self._objects is None:
            return ""
        with self._lock:
            return self._update(self._objects, only)

    def keep_up(self) -> None:
        """Copy what others follow every few seconds until `close`; a store out of reach is what `update` tells of."""
        if self._objects is not None:
            self._thread = threading.Thread(target=self._keep_up, name="mirror", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Copy what has changed for the last time, as far as that is possible."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if (
            not self.update()
            and self._objects is not None
            and TARGETS in self._sent
            and not (self._folder / TARGETS).exists()
        ):
            with suppress(OSError):
                self._objects.delete(TARGETS)

    def _keep_up(self) -> None:
        pause = COPY_SECONDS
        while not self._over.wait(pause):
            began = time.monotonic()
            self.update(followed)
            pause = max(COPY_SECONDS, (time.monotonic() - began) / COPY_SHARE)

    def _update(self, objects: Objects, only: Callable[[str], bool]) -> str:
        try:
            self._require_own()
        except InputError as error:
            return error.message
        except OSError as error:
            return f"{objects.address} can't be read: {error.strerror}"
        # Folders may vanish meanwhile, which this passes over.
        for path in sorted(
            Path(parent, file) for parent, _, files in os.walk(self._folder) for file in files
        ):
            name = path.relative_to(self._folder).as_posix()
            ours = name.split("/")[0] not in _APART and not path.name.endswith(".partial")
            if not (ours and self._wanted(name) and only(name)):
                continue
            try:
                if path.is_file() and (stamp := _stamp(path)) != self._sent.get(name):
                    with objects.writing(name) as copy, path.open("rb") as file:
                        shutil.copyfileobj(file, copy)
                    self._sent[name] = stamp
            except FileNotFoundError:
                continue  # it has gone meanwhile
            except OSError as error:
                return f"{objects.place(name)} can't be written: {error.strerror}"
        return ""


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
