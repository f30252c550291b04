"""Keep a streaming call open over a connection that may break."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from lowdimfa.errors import HandshakeError, LowdimfaError, PeerError, ProtocolError

_jitter = random.Random()  # not the default generator, from which a user's data draw in another thread
_TRANSIENT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
_REFUSED = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
}


def is_transient(error: grpc.RpcError) -> bool:
    """Return whether a call may succeed when it is made again."""
    return error.code() in _TRANSIENT


def await_answer(call: Any, seconds: float) -> None:
    """Wait until a server has accepted a stream's call, or end the call.

    It answers with its initial metadata as soon as it accepts. Nothing else bounds the wait for that: the stream itself
    has no deadline.
    """
    timer = threading.Timer(max(0.0, seconds), call.cancel)
    timer.daemon = True
    timer.start()
    try:
        call.initial_metadata()
    finally:
        timer.cancel()


@dataclass(frozen=True)
class Peer:
    """The far end of a connection, as messages name it.

    Attributes
    ----------
    block
        Index of the block at this end.
    name
        The block at the far end, such as ``block 3`` or ``the head``.
    address
        ``host:port`` of the far end.
    liveness
        Seconds of silence after which it counts as lost.
    """

    block: int
    name: str
    address: str
    liveness: float

    def lost(self, reason: str, seconds: float | None = None) -> PeerError:
        """Return the error for a far end that was silent for too many seconds, the liveness by default."""
        silence = self.liveness if seconds is None else seconds
        return PeerError(
            f"block {self.block} lost {self.name} at {self.address}: {reason} for {silence:g} s",
            block=self.block,
            setting="run.liveness_seconds",
        )

    def failure(self, error: grpc.RpcError) -> LowdimfaError:
        """Return the typed error for a call that failed for good."""
        details = error.details() or error.code().name
        if is_transient(error):
            return self.lost(f"no connection ({details})")
        kind = HandshakeError if error.code() in _REFUSED else ProtocolError
        return kind(f"{self.name} at {self.address} refused block {self.block}: {details}", block=self.block)


class Backoff:
    """Pauses between attempts to reach a peer, until it has been out of reach for ``liveness`` seconds.

    The pauses double from 10 ms to an eighth of the liveness; each is shortened by a random part, so that
    many clients of a server that comes back don't return in step.
    """

    def __init__(self, liveness: float) -> None:
        self._liveness = liveness
        self.restored()

    def restored(self) -> None:
        """Note that the peer is in reach."""
        self._pause = 0.01
        self._lost_at: float | None = None

    def remaining(self) -> float:
        """Return the seconds until the peer counts as lost; the first call after `restored` starts them."""
        if self._lost_at is None:
            self._lost_at = time.monotonic()
        return self._lost_at + self._liveness - time.monotonic()

    def wait(self, closed: threading.Event) -> bool:
        """Pause, or until ``closed`` is set; return False without a pause if the peer counts as lost."""
        remaining = self.remaining()
        if remaining <= 0:
            return False
        closed.wait(min(remaining, self._pause * _jitter.uniform(0.5, 1)))
        self._pause = min(2 * self._pause, self._liveness / 8)
        return True


class Resend(Exception):
    """What came over a stream is not what was to come: it is wanted once more, over a new connection."""


class Resends:
    """Asks for a message again that can't be used, a few times: a fault on its way passes, a defect does not."""

    LIMIT = 3

    def __init__(self) -> None:
        self._sequence = -1
        self._asked = 0

    def ask(self, sequence: int, failure: ProtocolError) -> Resend:
        """Return what asks for the message with a sequence once more.

        Raises
        ------
        ProtocolError
            ``failure``, when that has been asked for `LIMIT` times.
        """
        self._asked = self._asked + 1 if sequence == self._sequence else 1
        self._sequence = sequence
        if self._asked > self.LIMIT:
            raise failure
        return Resend(failure.message)


def failure_of_thread(error: Exception, block: int | None = None) -> LowdimfaError:
    """Return what ended this thread as the error to report: without it a run would wait for a dead thread."""
    if isinstance(error, LowdimfaError):
        return error
    name = threading.current_thread().name
    defect = LowdimfaError(f"{name} failed: {type(error).__name__}: {error}", block=block)
    defect.__cause__ = error  # whoever reports it shows where that was
    return defect


class StreamThread:
    """A thread that keeps one streaming call open, and opens it again after the connection broke.

    Parameters
    ----------
    name
        Of the thread.
    peer
        The far end.
    connect
        Starts the call, whose ``cancel`` ends it at any time, in any thread.
    on_response
        Takes each response, in this thread. `Resend` breaks the connection; what else it raises ends the stream.
    on_end
        Called once, in this thread, with the error that ended the stream, or with ``None`` when the far end
        ended it in order. Not called when `close` ended it.
    """

    def __init__(
        self,
        name: str,
        peer: Peer,
        connect: Callable[[], Any],
        on_response: Callable[[Any], None],
        on_end: Callable[[LowdimfaError | None], None],
    ) -> None:
        self._peer = peer
        self._connect = connect
        self._on_response = on_response
        self._on_end = on_end
        self._backoff = Backoff(peer.liveness)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def renew(self) -> None:
        """Break the connection, so that it is opened again and the far end repeats what is missing."""
        with self._lock:
            if self._call is not None:
                self._call.cancel()

    def close(self) -> None:
        """End the stream and join the thread, unless it is the caller."""
        self._closed.set()
        with self._lock:
            if self._call is not None:
                self._call.cancel()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        end: LowdimfaError | None = None
        try:
            self._stay_connected()
        except Exception as error:
            end = failure_of_thread(error, self._peer.block)
        if not self._closed.is_set():
            self._on_end(end)

    def _stay_connected(self) -> None:
        while not self._closed.is_set():
            try:
                self._stream()
                return
            except Resend:
                self._backoff.wait(self._closed)
            except grpc.RpcError as error:
                if self._closed.is_set():
                    return
                if not is_transient(error) or not self._backoff.wait(self._closed):
                    raise self._peer.failure(error) from error

    def _stream(self) -> None:
        with self._lock:
            if self._closed.is_set():
                return
            call = self._call = self._connect()
        await_answer(call, self._backoff.remaining())
        if call.is_active():
            self._backoff.restored()
        try:
            for response in call:
                self._on_response(response)
        finally:
            call.cancel()
