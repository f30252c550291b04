"""What a Ray with a fork server starts in place of Python: for a worker it asks the server, and stands for what it made.

``python -I -S fork_client.py SOCKET …`` does what ``python …`` does. Where that is one of Ray's workers, it is a process
that has imported what a run needs; where the fork server doesn't answer, or declines, and for all else it is an ordinary
Python. It is started for each worker, so it imports nothing but the standard library.
"""

import array
import json
import os
import socket
import sys
from pathlib import Path

MADE = b"+"
"""Answer of a fork server that has made the process; the exit status follows when that ends."""

SIZE = 4
"""Bytes of the length that goes before a request, in network order."""

_WORKER = "default_worker.py"
"""Ray's script of a worker, which it starts by itself where nothing has to be set up for that."""


def main() -> None:
    """Run Python, see the module; return its exit status when it has ended."""
    where, arguments = sys.argv[1], sys.argv[2:]
    worker = bool(arguments) and Path(arguments[0]).name == _WORKER
    status = _forked(where, arguments) if worker else None
    if status is None:
        os.execv(sys.executable, [sys.executable, *arguments])
    sys.exit(status)


def _forked(where: str, arguments: list[str]) -> int | None:
    """Return the exit status of the process that a fork server makes, when it has ended; None if it makes none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        try:
            server.connect(where)
            _ask(server, arguments)
            if server.recv(len(MADE)) != MADE:
                return None
        except OSError:
            return None
        try:
            return int(server.recv(4) or b"1")
        except OSError:
            return 1


def _ask(server: socket.socket, arguments: list[str]) -> None:
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
    body = json.dumps(request).encode("ascii")
    streams = array.array("i", (0, 1, 2))
    server.sendmsg([len(body).to_bytes(SIZE, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    server.sendall(body)


if __name__ == "__main__":
    main()
