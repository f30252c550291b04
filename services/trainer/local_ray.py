"""A Ray that a process of ours has started on this machine, with no more processes than a run needs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from lowdimfa.services.trainer import families, fork_server, forks
from lowdimfa.services.trainer.early_ray import not_started

END_SECONDS = 5.0
"""Longest wait until processes have ended by themselves, and again once they are killed."""

_NO_USE = ("start_monitor", "start_log_monitor", "start_api_server")
"""Methods of Ray's node which start what a run has no use for: what adds machines to a cluster, what shows the output of
workers, and without a dashboard what counts users. Ray has no options against them, and waits for the last. A version
that calls them otherwise has these processes."""

_AT_ONCE = {"RAY_worker_maximum_startup_concurrency": "64"}
"""So many workers may start at a time, where Ray has as many as there are cores: forks take little, and wait for much."""


@dataclass(frozen=True)
class LocalRay:
    """A cluster that this process has started.

    Attributes
    ----------
    address
        Under which others join it.
    session
        The folder of its logs and sockets, in the temporary folder.
    processes
        Children of this one that are its node's, and its server.
    server
        By which its workers begin.
    """

    address: str
    session: Path
    processes: list[psutil.Process]
    server: forks.ForkServer | None = None

    def end(self) -> None:
        """End it, and remove what it leaves once its processes have gone."""
        family = _with_descendants(self.processes)
        ray.shutdown()
        if self.server:
            self.server.end()
        _, alive = psutil.wait_procs(family, END_SECONDS)
        _end(alive)
        self.forget()

    def forget(self) -> None:
        """Remove the folders of a cluster whose processes have gone."""
        if self.server:
            shutil.rmtree(self.server.folder, ignore_errors=True)
        families.forget_session(self.session)


def start_local(door: Path | None = None, **options: Any) -> LocalRay:
    """Start Ray on this machine; Ray's own deadline of 30 s is short for a busy one, so there is a second try.

    Parameters
    ----------
    door
        Folder at which its workers find a fork server that this process has no part in; by default it has one.
    options
        Of ``ray.init``, beside those that it always has.

    Raises
    ------
    ResourceError
        Ray does not come up.
    """
    for last in (False, True):
        before = families.below(psutil.Process())
        server = None
        try:
            with _environment(dict.fromkeys(forks.NOT_FOR_RAY) | _AT_ONCE), _few_processes():
                server = None if door else forks.take()  # first: it may have to load, while Ray starts
                folder = server.folder if server else door
                with forks.used(folder) if folder else contextlib.nullcontext():
                    context = ray.init(
                        address="local", include_dashboard=False, log_to_driver=False, **options
                    )
            found = context.address_info
            return LocalRay(found["gcs_address"], Path(found["session_dir"]), _started(before), server)
        except BaseException as error:
            family = _with_descendants(_started(before))
            ray.shutdown()
            if server:
                server.end()
            _end(family)
            if not isinstance(error, Exception):
                raise
            if last:
                raise not_started(str(error)) from error  # Ray raises plain exceptions here
    raise AssertionError("the second try returns or raises")


@contextmanager
def _few_processes() -> Iterator[None]:
    try:
        from ray._private.node import Node
    except ImportError:  # private, and so at another place in another version
        yield
        return
    kept = {name: vars(Node)[name] for name in _NO_USE if name in vars(Node)}
    for name in kept:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


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


def _started(before: set[psutil.Process]) -> list[psutil.Process]:
    """Return what Ray has started since: other threads of the program may have started processes meanwhile, too.

    These are programs in Ray's own folder (``gcs_server``, ``raylet``), maybe run by Python, and the server by which
    workers begin. All else of Ray's is below them.
    """
    marks = (f"{Path(ray.__file__).parent}{os.sep}", "ray::", fork_server.__name__)
    this, own = psutil.Process(), []
    for process in families.below(this) - before:
        with contextlib.suppress(psutil.Error):
            # What is further below may be of a Ray that another program has started.
            if process.ppid() == this.pid and any(
                mark in word for word in process.cmdline()[:4] for mark in marks
            ):
                own.append(process)
    return own


def _with_descendants(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [*{*processes} | families.below(*processes)]


def _end(processes: list[psutil.Process]) -> None:
    """End processes that Ray has started and, since its start failed, does not end itself."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, END_SECONDS)
