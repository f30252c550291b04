"""A TCP relay between a client and a server that counts bytes and can cut connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Relay:
    """Listens on `address` and passes bytes to and from ``target``.

    `upstream` counts bytes towards the target, `downstream` those from it. `cut` breaks all connections;
    while `blocked`, new ones are refused. `pause` stops the flow both ways without breaking anything.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.upstream = 0
        self.downstream = 0
        self.connections = 0
        self.blocked = False
        self._flow = threading.Event()
        self._flow.set()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="relay", daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        with self._lock:
            for end in self._sockets:
                shut(end)
            self._sockets.clear()

    def pause(self) -> None:
        self._flow.clear()

    def resume(self) -> None:
        self._flow.set()

    def close(self) -> None:
        shut(self._listener)
        self.resume()
        self.cut()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.blocked:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets += [client, server]
                self.connections += 1
            for source, sink, counter in ((client, server, "upstream"), (server, client, "downstream")):
                thread = threading.Thread(
                    target=self._pump, args=(source, sink, counter), name="relay", daemon=True
                )
                thread.start()
                self._threads.append(thread)

    def _pump(self, source: socket.socket, sink: socket.socket, counter: str) -> None:
        try:
            while data := source.recv(1 << 16):
                self._flow.wait()
                with self._lock:
                    setattr(self, counter, getattr(self, counter) + len(data))
                sink.sendall(data)
        except OSError:
            pass
        finally:
            shut(source)
            shut(sink)


def shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side closed it first
        end.shutdown(socket.SHUT_RDWR)
    end.close()
