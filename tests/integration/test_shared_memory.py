"""Activations through shared memory: the same messages in the same order, whatever happens on the way."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rpc_helpers import LIVENESS, Inbox, eventually, local_descriptors
from test_activations import RUN, link
from test_faulty_wires import KINDS, Wire, all_of, garbled_frame

from lowdimfa.errors import HandshakeError, PeerError, ProtocolError
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer
from lowdimfa.services.stream.carriers import Here, carrier_class
from lowdimfa.services.stream.frames import unpack
from lowdimfa.services.stream.limits import SampleLimit
from lowdimfa.services.stream.receiver import Receiver
from lowdimfa.services.stream.sender import Sender
from lowdimfa.services.stream.shared_memory import RingDownstream, RingLine, SharedMemory
from lowdimfa.tickets import Ticket

SAMPLES, WINDOW = 2000, 3
PING_BYTES = 17
LIMIT = SampleLimit.of((5,), torch.float32, SAMPLES)


def never(*_: Any) -> RingLine:
    raise ConnectionRefusedError


def tensor(step: int, samples: int = SAMPLES) -> torch.Tensor:
    return torch.full((samples, 5), float(step))


HERE = Here(0, "127.0.0.1", LIVENESS)


class Offered(SharedMemory):
    """Offers memory to a block at any address, also to one behind a relay, and sends bytes where it isn't taken."""

    only = False


class Frames:
    """Sees every frame that arrives."""

    def __init__(self) -> None:
        self.shared: list[bool] = []

    def __call__(self, frame: bytes) -> tuple[bytes]:
        self.shared.append(unpack(frame)[0].carried)
        return (frame,)


def exchange(blocks: Any) -> None:
    """Send more than the window holds, each message after the one before was consumed."""
    for step in range(2 * WINDOW):
        blocks.send(step, tensor(step))
        got = blocks.messages.get()
        assert torch.equal(got.tensors[0], tensor(step))
        blocks.receiver.release(got)


def test_messages_of_all_sizes_lie_in_shared_memory() -> None:
    frames = Frames()
    with link(window=WINDOW, samples=SAMPLES, carrier=Offered, arriving=frames) as blocks:
        for step, samples in enumerate((SAMPLES, 2, SAMPLES // 2, 0, SAMPLES)):
            blocks.send(step, tensor(step, samples))
            got = blocks.messages.get()
            assert torch.equal(got.tensors[0], tensor(step, samples))
            blocks.receiver.release(got)
        blocks.send(5, tensor(5), tensor(6))
        clean, noisy = blocks.messages.get().tensors
        assert torch.equal(clean, tensor(5)) and torch.equal(noisy, tensor(6))
        assert frames.shared == 6 * [True]
        assert blocks.receiver.traffic.count().payload_bytes == 20 * (4 * SAMPLES + SAMPLES // 2 + 2)


def test_an_activation_that_outgrows_its_slot_is_an_error_with_block_step_and_shape() -> None:
    with link(window=WINDOW, samples=SAMPLES, carrier=Offered) as blocks:
        with pytest.raises(
            ProtocolError, match=r"^block 0, step 7, .* \[2000, 15\]: .* 120000 bytes, where"
        ) as caught:
            blocks.send(7, torch.zeros(SAMPLES, 15))
        assert (caught.value.block, caught.value.step) == (0, 7)


def test_nothing_but_acknowledgements_takes_the_connection() -> None:
    with link(window=WINDOW, samples=SAMPLES, carrier=Offered) as blocks:
        blocks.send(0, tensor(0))
        blocks.receiver.release(blocks.messages.get())
        before = blocks.relay.upstream
        for step in range(1, 200):
            blocks.send(step, tensor(step))
            blocks.receiver.release(blocks.messages.get())
        # HTTP/2 answers pings and grants room for acknowledgements; frames alone would take more than 60 bytes each.
        assert blocks.relay.upstream - before < 199 * 30
        assert blocks.receiver.traffic.count() == blocks.sender.traffic.count()


def test_a_connection_s_descriptors_go_with_it() -> None:
    with link(window=WINDOW, samples=SAMPLES, carrier=Offered) as blocks:
        for step in range(30):
            blocks.send(step, tensor(step))
            blocks.receiver.release(blocks.messages.get())
            if step == 2:
                before = local_descriptors()
            blocks.receiver.renew()
        eventually(lambda: local_descriptors() <= before)


def test_what_was_received_does_not_change_with_its_slot() -> None:
    with link(window=WINDOW, samples=SAMPLES, carrier=Offered) as blocks:
        got = []
        for step in range(3 * WINDOW):
            blocks.send(step, tensor(step))
            got.append(blocks.messages.get())
            blocks.receiver.release(got[-1])
        assert all(torch.equal(each.tensors[0], tensor(step)) for step, each in enumerate(got))


def test_cut_connections_lose_and_repeat_nothing() -> None:
    count = 40
    with link(window=WINDOW, samples=SAMPLES, carrier=Offered) as blocks:
        got: list[Any] = []

        def consume() -> None:
            for _ in range(count):
                got.append(blocks.messages.get())
                blocks.receiver.release(got[-1])

        consumer = threading.Thread(target=consume)
        consumer.start()
        for step in range(count):
            if step % 8 == 4:
                blocks.relay.cut()
            blocks.send(step, tensor(step))
        consumer.join(30)
        assert [each.sequence for each in got] == list(range(count))
        assert all(torch.equal(each.tensors[0], tensor(step)) for step, each in enumerate(got))
        assert blocks.relay.connections > 1
        assert blocks.failures.empty()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, 4])
def test_faults_of_the_wire_strike_frames_that_only_say_where(kind: str, position: int) -> None:
    wire = Wire(kind, position, garbled_frame)
    with link(window=8, samples=SAMPLES, carrier=Offered, arriving=wire) as blocks:
        for step in range(5):
            blocks.send(step, tensor(step))
        assert wire.happened.wait(30)
        found = all_of(blocks.messages, 5, blocks.receiver.renew)
        assert [each.sequence for each in found] == list(range(5))
        assert all(torch.equal(each.tensors[0], tensor(each.sequence)) for each in found)


def test_a_receiver_that_can_not_open_the_memory_gets_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowdimfa.services.stream.shared_memory.take_offer", lambda *_: None)
    frames = Frames()
    with link(window=WINDOW, samples=SAMPLES, carrier=Offered, arriving=frames) as blocks:
        exchange(blocks)
        assert not any(frames.shared)


def test_a_sender_that_can_not_come_sends_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowdimfa.services.stream.shared_memory.RingLine", never)
    frames = Frames()
    with link(window=WINDOW, samples=SAMPLES, carrier=Offered, arriving=frames) as blocks:
        for step in range(2 * WINDOW):
            blocks.send(step, tensor(step))
            blocks.receiver.release(blocks.messages.get())
        assert not any(frames.shared)


def test_memory_that_is_not_what_was_offered_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowdimfa.services.stream.ring.Ring.fileno", lambda ring: 0)
    frames = Frames()
    with link(window=WINDOW, samples=SAMPLES, carrier=Offered, arriving=frames) as blocks:
        exchange(blocks)
        assert not any(frames.shared)
        assert blocks.failures.empty() and blocks.sender_failures.empty()


def test_without_another_transport_that_is_a_failure_with_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lowdimfa.services.stream.shared_memory.take_offer", lambda *_: None)
    with link(window=WINDOW, samples=SAMPLES, carrier=SharedMemory) as blocks:
        blocks.send(0, tensor(0))
        failure = blocks.sender_failures.get()
        assert isinstance(failure, HandshakeError)
        assert "can't open the shared memory of block 0" in failure.message
        assert failure.setting == "placement.transport"
        with pytest.raises(HandshakeError):
            blocks.send(1, tensor(1))


def test_a_receiver_that_is_gone_is_a_lost_peer_also_without_another_transport() -> None:
    with link(window=WINDOW, samples=SAMPLES, carrier=SharedMemory, liveness=2.0) as blocks:
        blocks.send(0, tensor(0))
        blocks.receiver.release(blocks.messages.get())
        blocks.send(1, tensor(1))
        blocks.messages.get()  # being worked on
        blocks.relay.close()
        assert isinstance(blocks.sender_failures.get(), PeerError)


def test_connections_that_end_while_the_memory_is_handed_over_are_opened_again() -> None:
    with link(window=2, samples=SAMPLES, carrier=SharedMemory) as blocks:
        for step in range(100):
            blocks.receiver.renew()
            blocks.send(step, tensor(step))
            got = blocks.messages.get()
            assert got.ticket.step == step
            blocks.receiver.release(got)
        assert blocks.sender_failures.empty()


@pytest.mark.parametrize(
    ("transport", "address", "offered"),
    [
        ("auto", "127.0.0.1:1", True),
        ("auto", "127.0.0.2:1", False),
        ("grpc", "127.0.0.1:1", False),
        ("shared_memory", "127.0.0.2:1", True),
    ],
)
def test_memory_is_offered_to_blocks_at_the_same_address(transport: Any, address: str, offered: bool) -> None:
    end = carrier_class(transport)(HERE).upstream(address, WINDOW, LIMIT)
    assert bool(end.offer) is offered
    end.close()


class Downstream:
    """A receiver of this process, for a sender in another one."""

    def __init__(self) -> None:
        self.security = Security.loopback()
        self.messages, self.frames = Inbox(), Frames()
        self.receiver = Receiver(
            RUN,
            1,
            0,
            WINDOW,
            LIMIT,
            self.messages.put,
            lambda failure: None,
            self.frames,
            carrier=RingDownstream(WINDOW, LIMIT),
        )
        self.server = RpcServer("block-1", self.security, LIVENESS)
        self.server.add(self.receiver)
        self.server.start()

    def close(self) -> None:
        self.receiver.close()
        self.server.stop(grace=1)


def send_for_ever(address: str, security: Security, window: int) -> None:
    carrier = Offered(HERE).upstream(address, window, LIMIT)
    sender = Sender(address, security, RUN, 0, 1, window, LIVENESS, lambda failure: None, carrier=carrier)
    sender.start()
    step = 0
    while True:
        sender.send("train", Ticket(step, 0), (tensor(step),))
        step += 1


def in_process(target: Callable[..., None], *arguments: Any) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def test_a_sender_that_is_killed_leaves_nothing_and_what_came_stays_whole() -> None:
    downstream = Downstream()
    process = in_process(send_for_ever, downstream.server.address, downstream.security, WINDOW)
    try:
        got = []
        for _ in range(50):
            got.append(downstream.messages.get(60))
            downstream.receiver.release(got[-1])
        process.kill()
        process.join()
        assert all(downstream.frames.shared)
        assert all(torch.equal(each.tensors[0], tensor(step)) for step, each in enumerate(got))
        assert not [path for path in Path("/dev/shm").iterdir() if str(process.pid) in path.name]
    finally:
        process.kill()
        downstream.close()


def receive_for_ever(pipe: Any, security: Security) -> None:
    messages = Inbox()
    receiver = Receiver(
        RUN,
        1,
        0,
        WINDOW,
        LIMIT,
        messages.put,
        lambda failure: None,
        carrier=RingDownstream(WINDOW, LIMIT),
    )
    server = RpcServer("block-1", security, LIVENESS)
    server.add(receiver)
    server.start()
    pipe.send(server.address)
    while True:
        receiver.release(messages.get(60))


def test_a_receiver_that_is_killed_is_a_lost_peer_in_time() -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    security, failures = Security.loopback(), Inbox()
    process = in_process(receive_for_ever, theirs, security)
    address = ours.recv()
    carrier = Offered(HERE).upstream(address, WINDOW, LIMIT)
    sender = Sender(address, security, RUN, 0, 1, WINDOW, 1.0, failures.put, carrier=carrier)
    sender.start()
    try:
        for step in range(20):
            sender.send("train", Ticket(step, 0), (tensor(step),))
        process.kill()
        with pytest.raises(PeerError):
            for step in range(20, 40):
                sender.send("train", Ticket(step, 0), (tensor(step),))
        assert isinstance(failures.get(10), PeerError)
    finally:
        process.kill()
        sender.close()
    assert carrier._ring._descriptor == -1


def test_a_connection_on_which_nothing_travels_stays() -> None:
    """Pings are then all that a server sees of it, and by default it ends a connection after a few of them."""
    with link(window=WINDOW, samples=SAMPLES, carrier=Offered, liveness=3.0) as blocks:
        blocks.send(0, tensor(0))
        blocks.receiver.release(blocks.messages.get())
        before = blocks.relay.upstream
        eventually(lambda: blocks.relay.upstream - before >= 20 * PING_BYTES, 60)  # ten, and ten answers
        blocks.send(1, tensor(1))
        assert torch.equal(blocks.messages.get().tensors[0], tensor(1))
        assert blocks.relay.connections == 1
