"""Single connections between processes: how long activations take, and what that costs."""

from __future__ import annotations

import secrets
import statistics
import threading
import time
from typing import Any

import torch

from benchmarks.transport.remote import Remote, processes
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer
from lowdimfa.services.stream.carriers import Here, carrier_class
from lowdimfa.services.stream.frames import Message
from lowdimfa.services.stream.limits import SampleLimit
from lowdimfa.services.stream.receiver import Receiver
from lowdimfa.services.stream.sender import Sender
from lowdimfa.tickets import Ticket

WINDOW, LIVENESS = 4, 30.0


def _fail(error: Exception) -> None:
    raise error


class Arrivals:
    """Notes when each message arrived, by the clock that all processes of a machine share."""

    def __init__(self) -> None:
        self._arrived: list[float] = []
        self._done, self._expected, self._cpu = threading.Event(), 0, 0.0

    def expect(self, count: int) -> None:
        """Prepare for some messages."""
        self._arrived.clear()
        self._done.clear()
        self._expected, self._cpu = count, time.process_time()

    def finish(self) -> tuple[list[float], float]:
        """Return when the messages came, and the seconds of processor time since `expect`."""
        self._done.wait(120)
        return list(self._arrived), time.process_time() - self._cpu

    def note(self) -> None:
        """Note a message, which is whole."""
        self._arrived.append(time.perf_counter())
        if len(self._arrived) == self._expected:
            self._done.set()


class Downstream(Arrivals):
    """Receives activations."""

    def __init__(self, run: str, security: Security, values: int) -> None:
        super().__init__()
        limit = SampleLimit.of((values,), torch.float32, 1)
        carrier = carrier_class("auto")(Here(1, "127.0.0.1", LIVENESS)).downstream(WINDOW, limit)
        self._receiver = Receiver(run, 1, 0, WINDOW, limit, self._take, _fail, carrier=carrier)
        self._server = RpcServer("block-1", security, LIVENESS)
        self._server.add(self._receiver)
        self._server.start()

    def address(self) -> str:
        """Return where it listens."""
        return self._server.address

    def _take(self, activation: Message) -> None:
        self._receiver.release(activation)
        self.note()

    def close(self) -> None:
        """End the server."""
        self._receiver.close()
        self._server.stop(0)


class Departures:
    """Sends the same tensor again and again."""

    def __init__(self, values: int) -> None:
        self.tensor = torch.randn(1, values)

    def put(self) -> None:
        """Send it once; wait while the window is full."""
        raise NotImplementedError

    def send(self, count: int, pause: float) -> tuple[list[float], float]:
        """Send messages, with a pause after each; return when each was handed over, and seconds of processor time."""
        began, cpu = [], time.process_time()
        for _ in range(count):
            began.append(time.perf_counter())
            self.put()
            if pause:
                time.sleep(pause)
        return began, time.process_time() - cpu


class Upstream(Departures):
    """Sends activations to one `Downstream`."""

    def __init__(self, transport: str, address: str, run: str, security: Security, values: int) -> None:
        super().__init__(values)
        self._sent = 0
        here = Here(0, address.rpartition(":")[0], LIVENESS)
        limit = SampleLimit.of((values,), torch.float32, 1)
        carrier = carrier_class(transport)(here).upstream(address, WINDOW, limit)
        self._sender = Sender(address, security, run, 0, 1, WINDOW, LIVENESS, _fail, carrier=carrier)
        self._sender.start()

    def put(self) -> None:
        """Send an activation."""
        self._sender.send("train", Ticket(self._sent, 0), (self.tensor,))
        self._sent += 1

    def close(self) -> None:
        """Disconnect."""
        self._sender.close()


def timed(down: Remote, up: Remote, kilobytes: int, count: int) -> dict[str, float]:
    """Return latencies of messages sent one at a time, and processor time and rate of messages sent without pause."""
    rounds = []
    for messages, pause in (
        (5, 0.0),
        (count, max(0.002, kilobytes * 4e-6)),
        (count, 0.0),
    ):  # the first warms up
        down.call("expect", messages)
        began, sending = up.call("send", messages, pause)
        arrived, receiving = down.call("finish")
        rounds.append((began, arrived, sending + receiving))
    _, (one_began, one_arrived, _), (began, arrived, cpu) = rounds
    latencies = [1e3 * (after - before) for before, after in zip(one_began, one_arrived, strict=True)]
    return {
        "median_ms": statistics.median(latencies),
        "p95_ms": statistics.quantiles(latencies, n=20)[-1],
        "cpu_ms": 1e3 * cpu / count,
        "messages_per_second": count / (arrived[-1] - began[0]),
    }


def activations(transport: str, kilobytes: int, count: int) -> dict[str, Any]:
    """Return what `timed` does, of activations by a transport."""
    values, run, security = kilobytes * 256, secrets.token_hex(4), Security.loopback()
    with (
        processes((Downstream, run, security, values)) as (down,),
        processes((Upstream, transport, down.call("address"), run, security, values)) as (up,),
    ):
        return {"transport": transport, "kilobytes": kilobytes, **timed(down, up, kilobytes, count)}
