"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from lowdimfa.services.run.loading import loading

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

# How long an example takes says nothing on a busy machine. Examples follow from a test's own code, so that a change is
# judged by the same ones each time; with "new" they are others in every run, for who looks for faults.
settings.register_profile("some", deadline=None, max_examples=12, derandomize=True)
settings.register_profile("many", deadline=None, max_examples=300, derandomize=True)
settings.register_profile("new", deadline=None, max_examples=300, derandomize=False)
settings.load_profile("some")

LIVENESS = 60.0
CPUS = 5
"""Of the shared Ray: one for each block, and each replica of one, of the largest run that the tests make on it."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import what the tests do without looking for garbage; later, too, nobody looks through all of torch for some."""
    with loading():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file together, and all with a real Ray, which is one at a time and begins first."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            ray = not {"shared_ray", "served"}.isdisjoint(getattr(item, "fixturenames", ()))
            item.add_marker(pytest.mark.xdist_group("ray" if ray else item.path.stem))
    # A process that was connected to the shared Ray, and then to one of its own, can't use the shared one any more.
    items.sort(key=lambda item: (item.path.stem != "test_ray_start", _group(item) != "ray"))


def _group(item: pytest.Item) -> str:
    marker = item.get_closest_marker("xdist_group")
    return str(marker.args[0]) if marker else ""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run where groups come to nothing: two real Rays at once, and fixtures that several processes make."""
    if getattr(session.config.option, "loadgroup", False) and not all(
        "@" in item.nodeid for item in session.items
    ):
        raise pytest.UsageError("this pytest-xdist doesn't group tests under this pytest; see pyproject.toml")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: the bits of a sum depend on their number, and small tensors are faster so."""
    from lowdimfa.network import computing_threads  # late: who hands out the tests needs no torch

    with computing_threads(1):
        yield


@pytest.fixture(scope="session", autouse=True)
def no_flushes() -> Iterator[None]:
    """Leave it to the kernel when bytes go to the disk: no test can see it, and a busy disk takes a tenth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a report's figures as they were made: to draw one takes a second, and says nothing of the page's words."""
    from lowdimfa.services.monitoring.report.style import Picture  # late: it imports Matplotlib

    monkeypatch.setattr(Picture, "png", lambda picture: b"")


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[Cluster]:
    """Give one Ray for all tests that leave it whole, because starting it takes seconds; nothing is connected to it."""
    from ray.cluster_utils import Cluster  # late: most tests do without

    from lowdimfa.services.trainer import forks

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # the cluster's processes inherit it
        cluster, server = Cluster(), forks.take()
        try:
            with forks.used(server.folder) if server else nullcontext():
                add_node(cluster, num_cpus=CPUS, include_dashboard=False)
            yield cluster
        finally:
            cluster.shutdown()
            if server:
                server.end()


def add_node(cluster: Cluster, **options: object) -> object:
    """Add a node; on a busy machine Ray's own deadline of 30 s may need a second try."""
    try:
        return cluster.add_node(**options)
    except Exception:  # Ray raises a plain exception
        return cluster.add_node(**options)


@pytest.fixture(scope="module")
def cluster(shared_ray: Cluster) -> Iterator[None]:
    """Connect this process to the shared Ray while a file's tests run; the next file may start a Ray of its own."""
    from lowdimfa.services.trainer.cluster import start_ray

    disconnect = start_ray(shared_ray.address, liveness=LIVENESS)
    yield
    disconnect()


@pytest.fixture
def second_node(shared_ray: Cluster) -> Iterator[None]:
    """Let the shared Ray have another node."""
    node = add_node(shared_ray, num_cpus=2)
    shared_ray.wait_for_nodes()
    yield
    shared_ray.remove_node(node)
