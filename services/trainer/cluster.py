"""The Ray cluster of a run: joined, or started on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import psutil
import ray

from lowdimfa.errors import ResourceError

END_SECONDS = 5.0
"""Longest wait until killed processes have ended."""


def local_cpus(blocks: int, cpus_per_block: float) -> int:
    """Return how many CPUs a Ray started for one run should count, so that all blocks fit on few cores."""
    return max(os.cpu_count() or 1, int(-(-blocks * cpus_per_block // 1)))


def start_ray(
    address: str | None,
    blocks: int = 1,
    cpus_per_block: float = 1.0,
    liveness: float = 60.0,
    namespace: str | None = None,
) -> Callable[[], None]:
    """Join the cluster at an address, or start one on this machine; return what ends the connection.

    A connection that the caller has made before is used and left alone.

    Raises
    ------
    ResourceError
        Ray can't be started, or nothing answers at the address within ``liveness`` seconds.
    """
    if ray.is_initialized():
        return lambda: None
    # Ray's advice on tokens comes before `logging_level` counts.
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    terminate = signal.getsignal(signal.SIGTERM)
    if address is None:
        start_local(num_cpus=local_cpus(blocks, cpus_per_block), include_dashboard=False, **common)
    else:
        _require_reachable(address, liveness)
        ray.init(address=address, namespace=namespace, **common)
    if threading.current_thread() is threading.main_thread():  # where alone Ray replaces the handler
        signal.signal(signal.SIGTERM, terminate)
    return lambda: ray.shutdown()


def start_local(**options: Any) -> None:
    """Start Ray on this machine; Ray's own deadline of 30 s is short for a busy one, so there is a second try.

    Raises
    ------
    ResourceError
        Ray does not come up.
    """
    for last in (False, True):
        before = set(_children())
        try:
            ray.init(address="local", **options)
            return
        except Exception as error:  # Ray raises plain exceptions here
            ray.shutdown()
            _end([process for process in _children() if process not in before])
            if last:
                reason = str(error).strip().partition(". ")[0]
                raise ResourceError(
                    f"Ray could not be started on this machine ({reason}); end other work on it, or use "
                    "--engine local"
                ) from error


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _end(processes: list[psutil.Process]) -> None:
    """End processes that Ray has started and, since its start failed, does not end itself."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, END_SECONDS)


def _require_reachable(address: str, liveness: float) -> None:
    """Try the port first: Ray itself keeps trying for minutes, and doesn't say what it waits for."""
    reason = unreachable(address, liveness)
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
        socket.create_connection((host, int(port)), timeout=seconds).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
