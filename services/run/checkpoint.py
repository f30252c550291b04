"""Writing checkpoints so that a crash at any moment leaves the last good one, and finding them again.

Each block writes its own file into a temporary directory; then the manifest is written, the directory is
renamed into place, and only after that older checkpoints are deleted. So a name that is in place is complete.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from lowdimfa.errors import InputError
from lowdimfa.services.run.disk import refusal
from lowdimfa.services.run.manifest import (
    MANIFEST_FILE,
    BlockEntry,
    DamagedError,
    Manifest,
    ManifestFile,
    digest,
    export_file,
    export_state,
    save_durably,
    sync,
)

__all__ = ["BlockState", "CheckpointStore", "Manifest", "export_file", "export_state", "write_block"]

# While a checkpoint is replaced by a new one of the same step, the old one is found under its second name.
_COMPLETE = re.compile(r"step-([0-9]{8,})(\.replaced)?")
_TEMPORARY = ".tmp"


@dataclass(frozen=True)
class BlockState:
    """Everything one block needs to go on, under names that don't depend on where the model was cut.

    Attributes
    ----------
    block, layers
        The block's position and the names of its layers, for people.
    tensors
        ``model/<parameter or buffer>``, ``optimizer/<parameter>/<key>``, ``feedback/<boundary layer>/Q``,
        ``head/P`` and the like.
    scalars
        What JSON can hold: parameter groups, scheduler state. Tuples come back as lists.
    """

    block: int
    layers: list[str]
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


def write_block(directory: Path, state: BlockState) -> dict[str, Any]:
    """Write one block's file, in the block's own process, and return its entry for the manifest.

    Raises
    ------
    ResourceError
        The file can't be written; a `DiskFullError` where that is for lack of room.
    """
    path = directory / f"block-{state.block}.safetensors"
    try:
        save_durably(state.tensors, path)
        sha256, size = digest(path), path.stat().st_size
    except (OSError, SafetensorError) as error:
        what = f"block {state.block} can't write its checkpoint"
        raise refusal(what, path, error, block=state.block) from error
    entry = BlockEntry(
        block=state.block,
        file=path.name,
        sha256=sha256,
        bytes=size,
        layers=state.layers,
        tensors=sorted(state.tensors),
        scalars=state.scalars,
    )
    return entry.model_dump()


class NewestGood(NamedTuple):
    """What `CheckpointStore.newest_good` found.

    Attributes
    ----------
    manifest
        Of the newest checkpoint that is as it was written, or None.
    damaged
        What is wrong with each newer one, by its step, the newest first.
    """

    manifest: Manifest | None
    damaged: dict[int, DamagedError]


class CheckpointStore:
    """The checkpoints of one run; one trainer at a time writes them.

    Parameters
    ----------
    run_dir
        The run's directory, on storage that all blocks share.
    keep
        How many checkpoints `commit` keeps, at least 1; whoever only reads need not say.
    """

    def __init__(self, run_dir: Path, keep: int = 1) -> None:
        self._root = run_dir / "checkpoints"
        self._keep = keep

    def begin(self, step: int) -> Path:
        """Return a fresh directory for the blocks' files; what earlier attempts left behind is removed.

        Raises
        ------
        ResourceError
            It can't be made; a `DiskFullError` where that is for lack of room.
        """
        directory = self._temporary(step)
        with self._attempt(step):
            self._root.mkdir(parents=True, exist_ok=True)
            for leftover in self._root.glob(f"*{_TEMPORARY}"):
                shutil.rmtree(leftover)
            directory.mkdir()
        return directory

    def commit(
        self,
        step: int,
        entries: Sequence[dict[str, Any]],
        meta: Mapping[str, Any],
        kept: Collection[int] = (),
    ) -> Path:
        """Complete the checkpoint that `begin` began, then delete those that are no longer kept.

        A checkpoint of a later step is deleted too: it belongs to a course of the run that was given up when
        the run resumed before it, and must not be taken for the newest state. If the disk refuses something, the
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
            A block's file is not there, because the storage is not shared by all blocks.
        ResourceError
            The disk refused something; a `DiskFullError` where that is for lack of room.
        """
        with self._attempt(step):
            final = self._commit(step, entries, meta)
            self._prune(step, kept)
            return final

    def _commit(self, step: int, entries: Sequence[dict[str, Any]], meta: Mapping[str, Any]) -> Path:
        directory = self._temporary(step)
        manifest = ManifestFile(step=step, meta=dict(meta), blocks=[BlockEntry(**entry) for entry in entries])
        for entry in manifest.blocks:
            path = directory / entry.file
            if not path.is_file() or path.stat().st_size != entry.bytes:
                shared = "storage that all blocks and the trainer share"
                raise InputError("run.storage", f"no complete {path}", shared)
        # Not pydantic's own JSON, which writes null for infinity, a scheduler's usual "best so far".
        (directory / MANIFEST_FILE).write_text(json.dumps(manifest.model_dump(), indent=1), encoding="utf-8")
        sync(directory / MANIFEST_FILE)
        sync(directory)
        final = self._root / f"step-{step:08d}"
        if final.exists():
            replaced = final.with_name(f"{final.name}.replaced")
            if replaced.exists():
                _discard(replaced)
            final.rename(replaced)
        directory.rename(final)
        sync(self._root)
        return final

    def list(self) -> Sequence[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        return sorted(self._complete())

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
        complete = self._complete()
        return self._newest_good(
            {step: path for step, path in complete.items() if last is None or step <= last}
        )

    def load(self, step: int | None) -> Manifest:
        """Return the verified checkpoint of a step, or the newest one.

        Raises
        ------
        InputError
            There is none, or it is damaged; the message names the file and an older good checkpoint, if any.
        """
        complete = self._complete()
        chosen = max(complete, default=None) if step is None else step
        if chosen is None or chosen not in complete:
            there = ", ".join(str(number) for number in sorted(complete)) or "none"
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise InputError(str(self._root), f"no {wanted}", f"a complete one (there: {there})")
        try:
            return Manifest.read(complete[chosen], chosen)
        except DamagedError as error:
            older = {number: path for number, path in complete.items() if number < chosen}
            hint = _way_back(self._newest_good(older).manifest)
            raise InputError(str(error.file), error.found, error.expected, hint) from error

    @staticmethod
    def _newest_good(complete: Mapping[int, Path]) -> NewestGood:
        damaged: dict[int, DamagedError] = {}
        for step, path in sorted(complete.items(), reverse=True):
            try:
                return NewestGood(Manifest.read(path, step), damaged)
            except DamagedError as error:
                damaged[step] = error
        return NewestGood(None, damaged)

    def _complete(self) -> dict[int, Path]:
        found: dict[int, Path] = {}
        # In reverse order of names, so that a replacement beats what it replaces.
        for path in sorted(self._root.glob("step-*"), reverse=True):
            match = _COMPLETE.fullmatch(path.name)
            if match and (path / MANIFEST_FILE).is_file():
                found[int(match[1])] = path
        return found

    def _prune(self, step: int, wanted: Collection[int]) -> None:
        complete = self._complete()
        steps = sorted(number for number in complete if number <= step)
        kept = {complete[number] for number in steps[-self._keep :] + [at for at in steps if at in wanted]}
        for path in sorted(self._root.iterdir()):
            if _COMPLETE.fullmatch(path.name) and path not in kept:
                _discard(path)

    @contextmanager
    def _attempt(self, step: int) -> Iterator[None]:
        """Make what the disk refuses a typed error, and leave nothing of the attempt."""
        try:
            yield
        except OSError as error:
            for leftover in self._root.glob(f"*{_TEMPORARY}"):
                shutil.rmtree(leftover, ignore_errors=True)
            raise refusal(f"the checkpoint of step {step} can't be written", self._root, error) from error

    def _temporary(self, step: int) -> Path:
        return self._root / f"step-{step:08d}{_TEMPORARY}"


def _way_back(older: Manifest | None) -> str:
    if older is None:
        return ""
    option = f"lowdimfa train --resume-step {older.step}"
    return f"The older checkpoint of step {older.step} is good; '{option}' goes on from it."


def _discard(path: Path) -> None:
    # Renamed first, so that a crash halfway leaves no checkpoint with missing files.
    shutil.rmtree(path.rename(path.with_name(f"{path.name}{_TEMPORARY}")))
