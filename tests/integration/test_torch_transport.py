"""Activations through a process group of two: the same as through gRPC, and no wait without an end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from relay import Relay
from rpc_helpers import LIVENESS, Inbox, eventually, no_threads_left

from lowdimfa.errors import InputError, PeerError, ProtocolError
from lowdimfa.services.block.receiver import ActivationReceiver
from lowdimfa.services.block.sender import ActivationSender
from lowdimfa.services.block.torch_transport import Terminal, TorchReceiver, TorchSender, require_possible
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer
from lowdimfa.tickets import Ticket

RUN, CPU = "run-7", torch.device("cpu")


class Pair:
    """Block 0 sends to block 1; the announcements go through a relay."""

    def __init__(
        self, window: int = 4, liveness: float = LIVENESS, dtype: torch.dtype = torch.float32
    ) -> None:
        security = Security.loopback()
        self.messages, self.failures, self.sender_failures = Inbox(), Inbox(), Inbox()
        make = partial(_receiver, window, self.failures)
        terminals = [Terminal("127.0.0.1", CPU, liveness, block) for block in (0, 1)]
        self.receiver = TorchReceiver(make, terminals[1], self.messages.put, self.failures.put)
        self.receiver.expect((5,), dtype, 100_000)
        self.server = RpcServer("block-1", security, liveness)
        self.server.add(self.receiver)
        self.server.start()
        self.relay = Relay(self.server.address)
        inner = ActivationSender(
            self.relay.address, security, RUN, 0, 1, window, liveness, self.sender_failures.put
        )
        self.sender = TorchSender(inner, terminals[0])
        self.sender.start()

    def send(self, step: int, *tensors: torch.Tensor) -> None:
        self.sender.send("train", Ticket(step, 0), tensors or (torch.full((2, 5), float(step)),))

    def close(self) -> None:
        self.sender.close()
        self.sender.close()
        self.receiver.close()
        self.server.stop(grace=0)
        self.relay.close()


def _receiver(window: int, failures: Inbox, take: Any) -> ActivationReceiver:
    return ActivationReceiver(RUN, 1, 0, window, take, failures.put)


@contextmanager
def pair(**settings: Any) -> Iterator[Pair]:
    with no_threads_left():
        made = Pair(**settings)
        try:
            yield made
        finally:
            made.close()


def test_activations_probes_and_evaluations_arrive_in_order_and_bit_by_bit() -> None:
    with pair() as blocks:
        blocks.send(0, torch.arange(10.0).reshape(2, 5))
        blocks.send(1, torch.ones(3, 5), torch.zeros(3, 5))
        blocks.sender.send("evaluate", Ticket(1, 0), (torch.full((100_000, 5), torch.pi),))
        first, second, third = blocks.messages.take(3)
        assert torch.equal(first.tensors[0], torch.arange(10.0).reshape(2, 5))
        assert [float(tensor.sum()) for tensor in second.tensors] == [15, 0]
        assert (third.kind, third.ticket) == ("evaluate", Ticket(1, 0))
        assert bool((third.tensors[0] == torch.tensor(torch.pi)).all())
        assert blocks.sender.traffic.count() == blocks.receiver.traffic.count()
        assert blocks.receiver.traffic.count().payload_bytes == 4 * 5 * (2 + 3 + 3 + 100_000)


def test_coarse_activations_travel_as_they_are() -> None:
    with pair(dtype=torch.bfloat16) as blocks:
        tensor = torch.randn(3, 5).bfloat16()
        blocks.send(0, tensor)
        assert torch.equal(blocks.messages.get().tensors[0], tensor)


def test_the_window_bounds_what_is_unacknowledged_and_memory_is_given_back() -> None:
    with pair(window=2) as blocks:
        blocks.send(0)
        blocks.send(1)
        sent = threading.Event()
        waiting = threading.Thread(target=lambda: (blocks.send(2), sent.set()))
        waiting.start()
        first, second = blocks.messages.take(2)
        eventually(lambda: len(blocks.sender._under_way) == 3)  # the window, and the one whose turn it isn't
        assert not sent.wait(0.2)
        blocks.receiver.release(first)
        assert sent.wait(LIVENESS)
        blocks.receiver.release(second)
        blocks.receiver.release(blocks.messages.get())
        waiting.join()
        eventually(lambda: blocks.sender.unacknowledged == 0)
        blocks.send(3)
        assert len(blocks.sender._under_way) == 1


def test_cut_announcements_lose_and_repeat_nothing() -> None:
    with pair(window=3) as blocks:
        for step in range(20):
            if step % 6 == 3:
                blocks.relay.cut()
            blocks.send(step)
            message = blocks.messages.get()
            assert (message.ticket.step, float(message.tensors[0][0, 0])) == (step, step)
            blocks.receiver.release(message)
        assert blocks.relay.connections > 1
        assert blocks.failures.empty() and blocks.sender_failures.empty()


def test_a_receiver_that_is_gone_is_a_peer_error_and_no_wait() -> None:
    with pair(liveness=1.0) as blocks:
        blocks.send(0)
        blocks.receiver.release(blocks.messages.get())
        blocks.relay.blocked = True
        blocks.relay.cut()
        blocks.receiver.close()
        with pytest.raises(PeerError, match="block 0"):
            for step in range(1, 10):
                blocks.send(step, torch.zeros(100_000, 5))


def test_a_buffer_that_does_not_come_is_a_peer_error_in_time() -> None:
    with pair(liveness=1.0) as blocks:
        blocks.sender._announcements.send("train", Ticket(0, 0), (torch.tensor([[2, 0, 0]]),))
        failure = blocks.failures.get(5)
        assert isinstance(failure, PeerError)
        assert "run.liveness_seconds" in failure.message


def test_a_sender_that_dies_before_its_buffer_has_come_ends_the_wait_at_once() -> None:
    with pair(liveness=30.0) as blocks:
        blocks.sender._announcements.send("train", Ticket(0, 0), (torch.tensor([[2, 0, 0]]),))
        eventually(lambda: blocks.receiver._announcements._expected == 2)  # it waits for the buffer
        blocks.sender.close()
        assert isinstance(blocks.failures.get(5), PeerError)


def test_more_samples_than_were_agreed_are_refused_before_memory_is_taken() -> None:
    with pair() as blocks:
        blocks.sender._announcements.send("train", Ticket(0, 0), (torch.tensor([[1 << 40, 0, 0]]),))
        assert isinstance(blocks.failures.get(5), ProtocolError)


def test_a_receiver_that_never_meets_is_a_peer_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchReceiver, "_meet", lambda self, announcement: None)
    security = Security.loopback()
    with no_threads_left():
        receiver = TorchReceiver(
            partial(_receiver, 4, Inbox()), Terminal("127.0.0.1", CPU, 1.0, 1), print, lambda failure: None
        )
        receiver.expect((5,), torch.float32, 2)
        server = RpcServer("block-1", security, 1.0)
        server.add(receiver)
        server.start()
        inner = ActivationSender(server.address, security, RUN, 0, 1, 4, 1.0, lambda failure: None)
        with pytest.raises(PeerError, match="process group"):
            TorchSender(inner, Terminal("127.0.0.1", CPU, 1.0, 0)).start()
        receiver.close()
        server.stop(grace=0)


def test_between_machines_it_needs_the_users_word() -> None:
    require_possible("127.0.0.1", False, CPU)
    require_possible("10.0.0.7", True, CPU)
    with pytest.raises(InputError, match="neither encrypts nor authenticates"):
        require_possible("10.0.0.7", False, CPU)
