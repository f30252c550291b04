"""The Ray cluster of a run: joined, or started on this machine."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from lowdimfa.errors import InputError, ResourceError
from lowdimfa.services.trainer import early_ray
from lowdimfa.services.trainer.local_ray import start_local

_ADDRESS = re.compile(r"auto|local|[\w.]+://.+|.+:[0-9]{1,5}")

_CHANGING = threading.Lock()
"""Held while Ray begins or ends: a process has one connection, whatever its threads do."""


@dataclass
class _Connection:
    """One that `start_ray` has made, until the last of its users leaves."""

    end: Callable[[], None]
    users: int = 0

    def leave(self) -> None:
        global _connection
        with _CHANGING:
            self.users -= 1
            if self.users == 0:
                _connection = None
                self.end()


_connection: _Connection | None = None


def start_ray(
    address: str | None,
    blocks: int = 1,
    cpus_per_block: float = 1.0,
    liveness: float = 60.0,
    namespace: str | None = None,
) -> Callable[[], None]:
    """Join the cluster at an address, or start one on this machine; return what ends the connection.

    A connection that the caller has made before is used and left alone. One that another thread has by this function is
    shared, and lasts for as long as one of them needs it.

    Parameters
    ----------
    address
        Of the cluster to join; None starts one.
    blocks, cpus_per_block
        Actors that a cluster started here has room for.
    liveness
        Seconds within which something has to answer at the address.
    namespace
        Of the names of actors.

    Raises
    ------
    InputError
        The current folder has a package by whose name the actors would miss ours, or the address can't be one.
    ResourceError
        Ray can't be started, or nothing answers at the address within ``liveness`` seconds.
    KeyboardInterrupt
        SIGTERM came meanwhile, which this process handles otherwise than Ray does.
    """
    global _connection
    with _CHANGING:
        if not ray.is_initialized():
            _connection = _Connection(_connect(address, blocks, cpus_per_block, liveness, namespace))
        elif _connection is None:
            return lambda: None
        _connection.users += 1
        return _connection.leave


def _connect(
    address: str | None, blocks: int, cpus_per_block: float, liveness: float, namespace: str | None
) -> Callable[[], None]:
    _refuse_other_packages(Path.cwd())
    # Ray's advice on tokens comes before `logging_level` counts.
    logging.getLogger("ray").setLevel(logging.ERROR)
    for name, value in early_ray.SETTINGS.items():
        os.environ.setdefault(name, value)
    quiet: dict[str, Any] = {"logging_level": "ERROR", "configure_logging": False}
    terminate = signal.getsignal(signal.SIGTERM)
    disconnect: Callable[[], None] = ray.shutdown
    try:
        if address is None and (early := early_ray.take()):
            disconnect = early.join(liveness, namespace=namespace, log_to_driver=False, **quiet)
        elif address is None:
            cpus = early_ray.local_cpus(blocks, cpus_per_block)
            disconnect = _lasting(lambda: start_local(num_cpus=cpus, **quiet).end)
        else:
            require_address(address, "--address")
            _require_reachable(address, unreachable(address, liveness))
            try:
                ray.init(address=address, namespace=namespace, log_to_driver=False, **quiet)
            except ConnectionError as error:  # where Ray had to look for it
                _require_reachable(address, _reason(error))
                raise
    except SystemExit:  # so Ray's handler ends a process, with nothing said and another exit code
        if callable(terminate):
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():  # where alone Ray replaces the handler
            signal.signal(signal.SIGTERM, terminate)
    return disconnect


def _lasting(start: Callable[[], Callable[[], None]]) -> Callable[[], None]:
    """Start what the kernel ends with the thread that started it, by one that lasts as long; return what ends both.

    Other threads may still have a run when that of the first has ended; the main thread lasts as long as the program.
    """
    if threading.current_thread() is threading.main_thread():  # a signal breaks the start off here alone
        return start()
    holder = ThreadPoolExecutor(1)
    try:
        end = holder.submit(start).result()
    except BaseException:
        holder.shutdown(wait=False)
        raise

    def end_both() -> None:
        end()
        holder.shutdown()

    return end_both


def _refuse_other_packages(folder: Path) -> None:
    """Refuse a folder in which Ray's workers, which look there first, would find other packages of our name.

    Raises
    ------
    InputError
        There is one.
    """
    own = sys.modules["lowdimfa"].__file__
    for path in (folder / "lowdimfa" / "__init__.py", folder / "lowdimfa.py"):
        if path.is_file() and not (own and path.samefile(own)):
            raise InputError(
                f"the current folder, {folder}",
                f"{path.relative_to(folder)}, which Ray's processes would take for this program's own",
                "no other package of that name",
                "Rename it, or start the command in another folder.",
            )


def require_address(address: str, option: str) -> None:
    """Refuse what can't be a cluster's address.

    Raises
    ------
    InputError
    """
    if not _ADDRESS.fullmatch(address):
        raise InputError(option, repr(address), "'auto', HOST:PORT or ray://HOST:PORT")


def _reason(error: ConnectionError) -> str:
    """Return Ray's reason in a line: of the report that a cluster sends, of many lines, the last has it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0]} {lines[-1]}" if len(lines) > 1 else str(error).partition(". ")[0]


def _require_reachable(address: str, reason: str) -> None:
    """Refuse an address at which nothing answers, for a reason; Ray itself would keep trying for minutes."""
    if reason:
        raise ResourceError(
            f"no Ray cluster answers at {address} ({reason}); give --address the host and port of its head node",
            setting="--address",
        )


def unreachable(address: str, seconds: float) -> str:
    """Say why nothing accepts connections at a cluster's address; nothing if something does, or Ray has to find it."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return ""  # such as 'auto'
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
