"""Faults that a block brings upon itself at ``(block, step)``, for tests and drills."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lowdimfa.errors import ProtocolError
from lowdimfa.services.rpc.v1 import stream_pb2 as pb
from lowdimfa.services.spec.faults import WIRE_KINDS, Fault, FaultKind
from lowdimfa.services.stream.frames import HEADER_AT, unpack
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

    @property
    def armed(self) -> bool:
        """Whether anything is still to happen; without that nothing need pass by here."""
        return bool(self._armed)

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
