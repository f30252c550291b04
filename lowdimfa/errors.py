"""Typed errors that a person can act on.

Every error that the project raises on purpose derives from `LowdimfaError`. It carries what was wrong, where, and
the exit code with which the command line ends; `docs/errors.md` is the catalogue.
"""

from __future__ import annotations

from typing import Any, ClassVar


class LowdimfaError(Exception):
    """An error with a message for people.

    Parameters
    ----------
    message
        What was wrong, what was expected, what to do.
    block, step
        Where it happened, when a block and a step can be named.
    setting
        The key of the specification that would change the outcome.
    replica
        Which replica of the block it was, where there are several.
    """

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        block: int | None = None,
        step: int | None = None,
        setting: str | None = None,
        replica: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.block = block
        self.step = step
        self.setting = setting
        self.replica = replica

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.block, self.step, self.setting, self.replica))

    def as_event(self) -> dict[str, Any]:
        """Return the fields of the machine-readable ``failed`` event."""
        fields: dict[str, Any] = {"code": self.code, "message": self.message, "exit_code": self.exit_code}
        optional = {"block": self.block, "step": self.step, "setting": self.setting}
        return fields | {key: value for key, value in optional.items() if value is not None}


def _rebuild(
    kind: type[LowdimfaError],
    message: str,
    block: int | None,
    step: int | None,
    setting: str | None,
    replica: int | None,
) -> LowdimfaError:
    error = kind.__new__(kind)
    LowdimfaError.__init__(error, message, block=block, step=step, setting=setting, replica=replica)
    return error


class InputError(LowdimfaError):
    """What the user gave can't be used: a key, a file, a factory, data, a checkpoint.

    Parameters
    ----------
    where
        The file and key (``spec.yaml: feedback.error_dim``), path or argument.
    found, expected
        What was there and what should have been there.
    hint
        What to do about it.
    """

    code = "bad_input"
    exit_code = 2

    def __init__(self, where: str, found: str, expected: str, hint: str = "") -> None:
        message = f"{where}: found {found}; expected {expected}."
        super().__init__(f"{message} {hint}".rstrip())


class NotFiniteError(LowdimfaError):
    """A loss, an activation or an error stopped being finite."""

    code = "not_finite"
    exit_code = 3


class PeerError(LowdimfaError):
    """A block, its process or its connection was lost, or stayed silent longer than the liveness setting."""

    code = "peer_lost"
    exit_code = 4


class BlockLostError(PeerError):
    """A block's process is gone, gives no answer, or stands still; ``block`` is that block, and not who noticed."""


class HandshakeError(LowdimfaError):
    """Two neighbours disagree on versions, shapes, types, run or token before the first step."""

    code = "handshake"
    exit_code = 4


class ProtocolError(LowdimfaError):
    """A message was malformed, out of sequence, or of the wrong shape or type."""

    code = "protocol"
    exit_code = 4


class ResourceError(LowdimfaError):
    """The cluster has no room, or a port, file or process could not be had."""

    code = "resources"
    exit_code = 5


class DiskFullError(ResourceError):
    """The disk, or the user's share of it, has no room for what has to be written."""


class AccessError(LowdimfaError):
    """The job service doesn't let this client in, or its token's role doesn't allow the call."""

    code = "access"
    exit_code = 6


class DrillError(LowdimfaError):
    """A run under the faults of a drill did not come to its result, or left something behind."""

    code = "drill"
    exit_code = 1


class StoppedError(LowdimfaError):
    """The user stopped the run, with Ctrl-C or SIGTERM; the exit code is that of shells."""

    code = "stopped"
    exit_code = 130
