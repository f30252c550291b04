"""The coordinator's process, from its options to its end; whatever ends it leaves nothing behind that has no job."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lowdimfa.errors import InputError, ResourceError
from lowdimfa.services.coordinator.jobs import ACTIVE, JobState
from lowdimfa.services.coordinator.local_cluster import LocalCluster
from lowdimfa.services.coordinator.private import own_file
from lowdimfa.services.coordinator.ray_runner import RayRunner
from lowdimfa.services.coordinator.runner import JobRunner
from lowdimfa.services.coordinator.server import Coordinator, require_safe
from lowdimfa.services.coordinator.settings import ServeSettings
from lowdimfa.services.coordinator.sqlite_store import SqliteJobStore
from lowdimfa.services.coordinator.store import JobStore
from lowdimfa.services.run.naming import require_usable
from lowdimfa.services.run.storage import Place
from lowdimfa.services.spec.addresses import is_address
from lowdimfa.services.trainer.cluster import require_address

_log = logging.getLogger(__name__)

OnServing = Callable[[str, str, str, str], None]


def serve(settings: ServeSettings, on_serving: OnServing) -> list[str]:
    """Run a coordinator until SIGTERM or SIGINT; a second signal cuts its calls short.

    Parameters
    ----------
    settings
        Of the operator.
    on_serving
        Gets the addresses of the API, the HTTP pages, the live page and the cluster once calls are answered.

    Returns
    -------
    ids of the jobs that go on without it.

    Raises
    ------
    InputError, ResourceError
        It can't start.
    """
    require_safe(settings)
    if settings.ray_address is not None:
        require_address(settings.ray_address, "--ray-address")
    storage = _storage(settings)
    store = SqliteJobStore(settings.state / "jobs.sqlite3", storage, settings.max_queued)
    try:
        settings = replace(settings, storage=storage, state=settings.state.resolve())
        return _serve(settings, store, on_serving)
    finally:
        store.close()


def _storage(settings: ServeSettings) -> Place:
    """Return the storage, made if it is a folder that isn't there.

    Raises
    ------
    InputError
        Nothing can be written there, or it is in the folder that nobody but the service may enter.
    """
    if is_address(settings.storage):
        if str(settings.storage).startswith("memory:"):
            raise InputError(
                f"--storage {settings.storage}", "the memory of one process", "what all nodes reach"
            )
        require_usable(str(settings.storage), settings.liveness, f"--storage {settings.storage}")
        return settings.storage
    storage = Path(settings.storage).resolve()
    where = f"--storage {storage}"
    if storage.is_relative_to(settings.state.resolve()):
        raise InputError(where, f"a folder in --state {settings.state}", "one beside it: --state is private")
    try:
        storage.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=storage).close()
    except OSError as error:
        raise InputError(
            where, f"no place to write ({error.strerror or error})", "a writable folder"
        ) from error
    return storage


def _serve(settings: ServeSettings, store: SqliteJobStore, on_serving: OnServing) -> list[str]:
    if settings.ray_address is None:
        cluster = LocalCluster(settings.state, settings.liveness)
        # A cluster that was started here asks everybody for Ray's own token, which lies in the user's home.
        find, extra = cluster.address, {"RAY_AUTH_MODE": "token"}
    else:
        cluster, address = None, settings.ray_address
        find, extra = lambda: address, {}
    runner = RayRunner(find, settings.liveness, own_file(settings.state / "ray-agent.log"), extra)
    asyncio.run(_until_told(settings, store, runner, cluster, on_serving))
    return [job.id for job in store.in_states(ACTIVE)]


async def _until_told(
    settings: ServeSettings,
    store: JobStore,
    runner: JobRunner,
    cluster: LocalCluster | None,
    on_serving: OnServing,
) -> None:
    """Serve until a signal, which may come before the cluster is up."""
    loop = asyncio.get_running_loop()
    told, hurry = asyncio.Event(), asyncio.Event()

    def tell() -> None:
        (hurry if told.is_set() else told).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell)
    coordinator = Coordinator(settings, store, runner)  # with both ports, before anything is started
    served = False
    try:
        address = settings.ray_address if cluster is None else await _started(cluster, told)
        if address is not None:
            http = await coordinator.start()
            served = True
            on_serving(coordinator.address, http, coordinator.page, address)
            await told.wait()
            _log.info("ending: %d jobs are queued", store.count_by_state()[JobState.queued])
    finally:
        await _stopped(coordinator, settings.liveness / 6, hurry)
        # Jobs run on, but not in what a failed start has begun.
        if cluster is not None and not (store.in_states(ACTIVE) and (served or not cluster.fresh)):
            await asyncio.to_thread(cluster.end)


async def _stopped(coordinator: Coordinator, grace: float, hurry: asyncio.Event) -> None:
    """Stop, and cut calls short once there is hurry."""
    ending = asyncio.create_task(coordinator.stop(grace))
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait({ending, hurried}, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if not ending.done():
        await coordinator.stop(0)
    with contextlib.suppress(asyncio.CancelledError):
        await ending


async def _started(cluster: LocalCluster, told: asyncio.Event) -> str | None:
    """Return the address of the cluster; None if a signal came before it was up."""
    starting = asyncio.create_task(asyncio.to_thread(cluster.address))
    ending = asyncio.create_task(told.wait())
    await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if starting.done():
        return await starting
    await asyncio.to_thread(cluster.end)
    with contextlib.suppress(ResourceError):
        await starting
    return None
