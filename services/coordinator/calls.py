"""What every call goes through: who it is from, whether it may, its turn, its errors, its line in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.coordinator.access import Caller, Gate, Role, require_role
from lowdimfa.services.coordinator.limits import ClientLimits
from lowdimfa.services.coordinator.refusals import RefusedError
from lowdimfa.services.coordinator.store import StoreError
from lowdimfa.services.monitoring.coordinator_metrics import CoordinatorMetrics

T = TypeVar("T")

_access_log = logging.getLogger("lowdimfa.access")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calls:
    """Lets calls in.

    Attributes
    ----------
    gate, limits
        Who may call, and how much at a time.
    metrics
        Counts calls.
    """

    gate: Gate
    limits: ClientLimits
    metrics: CoordinatorMetrics

    async def answer(self, method: str, needed: Role, context: Any, work: Callable[[Caller], T]) -> T:
        """Do what a unary call asks for, in a thread, when it is the client's turn."""
        async with (
            self._counted(method, needed, context) as caller,
            self.limits.call(_client(caller, context)),
        ):
            return await asyncio.to_thread(work, caller)

    @asynccontextmanager
    async def stream(self, method: str, context: Any) -> AsyncIterator[Caller]:
        """Keep a stream's place while it is open; every role may have some."""
        async with (
            self._counted(method, Role.read, context) as caller,
            self.limits.stream(_client(caller, context)),
        ):
            self.metrics.streams(method, 1)
            try:
                # News may be long in coming: by this the client knows that it was let in.
                await context.send_initial_metadata(())
                yield caller
            finally:
                self.metrics.streams(method, -1)

    @asynccontextmanager
    async def _counted(self, method: str, needed: Role, context: Any) -> AsyncIterator[Caller]:
        """Let a caller in, turn errors into a status, and note how the call went."""
        began, name, code = time.perf_counter(), "", grpc.StatusCode.OK
        try:
            try:
                caller = self.gate.caller(dict(context.invocation_metadata() or ()).get("authorization", ""))
                name = caller.name
                require_role(caller, needed, method)
                yield caller
            except (StoreError, LowdimfaError) as error:
                raise RefusedError.of(error) from error
        except RefusedError as refusal:
            code = refusal.status
            await context.abort_with_status(refusal.as_status())
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            if code is grpc.StatusCode.OK:
                code = grpc.StatusCode.INTERNAL
                _log.exception("%s failed", method)
                unexpected = RefusedError(
                    code, f"{method} failed; the service's log has the reason", "internal"
                )
                await context.abort_with_status(unexpected.as_status())
            raise
        finally:
            seconds = time.perf_counter() - began
            routine = getattr(context, "routine", False)
            if not routine:  # a page that is open asks every second, which would hide how it goes for clients
                self.metrics.called(method, code.name, seconds)
            usual = logging.DEBUG if routine else logging.INFO
            level = usual if code is grpc.StatusCode.OK else logging.WARNING
            _access_log.log(level, "%s %s %s %.1f ms", method, name or "-", code.name, 1000 * seconds)


def _client(caller: Caller, context: Any) -> str:
    """Return by what a client's share is counted: its token, or without tokens the address that it calls from."""
    return caller.name or str(context.peer()).rpartition(":")[0]
