"""Messages that are lost, garbled, swapped or doubled on their way: the receiver has each once and in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from rpc_helpers import Inbox, eventually
from test_activations import link
from test_broadcast import broadcast

from lowdimfa.errors import ProtocolError
from lowdimfa.services.rpc.connection import Resends
from lowdimfa.services.stream.frames import HEADER_AT, unpack
from lowdimfa.services.stream.limits import ErrorLimit

COUNT, DIM = 5, 3


class Wire:
    """Something happens to the message at a position among all that arrive, counted from 0; to none if that is None."""

    def __init__(self, kind: str, position: int | None, garble: Callable[[Any], Any]) -> None:
        self.kind, self.position, self.garble = kind, position, garble
        self.seen = 0
        self.happened = threading.Event()
        self.held: list[Any] = []

    def __call__(self, message: Any) -> Iterable[Any]:
        position, self.seen = self.seen, self.seen + 1
        held, self.held = self.held, []
        if position != self.position:
            return (message, *held)
        self.happened.set()
        match self.kind:
            case "duplicate":
                return (message, message)
            case "garble":
                return (self.garble(message),)
            case "swap":
                self.held = [message]
        return ()


def garbled_error(frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 1])


def garbled_frame(frame: bytes) -> bytes:
    return frame[:HEADER_AT] + bytes([frame[HEADER_AT] ^ 1]) + frame[HEADER_AT + 1 :]


KINDS = ["drop", "duplicate", "garble", "swap"]


def all_of(inbox: Inbox, count: int, renew: Callable[[], None]) -> list[Any]:
    """Take messages, and ask for repetitions as a block does: after some time without any."""
    found: list[Any] = []
    silences = 0
    while len(found) < count:
        try:
            found.append(inbox.get(0.5))
        except queue.Empty:
            silences += 1
            assert silences < 60, f"only {len(found)} of {count} messages came"
            renew()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, COUNT - 1])
def test_every_error_comes_once_and_in_order(kind: str, position: int) -> None:
    wire = Wire(kind, position, garbled_error)
    with broadcast() as head:
        subscriber = head.subscribe(arriving=wire)
        for step in range(COUNT):
            head.publish(step)
        assert wire.happened.wait(30)
        found = all_of(head.errors, COUNT, subscriber.renew)
        assert [vector.sequence for vector in found] == list(range(COUNT))
        assert all(bool((vector.error == vector.ticket.step).all()) for vector in found)
        assert head.errors.empty() and head.failures.empty()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [1, 2, 3])
def test_errors_in_several_parts_come_whole(kind: str, position: int) -> None:
    """Three parts each: the message that something happens to is a first, a middle or a last one."""
    wire = Wire(kind, position, garbled_error)
    errors = [torch.randn(1000, 700) for _ in range(2)]
    with broadcast() as head:
        subscriber = head.subscribe(arriving=wire, limit=ErrorLimit(700))
        for step, error in enumerate(errors):
            head.publish(step, error)
        assert wire.happened.wait(30)
        found = all_of(head.errors, 2, subscriber.renew)
        assert all(torch.equal(vector.error, error) for vector, error in zip(found, errors, strict=True))
        assert head.errors.empty() and head.failures.empty()


def test_an_error_that_is_always_garbled_is_given_up() -> None:
    tries = []

    def always(frame: bytes) -> Iterable[bytes]:
        header, _ = unpack(frame)
        if header.step != 1:
            return (frame,)
        tries.append(header.sequence)
        return (garbled_error(frame),)

    with broadcast() as head:
        head.subscribe(arriving=always)
        for step in range(COUNT):
            head.publish(step)
        failure = head.failures.get()
        assert isinstance(failure, ProtocolError)
        assert "block 0: broadcast error 1: a frame has a wrong checksum" in failure.message
        assert (failure.block, failure.step) == (0, None)  # nothing in it can be believed
        assert tries == [1] * (Resends.LIMIT + 1)
        assert head.errors.get().sequence == 0 and head.errors.empty()


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, 3])
def test_every_activation_comes_once_and_in_order(kind: str, position: int, large: bool) -> None:
    """The large ones have two frames each."""
    rows = 70_000 if large else 2
    tensors = [torch.full((rows, 5), float(step)) for step in range(COUNT)]
    wire = Wire(kind, position, garbled_frame)
    with link(window=COUNT, samples=rows, arriving=wire) as blocks:
        for step, tensor in enumerate(tensors):
            blocks.send(step, tensor)
        assert wire.happened.wait(30)
        found = all_of(blocks.messages, COUNT, blocks.receiver.renew)
        assert [activation.sequence for activation in found] == list(range(COUNT))
        assert all(torch.equal(a.tensors[0], tensor) for a, tensor in zip(found, tensors, strict=True))
        assert blocks.messages.empty() and blocks.failures.empty() and blocks.sender_failures.empty()


def test_an_activation_that_is_always_garbled_is_given_up_at_both_ends() -> None:
    tries = []

    def always(frame: bytes) -> Iterable[bytes]:
        tries.append(frame)
        return (garbled_frame(frame),)

    with link(arriving=always) as blocks:
        blocks.send(0)
        for failures in (blocks.failures, blocks.sender_failures):
            failure = failures.get()
            assert isinstance(failure, ProtocolError) and "a frame has a wrong checksum" in failure.message
        assert len(tries) == Resends.LIMIT + 1 and len(set(tries)) == 1
        assert blocks.messages.empty()


def test_renewing_when_no_error_is_missing_changes_nothing() -> None:
    with broadcast() as head:
        subscriber = head.subscribe()
        for step in range(4):
            head.publish(step)
            assert head.errors.get().sequence == step
            subscriber.renew()
        assert head.errors.empty() and head.failures.empty()


def test_renewing_when_no_activation_is_missing_changes_nothing() -> None:
    with link() as blocks:
        for step in range(4):
            blocks.send(step)
            assert blocks.messages.get().sequence == step
            blocks.receiver.renew()
        assert blocks.messages.empty() and blocks.failures.empty() and blocks.sender_failures.empty()


def test_a_connection_cut_in_the_middle_of_a_large_activation_loses_and_doubles_nothing() -> None:
    tensors = [torch.full((300_000, 5), float(step)) for step in range(3)]  # six frames each
    cuts = []

    def cutting(frame: bytes) -> Iterable[bytes]:
        arrived = len(cuts)
        cuts.append(frame)
        if arrived in (2, 9, 13):
            blocks.relay.cut()
        return (frame,)

    with link(samples=300_000, arriving=cutting) as blocks:
        for step, tensor in enumerate(tensors):
            blocks.send(step, tensor)
        found = [blocks.messages.get(30) for _ in tensors]
        assert [activation.sequence for activation in found] == [0, 1, 2]
        assert all(torch.equal(a.tensors[0], tensor) for a, tensor in zip(found, tensors, strict=True))
        assert blocks.relay.connections > 1
        assert blocks.messages.empty() and blocks.failures.empty() and blocks.sender_failures.empty()


def impatient(renew: Callable[[], None]) -> Callable[[bytes], Iterable[bytes]]:
    """Return a wire on which the block asks for a repetition whenever more of a message has come."""

    def arriving(frame: bytes) -> Iterable[bytes]:
        if unpack(frame)[0].offset:
            renew()
        return (frame,)

    return arriving


def test_an_activation_that_is_still_coming_is_not_broken_off() -> None:
    """Over a slow link it would begin anew each time, and never be whole."""
    tensor = torch.randn(300_000, 5)  # six frames
    with link(samples=300_000, arriving=impatient(lambda: blocks.receiver.renew())) as blocks:
        blocks.send(0, tensor)
        assert torch.equal(blocks.messages.get(10).tensors[0], tensor)
        # Each frame was sent once.
        eventually(lambda: blocks.receiver.traffic.count() == blocks.sender.traffic.count())


def test_an_error_that_is_still_coming_is_not_broken_off() -> None:
    error = torch.randn(1500, 700)  # five frames
    with broadcast() as head:
        wire = impatient(lambda: subscriber.renew())
        subscriber = head.subscribe(arriving=wire, limit=ErrorLimit(700))
        head.publish(0, error)
        assert torch.equal(head.errors.get(10).error, error)
        assert head.publisher.traffic.count() == subscriber.traffic.count()
