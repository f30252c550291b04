"""Single connections between processes: how long activations take, and what that costs."""

from __future__ import annotations

import secrets
import statistics
import threading
import time
from typing import Any

import torch

from benchmarks.transport.remote import processes
from lowdimfa.services.block.activations import Activation, SampleLimit
from lowdimfa.services.block.receiver import ActivationReceiver
from lowdimfa.services.block.transports import Transport, make_sender
from lowdimfa.services.rpc.seats import Seat
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer
from lowdimfa.tickets import Ticket

WINDOW, LIVENESS = 4, 30.0


def _fail(error: Exception) -> None:
    raise error


class Downstream:
    """Receives activations, and notes when each arrived by the clock that all processes of a machine share."""

    def __init__(self, run: str, security: Security, values: int) -> None:
        self._arrived: list[float] = []
        self._done, self._expected, self._cpu = threading.Event(), 0, 0.0
        self._receiver = ActivationReceiver(run, 1, 0, WINDOW, self._take, _fail)
        self._receiver.expect((values,), torch.float32, 1)
        self._server = RpcServer("block-1", security, LIVENESS)
        self._server.add(self._receiver)
        self._server.start()

    def address(self) -> str:
        """Return where it listens."""
        return self._server.address

    def expect(self, count: int) -> None:
        """Prepare for some messages."""
        self._arrived.clear()
        self._done.clear()
        self._expected, self._cpu = count, time.process_time()

    def finish(self) -> tuple[list[float], float]:
        """Return when the messages came, and the seconds of processor time since `expect`."""
        self._done.wait(120)
        return list(self._arrived), time.process_time() - self._cpu

    def _take(self, activation: Activation) -> None:
        self._arrived.append(time.perf_counter())
        self._receiver.release(activation)
        if len(self._arrived) == self._expected:
            self._done.set()

    def close(self) -> None:
        """End the server."""
        self._receiver.close()
        self._server.stop(0)


class Upstream:
    """Sends activations to one `Downstream`."""

    def __init__(self, transport: Transport, address: str, run: str, security: Security, values: int) -> None:
        self._tensor = torch.randn(1, values)
        self._sent = 0
        self._sender = make_sender(
            transport,
            SampleLimit((values,), torch.float32, 1),
            address=address,
            host=address.rpartition(":")[0],
            security=security,
            run=run,
            seat=Seat(0, 0),
            peer=Seat(1, 0),
            name="block 1",
            window=WINDOW,
            liveness=LIVENESS,
            on_failure=_fail,
        )
        self._sender.start()

    def send(self, count: int, pause: float) -> tuple[list[float], float]:
        """Send messages, with a pause after each; return when each was handed over, and seconds of processor time."""
        began, cpu = [], time.process_time()
        for _ in range(count):
            began.append(time.perf_counter())
            self._sender.send("train", Ticket(self._sent, 0), (self._tensor,))
            self._sent += 1
            if pause:
                time.sleep(pause)
        return began, time.process_time() - cpu

    def close(self) -> None:
        """Disconnect."""
        self._sender.close()


def activations(transport: Transport, kilobytes: int, count: int) -> dict[str, Any]:
    """Return latencies of messages sent one at a time, and processor time and rate of messages sent without pause."""
    values, run, security = kilobytes * 256, secrets.token_hex(4), Security.loopback()
    with (
        processes((Downstream, run, security, values)) as (down,),
        processes((Upstream, transport, down.call("address"), run, security, values)) as (up,),
    ):
        rounds = {}
        for name, messages, pause in (
            ("warm", 20, 0.0),
            ("one at a time", count, max(0.002, kilobytes * 4e-6)),
            ("without pause", count, 0.0),
        ):
            down.call("expect", messages)
            began, sending = up.call("send", messages, pause)
            arrived, receiving = down.call("finish")
            rounds[name] = began, arrived, sending + receiving
    began, arrived, _ = rounds["one at a time"]
    latencies = [1e3 * (after - before) for before, after in zip(began, arrived, strict=True)]
    began, arrived, cpu = rounds["without pause"]
    return {
        "transport": transport,
        "kilobytes": kilobytes,
        "median_ms": statistics.median(latencies),
        "p95_ms": statistics.quantiles(latencies, n=20)[-1],
        "cpu_ms": 1e3 * cpu / count,
        "messages_per_second": count / (arrived[-1] - began[0]),
    }
