"""Which checkpoints are complete where a run is kept, and the deletion of those, and of all else, that is of no use."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from contextlib import suppress

from lowdimfa.services.run.disk import refusal
from lowdimfa.services.run.manifest import MANIFEST_FILE, ManifestFile
from lowdimfa.services.run.objects import Objects, ObjectsError
from lowdimfa.services.run.storage import Folder

ROOT = "checkpoints"
COURSE = f"{ROOT}/course"
"""Names the step from which a run goes on that gives later checkpoints up, until it has one of its own."""
_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")
_OURS = re.compile(r"block-\S+\.safetensors|\..+\.partial")
"""Files of attempts; what else lies in the folder of a complete checkpoint is whoever's who put it there."""

_log = logging.getLogger(__name__)


def folder_of(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"{ROOT}/step-{step:08d}"


def folders(storage: Folder | Objects) -> dict[str, dict[str, int]]:
    """Return the folders of checkpoints, complete or not, and in each the sizes of its files."""
    found = storage.tree(ROOT).items()
    return {f"{ROOT}/{name}": files for name, files in found if _NAME.fullmatch(name)}


def complete(storage: Folder | Objects) -> Sequence[int]:
    """Return the steps of the complete checkpoints, oldest first."""
    found = folders(storage).items()
    return sorted(int(folder.rpartition("-")[2]) for folder, files in found if MANIFEST_FILE in files)


def sweep(storage: Folder | Objects) -> None:
    """Delete what belongs to no complete checkpoint.

    Raises
    ------
    OSError
        The storage refuses.
    """
    for folder, files in folders(storage).items():
        if MANIFEST_FILE not in files:
            storage.discard(folder, first=MANIFEST_FILE)
        elif ours := {file for file in files if _OURS.fullmatch(file)}:
            for file in sorted(ours - _listed(storage, folder, ours)):
                storage.delete(f"{folder}/{file}")


def _listed(storage: Folder | Objects, folder: str, there: set[str]) -> set[str]:
    """Return the files that a manifest lists: all that are there if it is damaged, and says nothing of them."""
    try:
        manifest = ManifestFile.model_validate_json(storage.read(f"{folder}/{MANIFEST_FILE}"))
    except ObjectsError:
        raise
    except (OSError, ValueError):
        return there
    return {entry.file for entry in manifest.blocks}


def prune(storage: Folder | Objects, step: int, keep: int, kept: Collection[int], course: int | None) -> None:
    """Delete what a new checkpoint leaves without use.

    Checkpoints of later steps are of a course that was given up, as are those between the step from which the run goes
    on and the new one: none may be left. Then goes the note that hid them, and the new one with them. Only then come
    older ones; where they can't be deleted, the new one is there all the same.

    Parameters
    ----------
    storage
        Of the run.
    step
        Of the new checkpoint.
    keep, kept
        How many of the newest stay, and which steps beside them.
    course
        The step that the note has from which the run goes on; None without a note.

    Raises
    ------
    OSError
        One of a course that was given up can't be deleted.
    """
    there = complete(storage)
    given_up = [
        number for number in there if number > step or (course is not None and course < number < step)
    ]
    for number in reversed(given_up):
        storage.discard(folder_of(number), first=MANIFEST_FILE)
    if course is not None:
        storage.delete(COURSE)
    own = sorted({*there} - {*given_up})
    try:
        for old in {*own} - {*own[-keep:], *kept}:
            storage.discard(folder_of(old), first=MANIFEST_FILE)
        sweep(storage)
    except OSError as error:
        _log.warning("%s", refusal("an old checkpoint can't be deleted", storage.place(ROOT), error).message)
        with suppress(OSError):
            sweep(storage)
