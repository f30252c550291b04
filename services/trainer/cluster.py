"""The Ray cluster of a run: joined, or started on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from lowdimfa.errors import InputError, ResourceError
from lowdimfa.services.trainer import forks

END_SECONDS = 5.0
"""Longest wait until processes have ended by themselves, and again once they are killed."""


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
        The current folder has a package by whose name the actors would miss ours.
    ResourceError
        Ray can't be started, or nothing answers at the address within ``liveness`` seconds.
    """
    if ray.is_initialized():
        return lambda: None
    _refuse_other_packages(Path.cwd())
    # Ray's advice on tokens comes before `logging_level` counts.
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    terminate = signal.getsignal(signal.SIGTERM)
    disconnect: Callable[[], None] = ray.shutdown
    try:
        if address is None:
            cpus = local_cpus(blocks, cpus_per_block)
            disconnect = start_local(num_cpus=cpus, include_dashboard=False, **common).end
        else:
            _require_reachable(address, liveness)
            ray.init(address=address, namespace=namespace, **common)
    finally:
        if threading.current_thread() is threading.main_thread():  # where alone Ray replaces the handler
            signal.signal(signal.SIGTERM, terminate)
    return disconnect


@dataclass(frozen=True)
class LocalRay:
    """A cluster that this process has started.

    Attributes
    ----------
    session
        The folder of its logs and sockets, in the temporary folder.
    processes
        Of its node.
    server
        By which its workers begin.
    """

    session: Path
    processes: list[psutil.Process]
    server: forks.ForkServer | None = None

    def end(self) -> None:
        """End it, and remove what it leaves once its processes have gone."""
        family = {*self.processes}
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                family |= {*process.children(recursive=True)}
        ray.shutdown()
        if self.server:
            self.server.end()
        _, alive = psutil.wait_procs([*family], END_SECONDS)
        _end(alive)
        self.forget()

    def forget(self) -> None:
        """Remove the folders of a cluster whose processes have gone."""
        if self.server:
            shutil.rmtree(self.server.folder, ignore_errors=True)
        shutil.rmtree(self.session, ignore_errors=True)
        latest = self.session.with_name("session_latest")
        with contextlib.suppress(OSError):
            if latest.readlink() == self.session:
                latest.unlink()


def start_local(**options: Any) -> LocalRay:
    """Start Ray on this machine; Ray's own deadline of 30 s is short for a busy one, so there is a second try.

    Parameters
    ----------
    options
        Of ``ray.init``.

    Raises
    ------
    ResourceError
        Ray does not come up.
    """
    for last in (False, True):
        before = set(_children())
        server = None
        try:
            with _environment(dict.fromkeys(forks.NOT_FOR_RAY)):
                server = forks.take()  # first: it may have to load, while Ray starts
                with server.used() if server else contextlib.nullcontext():
                    context = ray.init(address="local", **options)
            own = [process for process in _children() if process not in before]
            return LocalRay(Path(context.address_info["session_dir"]), own, server)
        except Exception as error:  # Ray raises plain exceptions here
            ray.shutdown()
            if server:
                server.end()
            _end([process for process in _children() if process not in before])
            if last:
                reason = str(error).strip().partition(". ")[0]
                raise ResourceError(
                    f"Ray could not be started on this machine ({reason}); end other work on it, or use "
                    "--engine local"
                ) from error
    raise AssertionError("the second try returns or raises")


@contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables for processes that the body starts; None takes one out."""
    kept = {name: os.environ.pop(name) for name in variables if name in os.environ}
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(kept)


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
