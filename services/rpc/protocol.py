"""Constants of the wire protocol, and counters of what travels over it."""

from __future__ import annotations

import hashlib
import threading
from typing import NamedTuple

PROTOCOL_VERSION = 1

#: Largest buffer in one message, in bytes. It keeps every message below gRPC's default limit of 4 MiB, so
#: that no peer has to raise it.
CHUNK_BYTES = 1 << 20

_GRPC_PREFIX = 5
_HTTP2_FRAME_HEADER = 9
_HTTP2_FRAME_BYTES = 1 << 14


def run_fingerprint(run: str) -> int:
    """Return the four bytes by which messages name their run: the first of the SHA-256 of its identifier."""
    return int.from_bytes(hashlib.sha256(run.encode()).digest()[:4], "big")


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
        Errors or activations, each counted once however many parts it had.
    payload_bytes
        Bytes of tensor buffers.
    wire_bytes
        Bytes of the messages that carried them, with gRPC and HTTP/2 framing.
    """

    messages: int
    payload_bytes: int
    wire_bytes: int


class Traffic:
    """Counters that several threads may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages = self._payload_bytes = self._wire_bytes = 0

    def add_message(self, serialised: int) -> None:
        """Count one gRPC message of ``serialised`` bytes, which may be a part of an error or activation."""
        with self._lock:
            self._wire_bytes += wire_bytes(serialised)

    def add_tensors(self, payload: int) -> None:
        """Count one complete error or activation with ``payload`` bytes of buffers."""
        with self._lock:
            self._messages += 1
            self._payload_bytes += payload

    def count(self) -> TrafficCount:
        """Return a consistent reading of the counters."""
        with self._lock:
            return TrafficCount(self._messages, self._payload_bytes, self._wire_bytes)
