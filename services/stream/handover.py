"""A socket between two blocks on one host: it hands over the sender's memory, names its owner, and wakes who waits.

The receiver listens, for one connection, and the sender comes. The name is abstract: there is no file to be left behind
by a killed process and no folder that both must see, and it ends where the network does that the two reach each other
by: a container with a network of its own has other names. Anybody on the host may read and call such a name, so each end
asks the kernel for the other's user (``SO_PEERCRED``), and what comes first over the socket is the memory itself
(``SCM_RIGHTS``). Then each byte from the sender says that there is more in the memory, and each number from the receiver
which messages were consumed: one system call to send, one thread to wake.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
import sys
import threading
from array import array
from contextlib import suppress

from lowdimfa.services.stream.carriers import Bypass

_NAME = "lowdimfa-"
_RECORD = struct.Struct("<q")
_READ = 512 * _RECORD.size
_CREDENTIALS = struct.Struct("3i")  # process, user, group
_MEMORY, _MORE = b"m", b"+"
_LONGEST = 2**31 - 1
"""Milliseconds that the system waits at once."""


class Line:
    """The sender's end of one connection.

    Parameters
    ----------
    name
        What the receiver's `Meeting` is called.
    descriptor
        Of the memory to hand over.

    Attributes
    ----------
    ended
        Whether the receiver has let go of its end, as far as `take` has seen.

    Raises
    ------
    OSError
        There is none of that name here, it is another user's, or too many want to come.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.ended = False
        self._socket = _socket()
        try:
            self._socket.connect(_address(name))  # the receiver need not have accepted to be sent to
            if not _same_user(self._socket):
                raise PermissionError("another user's socket")
            socket.send_fds(self._socket, [_MEMORY], [descriptor])
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return where to wait for something to `take`."""
        return self._socket.fileno()

    def ring(self) -> None:
        """Say that there is more; nothing is lost where the receiver has not even heard of all before, or is gone."""
        with suppress(OSError):
            self._socket.send(_MORE)

    def take(self) -> int:
        """Return the highest sequence that was acknowledged since the last call, or -1."""
        try:
            records = b"" if self.ended else self._socket.recv(_READ)
        except OSError as error:
            self.ended = not isinstance(error, BlockingIOError)
            return -1
        self.ended = not records or len(records) % _RECORD.size > 0
        return -1 if self.ended else max(sequence for (sequence,) in _RECORD.iter_unpack(records))

    def close(self) -> None:
        """Let go of this end."""
        self._socket.close()


class Meeting:
    """The receiver's end of one connection: first a place to meet, then what was made there.

    Attributes
    ----------
    name
        For the sender.

    Raises
    ------
    OSError
        The system has no such sockets.
    """

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("sockets with abstract names are Linux's")
        self.name = _NAME + secrets.token_hex(16)
        self._lock = threading.Lock()
        self._ended = False
        self._socket = _socket()
        try:
            self._socket.bind(_address(self.name))
            self._socket.listen(1)
        except BaseException:
            self._socket.close()
            raise

    def accept(self) -> int | None:
        """Return the descriptor of the memory of a sender that has come, which is the caller's; None if none has.

        Raises
        ------
        OSError
            It gave none.
        """
        with self._lock:
            while not self._ended:
                try:
                    connection, _ = self._socket.accept()
                except BlockingIOError:
                    return None
                if _same_user(connection):
                    self._socket.close()
                    self._socket = connection
                    return self._memory()
                connection.close()
        return None

    def _memory(self) -> int:
        self._socket.setblocking(False)
        # Not `socket.recv_fds`, in which the flags have no effect: a child of this process would inherit the memory.
        _, controls, flags, _ = self._socket.recvmsg(
            1, socket.CMSG_LEN(array("i").itemsize), socket.MSG_CMSG_CLOEXEC
        )
        descriptors = [number for _, _, data in controls for number in array("i", data)]
        if len(descriptors) != 1 or flags & socket.MSG_CTRUNC:
            for descriptor in descriptors:
                os.close(descriptor)
            raise OSError("not one descriptor, as was expected")
        self._socket.setblocking(True)  # `wait` waits there
        return descriptors[0]

    def wait(self) -> bool:
        """Wait until the sender says that there is more; return False after its end, or `stop`."""
        try:
            return not self._ended and len(self._socket.recv(_READ)) > 0
        except OSError:
            return False

    def acknowledge(self, sequence: int) -> bool:
        """Tell the sender that all messages up to one were consumed; return whether it can hear of it here."""
        with self._lock, suppress(OSError):
            return not self._ended and self._socket.send(_RECORD.pack(sequence), socket.MSG_DONTWAIT) > 0
        return False

    def stop(self) -> None:
        """End a `wait` in whatever thread, and all after it."""
        with self._lock:
            self._ended = True
            with suppress(OSError):  # nobody came
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of this end, after the last `wait`."""
        with self._lock:
            self._ended = True
            self._socket.close()


class Alarm:
    """Wakes a sender that waits for room: for what comes by a socket it waits itself, and no other thread for it."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        for end in (self._reading, self._writing):
            os.set_blocking(end, False)
        self._alone, self._both = select.poll(), select.poll()  # the latter with the socket
        for poll in (self._alone, self._both):
            poll.register(self._reading, select.POLLIN)
        self._line: Bypass | None = None
        self._waiting = threading.Lock()  # no descriptor is closed, and its number given away, under a wait
        self._is_open = True

    def follow(self, line: Bypass | None) -> None:
        """Wait for a socket from now on, in place of the one before, which is closed."""
        self.wake()
        with self._waiting:
            before, self._line = self._line, line
            if before is not None:
                self._both.unregister(before)
                before.close()
            if line is not None:
                self._both.register(line, select.POLLIN)

    def wait(self, seconds: float) -> None:
        """Wait for something to take from the socket, or for `wake`."""
        with self._waiting:
            if not self._is_open:
                return
            poll = self._both if self._line is not None and not self._line.ended else self._alone
            if any(descriptor == self._reading for descriptor, _ in poll.poll(min(1000 * seconds, _LONGEST))):
                os.read(self._reading, select.PIPE_BUF)

    def wake(self) -> None:
        """End the present `wait`, or the next one."""
        if self._is_open:
            with suppress(BlockingIOError):  # it is full, which ends a wait as well
                os.write(self._writing, b"w")

    def close(self) -> None:
        """Let go of everything; nobody waits from now on."""
        self.follow(None)
        with self._waiting:
            if self._is_open:
                self._is_open = False
                os.close(self._reading)
                os.close(self._writing)


def _socket() -> socket.socket:
    """Return a socket that waits for nothing."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


def _address(name: str) -> str:
    if not name.startswith(_NAME) or not name.isascii() or "\0" in name:
        raise OSError("not a name of such a socket")
    return f"\0{name}"


def _same_user(connection: socket.socket) -> bool:
    """Return whether the process at the other end is of this one's user."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(found)[1]) == os.geteuid()
