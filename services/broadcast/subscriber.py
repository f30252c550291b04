"""A block's end of the error broadcast."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy
import torch
from torch import Tensor

from lowdimfa.errors import LowdimfaError, NotFiniteError, ProtocolError
from lowdimfa.services.rpc.connection import Peer, Resends, StreamThread
from lowdimfa.services.rpc.protocol import CHUNK_BYTES, Traffic, run_fingerprint
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.tensors import MAX_TENSOR_BYTES, decode, dtype_name
from lowdimfa.services.rpc.v1 import broadcast_pb2 as pb
from lowdimfa.services.rpc.v1 import broadcast_pb2_grpc as pb_grpc
from lowdimfa.tickets import Ticket

_KINDS: dict[int, Literal["train", "probe"]] = {
    pb.ERROR_KIND_TRAIN: "train",
    pb.ERROR_KIND_PROBE: "probe",
}


def as_it_came(message: pb.ErrorMessage) -> Iterable[pb.ErrorMessage]:
    """Return what the network made of a message: here the message."""
    return (message,)


class ErrorVector(NamedTuple):
    """The broadcast error of one micro-batch.

    Attributes
    ----------
    ticket, kind
        What it belongs to and what it is for.
    sequence
        Position in the broadcast.
    error
        float32, shape ``(samples, …, error_dim)``.
    """

    ticket: Ticket
    kind: Literal["train", "probe"]
    sequence: int
    error: Tensor


class ErrorSubscriber:
    """Receives every error once and in order, over a connection that may break, lose, repeat or garble messages.

    Parameters
    ----------
    address, security
        Where the head listens, and the secrets of the run.
    run, block
        Identifier of the run and index of this block.
    error_dim
        Numbers per sample that an error must have.
    liveness
        Seconds without connection after which the head counts as lost.
    on_error
        Takes each error, in a thread of this object's, one at a time.
    on_failure
        Told once, in a thread of this object's, why there will be no more errors: `PeerError` for a lost head,
        `HandshakeError` for a refusal, `ProtocolError` for a message that can't be used however often it is asked for,
        `NotFiniteError`.
    arriving
        Stands for the network in drills: returns what arrives in place of a message.
    rank
        Of this replica of the block.

    Attributes
    ----------
    traffic
        What was received.
    """

    def __init__(
        self,
        address: str,
        security: Security,
        run: str,
        block: int,
        error_dim: int,
        liveness: float,
        on_error: Callable[[ErrorVector], None],
        on_failure: Callable[[LowdimfaError], None],
        arriving: Callable[[pb.ErrorMessage], Iterable[pb.ErrorMessage]] = as_it_came,
        *,
        rank: int = 0,
    ) -> None:
        self.traffic = Traffic()
        self._arriving = arriving
        self._run = run
        self._fingerprint = run_fingerprint(run)
        self._block, self._rank = block, rank
        self._error_dim = error_dim
        self._on_error = on_error
        self._on_failure = on_failure
        self._next_sequence = 0
        self._resends = Resends()
        self._parts: list[bytes] = []
        self._parts_left = 0
        self._metadata = security.metadata
        self._channel = security.channel(address, liveness)
        self._stub = pb_grpc.ErrorBroadcastStub(self._channel)  # type: ignore[no-untyped-call]
        peer = Peer(block, "the head", address, liveness)
        self._thread = StreamThread(
            f"block-{block}-errors", peer, self._subscribe, self._receive, self._on_end
        )

    def start(self) -> None:
        """Subscribe, in a thread of its own."""
        self._thread.start()

    @property
    def received(self) -> int:
        """Errors received so far."""
        return self._next_sequence

    def renew(self) -> None:
        """Subscribe anew, so that the head repeats what may have been lost."""
        self._thread.renew()

    def close(self) -> None:
        """Unsubscribe and join the thread."""
        self._thread.close()
        self._channel.close()

    def _subscribe(self) -> Any:
        """Begin a connection with what has not come over those before."""
        self._parts.clear()
        request = pb.SubscribeRequest(
            run=self._run, block=self._block, rank=self._rank, next_sequence=self._next_sequence
        )
        return self._stub.Subscribe(request, metadata=self._metadata)

    def _on_end(self, failure: LowdimfaError | None) -> None:
        if failure is not None:
            self._on_failure(failure)

    def _receive(self, message: pb.ErrorMessage) -> None:
        for arrived in self._arriving(message):
            self._take(arrived)

    def _take(self, message: pb.ErrorMessage) -> None:
        self.traffic.add_message(message.ByteSize())
        if message.sequence < self._next_sequence:
            return
        ticket = Ticket(message.step, message.microbatch)
        try:
            self._check(message)
            if self._parts and message.parts_left == self._parts_left:
                return  # the same part once more
            self._keep(message)
            if message.parts_left:
                return
            error = self._decode(message)
        except ProtocolError as failure:
            where = f"block {self._block}, {ticket}: broadcast error {message.sequence}"
            refused = ProtocolError(f"{where}: {failure.message}", block=self._block, step=ticket.step)
            raise self._resends.ask(self._next_sequence, refused) from failure
        if not numpy.isfinite(error.numpy()).all():
            raise NotFiniteError(
                f"block {self._block} received a broadcast error that is not finite at {ticket}",
                block=self._block,
                step=ticket.step,
            )
        self.traffic.add_tensors(error.nbytes)
        self._next_sequence += 1
        self._on_error(ErrorVector(ticket, _KINDS[message.kind], message.sequence, error))

    def _check(self, message: pb.ErrorMessage) -> None:
        if message.run != self._fingerprint:
            raise ProtocolError("it belongs to another run")
        if message.sequence != self._next_sequence:
            raise ProtocolError(f"a gap; error {self._next_sequence} was expected")
        if message.kind not in _KINDS:
            raise ProtocolError(f"unknown kind {message.kind}")
        if zlib.crc32(message.data) != message.checksum:
            raise ProtocolError("a wrong checksum")

    def _keep(self, message: pb.ErrorMessage) -> None:
        if self._parts and message.parts_left != self._parts_left - 1:
            raise ProtocolError(f"a gap between its parts; {self._parts_left} were to follow")
        if (
            message.parts_left >= MAX_TENSOR_BYTES // CHUNK_BYTES
        ):  # else parts without data could go on for ever
            raise ProtocolError(f"{message.parts_left} parts to follow")
        if sum(map(len, self._parts)) + len(message.data) > MAX_TENSOR_BYTES:
            raise ProtocolError(f"more than {MAX_TENSOR_BYTES} bytes")
        self._parts.append(message.data)
        self._parts_left = message.parts_left

    def _decode(self, message: pb.ErrorMessage) -> Tensor:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        error = decode(message.dtype, message.shape, data)
        if error.dtype != torch.float32:
            raise ProtocolError(f"its type is {dtype_name(error.dtype)}; float32 was expected")
        if error.dim() < 2 or error.shape[-1] != self._error_dim:
            raise ProtocolError(
                f"its shape is {list(error.shape)}; (samples, …, {self._error_dim}) was expected"
            )
        return error
