"""Writing checkpoints so that a crash at any moment leaves the last good one, and finding them again.

Each block writes its own file straight to where the run is kept; the manifest comes last, and only after that older
checkpoints are deleted, each beginning with its manifest. So a checkpoint with a manifest is complete, in a folder and
in an object store alike. Files of an attempt are called as those of no other attempt.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from lowdimfa.errors import InputError
from lowdimfa.services.run import leftovers
from lowdimfa.services.run.checkpoint_files import (
    Attempt,
    BlockEntry,
    BlockState,
    DamagedError,
    Fetched,
    write_block,
)
from lowdimfa.services.run.disk import refusal
from lowdimfa.services.run.leftovers import COURSE, ROOT, folder_of
from lowdimfa.services.run.manifest import (
    MANIFEST_FILE,
    Manifest,
    ManifestFile,
    NewestGood,
    export_file,
    export_state,
    way_back,
)
from lowdimfa.services.run.objects import PATIENCE, Objects, ObjectsError
from lowdimfa.services.run.storage import Place, storage_of

__all__ = [
    "Attempt",
    "BlockState",
    "CheckpointStore",
    "Manifest",
    "export_file",
    "export_state",
    "write_block",
]

_OWNER = f"{ROOT}/owner"


class CheckpointStore:
    """The checkpoints of one run; one trainer at a time writes them.

    Parameters
    ----------
    place
        Of the run: the directory, on storage that all blocks share, or an address.
    keep
        How many checkpoints `commit` keeps, at least 1; whoever only reads need not say.
    patience
        Seconds for which an object store that does not answer is asked again.

    Raises
    ------
    InputError
        No installed package knows addresses of this kind.
    """

    def __init__(self, place: Place, keep: int = 1, patience: float = PATIENCE) -> None:
        self._place, self._keep, self._patience = place, keep, patience
        self._storage = storage_of(place, patience)
        self._token = ""
        self._noted: int | None = None  # the step from which the run goes on, where later ones are given up

    def claim(self) -> None:
        """Let no trainer that claimed these checkpoints before complete or delete any more, where no lock does that.

        Raises
        ------
        ResourceError
            That can't be noted.
        """
        if self._storage.shared:
            self._token = secrets.token_hex(16)
            try:
                with self._storage.writing(_OWNER) as file:
                    file.write(self._token.encode())
            except OSError as error:
                raise refusal("the run can't be claimed", self._storage.place(_OWNER), error) from error

    def begin(self, step: int) -> Attempt:
        """Begin a checkpoint; what earlier attempts left behind in a folder is removed, to make room.

        An object store has room, and may take long to answer: there `commit` does it.

        Raises
        ------
        ResourceError
            That can't be done.
        """
        if not self._storage.shared:
            with self._attempt(step):
                leftovers.sweep(self._storage)
        # A block that was given up, by this trainer or one before, may write on.
        return Attempt(str(self._place), folder_of(step), secrets.token_hex(4), self._patience)

    def abandon(self) -> None:
        """Remove what a checkpoint that isn't completed left, as far as that is possible."""
        with suppress(OSError, InputError):
            self.require_own()
            leftovers.sweep(self._storage)

    def require_own(self) -> None:
        """Refuse to go on if another trainer has claimed these checkpoints since `claim`.

        Raises
        ------
        InputError
            One has.
        OSError
            The storage doesn't say.
        """
        if self._token and self._storage.read(_OWNER) != self._token.encode():
            raise InputError(
                f"run directory {self._place}",
                "a run that another trainer has taken over",
                "one trainer at a time",
            )

    def commit(
        self,
        step: int,
        entries: Sequence[dict[str, Any]],
        meta: Mapping[str, Any],
        kept: Collection[int] = (),
    ) -> Place:
        """Complete the checkpoint that `begin` began, then delete those that are no longer kept.

        A checkpoint of a later step is deleted too: it belongs to a course of the run that was given up when
        the run resumed before it, and must not be taken for the newest state. If the storage refuses something, the
        checkpoints that were there stay, and nothing is left of an incomplete one.

        Parameters
        ----------
        step
            Optimiser steps applied.
        entries
            What `write_block` returned in each block.
        meta
            Notes about the run that JSON can hold.
        kept
            Steps of checkpoints that stay, beside the newest.

        Raises
        ------
        InputError
            A block's file is not there, because the storage is not shared by all blocks; or another trainer has claimed
            the run.
        ResourceError
            The storage refused something; a `DiskFullError` where that is for lack of room, a `StorageError` where an
            object store is at fault.
        """
        with self._attempt(step):
            self.require_own()
            return self._commit(step, entries, meta, kept)

    def _commit(
        self, step: int, entries: Sequence[dict[str, Any]], meta: Mapping[str, Any], kept: Collection[int]
    ) -> Place:
        manifest = ManifestFile(step=step, meta=dict(meta), blocks=[BlockEntry(**entry) for entry in entries])
        there = leftovers.folders(self._storage).get(folder_of(step), {})
        for entry in manifest.blocks:
            if there.get(entry.file) != entry.bytes:
                where = self._storage.place(f"{folder_of(step)}/{entry.file}")
                raise InputError(
                    "run.storage", f"no complete {where}", "storage that all blocks and the trainer share"
                )
        text = manifest.text()
        name = f"{folder_of(step)}/{MANIFEST_FILE}"
        with self._storage.writing(name) as file:
            file.write(text)
        try:  # once more, as that may have taken long
            self.require_own()
        except InputError:
            with suppress(FileNotFoundError):  # whoever has the run may have swept it
                if self._storage.read(name) == text:
                    self._storage.delete(name)
            raise
        leftovers.prune(self._storage, step, self._keep, kept, self._noted)
        self._noted = None
        return self._storage.place(folder_of(step))

    def go_on_from(self, step: int) -> None:
        """Note that the run goes on from the checkpoint of a step: later ones are of a course that it gives up.

        They stay until the next is complete, but are none of the run's. 0 is for a run that begins.

        Raises
        ------
        ResourceError
            That can't be noted.
        """
        with self._attempt(step):
            later = any(number > step for number in leftovers.complete(self._storage))
            self._noted = step if later else None
            if later:
                with self._storage.writing(COURSE) as file:
                    file.write(str(step).encode())
            elif self._course() is not None:
                self._storage.delete(COURSE)

    def _course(self) -> int | None:
        try:
            return int(self._storage.read(COURSE))
        except FileNotFoundError:
            return None

    def _complete(self) -> Sequence[int]:
        last = self._course()  # first: whoever deletes it has deleted what it hides
        return [step for step in leftovers.complete(self._storage) if last is None or step <= last]

    def every(self) -> Sequence[int]:
        """Return the steps of all complete checkpoints, also of those of a course that was given up."""
        with self._asked():
            return leftovers.complete(self._storage)

    def list(self) -> Sequence[int]:
        """Return the steps of the complete checkpoints of the run's present course, oldest first.

        Raises
        ------
        StorageError
            An object store doesn't say, here and wherever one is read.
        """
        with self._asked():
            return self._complete()

    def latest(self) -> Manifest | None:
        """Return the newest checkpoint, or None if there is none.

        Raises
        ------
        InputError
            The newest one is damaged.
        """
        return self.load(None) if self.list() else None

    def newest_good(self, last: int | None = None) -> NewestGood:
        """Return the newest checkpoint that is as it was written, passing over damaged ones.

        Parameters
        ----------
        last
            Step after which none counts, as those of a course of the run that was given up; None counts all.
        """
        with self._asked():
            return self._newest_good(step for step in self._complete() if last is None or step <= last)

    def load(self, step: int | None, lazily: bool = False) -> Manifest:
        """Return the verified checkpoint of a step, or the newest one.

        Parameters
        ----------
        step
            Of the checkpoint.
        lazily
            Whether each block's file is verified only when something in it is wanted, as is enough for one block where
            somebody else has verified all.

        Raises
        ------
        InputError
            There is none, or it is damaged; the message names the file and an older good checkpoint, if any.
        """
        with self._asked():
            complete = self._complete() if step is None else leftovers.complete(self._storage)
            chosen = max(complete, default=None) if step is None else step
            if chosen is None or chosen not in complete:
                there = ", ".join(map(str, complete)) or "none"
                wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
                root = str(self._storage.place(ROOT))
                raise InputError(root, f"no {wanted}", f"a complete one (there: {there})")
            try:
                return self._read(chosen, lazily)
            except DamagedError as error:
                older = self._newest_good(number for number in complete if number < chosen)
                raise error.refused(way_back(older.manifest)) from error

    def _read(self, step: int, lazily: bool = False) -> Manifest:
        if isinstance(self._storage, Objects):
            return Manifest.read(Fetched(self._storage, folder_of(step)), step)
        return Manifest.read(self._storage.place(folder_of(step)), step, lazily)

    def _newest_good(self, steps: Iterable[int]) -> NewestGood:
        damaged: dict[int, DamagedError] = {}
        for step in sorted(steps, reverse=True):
            try:
                return NewestGood(self._read(step), damaged)
            except DamagedError as error:
                damaged[step] = error
        return NewestGood(None, damaged)

    @contextmanager
    def _attempt(self, step: int) -> Iterator[None]:
        """Make what the storage refuses a typed error, and leave nothing of the attempt."""
        try:
            yield
        except OSError as error:
            self.abandon()
            where = self._storage.place(ROOT)
            raise refusal(f"the checkpoint of step {step} can't be written", where, error) from error

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except ObjectsError as error:
            raise refusal("checkpoints can't be read", self._storage.place(ROOT), error) from error
