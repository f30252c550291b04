"""A stand-in for `torch.cuda` on a machine without one: it notes what is asked of it, and copies late.

Copies happen when their stream is waited for, and never before: so a test sees a tensor that is read too early.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Event:
    """Marks a position in a stream; waiting for it does what was to be done before."""

    def __init__(self, device: LateDevice, stream: Stream) -> None:
        self._device, self._stream, self._position = device, stream, len(stream.work)

    def synchronize(self) -> None:
        self._device.log.append("synchronize")
        self._stream.run(self._position)


class Stream:
    """Work that is put off until somebody waits for it."""

    def __init__(self, device: LateDevice, name: str) -> None:
        self.name, self.work = name, list[Any]()
        self._device, self._done, self._lock = device, 0, threading.RLock()

    def wait_event(self, event: Event) -> None:
        self._device.log.append(f"{self.name} waits")
        if self.name == "computing":  # where the test computes at once
            event._stream.run(event._position)
        else:
            self.work.append(lambda: event._stream.run(event._position))

    def run(self, position: int) -> None:
        with self._lock:
            for work in itertools.islice(self.work, self._done, max(position, self._done)):
                work()
            self._done = max(self._done, position)


class Late(Tensor):
    """Memory whose contents are copied in when the stream gets to it."""

    stream: Stream

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:  # type: ignore[override]
        plain = self.as_subclass(Tensor)
        if not non_blocking:
            plain.copy_(source)
        else:
            self.stream.work.append(lambda: plain.copy_(source.as_subclass(Tensor)))
        return self


class LateDevice:
    """Implements `lowdimfa.services.block.devices.Accelerator` in the host's memory."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.kept: list[tuple[Tensor, str]] = []
        self.resident: set[int] = set()
        self._names = iter(["inward", "outward"])
        self._computing = Stream(self, "computing")
        self._present = self._computing

    def stream(self) -> Stream:
        return Stream(self, next(self._names))

    def computing(self) -> Stream:
        return self._computing

    @contextmanager
    def within(self, stream: Stream) -> Iterator[None]:
        before, self._present = self._present, stream
        yield
        self._present = before

    def event(self, stream: Stream) -> Event:
        return Event(self, stream)

    def _memory(self, tensor: Tensor, kind: str) -> Tensor:
        self.log.append(kind)
        filled = torch.full_like(tensor, 0 if tensor.dtype == torch.bool else 77).as_subclass(Late)
        filled.stream = self._present
        return filled

    def locked(self, tensor: Tensor) -> Tensor:
        return self._memory(tensor, "locked")

    def empty(self, tensor: Tensor) -> Tensor:
        return self._memory(tensor, "device")

    def is_on(self, tensor: Tensor) -> bool:
        return id(tensor) in self.resident

    def used_in(self, tensor: Tensor, stream: Stream) -> None:
        self.kept.append((tensor, stream.name))
