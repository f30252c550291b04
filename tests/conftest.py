"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lowdimfa.network import computing_threads


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: the bits of a sum depend on their number, and small tensors are faster so."""
    with computing_threads(1):
        yield
