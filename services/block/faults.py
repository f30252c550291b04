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
from typing import Any

import torch
from torch import Tensor

from lowdimfa.errors import ProtocolError
from lowdimfa.services.block.activations import HEADER_AT, unpack
from lowdimfa.services.rpc.v1 import activations_pb2, broadcast_pb2
from lowdimfa.services.spec.faults import WIRE_KINDS, Fault, FaultKind
from lowdimfa.tickets import Ticket


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
        self._held: list[Any] = []  # what a later message overtakes

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

    def error_arrives(self, message: broadcast_pb2.ErrorMessage) -> Iterable[broadcast_pb2.ErrorMessage]:
        """Return what arrives in place of a broadcast error."""
        if not self._armed and not self._held:
            return (message,)
        garbled = broadcast_pb2.ErrorMessage()
        garbled.CopyFrom(message)
        garbled.data = _flipped(message.data)
        return self._on_the_way(message.step, message, garbled)

    def frame_arrives(self, frame: bytes) -> Iterable[bytes]:
        """Return what arrives in place of a frame of an activation."""
        if not self._armed and not self._held:
            return (frame,)
        try:
            header, _ = unpack(frame)
        except ProtocolError:
            return (frame,)
        training = header.offset == 0 and header.kind == activations_pb2.ACTIVATION_KIND_TRAIN
        garbled = _flipped(frame[: HEADER_AT + 1]) + frame[HEADER_AT + 1 :]
        return self._on_the_way(header.step if training and header.tensors else None, frame, garbled)

    def _on_the_way(self, step: int | None, message: Any, garbled: Any) -> Iterable[Any]:
        held, self._held = self._held, []
        fault = None if step is None else self._claim(WIRE_KINDS, step)
        match fault and fault.kind:
            case None:
                return (message, *held)
            case "duplicate":
                return (message, message)
            case "corrupt":
                return (garbled,)
            case "reorder":
                self._held = [message]
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


def _flipped(data: bytes) -> bytes:
    """Return the data with its last bit another one."""
    return data[:-1] + bytes([data[-1] ^ 1]) if data else data
