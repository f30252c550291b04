"""Messages between blocks, and the frames in which all of them travel: activations, parts of gradients, errors."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from lowdimfa.block import ErrorKind
from lowdimfa.errors import ProtocolError
from lowdimfa.services.rpc.tensors import (
    MAX_DIMENSIONS,
    TensorBuffer,
    dtype_code,
    dtype_of,
    encode,
    layout,
)
from lowdimfa.services.rpc.v1 import stream_pb2 as pb
from lowdimfa.services.stream.limits import Limit, WireType
from lowdimfa.tickets import Ticket
from lowdimfa.values import MAX_MEMBERS

CHUNK_BYTES = 1 << 20
"""Bytes of buffers in one frame: it stays below gRPC's default limit of 4 MiB, so that no peer has to raise it."""

HEADER_AT = 8
"""Where a frame's header begins: after its length and its checksum, of four bytes each."""

Kind = Literal["train", "evaluate", "part", "sum", "error", "probe"]

_GUARDED = 1 << 31
MAX_TENSORS = 2 * MAX_MEMBERS
"""Most tensors of a message: those of a named set, and on a probe as many again."""

_CODES: dict[Kind, pb.Kind] = {
    "train": pb.KIND_TRAIN,
    "evaluate": pb.KIND_EVALUATE,
    "part": pb.KIND_PART,
    "sum": pb.KIND_SUM,
    "error": pb.KIND_ERROR,
    "probe": pb.KIND_PROBE,
}
_KINDS: dict[int, Kind] = {code: kind for kind, code in _CODES.items()}


class Message(NamedTuple):
    """What one block tells another one, or the head all of them.

    Attributes
    ----------
    kind, ticket
        What it is for and which micro-batch it belongs to.
    tensors
        Each of shape ``(samples, …)``: of an activation one, or those of a named set. On a probe micro-batch it has as
        many again, which follow from a disturbance upstream.
    sequence
        Position in the stream.
    """

    kind: Kind
    ticket: Ticket
    tensors: tuple[Tensor, ...]
    sequence: int


class ErrorVector(NamedTuple):
    """The broadcast error of one micro-batch.

    Attributes
    ----------
    ticket, kind
        What it belongs to and what it is for.
    sequence
        Position in the broadcast.
    tensors
        The error, float32 or bfloat16, shape ``(samples, …, error_dim)``, and maybe ``P``, shape
        ``(error_dim, source_width)``.
    """

    ticket: Ticket
    kind: ErrorKind
    sequence: int
    tensors: tuple[Tensor, ...]

    @property
    def error(self) -> Tensor:
        """The error itself."""
        return self.tensors[0]


def run_fingerprint(run: str) -> int:
    """Return the four bytes by which messages name their run: the first of the SHA-256 of its identifier."""
    return int.from_bytes(hashlib.sha256(run.encode()).digest()[:4], "big")


def pack(header: pb.Header, data: bytes | memoryview = b"", guarded: bool = False) -> bytes:
    """Return one frame; if it is to be ``guarded``, its checksum covers the data too.

    The checksum is against programs: what one of them has put or cut together wrongly must not be taken for another
    message. The bytes of activations have none. Between machines TLS finds each bit that changes; within one nothing
    changes them, and to add them up would take as much time as all else that is done to them.
    """
    serialised = header.SerializeToString()
    length = (len(serialised) | _GUARDED * guarded).to_bytes(4, "little")
    checksum = (
        zlib.crc32(data, zlib.crc32(serialised, zlib.crc32(length))) if guarded else zlib.crc32(serialised)
    )
    return b"".join((length, checksum.to_bytes(4, "little"), serialised, data))


def unpack(frame: bytes) -> tuple[pb.Header, memoryview]:
    """Return the header and the bytes of one frame.

    Raises
    ------
    ProtocolError
        The frame ends before its header does, or is not what was sent.
    """
    data = memoryview(frame)[HEADER_AT:]
    length, checksum = (int.from_bytes(frame[start : start + 4], "little") for start in (0, 4))
    guarded, length = bool(length & _GUARDED), length & ~_GUARDED
    if len(frame) < HEADER_AT or length > len(data):
        raise ProtocolError(f"a frame of {len(frame)} bytes is too short for its header")
    if checksum != (zlib.crc32(data, zlib.crc32(frame[:4])) if guarded else zlib.crc32(data[:length])):
        raise ProtocolError("a frame has a wrong checksum")
    try:
        return pb.Header.FromString(bytes(data[:length])), data[length:]
    except DecodeError as error:
        raise ProtocolError("a frame has a malformed header") from error


def split(message: Message, run: int, block: int, guarded: bool = False) -> Iterator[bytes]:
    """Yield the frames of one message. They hold copies, so the tensors may be written again afterwards.

    Parameters
    ----------
    message
        What to send.
    run, block
        Fingerprint of the run and index of the sending block, which is 0 in the broadcast.
    guarded
        As for `pack`.
    """
    offset, buffers = 0, [encode(tensor) for tensor in message.tensors]
    for buffer in [buffer for buffer in buffers if len(buffer)] or buffers[:1]:
        for start in range(0, max(len(buffer), 1), CHUNK_BYTES):
            follows = pb.Header(sequence=message.sequence, offset=offset) if offset else None
            chunk = buffer[start : start + CHUNK_BYTES]
            yield pack(follows or _header(message, run, block), chunk, guarded)
            offset += len(chunk)


def without_data(message: Message, run: int, block: int) -> bytes:
    """Return the one frame of a message whose buffers a carrier takes; the parameters are those of `split`."""
    header = _header(message, run, block)
    header.carried = True
    return pack(header)


def _header(message: Message, run: int, block: int) -> pb.Header:
    return pb.Header(
        sequence=message.sequence,
        run=run,
        block=block,
        kind=_CODES[message.kind],
        step=message.ticket.step,
        microbatch=message.ticket.microbatch,
        tensors=[
            pb.TensorType(dtype=dtype_code(tensor.dtype), shape=tensor.shape) for tensor in message.tensors
        ],
    )


class Assembly:
    """A message of which some frames have arrived.

    Parameters
    ----------
    header
        Of its first frame.
    limit
        What is accepted. Memory is taken with the first bytes for what it bounds, and else for what has arrived.

    Raises
    ------
    ProtocolError
        The header announces something else.
    """

    def __init__(self, header: pb.Header, limit: Limit) -> None:
        if header.kind not in _KINDS:
            raise ProtocolError(f"unknown kind {header.kind}")
        self._announced: list[WireType] = [
            (each.dtype, tuple(each.shape[: MAX_DIMENSIONS + 1]))
            for each in header.tensors[: MAX_TENSORS + 1]
        ]
        limit.check(header.kind, self._announced)
        self.sequence, self.ticket = header.sequence, Ticket(header.step, header.microbatch)
        self._kind = _KINDS[header.kind]
        self.nbytes = sum([layout(*announced)[1] for announced in self._announced])
        self._bounded = limit.nbytes is not None
        self._buffers: list[TensorBuffer] = []
        self._waiting: list[memoryview] = []
        self._offset = 0

    @property
    def types(self) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        """Element type and shape of each tensor."""
        return [(dtype_of(code), shape) for code, shape in self._announced]

    def add(self, offset: int, data: memoryview) -> Message | None:
        """Add the next bytes; return the message when it is complete.

        Raises
        ------
        ProtocolError
            The bytes belong elsewhere, or are more than were announced.
        """
        if data and offset + len(data) <= self._offset:
            return None  # the same once more
        if offset != self._offset:
            raise ProtocolError(f"a gap: bytes from {offset} where {self._offset} was next")
        if offset + len(data) > self.nbytes or (not data and self.nbytes):
            raise ProtocolError(f"{len(data)} bytes from {offset} for a message of {self.nbytes}")
        self._offset += len(data)
        complete = self._offset == self.nbytes
        self._waiting.append(data)
        if (complete or self._bounded) and not self._buffers:
            self._buffers = [TensorBuffer(*announced) for announced in self._announced]
        if self._buffers:
            self._write()
        return self.with_tensors(tuple(buffer.tensor() for buffer in self._buffers)) if complete else None

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Message:
        """Return the message with tensors that a carrier has brought, of its `types`."""
        return Message(self._kind, self.ticket, tensors, self.sequence)

    def _write(self) -> None:
        for data in self._waiting:
            for buffer in self._buffers:
                part = data[: buffer.missing]
                buffer.write(part)
                data = data[len(part) :]
        self._waiting.clear()
