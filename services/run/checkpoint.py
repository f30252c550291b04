"""Writing checkpoints so that a crash at any moment leaves the last good one, and finding them again.

Each block writes its own file into a temporary directory; then the manifest is written, the directory is
renamed into place, and only after that older checkpoints are deleted. So a name that is in place is complete.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from lowdimfa.errors import InputError, ResourceError
from services.run.manifest import (
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
        The file can't be written, for example because the disk is full.
    """
    path = directory / f"block-{state.block}.safetensors"
    try:
        save_durably(state.tensors, path)
    except (OSError, SafetensorError) as error:
        message = f"block {state.block} can't write {path}: {error}"
        raise ResourceError(message, block=state.block, setting="run.storage") from error
    entry = BlockEntry(
        block=state.block,
        file=path.name,
        sha256=digest(path),
        bytes=path.stat().st_size,
        layers=state.layers,
        tensors=sorted(state.tensors),
        scalars=state.scalars,
    )
    return entry.model_dump()


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
        """Return a fresh directory for the blocks' files; what earlier attempts left behind is removed."""
        self._root.mkdir(parents=True, exist_ok=True)
        for leftover in self._root.glob(f"*{_TEMPORARY}"):
            shutil.rmtree(leftover)
        directory = self._temporary(step)
        directory.mkdir()
        return directory

    def commit(self, step: int, entries: Sequence[dict[str, Any]], meta: Mapping[str, Any]) -> Path:
        """Complete the checkpoint that `begin` began, then delete those that are no longer kept.

        A checkpoint of a later step is deleted too: it belongs to a course of the run that was given up when
        the run resumed before it, and must not be taken for the newest state.

        Parameters
        ----------
        step
            Optimiser steps applied.
        entries
            What `write_block` returned in each block.
        meta
            Notes about the run that JSON can hold.

        Raises
        ------
        InputError
            A block's file is not there, because the storage is not shared by all blocks.
        """
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
        self._prune(step)
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
            hint = self._older_good(chosen)
            raise InputError(str(error.file), error.found, error.expected, hint) from error

    def _older_good(self, step: int) -> str:
        complete = self._complete()
        for older in sorted((number for number in complete if number < step), reverse=True):
            try:
                Manifest.read(complete[older], older)
            except DamagedError:
                continue
            return f"The older checkpoint of step {older} is good; resume from that."
        return ""

    def _complete(self) -> dict[int, Path]:
        found: dict[int, Path] = {}
        # In reverse order of names, so that a replacement beats what it replaces.
        for path in sorted(self._root.glob("step-*"), reverse=True):
            match = _COMPLETE.fullmatch(path.name)
            if match and (path / MANIFEST_FILE).is_file():
                found[int(match[1])] = path
        return found

    def _prune(self, step: int) -> None:
        complete = self._complete()
        steps = sorted(number for number in complete if number <= step)
        kept = {complete[number] for number in steps[-self._keep :]}
        for path in sorted(self._root.iterdir()):
            if _COMPLETE.fullmatch(path.name) and path not in kept:
                _discard(path)

    def _temporary(self, step: int) -> Path:
        return self._root / f"step-{step:08d}{_TEMPORARY}"


def _discard(path: Path) -> None:
    # Renamed first, so that a crash halfway leaves no checkpoint with missing files.
    shutil.rmtree(path.rename(path.with_name(f"{path.name}{_TEMPORARY}")))
