"""Tensors between two processes of one host: by this project's shared memory, and by what torch has for that.

Each of torch's has nothing around it: no order, no repetition, no limit on what a message may be. What it takes is the
least that a carrier made of it would take. ``torch.multiprocessing`` unpickles what it gets, so it is measured alone.
"""

from __future__ import annotations

import secrets
import statistics
import threading
from collections import deque
from contextlib import ExitStack, suppress
from typing import Any

import torch
import torch.multiprocessing
from torch._C._distributed_c10d import TCPStore

from benchmarks.transport.remote import Remote, processes
from benchmarks.transport.wires import WINDOW, Arrivals, Departures, Downstream, Upstream, timed
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.stream.carriers import Here
from lowdimfa.services.stream.torch_carrier import Group, listening_store

HOST = "127.0.0.1"
PATIENCE = 120.0
"""Seconds that one end waits for the other, whose process may still have to start."""


class GlooDownstream(Arrivals):
    """Receives tensors by Gloo's point to point."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self._values = values
        self._store, self._port = listening_store(HOST, PATIENCE)
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def address(self) -> int:
        """Return the port of the store where both ends meet."""
        return self._port

    def _receive(self) -> None:
        self._group = Group(self._store, 1, Here(1, HOST, PATIENCE))
        with suppress(RuntimeError):  # the other end is closed
            while True:
                tensor = self._group.empty((1, self._values), torch.float32)
                self._group.wait(self._group.receive(tensor, 1))
                self.note()

    def close(self) -> None:
        """Let go of the group, which is the last thing to do."""
        self._group.close()
        self._thread.join()


class GlooUpstream(Departures):
    """Sends tensors by Gloo's point to point; one is sent when the system has taken it."""

    def __init__(self, port: int, values: int) -> None:
        super().__init__(values)
        store = TCPStore(HOST, port, is_master=False, wait_for_workers=False)
        self._group = Group(store, 0, Here(0, HOST, PATIENCE))
        self._under_way: deque[tuple[Any, torch.Tensor]] = deque()

    def put(self) -> None:
        """Send a copy, as a layer may write to its output."""
        if len(self._under_way) == WINDOW:
            self._group.wait(self._under_way.popleft()[0])
        copied = self.tensor.clone()
        self._under_way.append((self._group.send(copied, 1), copied))

    def close(self) -> None:
        """Let go of the group."""
        self._group.close()


class QueueDownstream(Arrivals):
    """Receives tensors by a queue of `torch.multiprocessing`: they stay where the sender has put them."""

    def __init__(self, messages: Any, receipts: Any) -> None:
        super().__init__()
        self._messages, self._receipts = messages, receipts
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _receive(self) -> None:
        while (tensor := self._messages.get()) is not None:
            tensor[0, 0].item()
            self.note()
            self._receipts.put(None)

    def close(self) -> None:
        """End the thread."""
        self._messages.put(None)
        self._thread.join()


class QueueUpstream(Departures):
    """Sends tensors by a queue of `torch.multiprocessing`, which copies each into memory of its own."""

    def __init__(self, messages: Any, receipts: Any, values: int) -> None:
        super().__init__(values)
        self._messages, self._receipts, self._under_way = messages, receipts, 0

    def put(self) -> None:
        """Send a copy."""
        if self._under_way == WINDOW:
            self._receipts.get()
            self._under_way -= 1
        self._messages.put(self.tensor.clone())
        self._under_way += 1

    def close(self) -> None:
        """There is nothing to end."""


def _ends(stack: ExitStack, values: int) -> dict[str, tuple[Remote, Remote]]:
    """Return the downstream and the upstream end of each carrier, each in a process of its own."""
    run, security = secrets.token_hex(4), Security.loopback()
    context = torch.multiprocessing.get_context("spawn")
    queues = context.SimpleQueue(), context.SimpleQueue()
    ours, gloo, queued = stack.enter_context(
        processes((Downstream, run, security, values), (GlooDownstream, values), (QueueDownstream, *queues))
    )
    senders = stack.enter_context(
        processes(
            (Upstream, "shared_memory", ours.call("address"), run, security, values),
            (GlooUpstream, gloo.call("address"), values),
            (QueueUpstream, *queues, values),
        )
    )
    names = ("shared_memory", "Gloo", "torch.multiprocessing")
    return dict(zip(names, zip((ours, gloo, queued), senders, strict=True), strict=True))


def carriers(kilobytes: int, count: int, turns: int) -> list[dict[str, Any]]:
    """Return what `timed` does, medians over the turns that the carriers take."""
    with ExitStack() as stack:
        ends = _ends(stack, kilobytes * 256)
        found = [{name: timed(*pair, kilobytes, count) for name, pair in ends.items()} for _ in range(turns)]
    return [
        {
            "transport": name,
            "kilobytes": kilobytes,
            **{key: statistics.median(turn[name][key] for turn in found) for key in found[0][name]},
            "ratio_of_cpu": _ratio(found, name, "cpu_ms"),
            "ratio_of_latency": _ratio(found, name, "median_ms"),
        }
        for name in ends
    ]


def _ratio(turns: list[dict[str, dict[str, float]]], name: str, key: str) -> float:
    """Return what a carrier takes as times what this project's takes: the median over the turns."""
    return statistics.median(turn[name][key] / turn["shared_memory"][key] for turn in turns)
