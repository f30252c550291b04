"""No client may take what the others need: open streams and calls under way are counted for each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from lowdimfa.services.coordinator.refusals import RefusedError

CALLS_AT_ONCE = 8
"""Calls of one client that are worked on at a time; others of it wait for these."""

CALLS_WAITING = 64
"""Calls of one client that may wait. What comes beyond them is refused."""


class ClientLimits:
    """Counts what every client has under way. For one event loop.

    Parameters
    ----------
    streams
        Most open streams of one client.
    """

    def __init__(self, streams: int) -> None:
        self._most_streams = streams
        self._streams: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._turns: dict[str, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def stream(self, client: str) -> AsyncIterator[None]:
        """Count a stream while it is open.

        Raises
        ------
        RefusedError
            The client has too many.
        """
        if self._streams[client] >= self._most_streams:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"this client has {self._streams[client]} streams open, the most that the service allows; end some",
                "resources",
            )
        self._streams[client] += 1
        try:
            yield
        finally:
            self._forget(self._streams, client)

    @asynccontextmanager
    async def call(self, client: str) -> AsyncIterator[None]:
        """Wait for the client's turn, and count the call until it is done.

        Raises
        ------
        RefusedError
            Too many of the client's calls wait already.
        """
        if self._calls[client] >= CALLS_AT_ONCE + CALLS_WAITING:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"this client has {self._calls[client]} calls under way; wait for some of them",
                "resources",
            )
        turns = self._turns.setdefault(client, asyncio.Semaphore(CALLS_AT_ONCE))
        self._calls[client] += 1
        try:
            async with turns:
                yield
        finally:
            if self._forget(self._calls, client):
                self._turns.pop(client, None)

    @staticmethod
    def _forget(counts: Counter[str], client: str) -> bool:
        """Count one less; say whether none is left, and keep nothing of a client that has gone."""
        counts[client] -= 1
        if counts[client]:
            return False
        del counts[client]
        return True
