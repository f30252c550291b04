"""What makes a stream one of messages that come in order and once each, whatever its connections do to them.

Whoever sends keeps messages in a `Replay`, and begins each connection with the first one that the other end may lack.
Whoever receives hands all frames to an `Incoming`, which gives each message out once, and asks again for what it can't
use. Connections themselves are opened again by `lowdimfa.services.rpc.connection`. Activations and shards (`sender`,
`receiver`) and the broadcast (`broadcast`) are made of these three.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from lowdimfa.errors import ProtocolError
from lowdimfa.services.rpc.connection import Resends
from lowdimfa.services.rpc.v1 import stream_pb2 as pb
from lowdimfa.services.stream.frames import Assembly, Message, unpack
from lowdimfa.services.stream.limits import Limit

_GRPC_PREFIX = 5
_HTTP2_FRAME_HEADER = 9
_HTTP2_FRAME_BYTES = 1 << 14


def wire_bytes(serialised: int) -> int:
    """Return what a gRPC message of ``serialised`` bytes takes on the wire, before TLS and TCP.

    HTTP/2 cuts the message and its 5-byte prefix into frames of at most 16 KiB, each with a header of 9
    bytes.
    """
    length = serialised + _GRPC_PREFIX
    frames = -(-length // _HTTP2_FRAME_BYTES)
    return length + frames * _HTTP2_FRAME_HEADER


class TrafficCount(NamedTuple):
    """What travelled so far.

    Attributes
    ----------
    messages
        Errors or activations, each counted once however many frames it had.
    payload_bytes
        Bytes of tensor buffers.
    wire_bytes
        Bytes of the frames that carried them, with gRPC and HTTP/2 framing.
    """

    messages: int
    payload_bytes: int
    wire_bytes: int


class Traffic:
    """Counters that several threads may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages = self._payload_bytes = self._wire_bytes = 0

    def add_frame(self, size: int) -> None:
        """Count one frame of ``size`` bytes."""
        with self._lock:
            self._wire_bytes += wire_bytes(size)

    def add_tensors(self, payload: int) -> None:
        """Count one complete message with ``payload`` bytes of buffers."""
        with self._lock:
            self._messages += 1
            self._payload_bytes += payload

    def add_sent(self, message: Sent) -> None:
        """Count one message that was sent whole."""
        for frame in message.frames:
            self.add_frame(len(frame))
        self.add_tensors(message.payload)

    def count(self) -> TrafficCount:
        """Return a consistent reading of the counters."""
        with self._lock:
            return TrafficCount(self._messages, self._payload_bytes, self._wire_bytes)


class Sent(NamedTuple):
    """A message that may be wanted again.

    Attributes
    ----------
    sequence
        Position in the stream.
    payload
        Bytes of its tensors.
    frames
        All of it, or the one frame that announces it where a carrier takes the tensors.
    plain
        In that case, what returns all of it as frames, if anything can.
    kept
        What has to stay in memory until nobody will want the message again.
    """

    sequence: int
    payload: int
    frames: list[bytes]
    plain: Callable[[], Iterable[bytes]] | None = None
    kept: Any = None


class Replay:
    """The last messages that were sent, in order of their sequences and without gaps. Its owner has the lock for it.

    Parameters
    ----------
    capacity
        Most messages that are kept; those before them go.

    Attributes
    ----------
    next_sequence
        Of the next message.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.next_sequence = 0
        self._messages: deque[Sent] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def oldest(self) -> int:
        """The first sequence that is kept."""
        return self.next_sequence - len(self._messages)

    def add(self, message: Sent) -> None:
        """Add the next message."""
        self._messages.append(message)
        self.next_sequence = message.sequence + 1

    def acknowledge(self, sequence: int) -> None:
        """Forget everything up to a sequence, which the other end has used."""
        while self._messages and self._messages[0].sequence <= sequence:
            self._messages.popleft()

    def since(self, sequence: int) -> Iterator[Sent]:
        """Return the kept messages from a sequence on."""
        return islice(self._messages, max(0, sequence - self.oldest), None)

    def first(self, sequence: int) -> Sent | None:
        """Return the first kept message from a sequence on, if there is one."""
        return next(self.since(sequence), None)


Arriving = Callable[[bytes], Iterable[bytes]]
"""What arrives in place of a frame."""


def as_it_came(frame: bytes) -> Iterable[bytes]:
    """Return what the network made of a frame: here the frame."""
    return (frame,)


def nothing_carried(assembly: Assembly) -> Message | None:
    """Refuse a message whose tensors came by a carrier that this end doesn't have."""
    raise ProtocolError("its tensors came by a carrier of which there is none here")


class Incoming:
    """The receiving end: takes frames, and gives messages, each once and in order. One thread at a time uses it.

    Parameters
    ----------
    what
        The messages' name, in errors.
    block
        Index of this block.
    run, source
        Fingerprint of the run, and index of the block that sends, from which alone messages are taken.
    limit
        What they may be.
    on_message
        Takes each message.
    arriving
        Stands for the network in drills: returns what arrives in place of a frame.
    admit
        Raises `ProtocolError` for a message that is not to begin yet.

    Attributes
    ----------
    expected
        Sequence of the next message, and so how many have come.
    traffic
        What has arrived.
    """

    def __init__(
        self,
        what: str,
        block: int,
        run: int,
        source: int,
        limit: Limit,
        on_message: Callable[[Message], None],
        arriving: Arriving = as_it_came,
        admit: Callable[[int], None] = lambda sequence: None,
    ) -> None:
        self.expected = 0
        self.traffic = Traffic()
        self._what, self._block = what, block
        self._run, self._source = run, source
        self._limit, self._on_message = limit, on_message
        self._arriving, self._admit = arriving, admit
        self._resends = Resends()
        self._assembly: Assembly | None = None
        self._seen = 0  # bytes that had come when `grows` was asked last

    def grows(self) -> bool:
        """Return whether part of a message is here that was not when this was last asked, in whatever thread.

        Its connection is not to be broken for what it has not brought: a slow message would never be whole.
        """
        before, self._seen = self._seen, self.traffic.count().wire_bytes
        return self._assembly is not None and self._seen > before

    def restart(self) -> None:
        """Forget what has come of a message: a new connection brings all of it."""
        self._assembly = None

    def take(self, sent: bytes, carried: Callable[[Assembly], Message | None] = nothing_carried) -> None:
        """Take a frame.

        Parameters
        ----------
        sent
            As it was sent.
        carried
            Returns a message whose tensors have come beside the stream.

        Raises
        ------
        Resend
            It can't be used, or others should have come before: what follows the last message is wanted once more.
        ProtocolError
            So it was however often that was asked for. The error names block, message and, if known, step.
        """
        for frame in self._arriving(sent):
            self.traffic.add_frame(len(frame))
            header: pb.Header | None = None
            try:
                header, data = unpack(frame)
                message = self._add(header, data, carried)
            except ProtocolError as error:
                raise self._resends.ask(self.expected, self._refused(header, error)) from error
            if message is not None:
                self._on_message(message)

    def _add(
        self, header: pb.Header, data: memoryview, carried: Callable[[Assembly], Message | None]
    ) -> Message | None:
        if header.sequence < self.expected:
            return None
        if header.offset == 0:
            self._assembly = self._begin(header)
        assembly = self._assembly
        if assembly is None or header.sequence != self.expected:
            raise ProtocolError(f"a frame of {self._what} {header.sequence} where {self.expected} was next")
        message = carried(assembly) if header.carried else assembly.add(header.offset, data)
        if message is not None:
            self._assembly = None
            self.expected += 1
            self.traffic.add_tensors(assembly.nbytes)
        return message

    def _begin(self, header: pb.Header) -> Assembly:
        if header.run != self._run:
            raise ProtocolError("it comes from another run, or from before a recovery")
        if header.block != self._source:
            raise ProtocolError(f"it comes from block {header.block} and not from block {self._source}")
        if header.sequence != self.expected:
            raise ProtocolError(f"a gap: {self._what} {header.sequence} came where {self.expected} was next")
        self._admit(header.sequence)
        return Assembly(header, self._limit)

    def _refused(self, header: pb.Header | None, error: ProtocolError) -> ProtocolError:
        step = None if self._assembly is None else self._assembly.ticket.step
        if header is not None and not header.offset:
            step = header.step
        when = "" if step is None else f", step {step}"
        text = f"block {self._block}{when}: {self._what} {self.expected}: {error.message}"
        return ProtocolError(text, block=self._block, step=step)
