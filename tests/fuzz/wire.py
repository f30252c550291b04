"""What blocks receive from each other: errors, activations, handshakes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc
import torch
from google.protobuf.message import DecodeError

from lowdimfa.errors import ProtocolError
from lowdimfa.services.rpc import handshake
from lowdimfa.services.rpc.connection import Resend
from lowdimfa.services.rpc.handshake import HandshakeServicer, Hello, SampleType, check_compatible
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.topology import Seat, Topology
from lowdimfa.services.rpc.v1 import handshake_pb2, stream_pb2
from lowdimfa.services.stream.broadcast import ErrorPublisher, ErrorSubscriber
from lowdimfa.services.stream.frames import (
    HEADER_AT,
    ErrorVector,
    Message,
    pack,
    run_fingerprint,
    split,
    unpack,
)
from lowdimfa.services.stream.limits import ErrorLimit, SampleLimit
from lowdimfa.services.stream.receiver import Receiver
from lowdimfa.tickets import Ticket
from lowdimfa.values import TensorType
from tests.fuzz.guard import Finding
from tests.fuzz.mutate import change_bytes, change_list, change_message, cut, join

RUN = "fuzzed"
ERROR_DIM = 3
LIMIT = SampleLimit.of((2, 3), torch.float32, 4)
MINE = Hello(
    "1.0.0",
    "2.6",
    RUN,
    1,
    "block",
    (SampleType("float32", (2, 3)),),
    (SampleType("float32", (4,)),),
    ERROR_DIM,
    "d1",
)


class NoNetwork(Security):
    """Secrets for channels that lead nowhere."""

    def channel(self, address: str, liveness: float, *, single_threaded: bool = False) -> Any:
        """Return a channel whose calls are never made."""
        return self

    def unary_stream(self, *_: Any, **__: Any) -> Callable[..., Any]:
        """Return a call that does nothing."""
        return lambda *_, **__: SimpleNamespace(initial_metadata=tuple, is_active=lambda: False)


def error_subscriber(take: Callable[[ErrorVector], None]) -> ErrorSubscriber:
    """Return a subscriber that reaches nobody."""
    limit, network = ErrorLimit(ERROR_DIM), NoNetwork("")
    return ErrorSubscriber("127.0.0.1:1", network, RUN, Seat(1), limit, 1.0, take, lambda failure: None)


def decode_errors(data: bytes) -> None:
    """Give a subscriber the messages of one stream, and again after each request to repeat some."""
    taken: list[ErrorVector] = []
    subscriber = error_subscriber(taken.append)
    asked: Resend | None = None
    subscriber._subscribe()
    for piece in cut(data):
        try:
            subscriber._incoming.take(piece)
        except Resend as resend:
            asked = resend
            subscriber._subscribe()
    for sequence, vector in enumerate(taken):
        if (
            vector.sequence != sequence
            or vector.error.dtype != torch.float32
            or vector.error.shape[-1] != ERROR_DIM
        ):
            raise Finding(f"error {sequence} was delivered as {vector.sequence}, {vector.error.shape}")
    if asked is not None and not taken:
        raise asked


def error_seeds() -> Iterator[bytes]:
    """Yield streams as the head sends them: usual, empty, in parts, of more dimensions."""
    for shapes in ([(4, 3)], [(1, 3), (2, 3), (0, 3)], [(2, 5, 3)], [(2, 2)], [(3,)], [(1, 3)] * 6):
        publisher = ErrorPublisher(RUN, Topology([1, 1], 1), 16)
        for step, shape in enumerate(shapes):
            publisher.publish(
                Ticket(step, step % 2), "probe" if step % 3 == 2 else "train", torch.ones(shape)
            )
        frames = [frame for published in publisher._replay.since(0) for frame in published.frames]
        yield join(frames)
        yield join([piece for frame in frames for piece in _in_frames(frame, size=8, guarded=True)])
    publisher = ErrorPublisher(RUN, Topology([1, 1], 1), 16)
    publisher.publish(Ticket(0, 0), "train", torch.full((2, 3), torch.nan))
    publisher.publish(Ticket(0, 0), "train", torch.ones((2, 3), dtype=torch.float64))
    yield join([frame for published in publisher._replay.since(0) for frame in published.frames])


def decode_activations(data: bytes) -> None:
    """Give a receiver the frames of one stream, and go on after each request to repeat some."""
    taken: list[Message] = []
    receiver = Receiver(RUN, 1, 0, 2, LIMIT, taken.append, lambda failure: None)
    asked: Resend | None = None
    for frame in cut(data):
        try:
            receiver._incoming.take(frame)
        except Resend as resend:
            asked = resend
            receiver._incoming.restart()
        if taken and len(taken) % 2:
            receiver.release(taken[-1])
    for sequence, activation in enumerate(taken):
        shapes = {TensorType(tuple(tensor.shape[1:]), tensor.dtype) for tensor in activation.tensors}
        if activation.sequence != sequence or shapes != {*LIMIT.types}:
            raise Finding(f"activation {sequence} was delivered as {activation.sequence}, {shapes}")
    if asked is not None and not taken:
        raise asked


def activation_seeds() -> Iterator[bytes]:
    """Yield streams as a block sends them: usual, of a probe, for evaluation, empty, of other types, in frames."""
    one, two, none = torch.ones(3, 2, 3), torch.ones(4, 2, 3), torch.ones(0, 2, 3)
    streams: list[list[tuple[Any, ...]]] = [
        [(one,)],
        [(one, one), (two, two)],
        [(two,), (none,), (one,)],
        [(torch.ones(5, 2, 3),)],
        [(torch.ones(1, 2, 3, dtype=torch.float64),)],
    ]
    for tensors in streams:
        activations = [
            Message("evaluate" if index % 2 else "train", Ticket(index, 0), each, index)
            for index, each in enumerate(tensors)
        ]
        frames = [frame for each in activations for frame in split(each, run_fingerprint(RUN), 0)]
        yield join(frames)
        yield join([piece for frame in frames for piece in _in_frames(frame)])


def _in_frames(frame: bytes, size: int = 20, guarded: bool = False) -> Iterator[bytes]:
    """Cut a frame as a sender cuts a message of more than 1 MiB."""
    header, data = unpack(frame)
    offset = header.offset
    for start in range(0, max(len(data), 1), size):
        chunk = data[start : start + size]
        yield pack(header, chunk, guarded)
        header = stream_pb2.Header(sequence=header.sequence, offset=offset + start + size)


def mutate_frames(data: bytes, draw: random.Random) -> bytes | None:
    """Change a header's field or the bytes after it, mostly with the right checksum, or the order of frames."""
    frames = cut(data)
    if not frames or draw.random() < 0.2:
        change_list(frames, draw)
        return join(frames)
    at = draw.randrange(len(frames))
    guarded, header, rest = _unchecked(frames[at])
    if draw.random() < 0.7:
        change_message(header, draw)
    else:
        rest = change_bytes(rest, draw)
    frames[at] = pack(header, rest, guarded)
    if draw.random() < 0.2:
        frames[at] = frames[at][:4] + draw.randbytes(4) + frames[at][HEADER_AT:]
    return join(frames)


def _unchecked(frame: bytes) -> tuple[bool, stream_pb2.Header, bytes]:
    """Take a frame apart whose checksum may be wrong; what can't be taken apart becomes an empty header."""
    guarded, length = divmod(int.from_bytes(frame[:4], "little"), 1 << 31)
    try:
        end = HEADER_AT + length
        return bool(guarded), stream_pb2.Header.FromString(frame[HEADER_AT:end]), frame[end:]
    except DecodeError:
        return bool(guarded), stream_pb2.Header(), frame[HEADER_AT:]


class _Context:
    """A call whose refusal is an exception, as in gRPC."""

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call."""
        raise ProtocolError(details)


def decode_handshake(data: bytes) -> None:
    """Greet a block, and let it take the same description for the answer to its own greeting."""
    servicer = HandshakeServicer(MINE)
    request = handshake_pb2.HelloRequest.FromString(data)
    reply = servicer.Hello(request, _Context())
    handshake_pb2.HelloReply.FromString(reply.SerializeToString())
    check_compatible(MINE, handshake._from_message(request.caller))


def handshake_seeds() -> Iterator[bytes]:
    """Yield descriptions of both neighbours and of the head, that fit and that don't."""
    sample = (SampleType("float32", (2, 3)), SampleType("int64", (3,), "ids"))
    for block, role in ((0, "block"), (2, "block"), (3, "head")):
        for software in ("1.0.0", "2.0.0"):
            theirs = Hello(software, "2.6", RUN, block, role, MINE.output, MINE.input, ERROR_DIM, "d1")  # type: ignore[arg-type]
            yield handshake_pb2.HelloRequest(caller=handshake._to_message(theirs)).SerializeToString()
    theirs = Hello("1.0.0", "2.6", RUN, 0, "block", sample, (SampleType("float64", ()),), ERROR_DIM)
    yield handshake_pb2.HelloRequest(caller=handshake._to_message(theirs)).SerializeToString()


def mutate_handshake(data: bytes, draw: random.Random) -> bytes | None:
    """Change a field of the description."""
    try:
        request = handshake_pb2.HelloRequest.FromString(data)
    except DecodeError:
        return None
    change_message(request.caller, draw)
    return bytes(request.SerializeToString())
