from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from relay import Relay
from rpc_helpers import LIVENESS, Inbox, eventually, no_threads_left

from lowdimfa.errors import HandshakeError, PeerError, ProtocolError
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer
from lowdimfa.services.stream.carriers import Carrier, Here
from lowdimfa.services.stream.frames import Message
from lowdimfa.services.stream.limits import SampleLimit
from lowdimfa.services.stream.receiver import Receiver
from lowdimfa.services.stream.resumable import as_it_came
from lowdimfa.services.stream.sender import Sender
from lowdimfa.tickets import Ticket

RUN = "run-7"


class Link:
    """Block 0 sends to block 1 through a relay."""

    def __init__(
        self,
        window: int = 4,
        samples: int = 8,
        sender_window: int | None = None,
        carrier: type[Carrier] = Carrier,
        **changes: Any,
    ) -> None:
        security = changes.pop("security", None) or Security.loopback()
        arriving = changes.pop("arriving", as_it_came)
        liveness = changes.pop("liveness", LIVENESS)
        self.messages = Inbox()
        self.failures = Inbox()
        self.sender_failures = Inbox()
        limit = SampleLimit.of((5,), changes.pop("dtype", torch.float32), samples)
        sends = changes.pop("sends", 0)
        there, here = (carrier(Here(block, "127.0.0.1", liveness)) for block in (1, 0))
        self.receiver = Receiver(
            RUN,
            1,
            sends,
            window,
            limit,
            self.messages.put,
            self.failures.put,
            arriving,
            carrier=there.downstream(window, limit),
        )
        self.server = RpcServer("block-1", security, liveness)
        self.server.add(self.receiver)
        self.server.start()
        self.relay = Relay(self.server.address)
        settings = {
            "security": security,
            "run": RUN,
            "block": sends,
            "peer": 1,
            "liveness": liveness,
        } | changes
        self.carrier = here.upstream(self.relay.address, window, limit)
        self.sender = Sender(
            self.relay.address,
            window=sender_window or window,
            on_failure=self.sender_failures.put,
            carrier=self.carrier,
            **settings,
        )
        self.sender.start()

    def send(self, step: int, *tensors: torch.Tensor) -> None:
        self.sender.send("train", Ticket(step, 0), tensors or (torch.full((2, 5), float(step)),))

    def close(self) -> None:
        self.sender.close()
        self.sender.close()
        self.receiver.close()
        self.server.stop(grace=1)
        self.relay.close()


@contextmanager
def link(**settings: Any) -> Iterator[Link]:
    with no_threads_left():
        made = Link(**settings)
        try:
            yield made
        finally:
            made.close()


def test_activations_arrive_in_order_and_bit_by_bit() -> None:
    with link() as blocks:
        blocks.send(0, torch.arange(10.0).reshape(2, 5))
        blocks.send(1, torch.ones(3, 5), torch.zeros(3, 5))
        blocks.sender.send("evaluate", Ticket(1, 0), (torch.zeros(0, 5),))
        first, second, third = blocks.messages.take(3)
        assert torch.equal(first.tensors[0], torch.arange(10.0).reshape(2, 5))
        assert (second.ticket, [tuple(t.shape) for t in second.tensors]) == (Ticket(1, 0), [(3, 5), (3, 5)])
        assert (third.kind, tuple(third.tensors[0].shape), third.sequence) == ("evaluate", (0, 5), 2)


def test_queued_activations_hold_a_copy() -> None:
    with link() as blocks:
        blocks.relay.pause()
        tensor = torch.ones(2, 5)
        blocks.send(0, tensor)
        tensor.zero_()
        blocks.relay.resume()
        assert blocks.messages.get().tensors[0].sum() == 10


def test_the_window_bounds_what_is_unacknowledged() -> None:
    with link(window=2) as blocks:
        blocks.send(0)
        blocks.send(1)
        sent = threading.Event()
        waiting = threading.Thread(target=lambda: (blocks.send(2), sent.set()))
        waiting.start()
        first, _ = blocks.messages.take(2)
        assert not sent.wait(0.2)
        assert blocks.messages.empty()
        blocks.receiver.release(first)
        assert sent.wait(LIVENESS)
        assert blocks.messages.get().ticket == Ticket(2, 0)
        waiting.join()


def test_without_shared_memory_a_window_may_be_longer_than_any_pipe() -> None:
    with link(window=2**40) as blocks:
        for step in range(20):
            blocks.send(step)
        assert [each.ticket.step for each in blocks.messages.take(20)] == list(range(20))


def test_a_full_window_is_a_peer_error_in_time() -> None:
    with link(window=1, liveness=0.5) as blocks:
        blocks.send(0)
        with pytest.raises(PeerError, match="block 0 lost block 1"):
            blocks.send(1)


def test_replicas_of_a_block_send_each_other_shards_and_their_errors_say_so() -> None:
    with link(window=1, liveness=0.5, sends=1) as blocks:
        blocks.send(0)
        with pytest.raises(PeerError, match=r"block 1 lost block 1 .* none of 1 shards was acknowledged"):
            blocks.send(1)
    with link(sends=1) as blocks:
        blocks.send(0, torch.zeros(2, 6))
        assert "block 1, step 0: shard 0: float32 of shape" in blocks.failures.get().message


def test_releases_out_of_order_wait_for_the_earlier_ones() -> None:
    with link(window=2, liveness=2.0) as blocks:
        blocks.send(0)
        blocks.send(1)
        first, second = blocks.messages.take(2)
        blocks.receiver.release(second)
        with pytest.raises(PeerError):
            blocks.send(2)
        blocks.receiver.release(first)
        blocks.send(2)


def test_cut_connections_lose_and_repeat_nothing() -> None:
    count = 40
    with link(window=3, samples=100_000) as blocks:
        got: list[Message] = []

        def consume() -> None:
            for _ in range(count):
                got.append(blocks.messages.get())
                blocks.receiver.release(got[-1])

        consumer = threading.Thread(target=consume)
        consumer.start()
        tensors = [torch.full((100_000 if step % 7 == 0 else 2, 5), float(step)) for step in range(count)]
        for step, tensor in enumerate(tensors):
            if step % 8 == 4:
                blocks.relay.cut()
            blocks.send(step, tensor)
        consumer.join(30)
        assert [activation.sequence for activation in got] == list(range(count))
        assert all(torch.equal(a.tensors[0], tensor) for a, tensor in zip(got, tensors, strict=True))
        assert blocks.messages.empty()
        assert blocks.relay.connections > 1
        assert blocks.failures.empty()


def test_a_lost_block_is_a_peer_error_in_time() -> None:
    with link(liveness=0.5) as blocks:
        blocks.send(0)
        blocks.messages.get()
        blocks.relay.blocked = True
        blocks.relay.cut()
        assert isinstance(blocks.sender_failures.get(3), PeerError)
        with pytest.raises(PeerError, match="block 1"):
            blocks.send(1)


@pytest.mark.parametrize(
    ("changes", "tensor", "words"),
    [
        ({}, torch.zeros(2, 6), "shape [2, 6]"),
        ({}, torch.zeros(9, 5), "at most 8"),
        ({}, torch.zeros(2, 5, dtype=torch.float64), "float64"),
        ({"run": "another"}, torch.zeros(2, 5), "another run"),
    ],
)
def test_unusable_activations_are_protocol_errors_at_both_ends(
    changes: dict[str, Any], tensor: torch.Tensor, words: str
) -> None:
    with link(**changes) as blocks:
        blocks.send(0, tensor)
        for failures in (blocks.failures, blocks.sender_failures):
            failure = failures.get()
            assert isinstance(failure, ProtocolError)
            assert words in failure.message


def test_a_sender_that_is_not_expected_is_refused() -> None:
    with link(block=3) as blocks:
        blocks.send(0)
        failure = blocks.sender_failures.get()
        assert isinstance(failure, ProtocolError)
        assert "refused block 3" in failure.message
        assert blocks.receiver.traffic.count().wire_bytes == 0


def test_a_sender_with_a_larger_window_is_refused() -> None:
    with link(window=1, sender_window=2) as blocks:
        blocks.send(0)
        blocks.send(1)
        assert "more than 1 unacknowledged" in blocks.failures.get().message


def test_a_sender_without_the_token_is_refused() -> None:
    with link() as blocks:
        blocks.send(0)
        blocks.receiver.release(blocks.messages.get())
        again = Sender(
            blocks.relay.address, Security("wrong"), RUN, 0, 1, 4, LIVENESS, blocks.sender_failures.put
        )
        again.start()
        assert isinstance(blocks.sender_failures.get(), HandshakeError)
        again.close()


def test_a_restarted_sender_is_told_that_its_receiver_was_not() -> None:
    security = Security.loopback()
    with link(security=security) as blocks:
        blocks.send(0)
        blocks.receiver.release(blocks.messages.get())
        again = Sender(blocks.relay.address, security, RUN, 0, 1, 4, LIVENESS, blocks.sender_failures.put)
        again.start()
        assert "restarted without the other" in blocks.sender_failures.get().message
        again.close()


def test_a_receiver_that_closes_in_order_is_no_failure() -> None:
    with link() as blocks:
        blocks.send(0)
        blocks.receiver.release(blocks.messages.get())
        blocks.receiver.close()
        blocks.server.stop(grace=LIVENESS)
        eventually(lambda: "block-0-sender" not in {thread.name for thread in threading.enumerate()})
        assert blocks.sender_failures.empty()
        with pytest.raises(PeerError):
            blocks.send(1)
