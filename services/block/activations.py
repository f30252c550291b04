"""Activations on their way from block to block: interfaces of a transport, and frames of the gRPC one."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from lowdimfa.errors import LowdimfaError, ProtocolError
from lowdimfa.services.rpc.protocol import CHUNK_BYTES, Traffic
from lowdimfa.services.rpc.tensors import (
    MAX_DIMENSIONS,
    TensorBuffer,
    dtype_code,
    dtype_name,
    dtype_of,
    encode,
)
from lowdimfa.services.rpc.v1 import activations_pb2 as pb
from lowdimfa.tickets import Ticket

#: The gRPC method that carries activations.
SERVICE, METHOD = "lowdimfa.v1.ActivationStream", "Transfer"

#: The metadata key by which a sender says where it sits.
SENDER_KEY = "lowdimfa-sender"

Kind = Literal["train", "evaluate", "part", "sum"]

HEADER_AT = 8
"""Where a frame's header begins: after its length and its checksum, of four bytes each."""

_MAX_TENSORS = 2
_CODES: dict[Kind, pb.ActivationKind] = {
    "train": pb.ACTIVATION_KIND_TRAIN,
    "evaluate": pb.ACTIVATION_KIND_EVALUATE,
    "part": pb.ACTIVATION_KIND_PART,
    "sum": pb.ACTIVATION_KIND_SUM,
}
_KINDS: dict[int, Kind] = {code: kind for kind, code in _CODES.items()}


class Activation(NamedTuple):
    """The output of one block for one micro-batch.

    Attributes
    ----------
    kind, ticket
        What it is for and which micro-batch it belongs to.
    tensors
        The activation and, on a probe micro-batch, the one that follows from a disturbance upstream; each of
        shape ``(samples, …)``.
    sequence
        Position in the stream between the two blocks.
    """

    kind: Kind
    ticket: Ticket
    tensors: tuple[Tensor, ...]
    sequence: int


class Sender(Protocol):
    """The upstream end of a transport."""

    traffic: Traffic

    @property
    def unacknowledged(self) -> int:
        """Activations that were queued and have not been consumed yet."""

    def send(self, kind: Kind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Queue an activation; wait while the window is full."""

    def drop(self) -> None:
        """Let `send` drop what it is given from now on, also what waits: nobody will need it."""

    def abort(self, failure: LowdimfaError) -> None:
        """Let `send` raise an error from now on, also one that waits."""

    def close(self) -> None:
        """End the transport."""


class Receiver(Protocol):
    """The downstream end of a transport."""

    traffic: Traffic

    def expect(self, shape: Sequence[int], dtype: torch.dtype, max_samples: int) -> None:
        """Announce the type of one sample, and the largest number of samples in a tensor."""

    def release(self, activation: Activation) -> None:
        """Say that an activation was consumed, which makes room in the sender's window."""

    def renew(self) -> None:
        """Have the sender repeat what may have been lost."""

    def close(self) -> None:
        """End the transport."""


class SampleLimit(NamedTuple):
    """What a receiver accepts: the type of one sample, and how many of them."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    max_samples: int

    @property
    def nbytes(self) -> int:
        """Most bytes of one message."""
        return _MAX_TENSORS * self.max_samples * math.prod(self.shape) * self.dtype.itemsize

    def check(self, tensors: Sequence[pb.TensorType]) -> None:
        """Refuse other tensors than one, or two alike, of the expected type.

        Raises
        ------
        ProtocolError
            They are not.
        """
        if not 1 <= len(tensors) <= _MAX_TENSORS or any(other != tensors[0] for other in tensors):
            raise ProtocolError("an activation has one tensor, or two of equal type and shape")
        dtype, shape = dtype_of(tensors[0].dtype), tuple(tensors[0].shape[: MAX_DIMENSIONS + 1])
        alike = dtype == self.dtype and len(shape) > 0 and shape[1:] == self.shape
        if not alike or shape[0] > self.max_samples:
            raise ProtocolError(
                f"{dtype_name(dtype)} of shape {list(shape)}; expected {dtype_name(self.dtype)} of shape "
                f"{list(self.shape)} after a batch of at most {self.max_samples}"
            )


def pack(header: pb.ActivationHeader, data: bytes | memoryview = b"") -> bytes:
    """Return one frame.

    Its checksum is of the header alone, against programs: what one of them has put or cut together wrongly must not be
    taken for another message. Of the bytes of tensors there is none. Between machines TLS finds each bit that changes;
    within one nothing changes them, and to add them up would take as much time as all else that is done to them.
    """
    serialised = header.SerializeToString()
    numbers = len(serialised), zlib.crc32(serialised)
    return b"".join((*(number.to_bytes(4, "little") for number in numbers), serialised, data))


def unpack(frame: bytes) -> tuple[pb.ActivationHeader, memoryview]:
    """Return the header and the bytes of one frame.

    Raises
    ------
    ProtocolError
        The frame ends before its header does, or the header is not what was sent.
    """
    data = memoryview(frame)[HEADER_AT:]
    length, checksum = (int.from_bytes(frame[start : start + 4], "little") for start in (0, 4))
    if len(frame) < HEADER_AT or length > len(data):
        raise ProtocolError(f"a frame of {len(frame)} bytes is too short for its header")
    serialised, data = bytes(data[:length]), data[length:]
    if zlib.crc32(serialised) != checksum:
        raise ProtocolError("a frame has a wrong checksum")
    try:
        return pb.ActivationHeader.FromString(serialised), data
    except DecodeError as error:
        raise ProtocolError("a frame has a malformed header") from error


def split(activation: Activation, run: int, block: int) -> Iterator[bytes]:
    """Yield the frames of one message. They hold copies, so the tensors may be written again afterwards.

    Parameters
    ----------
    activation
        The message.
    run, block
        Fingerprint of the run and index of the sending block.
    """
    header = _header(activation, run, block)
    offset = 0
    for buffer in map(encode, activation.tensors):
        for start in range(0, max(len(buffer), 1), CHUNK_BYTES):
            chunk = buffer[start : start + CHUNK_BYTES]
            yield pack(header, chunk)
            offset += len(chunk)
            header = pb.ActivationHeader(sequence=activation.sequence, offset=offset)


def without_data(activation: Activation, run: int, block: int) -> bytes:
    """Return the one frame of a message whose buffers are in shared memory; the parameters are those of `split`."""
    header = _header(activation, run, block)
    header.shared = True
    return pack(header)


def _header(activation: Activation, run: int, block: int) -> pb.ActivationHeader:
    return pb.ActivationHeader(
        sequence=activation.sequence,
        run=run,
        block=block,
        kind=_CODES[activation.kind],
        step=activation.ticket.step,
        microbatch=activation.ticket.microbatch,
        tensors=[
            pb.TensorType(dtype=dtype_code(tensor.dtype), shape=tensor.shape) for tensor in activation.tensors
        ],
    )


class Assembly:
    """A message of which some frames have arrived.

    Parameters
    ----------
    header
        Of its first frame.
    limit
        What is accepted; memory is taken only for that.

    Raises
    ------
    ProtocolError
        The header announces something else.
    """

    def __init__(self, header: pb.ActivationHeader, limit: SampleLimit) -> None:
        if header.kind not in _KINDS:
            raise ProtocolError(f"unknown kind {header.kind}")
        limit.check(header.tensors)
        self._header = header
        self._buffers = [TensorBuffer(announced.dtype, announced.shape) for announced in header.tensors]
        self._offset = 0

    @property
    def nbytes(self) -> int:
        """Size of the whole message's buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def add(self, offset: int, data: memoryview) -> Activation | None:
        """Add the next bytes; return the activation when it is complete.

        Raises
        ------
        ProtocolError
            The bytes belong elsewhere, or are more than were announced.
        """
        if offset != self._offset:
            raise ProtocolError(f"bytes from {offset} where {self._offset} was next")
        if offset + len(data) > self.nbytes or (not data and self.nbytes):
            raise ProtocolError(f"{len(data)} bytes from {offset} for a message of {self.nbytes}")
        self._offset += len(data)
        for buffer in self._buffers:
            part = data[: buffer.missing]
            buffer.write(part)
            data = data[len(part) :]
        if self._offset < self.nbytes:
            return None
        header = self._header
        tensors = tuple(buffer.tensor() for buffer in self._buffers)
        return Activation(
            _KINDS[header.kind], Ticket(header.step, header.microbatch), tensors, header.sequence
        )
