"""A process that forks into Ray's workers on request, see `lowdimfa.services.trainer.forks`.

It forks only while it has one thread, answers this user alone, and ends with whoever started it. Ray itself each worker
imports: Ray reads its settings, such as how its processes prove themselves to each other, from the environment when it is
imported, and it draws identifiers from a generator that forks would share.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import struct
import sys
import traceback
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lowdimfa.services.run.loading import load
from lowdimfa.services.trainer import fork_client

_REQUEST_SECONDS = 5.0
"""Longest wait for the rest of a request, which comes from a process on this machine that has nothing else to do."""

MODULES = ("torch._dynamo", "lowdimfa.services.block.worker", "lowdimfa.services.trainer.execute")
"""What the trainer and the blocks need, but for Ray."""

_OF_RAY = ("jsonschema", "msgpack", "requests")
"""Packages of others that Ray imports with itself, a third of what that takes; they read no settings."""


def load_modules() -> None:
    """Import what each process that is made needs."""
    load(*MODULES, *(name for name in _OF_RAY if find_spec(name)))


@dataclass
class _Server:
    """Forks on request; in the process that comes of it, `serve` returns the command line to run.

    Parameters
    ----------
    listening
        Socket for requests.
    end
        Descriptor that can be read from when the server shall end.
    """

    listening: socket.socket
    end: int
    _made: dict[int, socket.socket] = field(default_factory=dict)

    def serve(self) -> list[str] | None:
        """Fork until it shall end, and return None then."""
        ended, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake)
        arguments = None
        with selectors.DefaultSelector() as selector:
            for source in (self.listening, self.end, ended):
                selector.register(source, selectors.EVENT_READ)
            while arguments is None:
                ready = {key.fileobj for key, _ in selector.select()}
                if ended in ready:
                    os.read(ended, 4096)
                    self._reap()
                if self.end in ready:
                    return None
                if self.listening in ready:
                    arguments = self._answer()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (ended, wake, self.end):
            os.close(descriptor)
        return arguments

    def _reap(self) -> None:
        """Tell those who wait for them of processes that have ended."""
        while self._made:
            number, status = os.waitpid(-1, os.WNOHANG)
            if not number:
                return
            with self._made.pop(number) as client, contextlib.suppress(OSError):
                code = os.waitstatus_to_exitcode(status)
                client.sendall(b"%d" % (code if code >= 0 else 128 - code))

    def _answer(self) -> list[str] | None:
        """Fork for one request; return None here, and the command line in the process that it makes."""
        client, _ = self.listening.accept()
        client.settimeout(_REQUEST_SECONDS)
        streams: list[int] = []
        try:
            with contextlib.suppress(OSError, ValueError, KeyError):
                request = _read(client, streams)
                if threads() == 1:
                    os.chdir(request["folder"])  # before there is another process, so that it may fail
                    number = os.fork()
                    if not number:
                        self._become(request, streams, client)
                        return list(request["arguments"])
                    self._made[number] = client
                    client.sendall(fork_client.MADE)
                    return None
            client.close()  # without a word: whoever asked starts an ordinary process
            return None
        finally:
            for stream in streams:
                os.close(stream)

    def _become(self, request: dict[str, Any], streams: list[int], client: socket.socket) -> None:
        os.setpgrp()  # Ray ends a worker by its process group
        for other in (self.listening, client, *self._made.values()):
            other.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        _set_environment(request["environment"])


def _read(client: socket.socket, streams: list[int]) -> dict[str, Any]:
    """Read a request of this user, and the standard streams that come with it."""
    _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user != os.getuid():
        raise ValueError("of another user")
    head, received, _, _ = socket.recv_fds(client, fork_client.SIZE, 3)
    streams.extend(received)
    left = int.from_bytes(head, "big")
    body = bytearray()
    while len(body) < left:
        part = client.recv(left - len(body))
        if not part:
            raise ValueError("cut off")
        body += part
    return dict(json.loads(body))


def threads() -> int:
    """Return how many threads this process has, those of libraries too."""
    return len(list(Path("/proc/self/task").iterdir()))


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def serve(listening: socket.socket, end: int) -> None:
    """Serve; each process that is made runs what was asked for as Python itself would, and ends here."""
    load_modules()
    folder = Path(listening.getsockname()).parent
    arguments = _Server(listening, end).serve()
    if arguments is None:
        shutil.rmtree(folder, ignore_errors=True)  # whoever started it may have been killed
        os._exit(0)
    import numpy as np
    import torch

    np.random.seed()  # all processes that are made have the same state; Python's own is seeded anew
    torch.set_num_threads(1)  # as Ray wants it of an actor with one CPU; a block sets its own
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        setattr(sys, name, os.fdopen(number, mode, closefd=False))
    load("ray")
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    status: object = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end_of_worker:
        status = end_of_worker.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
