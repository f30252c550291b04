"""Why a block's process ended, as far as Ray and the kernel know."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ray.exceptions import RayError

_RAY_OOM = ("running low on memory", "NODE_OUT_OF_MEMORY")

_LESS_MEMORY = (
    "lower train.batch_size, cut batches with train.microbatches, cut the model into more blocks, or spread them over "
    "machines with placement.strategy SPREAD"
)


def kernel_oom_kills() -> int:
    """Return how many processes the kernel of this machine has killed for want of memory since it started."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text("ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def reason_of(error: RayError, kills_before: int) -> str:
    """Say in one line why an actor ended, and what to lower if it took too much memory.

    Parameters
    ----------
    error
        What Ray raised.
    kills_before
        What `kernel_oom_kills` returned while the actor was well.
    """
    text = str(error)
    if any(sign in text for sign in _RAY_OOM):
        return f"its machine ran out of memory and Ray killed it; {_LESS_MEMORY}"
    if kernel_oom_kills() > kills_before:
        return f"this machine ran out of memory and the kernel killed processes, probably this one; {_LESS_MEMORY}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = next((line for line in lines if "because" in line), lines[0] if lines else type(error).__name__)
    if "Worker exit type: SYSTEM_ERROR" in cause:
        return "it was killed, or crashed"
    return cause.partition("There are some potential root causes")[0].strip()
