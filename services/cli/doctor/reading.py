"""Read what this machine is like; no check is made here."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from lowdimfa.data.sources import cache_folder
from lowdimfa.errors import InputError
from lowdimfa.services.cli.doctor.machine import Disk
from lowdimfa.services.run.naming import require_usable

CONNECT_SECONDS = 2.0
"""Longest wait for a connection from this machine to itself."""

_MEMORY_LIMITS = (
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), "memory.usage_in_bytes", "total_inactive_file"),
    (Path("/sys/fs/cgroup/memory.max"), "memory.current", "inactive_file"),
)
"""Beside each is the file with what is used now, of which the system gives back the part of that name in memory.stat."""

_THREAD_LIMITS = (Path("/sys/fs/cgroup/pids.max"), Path("/sys/fs/cgroup/pids/pids.max"))
"""Beside each is what counts now, pids.current."""

_ELSEWHERE = "192.0.2.1"
"""An address for documentation: nothing is sent there, but the way to it tells which address is this machine's own."""


def available_memory() -> int:
    """Return the bytes of memory that are left, within the limit of the container."""
    left = [psutil.virtual_memory().available]
    for path, current, returned in _MEMORY_LIMITS:
        limit, used = _number(path), _number(path.with_name(current))
        if limit is not None and used is not None:
            left.append(limit - used + _entry(path.with_name("memory.stat"), returned))
    return max(0, min(left))


def free_shared_memory() -> int | None:
    """Return the free bytes of ``/dev/shm``; None where there is none."""
    with suppress(OSError):
        return shutil.disk_usage("/dev/shm").free
    return None


def most_open_files() -> int:
    """Return the hard limit of open files."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return hard if hard != resource.RLIM_INFINITY else 1 << 62


def free_threads() -> tuple[int | None, str]:
    """Return how many threads may still start, and what limits them; None and nothing without a limit."""
    found = []
    for path in _THREAD_LIMITS:
        most = _number(path)
        if most is not None:
            found.append((most - (_number(path.with_name("pids.current")) or 0), str(path)))
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    if limit != resource.RLIM_INFINITY and os.geteuid() != 0:  # root has no such limit
        found.append((limit - _own_threads(), "ulimit -u"))
    return min(found, default=(None, ""), key=lambda each: each[0] or 0)


def _own_threads() -> int:
    number, user = 0, os.getuid()
    for process in psutil.process_iter(["uids", "num_threads"]):
        if process.info["uids"] and process.info["uids"].real == user:
            number += process.info["num_threads"] or 0
    return number


def disk(path: Path) -> Disk:
    """Write a file of a moment into a folder, or into the nearest one above it that is there."""
    try:
        there = path.absolute()
        while not there.exists() and there != there.parent:
            there = there.parent
        with tempfile.TemporaryFile(dir=there, prefix=".lowdimfa-doctor-") as file:
            file.write(b"\0")
        usage = shutil.disk_usage(there)
    except OSError as error:
        return Disk(path, error=error.strerror or str(error))
    return Disk(path, usage.total, usage.free)


def store(address: str, patience: float) -> str:
    """Write, read, list and delete an object at an address; say what prevents that, or nothing."""
    try:
        require_usable(address, patience)
    except InputError as error:
        return error.message
    return ""


def temporary() -> Disk:
    """Try the folder of temporary files."""
    try:
        return disk(Path(tempfile.gettempdir()))
    except OSError as error:  # none of those that are tried can be written
        return Disk(Path("$TMPDIR"), error=error.strerror or str(error))


def cache() -> Disk:
    """Try the folder of data sets."""
    try:
        return disk(cache_folder())
    except InputError as error:
        return Disk(Path("$LOWDIMFA_DATA"), error=error.message)


def own_address() -> str:
    """Return the address by which this machine goes to others; that of the loopback interface if it can't."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked, suppress(OSError):
        asked.connect((_ELSEWHERE, 9))
        return str(asked.getsockname()[0])
    return "127.0.0.1"


def listen(host: str, number: int = 0, connect: bool = True) -> str:
    """Say why an address can't be listened on, or not be reached from here; nothing if all is well."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, number))
            server.listen()
        except OSError as error:
            return f"it can't be listened on: {(error.strerror or str(error)).lower()}"
        if not connect:
            return ""
        try:
            socket.create_connection(server.getsockname(), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            return f"nothing gets through to it: {(error.strerror or str(error)).lower()}"
    return ""


def _entry(path: Path, name: str) -> int:
    """Return the number behind a name in a file with one of each in a line; 0 where it isn't there."""
    with suppress(OSError, ValueError):
        for line in path.read_text("ascii").splitlines():
            if line.partition(" ")[0] == name:
                return int(line.partition(" ")[2])
    return 0


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text("ascii"))
    return None
