"""The downstream end of a stream of activations, or of what replicas of a block tell each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from lowdimfa.errors import LowdimfaError, PeerError, ProtocolError
from lowdimfa.services.rpc.connection import Resend, failure_of_thread
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.rpc.v1 import stream_pb2 as pb
from lowdimfa.services.stream.carriers import Downstream, Intake
from lowdimfa.services.stream.frames import Message, run_fingerprint
from lowdimfa.services.stream.limits import SampleLimit
from lowdimfa.services.stream.resumable import Arriving, Incoming, as_it_came
from lowdimfa.services.stream.sender import METHOD, SENDER_KEY, message_name


class _FromSender(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Serves the transfers of one sender: a block may have several, each with a receiver of its own.

    Parameters
    ----------
    sender
        Where it sits.
    handler
        Of its calls.
    """

    def __init__(self, sender: Seat, handler: Any) -> None:
        self._sender, self._handler = str(sender), handler

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a call, or None if it is for another one to serve."""
        if details.method != METHOD:
            return None
        sender = dict(details.invocation_metadata or ()).get(SENDER_KEY)
        return self._handler if sender == self._sender else None


class Receiver:
    """Receives another block's messages, each once and in order. Add it to the block's `RpcServer`.

    A frame that can't be used, or that others should have come before, is asked for again over a new connection.

    Parameters
    ----------
    run, block, peer
        Identifier of the run, index of this block and of the other one.
    window
        Messages that may be unreleased at once.
    limit
        What they may be. No more memory is taken for a message.
    on_message
        Takes each message, in a gRPC thread.
    on_failure
        Told once, in a gRPC thread, of a message that can't be used however often it is asked for.
    arriving
        Stands for the network in drills: returns what arrives in place of a frame.
    peer_rank
        Of the replica of the other block.
    carrier
        Brings tensors that the sender has offered to send otherwise. It is this object's to close.

    Attributes
    ----------
    traffic
        What was received.
    """

    def __init__(
        self,
        run: str,
        block: int,
        peer: int,
        window: int,
        limit: SampleLimit,
        on_message: Callable[[Message], None],
        on_failure: Callable[[LowdimfaError], None],
        arriving: Arriving = as_it_came,
        *,
        peer_rank: int = 0,
        carrier: Downstream | None = None,
    ) -> None:
        self._what = message_name(peer, block)
        self._incoming = Incoming(
            self._what, block, run_fingerprint(run), peer, limit, self._came, arriving, self._admit
        )
        self.traffic = self._incoming.traffic
        self._block, self._sender = block, Seat(peer, peer_rank)
        self._window = window
        self._on_message = on_message
        self._on_failure = on_failure
        self._carrier = carrier or Downstream()
        # Held while a message is delivered, so that a new connection can't overtake the one that it replaces.
        self._delivery = threading.Lock()
        self._changed = threading.Condition()
        self._stream = 0  # counts connections; only the last one is listened to
        self._broken = 0  # the last connection that was broken, to have its messages repeated
        self._released: set[int] = set()
        self._acknowledged = -1
        self._told = -1  # the last acknowledgement that this connection has sent
        self._beside = Intake()  # what takes acknowledgements beside the connection
        self._failure: LowdimfaError | None = None
        self._closed = False

    def attach(self, server: Any, pool: ThreadPoolExecutor) -> None:
        """Register the service; ``pool`` runs its readers, so that they end with the server."""
        self._pool = pool
        method = grpc.stream_stream_rpc_method_handler(
            self._transfer, response_serializer=pb.Ack.SerializeToString
        )
        server.add_generic_rpc_handlers((_FromSender(self._sender, method),))

    def release(self, message: Message) -> None:
        """Acknowledge a message that was consumed, which makes room in the sender's window."""
        with self._changed:
            self._released.add(message.sequence)
            while self._acknowledged + 1 in self._released:
                self._acknowledged += 1
                self._released.remove(self._acknowledged)
            if self._beside.acknowledge(self._acknowledged):
                self._told = self._acknowledged
            elif self._is_due():
                self._changed.notify_all()

    def renew(self) -> None:
        """Have the sender repeat what may have been lost, unless a message is just coming."""
        if not self._incoming.grows():
            self._break()

    def _break(self) -> None:
        """End the connection, so that the sender opens it again, with the first message that is not acknowledged."""
        with self._changed:
            self._broken = self._stream
            self._changed.notify_all()

    def close(self) -> None:
        """Send the last acknowledgements and end the connection. `RpcServer.stop` joins the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._carrier.close()

    def _transfer(self, frames: Iterator[bytes], context: Any) -> Iterator[pb.Ack]:
        """Serve one connection: this thread sends acknowledgements while another one reads."""
        if not context.add_callback(self._wake):
            return
        intake = self._carrier.take(dict(context.invocation_metadata() or ()))
        with self._changed:
            self._stream += 1
            stream, self._told, self._beside = self._stream, -1, Intake()
            self._changed.notify_all()
        self._pool.submit(self._read, frames, stream, intake)
        try:
            context.send_initial_metadata(intake.answer)
            while (acknowledged := self._await(stream, context)) is not None:
                yield pb.Ack(sequence=acknowledged)
        finally:
            intake.stop()
        if self._failure is not None:
            lost = isinstance(self._failure, PeerError)
            code = grpc.StatusCode.UNAVAILABLE if lost else grpc.StatusCode.INVALID_ARGUMENT
            context.abort(code, self._failure.message)
        if self._broken == stream:
            wanted = f"{self._what} {self._incoming.expected} is wanted once more"
            context.abort(grpc.StatusCode.UNAVAILABLE, wanted)

    def _arrivals(self, frames: Iterator[bytes], stream: int, intake: Intake) -> Iterator[bytes]:
        """Yield what comes over the connection, and after that beside it, if the sender has gone over to that."""
        intake.begin()
        yield from frames
        try:
            if not intake.accept():
                return
        except OSError as error:
            self._carrier.decline()
            raise Resend(f"block {self._block} can't use what {self._sender} offered: {error}") from error
        with self._changed:
            if self._stream == stream:
                self._beside = intake
        yield from intake.frames(self._incoming.expected)

    def _await(self, stream: int, context: Any) -> int | None:
        """Wait for something to acknowledge; return ``None`` when the connection is to end."""

        def ended() -> bool:
            broken = self._failure is not None or self._broken == stream
            return broken or self._stream != stream or not context.is_active()

        with self._changed:
            self._changed.wait_for(lambda: self._is_due() or self._closed or ended())
            if ended() or self._acknowledged == self._told:
                return None
            self._told = self._acknowledged
            return self._told

    def _is_due(self) -> bool:
        """Return whether what was released is to be acknowledged now.

        Each acknowledgement wakes threads at both ends. While the sender has room for half a window, they gather.
        """
        outstanding = self._incoming.expected - 1 - self._told
        return self._acknowledged > self._told and (self._told < 0 or 2 * outstanding >= self._window)

    def _read(self, frames: Iterator[bytes], stream: int, intake: Intake) -> None:
        try:
            with self._delivery:
                if self._stream == stream:
                    self._incoming.restart()
            for frame in self._arrivals(frames, stream, intake):
                with self._delivery:
                    if self._stream != stream or self._broken == stream or self._failure is not None:
                        return
                    self._incoming.take(frame, intake.carried)
        except grpc.RpcError:
            return  # the connection broke; the sender opens another one
        except Resend:
            self._break()
        except Exception as error:
            self._fail(failure_of_thread(error, self._block))
        finally:
            intake.close()

    def _fail(self, failure: LowdimfaError) -> None:
        with self._changed:
            if self._closed or self._failure is not None:
                return  # it came of that
            self._failure = failure
            self._changed.notify_all()
        self._on_failure(failure)

    def _came(self, message: Message) -> None:
        with self._changed:
            if self._is_due():
                self._changed.notify_all()
        self._on_message(message)

    def _admit(self, sequence: int) -> None:
        if sequence - self._acknowledged > self._window:
            raise ProtocolError(f"more than {self._window} unacknowledged {self._what}s")

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
