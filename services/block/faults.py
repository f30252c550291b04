"""Faults that a block brings upon itself at ``(block, step)``, for tests and drills.

They are put around the parts of a worker from outside, if its run has any: `worker_for`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowdimfa.block import ErrorKind
from lowdimfa.errors import ProtocolError
from lowdimfa.services.block.job import BlockJob
from lowdimfa.services.block.work import Neighbours, Work
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.v1 import stream_pb2 as pb
from lowdimfa.services.run.checkpoint import Attempt
from lowdimfa.services.run.disk import refusal
from lowdimfa.services.run.mirror import work_dir
from lowdimfa.services.run.state import Unwanted, Write
from lowdimfa.services.spec.faults import WIRE_KINDS, Fault, FaultKind
from lowdimfa.services.stream.frames import HEADER_AT, Kind, unpack
from lowdimfa.services.stream.resumable import Arriving
from lowdimfa.tickets import Ticket

_STRUCK = {pb.KIND_TRAIN, pb.KIND_ERROR, pb.KIND_PROBE}


def faults_dir(run_dir: Path) -> Path:
    """Return where a run notes which of its faults have happened: ``<index>.json``."""
    return run_dir / "faults"


class FaultInjector:
    """Lets the faults of one block happen, each once in a run, however often the block is restarted.

    Parameters
    ----------
    faults
        Of the whole run, in the order of its specification.
    block
        Whose faults these are.
    run_dir
        Where it is noted that they happened, before they do.
    replica
        Which replica of the block this is.
    """

    def __init__(self, faults: Sequence[Fault], block: int, run_dir: Path, replica: int = 0) -> None:
        self._folder = faults_dir(run_dir)
        self._lock = threading.Lock()
        self._armed = {
            index: fault
            for index, fault in enumerate(faults)
            if (fault.block, fault.replica) == (block, replica) and not self._note(index).exists()
        }
        self._held: list[bytes] = []  # what a later message overtakes

    def before_forward(self, ticket: Ticket) -> None:
        """Crash, stand still, or take longer."""
        match self._claim({"crash", "hang", "slow"}, ticket.step):
            case Fault(kind="crash"):
                os.kill(os.getpid(), signal.SIGKILL)
            case Fault(kind="hang", seconds=seconds):
                # Called without giving Python's lock away: no thread of this process answers meanwhile.
                ctypes.PyDLL(None).usleep(int(seconds * 1e6))
            case Fault(seconds=seconds):
                time.sleep(seconds)

    def poisoned(self, ticket: Ticket, tensor: Tensor) -> Tensor:
        """Return what a block sends in place of its output or its error."""
        if self._claim({"nan"}, ticket.step) is None:
            return tensor
        return torch.full_like(tensor, torch.nan)

    def before_save(self, step: int) -> None:
        """Run out of room.

        Raises
        ------
        OSError
            The disk is full.
        """
        if self._claim({"disk_full"}, step, from_then_on=True):
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (injected)")

    def frame_arrives(self, frame: bytes) -> Iterable[bytes]:
        """Return what arrives in place of a frame: of an activation in training, or of a broadcast error."""
        if not self._armed and not self._held:
            return (frame,)
        try:
            header, _ = unpack(frame)
        except ProtocolError:
            return (frame,)
        held, self._held = self._held, []
        meant = header.offset == 0 and header.kind in _STRUCK and header.tensors
        fault = self._claim(WIRE_KINDS, header.step) if meant else None
        match fault and fault.kind:
            case None:
                return (frame, *held)
            case "duplicate":
                return (frame, frame)
            case "corrupt":
                return (_garbled(frame),)
            case "reorder":
                self._held = [frame]
        return ()

    def _claim(self, kinds: Collection[FaultKind], step: int, *, from_then_on: bool = False) -> Fault | None:
        """Return a fault that is to happen now, and note that it does."""
        with self._lock:
            for index, fault in self._armed.items():
                due = fault.step <= step if from_then_on else fault.step == step
                if fault.kind in kinds and due:
                    del self._armed[index]
                    self._folder.mkdir(exist_ok=True)
                    self._note(index).write_text(
                        json.dumps(fault.model_dump() | {"time": time.time()}), "utf-8"
                    )
                    return fault
        return None

    def _note(self, index: int) -> Path:
        return self._folder / f"{index}.json"


def _garbled(frame: bytes) -> bytes:
    """Return the frame with another bit in its header."""
    return frame[:HEADER_AT] + bytes([frame[HEADER_AT] ^ 1]) + frame[HEADER_AT + 1 :]


class _FaultyNeighbours:
    """Neighbours to whom one thing may be sent in place of another."""

    def __init__(self, neighbours: Neighbours, faults: FaultInjector) -> None:
        self._neighbours, self._faults = neighbours, faults
        self.release, self.renew = neighbours.release, neighbours.renew

    def send(self, kind: Kind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Send activations to the next block."""
        if kind == "train":
            tensors = self._faults.poisoned(ticket, tensors[0]), *tensors[1:]
        self._neighbours.send(kind, ticket, tensors)

    def publish(
        self, ticket: Ticket, kind: ErrorKind, error: Tensor, projection: Tensor | None = None
    ) -> None:
        """Broadcast an error to all blocks."""
        sent = self._faults.poisoned(ticket, error) if kind == "train" else error
        self._neighbours.publish(ticket, kind, sent, projection)


class _FaultyWork(Work):
    """Work before whose forwards something may happen."""

    def __init__(self, faults: FaultInjector, *parts: Any) -> None:
        super().__init__(*parts)
        self._faults = faults

    def forward(self, ticket: Ticket, probe: bool) -> None:
        """Run the forward pass, if the process still lives."""
        self._faults.before_forward(ticket)
        super().forward(ticket, probe)


class _FaultyWorker(BlockWorker):
    """A worker around whose parts faults are put."""

    def __init__(self, job: BlockJob, security: Security, host: str) -> None:
        self._faults = FaultInjector(job.parsed().drill.faults, job.index, work_dir(job.run_dir), job.rank)
        super().__init__(job, security, host)

    def _arriving(self) -> Arriving:
        return self._faults.frame_arrives

    def _work(self, neighbours: Neighbours, patience: float, make: Callable[..., Work] = Work) -> Work:
        around = _FaultyNeighbours(neighbours, self._faults)
        return super()._work(around, patience, partial(_FaultyWork, self._faults))

    def _write(self, attempt: Attempt, step: int, write: Write, unwanted: Unwanted) -> dict[str, Any]:
        try:
            self._faults.before_save(step)
        except OSError as error:
            what = f"block {self.job.index} can't write its checkpoint"
            raise refusal(what, attempt.place, error, block=self.job.index) from error
        return super()._write(attempt, step, write, unwanted)


def worker_for(job: BlockJob, security: Security, host: str) -> BlockWorker:
    """Return the worker for a job, with faults around it if its run is to have any."""
    kind = _FaultyWorker if job.parsed().drill.faults else BlockWorker
    return kind(job, security, host)
