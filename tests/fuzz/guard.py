"""What every decoder owes to bytes that it can't trust, whatever they are: an end, soon, in bounded memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf.message import DecodeError

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.coordinator.refusals import RefusedError
from lowdimfa.services.rpc.connection import Resend
from lowdimfa.services.run.manifest import DamagedError

MOST_SECONDS = 1.0
"""CPU time of this thread: other processes don't count."""

MOST_BYTES, MOST_BYTES_PER_BYTE = 128 << 20, 1 << 10
"""Address space that one input may take: so much, and so much more for each of its own bytes."""

LONGEST_MESSAGE = 4096
"""Bytes of an error's message. It goes into logs, events, and metadata of gRPC, which refuses more than 8 KiB."""

TYPED = (LowdimfaError, DamagedError, RefusedError, Resend, DecodeError)
"""How a decoder may refuse. `DecodeError` is what gRPC itself turns into a status before any of our code runs."""

_STATM = Path("/proc/self/statm")


class Finding(Exception):
    """A decoder did to an input what it must not do. The cause, where there is one, is what it raised."""


def guarded(decode: Callable[[bytes], None], data: bytes) -> bool:
    """Decode untrusted bytes; return whether they were accepted.

    Raises
    ------
    Finding
        The decoder raised what it must not raise, or took too long, too much memory, or too many words.
    """
    began = time.thread_time()
    accepted, words = True, ""
    try:
        with _limited_memory(MOST_BYTES + MOST_BYTES_PER_BYTE * len(data)):
            decode(data)
    except Finding:
        raise
    except TYPED as error:
        accepted = False
        words = f"{error.found} {error.expected}" if isinstance(error, DamagedError) else str(error)
    except Exception as error:
        raise Finding(f"{type(error).__name__}: {str(error)[:500]}") from error
    if (seconds := time.thread_time() - began) > MOST_SECONDS:
        raise Finding(f"{seconds:.1f} s for {len(data)} bytes")
    try:
        length = len(words.encode())
    except UnicodeEncodeError as error:
        raise Finding("a message that is not Unicode text") from error
    if length > LONGEST_MESSAGE:
        raise Finding(f"a message of {length} bytes, which begins {words[:80]!r}")
    return accepted


@contextmanager
def _limited_memory(more: int) -> Iterator[None]:
    """Let this process take only so many more bytes of address space, touched or not. Linux only, else no limit."""
    if not _STATM.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(_STATM.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
