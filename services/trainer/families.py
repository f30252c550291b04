"""Processes: those that belong together by descent, such as those of a Ray, what is left of them, and their memory."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36

_WAIT_SECONDS = 1.0
"""Between looks whether all of a family have ended."""


def adopt_orphans() -> None:
    """Become the parent of processes below this one that lose theirs: Ray's workers may outlive their node."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def lives(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def below(*processes: psutil.Process) -> set[psutil.Process]:
    """Return all processes below some. Below one that has ended are none: its number may be another's now.

    ``Process.children`` takes those for others' that seem older than their parent, by times on the wall clock, which
    moves: it then misses some, and ends without a word.
    """
    children = defaultdict(set)
    for each in psutil.process_iter(["ppid"]):
        children[each.info["ppid"]].add(each)
    found: set[psutil.Process] = set()
    reached = {process for process in processes if process.is_running()}
    while reached:
        reached = set().union(*(children[parent.pid] for parent in reached)) - found
        found |= reached
    return found


def end_family(process: psutil.Process) -> None:
    """Kill all processes below one, also those that others of them leave behind."""
    while family := [child for child in below(process) if lives(child)]:
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(family, timeout=_WAIT_SECONDS)


def destroy(process: psutil.Process | psutil.Popen) -> None:
    """Kill a process and all below it; it is halted first, so that it starts no more of them."""
    with contextlib.suppress(psutil.Error):
        process.suspend()
        end_family(process)
        process.kill()
    psutil.wait_procs([process], timeout=_WAIT_SECONDS)


def forget_session(session: Path) -> None:
    """Remove the folder of a Ray whose processes have gone, and the link that calls it the latest."""
    shutil.rmtree(session, ignore_errors=True)
    latest = session.with_name("session_latest")
    with contextlib.suppress(OSError):
        if latest.readlink() == session:
            latest.unlink()


def peak_bytes(pid: int | str = "self") -> int:
    """Return the most memory that a process of this machine has had at a time; 0 where the system doesn't say.

    Raises
    ------
    OSError
        There is no such process.
    """
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0
