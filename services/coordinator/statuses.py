"""From a gRPC status back to an error for people."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from lowdimfa.errors import AccessError, InputError, LowdimfaError, PeerError, ProtocolError, ResourceError

_INPUT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
}
_ACCESS = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


def error_of(error: Any, address: str) -> LowdimfaError:
    """Return the typed error for a call that failed.

    Parameters
    ----------
    error
        The `grpc.RpcError`.
    address
        Of the service, for the message.
    """
    code, details = error.code(), error.details() or ""
    if code in _INPUT:
        return _refused(error, details)
    if code in _ACCESS:
        return AccessError(f"coordinator {address}: {details}")
    if code in _AWAY:
        return PeerError(_away(address, details))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceError(f"coordinator {address}: {details}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ProtocolError(f"what answers at {address} is no coordinator of this version ({details})")
    return LowdimfaError(f"coordinator {address}: {details or code.name}")


def _refused(error: Any, details: str) -> LowdimfaError:
    """Return what the service refused, with every violation on a line of its own."""
    violations = [
        f"{entry.field}: {entry.description}"
        for packed in _details(error)
        if packed.Is(error_details_pb2.BadRequest.DESCRIPTOR)
        for entry in _unpacked(packed).field_violations
    ]
    refused = InputError.__new__(InputError)
    LowdimfaError.__init__(refused, "\n".join(violations) or details)
    return refused


def _details(error: Any) -> list[Any]:
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the details contradict the status: they are not of this service
        return []
    return [] if status is None else list(status.details)


def _unpacked(packed: Any) -> error_details_pb2.BadRequest:
    detail = error_details_pb2.BadRequest()
    packed.Unpack(detail)
    return detail


def _away(address: str, details: str) -> str:
    text = details.lower()
    if "certificate" in text or "handshake" in text or "ssl" in text:
        return (
            f"no secure connection to the coordinator at {address} ({details}); check --ca, --client-cert, and that "
            "its certificate names this host and is valid today"
        )
    return (
        f"the coordinator at {address} can't be reached ({details}); is 'lowdimfa serve' running there, and does it "
        "use TLS (then give --ca)?"
    )
