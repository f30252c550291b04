"""What the service refuses, as a gRPC status with details that a program can read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from lowdimfa.errors import InputError, LowdimfaError
from lowdimfa.services.coordinator.store import (
    KeyConflictError,
    NotWrittenError,
    QueueFullError,
    StoreError,
    TransitionError,
    UnknownJobError,
)

DOMAIN = "lowdimfa"
"""Of the reasons in `ErrorInfo`, which are codes of docs/errors.md."""

_MOST_BYTES, _LONGEST_FIELD, _LONGEST_DESCRIPTION = 1600, 200, 500

_STORE_STATUS: dict[type[StoreError], grpc.StatusCode] = {
    UnknownJobError: grpc.StatusCode.NOT_FOUND,
    KeyConflictError: grpc.StatusCode.ALREADY_EXISTS,
    QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotWrittenError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TransitionError: grpc.StatusCode.FAILED_PRECONDITION,
}


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong with a request: the field, and what is wrong with it."""

    field: str
    description: str


class RefusedError(Exception):
    """A call that is answered with an error.

    Parameters
    ----------
    status
        Of gRPC.
    message
        For people.
    reason
        A code of docs/errors.md.
    violations
        What is wrong with the request, field by field.
    """

    def __init__(
        self,
        status: grpc.StatusCode,
        message: str,
        reason: str = "bad_input",
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.reason, self.violations = status, message, reason, tuple(violations)

    @classmethod
    def invalid(cls, *violations: Violation) -> RefusedError:
        """Return the answer to a request with violations: as many as reach the client."""
        violations = tuple(_that_fit(violations))
        message = "\n".join(f"{entry.field}: {entry.description}" for entry in violations)
        return cls(grpc.StatusCode.INVALID_ARGUMENT, message, violations=violations)

    @classmethod
    def of(cls, error: LowdimfaError | StoreError) -> RefusedError:
        """Return the answer to a request that the store, or the library, could not carry out."""
        if isinstance(error, StoreError):
            reason = "resources" if isinstance(error, QueueFullError | NotWrittenError) else "bad_input"
            return cls(_STORE_STATUS[type(error)], str(error), reason)
        status = (
            grpc.StatusCode.INVALID_ARGUMENT if isinstance(error, InputError) else grpc.StatusCode.INTERNAL
        )
        return cls(status, error.message, error.code)

    def as_status(self) -> grpc.Status:
        """Return status, message and details as gRPC sends them."""
        details = [_packed(error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN))]
        if self.violations:
            fields = [
                error_details_pb2.BadRequest.FieldViolation(field=entry.field, description=entry.description)
                for entry in self.violations
            ]
            details.append(_packed(error_details_pb2.BadRequest(field_violations=fields)))
        return rpc_status.to_status(
            status_pb2.Status(code=self.status.value[0], message=self.message, details=details)
        )


def _that_fit(violations: Sequence[Violation]) -> Iterator[Violation]:
    """Yield violations while there is room, each shortened; they travel twice, in metadata of at most 8 KiB."""
    room = _MOST_BYTES
    for index, entry in enumerate(violations):
        short = Violation(entry.field[:_LONGEST_FIELD], entry.description[:_LONGEST_DESCRIPTION])
        room -= len(f"{short.field}{short.description}".encode())
        if room < 0:
            yield Violation("", f"{len(violations) - index} more things are wrong")
            return
        yield short


def _packed(detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed
