"""What the tests of the command share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forks import Forks


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as forks:
        yield forks
