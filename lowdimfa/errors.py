"""Typed errors that a person can act on.

Every error that the project raises on purpose derives from `LowdimfaError`. It carries what was wrong, where, and
the exit code with which the command line ends; `docs/errors.md` is the catalogue.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
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
        rebuilt = (type(self), self.message, self.block, self.step, self.setting, self.replica)
        return (_rebuild, rebuilt, {"__notes__": self.__notes__} if hasattr(self, "__notes__") else None)

    def plain(self) -> LowdimfaError:
        """Return the error without a class that a user derived, for a process that may not have it."""
        kind = next(kind for kind in type(self).__mro__ if kind.__module__ == __name__)
        if kind is type(self):
            return self
        return _rebuild(kind, self.message, self.block, self.step, self.setting, self.replica)

    def as_event(self) -> dict[str, Any]:
        """Return the fields of the machine-readable ``failed`` event; `error_of` is the way back."""
        fields: dict[str, Any] = {
            "code": self.code,
            "class": type(self.plain()).__name__,
            "message": self.message,
            "exit_code": self.exit_code,
        }
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


def error_of(event: Mapping[str, Any]) -> LowdimfaError:
    """Return the error that the fields of a ``failed`` event were made of; of a class that isn't known, a plain one."""
    kind = globals().get(str(event.get("class")))
    return _rebuild(
        kind if isinstance(kind, type) and issubclass(kind, LowdimfaError) else LowdimfaError,
        str(event.get("message", "")),
        event.get("block"),
        event.get("step"),
        event.get("setting"),
        None,
    )


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


class BlockWithoutRoomError(BlockLostError):
    """A block was lost, and no node of the cluster has a place for it any more."""


class RecoveriesUsedUpError(PeerError):
    """Blocks or the trainer were lost more often than the specification lets a run recover."""


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


class NoRoomError(ResourceError):
    """The cluster had no room for the blocks of a run when it was to begin."""


class DiskFullError(ResourceError):
    """The disk, or the user's share of it, has no room for what has to be written."""


class StorageError(ResourceError):
    """Storage can't be reached, or refuses: an object store for longer than the liveness setting."""


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


_LONGEST = 2000
"""Characters of another one's text in a message, which travels in metadata and lists; a traceback has all of it."""


def some_of(names: Sequence[str], most: int = 5) -> str:
    """Return the first of some names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def in_words(error: BaseException) -> str:
    """Return kind, text and place of an error that other people's code raised, whatever its own methods do.

    The place is the innermost line that belongs neither to this project nor to a library.
    """
    try:
        text = str(error)
    except BaseException:  # it is the user's method
        text = "an error whose text can't be had"
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… ({len(text) - _LONGEST} more characters)"
    where = _place(error)
    said = ", ".join(part for part in (text, where and f"in {where}") if part)
    kind = type(error).__name__
    return (f"{kind}: {said}" if said else kind).encode("utf-8", "backslashreplace").decode()


def finds_no_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left: torch has none of its own for that of a processor."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "out of memory" in str(error))
    )


def unforeseen(error: BaseException, what: str = "", **fields: Any) -> LowdimfaError:
    """Return the typed error for one that other people's code raised.

    It consists of plain text alone, so that it crosses to processes that can't import that code, or can't rebuild its
    exceptions. Its note is the traceback.

    Parameters
    ----------
    error
        What was raised.
    what
        Begins the message: ``block 1 failed during 'run steps'``.
    fields
        Of the typed error, such as ``block``.
    """
    said = in_words(error)
    failure = LowdimfaError(f"{what} ({said})" if what else said, **fields)
    trace = "".join(traceback.format_exception(error))
    failure.add_note(trace.encode("utf-8", "backslashreplace").decode())
    return failure


@contextmanager
def other_peoples_code(what: str) -> Iterator[None]:
    """Make whatever the body raises a typed error: ``sys.exit`` of a user's layer ends no process of ours in silence.

    Parameters
    ----------
    what
        Begins the message.

    Raises
    ------
    LowdimfaError
        The body's own, or the one for what it raised. Ctrl-C stays what it is.
    """
    try:
        yield
    except (LowdimfaError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise unforeseen(error, what) from error


_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_OWN = str(Path(__file__).parent)


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return ""  # its text has the place
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = frame.filename
        packaged = {"site-packages", "dist-packages"} & set(Path(path).parts)
        if not path.startswith(("<", *_LIBRARIES, _OWN)) and not packaged:
            return f"{path}, line {frame.lineno}"
    return ""
