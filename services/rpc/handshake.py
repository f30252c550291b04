"""Neighbours compare what they are before the first step."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import grpc

from lowdimfa.data.fingerprint import differing
from lowdimfa.errors import HandshakeError
from lowdimfa.services.rpc.connection import Backoff, Peer, is_transient
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.v1 import handshake_pb2 as pb
from lowdimfa.services.rpc.v1 import handshake_pb2_grpc as pb_grpc

PROTOCOL_VERSION = 3
"""Of all that blocks say to each other; both ends of a connection must speak the same."""

_LONGEST_VALUE = 200
"""Characters of a peer's value in a message. It goes back to the peer as metadata, of which gRPC takes 8 KiB."""

_DATA = "data fingerprint"
_OTHER_DATA = (
    ". The samples aren't the same in both processes: data.factory depends on more than its arguments and the seeded "
    "random numbers, such as the order of a listing or of a set, the time, or files that differ between machines"
)


@dataclass(frozen=True)
class SampleType:
    """Element type (``float32``) and shape of one sample, without the batch dimension, and its name in a set."""

    dtype: str
    shape: tuple[int, ...]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name and f'{self.name!r}: '}{self.dtype} of shape {list(self.shape)}"


@dataclass(frozen=True)
class Hello:
    """What a block says of itself; ``handshake.proto`` describes the fields."""

    software: str
    torch: str
    run: str
    block: int
    role: Literal["block", "head"]
    input: tuple[SampleType, ...]
    output: tuple[SampleType, ...]
    error_dim: int
    data: str = ""
    protocol: int = PROTOCOL_VERSION


def check_compatible(mine: Hello, theirs: Hello) -> None:
    """Compare two blocks of one run.

    Raises
    ------
    HandshakeError
        They differ in what must be equal, or the upstream one's output is not the downstream one's input.
    """
    pairs: list[tuple[str, object, object]] = [
        ("protocol version", mine.protocol, theirs.protocol),
        ("run", mine.run, theirs.run),
        ("major version of the software", mine.software.split(".")[0], theirs.software.split(".")[0]),
        ("error dimension", mine.error_dim, theirs.error_dim),
    ]
    if mine.data and theirs.data and (unlike := differing(mine.data, theirs.data)):
        pairs.append((_DATA, *unlike))
    if theirs.block == mine.block + 1:
        pairs.append(("type of the activation between them (output, input)", mine.output, theirs.input))
    if theirs.block == mine.block - 1:
        pairs.append(("type of the activation between them (input, output)", mine.input, theirs.output))
    for what, here, there in pairs:
        if here != there:
            raise HandshakeError(
                f"block {mine.block} and block {theirs.block} differ in {what}: "
                f"block {mine.block} has {_shown(here)}, block {theirs.block} has {_shown(there)}"
                + (_OTHER_DATA if what == _DATA else ""),
                block=mine.block,
            )


class HandshakeServicer:
    """Answers the blocks that greet this one.

    Parameters
    ----------
    mine
        This block.
    """

    def __init__(self, mine: Hello) -> None:
        self._mine = mine

    def attach(self, server: Any, pool: ThreadPoolExecutor) -> None:
        """Register the service."""
        pb_grpc.add_HandshakeServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    def Hello(self, request: pb.HelloRequest, context: Any) -> pb.HelloReply:
        """Compare the caller with this block."""
        theirs = _from_message(request.caller)
        try:
            check_compatible(self._mine, theirs)
        except HandshakeError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, error.message)
        return pb.HelloReply(answerer=_to_message(self._mine))


def greet(address: str, security: Security, mine: Hello, liveness: float, name: str = "its peer") -> Hello:
    """Exchange descriptions with the block at ``address``, waiting for its server to come up.

    Parameters
    ----------
    address
        ``host:port``.
    security
        The secrets of the run.
    mine
        What this block says of itself.
    liveness
        Seconds to wait.
    name
        Of the other block, for messages.

    Returns
    -------
    Hello
        The other block.

    Raises
    ------
    HandshakeError
        The blocks don't fit, or the token is wrong; the message has both blocks and both values.
    PeerError
        There was no answer for ``liveness`` seconds, for whatever reason, TLS included.
    """
    peer = Peer(mine.block, name, address, liveness)
    backoff = Backoff(liveness)
    request = pb.HelloRequest(caller=_to_message(mine))
    with security.channel(address, liveness) as channel:
        hello = pb_grpc.HandshakeStub(channel).Hello  # type: ignore[no-untyped-call]
        while True:
            try:
                reply = hello(request, timeout=max(backoff.remaining(), 0), metadata=security.metadata)
                break
            except grpc.RpcError as error:
                if not is_transient(error) or not backoff.wait(threading.Event()):
                    raise peer.failure(error) from error
    theirs = _from_message(reply.answerer)
    check_compatible(mine, theirs)
    return theirs


def _shown(value: object) -> str:
    """Return a value without line breaks and the like, shortened."""
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    printable = text if text.isprintable() else ascii(text)
    return printable if len(printable) <= _LONGEST_VALUE else f"{printable[:_LONGEST_VALUE]}…"


def _to_message(hello: Hello) -> pb.Description:
    return pb.Description(
        protocol=hello.protocol,
        software=hello.software,
        torch=hello.torch,
        run=hello.run,
        block=hello.block,
        role=pb.ROLE_HEAD if hello.role == "head" else pb.ROLE_BLOCK,
        input=map(_type_to_message, hello.input),
        output=map(_type_to_message, hello.output),
        error_dim=hello.error_dim,
        data=hello.data,
    )


def _from_message(message: pb.Description) -> Hello:
    return Hello(
        protocol=message.protocol,
        software=message.software,
        torch=message.torch,
        run=message.run,
        block=message.block,
        role="head" if message.role == pb.ROLE_HEAD else "block",
        input=tuple(map(_type_from_message, message.input)),
        output=tuple(map(_type_from_message, message.output)),
        error_dim=message.error_dim,
        data=message.data,
    )


def _type_to_message(kind: SampleType) -> pb.SampleType:
    return pb.SampleType(dtype=kind.dtype, shape=kind.shape, name=kind.name)


def _type_from_message(message: pb.SampleType) -> SampleType:
    return SampleType(message.dtype, tuple(message.shape), message.name)
