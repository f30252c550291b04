"""Memory, limits, folders, addresses and the clock of this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from lowdimfa.services.cli.doctor.finding import Finding, ok, problem, warning
from lowdimfa.services.cli.words import size

STORE_PART, STORE_MOST = 0.3, 10**10
"""Ray keeps objects in this part of the memory, and no more than that unless /dev/shm has the room."""

FILES_LEAST = 4096
"""Open files below which Ray warns of broken connections; it raises the soft limit to the hard one by itself."""

THREADS_ENOUGH, THREADS_LEAST = 2000, 500
"""A run of 3 small blocks and its Ray had 325 threads in 17 processes on 2 cores; on more cores they are more."""

MEMORY_ENOUGH, MEMORY_LEAST = 4 << 30, 1 << 30
"""A run of 3 small blocks took 1.4 GiB, its Ray among it."""

DISK_ENOUGH, DISK_LEAST = 1 << 30, 64 << 20
"""Events, logs and checkpoints of a small run are some megabytes; those of large networks are sized by the network."""

FULL = 0.95
"""Share of a disk in use at which Ray puts no more objects on it."""

SOCKET_PATH = 107
"""Bytes of the longest path of a socket."""

SOCKET_NAME = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""The longest that Ray makes in the temporary folder."""

BUILT = 1_767_225_600
"""2026-01-01 in seconds: no clock that is right shows less."""


@dataclass(frozen=True)
class Disk:
    """What a folder came to that something was written into.

    Attributes
    ----------
    path
        The folder.
    total, free
        Bytes of its disk.
    error
        Why nothing can be written; empty if it was.
    """

    path: Path
    total: int = 0
    free: int = 0
    error: str = ""


def shared_memory(free: int | None, available: int) -> Finding:
    """Compare ``/dev/shm`` with what Ray takes of it.

    Parameters
    ----------
    free
        Bytes there; None without such a folder.
    available
        Bytes of memory, from which Ray derives what it wants.
    """
    check = "shared memory"
    wanted = min(int(STORE_PART * available), STORE_MOST)
    found = "no /dev/shm" if free is None else f"{size(free)} free in /dev/shm"
    if free is not None and free >= wanted:
        return ok(check, found)
    return warning(
        check,
        f"{found}; Ray wants {size(wanted)} and takes the temporary folder instead, which is slower",
        f"In a container: --shm-size={-(-wanted // 2**30)}g.",
    )


def open_files(most: int) -> Finding:
    """Judge the hard limit of open files, to which Ray raises the soft one."""
    if most >= FILES_LEAST:
        return ok("open files", f"up to {min(most, 10**9):,}")
    return warning(
        "open files",
        f"up to {most:,}; with many blocks connections would fail",
        "Raise the limit to 8192: 'ulimit -Hn', or nofile in /etc/security/limits.conf.",
    )


def threads(free: int | None, where: str) -> Finding:
    """Judge how many threads may still start.

    Parameters
    ----------
    free
        How many; None without a limit.
    where
        The limit's name.
    """
    if free is None or free >= THREADS_ENOUGH:
        return ok("threads", "no limit" if free is None else f"{free:,} more may start")
    found = f"{free:,} more may start ({where}); a small run and its Ray take 325 and more"
    todo = "Raise that limit, or end other work."
    return (problem if free < THREADS_LEAST else warning)("threads", found, todo)


def memory(available: int) -> Finding:
    """Judge the memory that is left, in bytes."""
    found = f"{size(available)} available"
    if available >= MEMORY_ENOUGH:
        return ok("memory", found)
    todo = "End other work, or use fewer blocks; --engine local takes the least."
    return (problem if available < MEMORY_LEAST else warning)(
        "memory", f"{found}; a small run and its Ray take 1.4 GiB", todo
    )


def storage(disk: Disk) -> Finding:
    """Judge the folder of the runs."""
    if disk.error:
        todo = "Set run.storage to another folder, or --storage here."
        return problem("storage", f"{disk.path} can't be written: {disk.error}", todo)
    found = f"{size(disk.free)} free in {disk.path}"
    if disk.free >= DISK_ENOUGH:
        return ok("storage", found)
    return (problem if disk.free < DISK_LEAST else warning)(
        "storage", found, "Make room, or set run.storage."
    )


def objects(address: str, refusal: str) -> Finding:
    """Judge the address of the runs; the refusal is that of a run, or empty."""
    if not refusal:
        return ok("storage", f"objects can be written, read, listed and deleted at {address}")
    found, _, needed = refusal.partition(": found ")[2].partition("; expected ")
    return problem("storage", found, f"Runs need {needed}")


def temporary(disk: Disk) -> Finding:
    """Judge the temporary folder, where Ray has logs and sockets."""
    check = "temporary folder"
    if disk.error:
        return problem(check, f"{disk.path} can't be written: {disk.error}", "Set TMPDIR to another folder.")
    longest = len(f"{disk.path}{SOCKET_NAME}".encode())
    if longest > SOCKET_PATH:
        found = f"{disk.path}: its path is {longest - SOCKET_PATH} bytes too long for Ray's sockets"
        return problem(check, found, "Set TMPDIR to a folder with a shorter path, such as /tmp.")
    found = f"{size(disk.free)} free in {disk.path}"
    if disk.total and disk.free < (1 - FULL) * disk.total:
        return warning(
            check, f"{found}; it is over {FULL:.0%} full, so Ray puts no objects there", "Make room."
        )
    return ok(check, found)


def cache(disk: Disk) -> Finding:
    """Judge the folder of data sets that are downloaded."""
    if not disk.error:
        return ok("data cache", f"{size(disk.free)} free in {disk.path}")
    todo = "Set LOWDIMFA_DATA to another folder if you fetch data sets."
    return warning("data cache", f"{disk.path} can't be written: {disk.error}", todo)


def listening(check: str, host: str, error: str) -> Finding:
    """Judge an address of this machine; ``error`` says why it can't be listened on or reached, or is empty."""
    if not error:
        return ok(check, f"{host} can be listened on and reached")
    todo = "Blocks talk to each other there: look at the firewall and at the network of the container."
    return problem(check, f"{host}: {error}", todo)


def port(number: int, option: str, error: str) -> Finding:
    """Judge a port that 'lowdimfa serve' takes by itself."""
    check = f"port {number}"
    if not error:
        return ok(check, "free for 'lowdimfa serve'")
    todo = f"If that is no service of lowdimfa's, give 'lowdimfa serve' another {option}."
    return warning(check, error, todo)


def clock(now: float, before: float, after: float) -> Finding:
    """Judge the clock; ``before`` and ``after`` are readings of the monotonic one, one after the other."""
    if after < before:
        return problem("clock", "the monotonic clock runs backwards", "Look at the machine's clock source.")
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < BUILT:
        return problem("clock", f"{shown} is past", "Set it: certificates would not be valid.")
    return ok("clock", shown)
