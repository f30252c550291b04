"""Activations through a process group of two: the same as through gRPC, and no wait without an end."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from rpc_helpers import LIVENESS, eventually, no_threads_left
from test_activations import RUN, Link, link

from lowdimfa.errors import InputError, PeerError, ProtocolError
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer
from lowdimfa.services.stream.carriers import Here
from lowdimfa.services.stream.frames import Message, without_data
from lowdimfa.services.stream.limits import SampleLimit
from lowdimfa.services.stream.receiver import Receiver
from lowdimfa.services.stream.resumable import Sent
from lowdimfa.services.stream.sender import Sender
from lowdimfa.services.stream.torch_carrier import GroupDownstream, TorchCarrier
from lowdimfa.tickets import Ticket

CPU = torch.device("cpu")


def pair(**settings: Any) -> AbstractContextManager[Link]:
    """Block 0 sends to block 1; what is not tensors goes through a relay."""
    return link(samples=100_000, carrier=TorchCarrier, **settings)


def only_announced(blocks: Link, samples: int) -> None:
    """Announce an activation whose tensor is never sent."""
    tensors = (torch.empty((samples, 5), device="meta"),)

    def pack(message: Message, run: int, block: int) -> Sent:
        return Sent(message.sequence, 0, [without_data(message, run, block)])

    blocks.carrier.pack = pack  # type: ignore[method-assign]
    blocks.sender.send("train", Ticket(0, 0), tensors)


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
        assert not sent.wait(0.2)
        assert len(blocks.sender._replay) == 2  # with their tensors
        blocks.receiver.release(first)
        assert sent.wait(LIVENESS)
        blocks.receiver.release(second)
        blocks.receiver.release(blocks.messages.get())
        waiting.join()
        eventually(lambda: blocks.sender.unacknowledged == 0)
        assert len(blocks.sender._replay) == 0


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
    with pair(liveness=3.0) as blocks:
        blocks.send(0)
        blocks.receiver.release(blocks.messages.get())
        blocks.relay.blocked = True
        blocks.relay.cut()
        blocks.receiver.close()
        with pytest.raises(PeerError, match="block 0"):
            for step in range(1, 10):
                blocks.send(step, torch.zeros(100_000, 5))


def test_a_buffer_that_does_not_come_is_a_peer_error_in_time() -> None:
    with pair(liveness=3.0) as blocks:
        only_announced(blocks, 2)
        failure = blocks.failures.get(15)
        assert isinstance(failure, PeerError)
        assert "run.liveness_seconds" in failure.message


def test_a_sender_that_dies_before_its_buffer_has_come_ends_the_wait_at_once() -> None:
    with pair(liveness=30.0) as blocks:
        only_announced(blocks, 2)
        eventually(lambda: blocks.receiver._incoming._assembly is not None)  # it waits for the tensor
        blocks.sender.close()
        assert isinstance(blocks.failures.get(5), PeerError)


def test_more_samples_than_were_agreed_are_refused_before_memory_is_taken() -> None:
    with pair() as blocks:
        only_announced(blocks, 1 << 30)
        assert isinstance(blocks.failures.get(5), ProtocolError)


def test_a_receiver_that_never_meets_is_a_peer_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GroupDownstream, "meet", lambda self, address: None)
    security, limit = Security.loopback(), SampleLimit.of((5,), torch.float32, 2)
    there, here = (TorchCarrier(Here(block, "127.0.0.1", 1.0)) for block in (1, 0))
    with no_threads_left():
        receiver = Receiver(RUN, 1, 0, 4, limit, print, print, carrier=there.downstream(4, limit))
        server = RpcServer("block-1", security, 1.0)
        server.add(receiver)
        server.start()
        end = here.upstream(server.address, 4, limit)
        with pytest.raises(PeerError, match="process group"):
            Sender(server.address, security, RUN, 0, 1, 4, 1.0, print, carrier=end).start()
        receiver.close()
        server.stop(grace=0)


def test_between_machines_it_needs_the_users_word() -> None:
    TorchCarrier(Here(0, "127.0.0.1", LIVENESS, CPU))
    TorchCarrier(Here(0, "10.0.0.7", LIVENESS, CPU, insecure=True))
    with pytest.raises(InputError, match="neither encrypts nor authenticates"):
        TorchCarrier(Here(0, "10.0.0.7", LIVENESS, CPU))
