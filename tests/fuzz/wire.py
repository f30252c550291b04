"""What blocks receive from each other: errors, activations, handshakes."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc
import torch
from google.protobuf.message import DecodeError

from lowdimfa.errors import ProtocolError
from lowdimfa.services.block.activations import HEADER_AT, Activation, SampleLimit, pack, split, unpack
from lowdimfa.services.block.receiver import ActivationReceiver
from lowdimfa.services.broadcast.publisher import ErrorPublisher
from lowdimfa.services.broadcast.subscriber import ErrorSubscriber, ErrorVector
from lowdimfa.services.rpc import handshake
from lowdimfa.services.rpc.connection import Resend
from lowdimfa.services.rpc.handshake import HandshakeServicer, Hello, SampleType, check_compatible
from lowdimfa.services.rpc.protocol import run_fingerprint
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.topology import Topology
from lowdimfa.services.rpc.v1 import activations_pb2, broadcast_pb2, handshake_pb2
from lowdimfa.tickets import Ticket
from tests.fuzz.guard import Finding
from tests.fuzz.mutate import change_bytes, change_list, change_message, cut, join

RUN = "fuzzed"
ERROR_DIM = 3
LIMIT = SampleLimit((2, 3), torch.float32, 4)
MINE = Hello(
    "1.0.0",
    "2.6",
    RUN,
    1,
    "block",
    SampleType("float32", (2, 3)),
    SampleType("float32", (4,)),
    ERROR_DIM,
    "d1",
)


class NoNetwork(Security):
    """Secrets for channels that lead nowhere."""

    def channel(self, address: str, liveness: float) -> Any:
        """Return a channel whose calls are never made."""
        return self

    def unary_stream(self, *_: Any, **__: Any) -> Callable[..., None]:
        """Return a call that does nothing."""
        return lambda *_, **__: None


def decode_errors(data: bytes) -> None:
    """Give a subscriber the messages of one stream, and again after each request to repeat some."""
    taken: list[ErrorVector] = []
    subscriber = ErrorSubscriber(
        "127.0.0.1:1", NoNetwork(""), RUN, 1, ERROR_DIM, 1.0, taken.append, lambda failure: None
    )
    asked: Resend | None = None
    subscriber._subscribe()
    for piece in cut(data):
        try:
            subscriber._take(broadcast_pb2.ErrorMessage.FromString(piece))
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
        messages = [part for published in publisher._ring for part in published.parts]
        yield join(messages)
        yield join([cut_part for message in messages for cut_part in _in_parts(message)])
    publisher = ErrorPublisher(RUN, Topology([1, 1], 1), 16)
    publisher.publish(Ticket(0, 0), "train", torch.full((2, 3), torch.nan))
    publisher.publish(Ticket(0, 0), "train", torch.ones((2, 3), dtype=torch.float64))
    yield join([part for published in publisher._ring for part in published.parts])


def _in_parts(serialised: bytes, size: int = 8) -> Iterator[bytes]:
    """Cut a message as the publisher cuts one of more than 1 MiB."""
    whole = broadcast_pb2.ErrorMessage.FromString(serialised)
    starts = range(0, max(len(whole.data), 1), size)
    for index, start in enumerate(starts):
        part = broadcast_pb2.ErrorMessage.FromString(serialised)
        part.data, part.parts_left = whole.data[start : start + size], len(starts) - 1 - index
        part.checksum = zlib.crc32(part.data)
        yield part.SerializeToString()


def mutate_errors(data: bytes, draw: random.Random) -> bytes | None:
    """Change a field of a message, most often with the right checksum afterwards, or the order of messages."""
    try:
        messages = [broadcast_pb2.ErrorMessage.FromString(piece) for piece in cut(data)]
    except DecodeError:
        return None
    if not messages or draw.random() < 0.2:
        change_list(messages, draw)
    else:
        message = draw.choice(messages)
        change_message(message, draw)
        if draw.random() < 0.8:
            message.checksum = zlib.crc32(message.data)
    return join([message.SerializeToString() for message in messages])


def decode_activations(data: bytes) -> None:
    """Give a receiver the frames of one stream, and go on after each request to repeat some."""
    taken: list[Activation] = []
    receiver = ActivationReceiver(RUN, 1, 0, 2, taken.append, lambda failure: None)
    receiver.expect(*LIMIT)
    asked: Resend | None = None
    assembly = None
    for frame in cut(data):
        try:
            assembly = receiver._take(frame, assembly)
        except Resend as resend:
            asked, assembly = resend, None
        if taken and len(taken) % 2:
            receiver.release(taken[-1])
    for sequence, activation in enumerate(taken):
        shapes = {(tensor.dtype, tuple(tensor.shape[1:])) for tensor in activation.tensors}
        if activation.sequence != sequence or shapes != {(LIMIT.dtype, LIMIT.shape)}:
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
            Activation("evaluate" if index % 2 else "train", Ticket(index, 0), each, index)
            for index, each in enumerate(tensors)
        ]
        frames = [frame for each in activations for frame in split(each, run_fingerprint(RUN), 0)]
        yield join(frames)
        yield join([piece for frame in frames for piece in _in_frames(frame)])


def _in_frames(frame: bytes, size: int = 20) -> Iterator[bytes]:
    """Cut a frame as a sender cuts a message of more than 1 MiB."""
    header, data = unpack(frame)
    offset = header.offset
    for start in range(0, max(len(data), 1), size):
        chunk = data[start : start + size]
        yield pack(header, chunk)
        header = activations_pb2.ActivationHeader(sequence=header.sequence, offset=offset + start + size)


def mutate_activations(data: bytes, draw: random.Random) -> bytes | None:
    """Change a header's field or the bytes after it, mostly with the right checksum, or the order of frames."""
    frames = cut(data)
    if not frames or draw.random() < 0.2:
        change_list(frames, draw)
        return join(frames)
    at = draw.randrange(len(frames))
    header, rest = _unchecked(frames[at])
    if draw.random() < 0.7:
        change_message(header, draw)
    else:
        rest = change_bytes(rest, draw)
    frames[at] = pack(header, rest)
    if draw.random() < 0.2:
        frames[at] = frames[at][:4] + draw.randbytes(4) + frames[at][HEADER_AT:]
    return join(frames)


def _unchecked(frame: bytes) -> tuple[activations_pb2.ActivationHeader, bytes]:
    """Take a frame apart whose checksum may be wrong; what can't be taken apart becomes an empty header."""
    length = int.from_bytes(frame[:4], "little")
    try:
        end = HEADER_AT + length
        return activations_pb2.ActivationHeader.FromString(frame[HEADER_AT:end]), frame[end:]
    except DecodeError:
        return activations_pb2.ActivationHeader(), frame[HEADER_AT:]


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
    sample = SampleType("float32", (2, 3))
    for block, role in ((0, "block"), (2, "block"), (3, "head")):
        for software in ("1.0.0", "2.0.0"):
            theirs = Hello(software, "2.6", RUN, block, role, MINE.output, MINE.input, ERROR_DIM, "d1")  # type: ignore[arg-type]
            yield handshake_pb2.HelloRequest(caller=handshake._to_message(theirs)).SerializeToString()
    theirs = Hello("1.0.0", "2.6", RUN, 0, "block", sample, SampleType("float64", ()), ERROR_DIM)
    yield handshake_pb2.HelloRequest(caller=handshake._to_message(theirs)).SerializeToString()


def mutate_handshake(data: bytes, draw: random.Random) -> bytes | None:
    """Change a field of the description."""
    try:
        request = handshake_pb2.HelloRequest.FromString(data)
    except DecodeError:
        return None
    change_message(request.caller, draw)
    return bytes(request.SerializeToString())
