"""The downstream end of the gRPC transport of activations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import torch

from lowdimfa.errors import LowdimfaError, ProtocolError
from lowdimfa.services.block.activations import (
    METHOD,
    SENDER_KEY,
    SERVICE,
    Activation,
    Assembly,
    SampleLimit,
    unpack,
)
from lowdimfa.services.block.ring import RING_KEY
from lowdimfa.services.block.ring_view import NO_MEMORY, RingView, take_offer
from lowdimfa.services.rpc.connection import Resend, Resends
from lowdimfa.services.rpc.protocol import Traffic, run_fingerprint
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.rpc.v1 import activations_pb2 as pb


def as_it_came(frame: bytes) -> Iterable[bytes]:
    """Return what the network made of a frame: here the frame."""
    return (frame,)


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
        if details.method != f"/{SERVICE}/{METHOD}":
            return None
        sender = dict(details.invocation_metadata or ()).get(SENDER_KEY)
        return self._handler if sender == self._sender else None


class ActivationReceiver:
    """Receives the previous block's activations, each once and in order. Add it to the block's `RpcServer`.

    A frame that can't be used, or that others should have come before, is asked for again over a new connection.

    Parameters
    ----------
    run, block, peer
        Identifier of the run, index of this block and of the previous one.
    window
        Activations that may be unreleased at once.
    on_message
        Takes each activation, in a gRPC thread.
    on_failure
        Told once, in a gRPC thread, of a message that can't be used however often it is asked for.
    arriving
        Stands for the network in drills: returns what arrives in place of a frame.
    peer_rank
        Of the replica of the previous block.

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
        on_message: Callable[[Activation], None],
        on_failure: Callable[[LowdimfaError], None],
        arriving: Callable[[bytes], Iterable[bytes]] = as_it_came,
        *,
        peer_rank: int = 0,
    ) -> None:
        self.traffic = Traffic()
        self._arriving = arriving
        self._resends = Resends()
        self._run = run_fingerprint(run)
        self._block = block
        self._peer, self._sender = peer, Seat(peer, peer_rank)
        self._window = window
        self._on_message = on_message
        self._on_failure = on_failure
        self._limit: SampleLimit | None = None
        # Held while a message is delivered, so that a new connection can't overtake the one that it replaces.
        self._delivery = threading.Lock()
        self._expected = 0
        self._changed = threading.Condition()
        self._stream = 0  # counts connections; only the last one is listened to
        self._broken = 0  # the last connection that was broken, to have its messages repeated
        self._released: set[int] = set()
        self._acknowledged = -1
        self._told = -1  # the last acknowledgement that this connection has sent
        self._ring: RingView | None = None  # that it shares
        self._shares = True  # no more after it could not
        self._failure: LowdimfaError | None = None
        self._closed = False

    def attach(self, server: Any, pool: ThreadPoolExecutor) -> None:
        """Register the service; ``pool`` runs its readers, so that they end with the server."""
        self._pool = pool
        method = grpc.stream_stream_rpc_method_handler(
            self._transfer, response_serializer=pb.ActivationAck.SerializeToString
        )
        server.add_generic_rpc_handlers((_FromSender(self._sender, method),))

    def expect(self, shape: Sequence[int], dtype: torch.dtype, max_samples: int) -> None:
        """Announce what will come, before it may: the type of one sample and the largest number of samples.

        No more memory is taken for a message than two tensors of this size.
        """
        self._limit = SampleLimit(tuple(shape), dtype, max_samples)

    def release(self, activation: Activation) -> None:
        """Acknowledge an activation that was consumed, which makes room in the sender's window."""
        with self._changed:
            self._released.add(activation.sequence)
            while self._acknowledged + 1 in self._released:
                self._acknowledged += 1
                self._released.remove(self._acknowledged)
            if self._ring is not None and self._ring.acknowledge(self._acknowledged):
                self._told = self._acknowledged
            elif self._is_due():
                self._changed.notify_all()

    def renew(self) -> None:
        """Break the connection, so that the sender opens it again and repeats what may have been lost."""
        with self._changed:
            self._broken = self._stream
            self._changed.notify_all()

    def close(self) -> None:
        """Send the last acknowledgements and end the connection. `RpcServer.stop` joins the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _transfer(self, frames: Iterator[bytes], context: Any) -> Iterator[pb.ActivationAck]:
        """Serve one connection: this thread sends acknowledgements while another one reads."""
        if not context.add_callback(self._wake):
            return
        ring = self._offered(context)
        with self._changed:
            self._stream += 1
            stream, self._told, self._ring = self._stream, -1, None
            self._changed.notify_all()
        self._pool.submit(self._read, self._arrivals(frames, stream, ring), stream, ring)
        try:
            context.send_initial_metadata(() if ring is None else ((RING_KEY, ring.name),))
            while (acknowledged := self._await(stream, context)) is not None:
                yield pb.ActivationAck(sequence=acknowledged)
        finally:
            if ring is not None:
                ring.stop()
        if self._failure is not None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, self._failure.message)
        if self._broken == stream:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"activation {self._expected} is wanted once more")

    def _offered(self, context: Any) -> RingView | None:
        """Return this end of the memory that the sender offers to share, if it does and if that can be done."""
        if self._limit is None or not self._shares:
            return None
        offer = dict(context.invocation_metadata() or ()).get(RING_KEY)
        return take_offer(offer, self._window, self._limit.nbytes)

    def _arrivals(self, frames: Iterator[bytes], stream: int, ring: RingView | None) -> Iterator[bytes]:
        """Yield what comes over the connection, and after that by shared memory, if the sender has handed it over."""
        yield from frames
        try:
            if ring is None or not ring.accept():
                return
        except OSError as error:
            self._shares = False
            raise Resend(f"block {self._block} can't read memory of block {self._peer}: {error}") from error
        with self._changed:
            if self._stream == stream:
                self._ring = ring
        yield from ring.frames(self._expected)

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
        outstanding = self._expected - 1 - self._told
        return self._acknowledged > self._told and (self._told < 0 or 2 * outstanding >= self._window)

    def _read(self, arrivals: Iterator[bytes], stream: int, ring: RingView | None) -> None:
        assembly: Assembly | None = None
        try:
            for sent in arrivals:
                for frame in self._arriving(sent):
                    self.traffic.add_message(len(frame))
                    with self._delivery:
                        if self._stream != stream or self._broken == stream:
                            return
                        assembly = self._take(frame, assembly, ring)
        except grpc.RpcError:
            return  # the connection broke; the sender opens another one
        except Resend:
            self.renew()
            return
        except ProtocolError as error:
            message = f"block {self._block} can't use an activation: {error.message}"
            failure: LowdimfaError = ProtocolError(message, block=self._block)
        except Exception as error:  # a defect: without this the run would wait for a dead thread
            message = f"block {self._block} failed: {type(error).__name__}: {error}"
            failure = LowdimfaError(message, block=self._block)
        else:
            return
        finally:
            if ring is not None:
                ring.close()
        with self._changed:
            self._failure = failure
            self._changed.notify_all()
        self._on_failure(failure)

    def _take(self, frame: bytes, assembly: Assembly | None, ring: RingView | None = None) -> Assembly | None:
        """Add one frame to the message under way; deliver the message if that completes it."""
        try:
            return self._add(frame, assembly, ring)
        except ProtocolError as error:
            raise self._resends.ask(self._expected, error) from error

    def _add(self, frame: bytes, assembly: Assembly | None, ring: RingView | None) -> Assembly | None:
        header, data = unpack(frame)
        if header.sequence < self._expected:
            return None
        if header.offset == 0:
            assembly = self._begin(header)
        if assembly is None or header.sequence != self._expected:
            raise ProtocolError(f"a frame of activation {header.sequence} where {self._expected} was next")
        if header.shared:
            if ring is None:
                raise ProtocolError(NO_MEMORY)
            data = ring.read(header.sequence, assembly.nbytes)
        activation = assembly.add(header.offset, data)
        if activation is None:
            return assembly
        with self._changed:
            self._expected += 1
            if self._is_due():
                self._changed.notify_all()
        self.traffic.add_tensors(assembly.nbytes)
        self._on_message(activation)
        return None

    def _begin(self, header: pb.ActivationHeader) -> Assembly:
        if header.run != self._run or header.block != self._peer:
            raise ProtocolError(
                f"it comes from another run, or from block {header.block} and not block {self._peer}"
            )
        if header.sequence != self._expected:
            raise ProtocolError(f"a gap: activation {header.sequence} came where {self._expected} was next")
        if header.sequence - self._acknowledged > self._window:
            raise ProtocolError(f"more than {self._window} unacknowledged activations")
        if self._limit is None:
            raise ProtocolError("it came before the handshake")
        return Assembly(header, self._limit)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
