"""What the tests of the command share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forks import Forks
from service import Service, service


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture(scope="session")
def service_of_all(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give a job service with a Ray cluster of its own; starting one takes longer than most tests."""
    with service(tmp_path_factory.mktemp("service"), forks) as running:
        yield running


@pytest.fixture
def served(service_of_all: Service) -> Iterator[Service]:
    """Give the service of all tests with nothing under way, and see that a test leaves it so, whatever became of it."""
    yield service_of_all
    if service_of_all.process.poll() is not None:
        service_of_all.start()
    left = service_of_all.stop_all()
    assert not left, f"still under way: {left}"
