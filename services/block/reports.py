"""What a block says of itself: where it is reached, what it does, and what it leaves for a post-mortem."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from dataclasses import dataclass

import torch

from lowdimfa.services.stream.resumable import TrafficCount
from lowdimfa.tickets import Ticket
from lowdimfa.version import VERSION


@dataclass(frozen=True)
class Reachable:
    """Where a block is reached: its gRPC server, and its metrics if it serves any."""

    rpc: str
    metrics: str | None


@dataclass(frozen=True)
class Status:
    """What a block says when asked.

    Attributes
    ----------
    applied_steps
        Optimiser steps that it has applied.
    activity
        What it does, in words.
    seconds
        For how long, when it was asked, by its own clock: neither another machine's nor the way of the answer counts.
    working
        Whether it computes or sends, and so may hold others up.
    broadcast
        Traffic of the error broadcast since the connections were opened.
    """

    applied_steps: int
    activity: str
    seconds: float
    working: bool
    broadcast: TrafficCount


@dataclass(frozen=True)
class LastWords:
    """The end of a block's story.

    Attributes
    ----------
    activity
        What it did when it was asked.
    recent
        Its last pieces of work: kind, micro-batch, Unix seconds of begin and end, cause of a wait.
    queues
        How much waits where.
    stacks
        Of all its threads, by their names.
    """

    activity: str
    recent: tuple[tuple[str, Ticket, float, float, str], ...]
    queues: dict[str, int]
    stacks: dict[str, str]

    def __str__(self) -> str:
        lines = [f"now: {self.activity}", f"versions: lowdimfa {VERSION}, torch {torch.__version__}"]
        lines += ["queues: " + (", ".join(f"{name} {size}" for name, size in self.queues.items()) or "none")]
        lines += ["last pieces of work:"]
        lines += [
            f"  {_clock(began)}  {ended - began:8.4f} s  {kind} of {ticket}{f' ({cause})' if cause else ''}"
            for kind, ticket, began, ended, cause in self.recent
        ]
        for name, stack in self.stacks.items():
            lines += [f"thread {name}:", stack.rstrip()]
        return "\n".join(lines)


def stacks() -> dict[str, str]:
    """Return where each of this process's Python threads is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(ident, str(ident)): "".join(traceback.format_stack(frame))
        for ident, frame in sys._current_frames().items()
    }


def _clock(unix: float) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(unix))}{unix % 1:.3f}".replace("0.", ".", 1)
