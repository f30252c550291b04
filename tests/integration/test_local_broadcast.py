"""Errors that come by a pipe: where they go when it is full, cut, or not to be had, and that nothing is left of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rpc_helpers import LIVENESS, eventually, pipes
from test_broadcast import Broadcast, broadcast

from lowdimfa.services.broadcast.local import PIPE_BYTES, Inlet, framed, open_outlet
from lowdimfa.services.broadcast.subscriber import ErrorVector
from lowdimfa.services.rpc.seats import Seat


@pytest.fixture(autouse=True)
def _by_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broadcast, "local", True)


def large() -> torch.Tensor:
    """Return an error that finds no room in any pipe."""
    return torch.randn(PIPE_BYTES // 12 + 1, 3)


def test_errors_pass_the_connection_by() -> None:
    with broadcast(capacity=100) as head:
        head.subscribe()
        head.publish(0)
        head.errors.get()
        before = head.relay.downstream
        for step in range(1, 50):
            head.publish(step, torch.randn(64, 3))
        assert [vector.sequence for vector in head.errors.take(49)] == list(range(1, 50))
        assert head.relay.downstream - before < 500  # a keepalive, perhaps
        assert head.publisher.lag(Seat(0)) == 0


def test_what_finds_no_room_comes_by_the_connection_and_so_does_the_rest() -> None:
    with broadcast(capacity=100) as head:
        head.subscribe()
        sent = {step: large() if step in (5, 7) else torch.full((2, 3), float(step)) for step in range(12)}
        for step, error in sent.items():
            head.publish(step, error)
        got = head.errors.take(12)
        assert [vector.sequence for vector in got] == list(range(12))
        assert all(torch.equal(vector.error, sent[vector.ticket.step]) for vector in got)
        assert head.failures.empty()


def test_a_subscriber_that_sleeps_misses_nothing() -> None:
    awake, count = threading.Event(), 3 * PIPE_BYTES // (100 * 12)
    with broadcast(capacity=count) as head:
        take = head.errors.put

        def slowly(vector: ErrorVector) -> None:
            awake.wait(LIVENESS)
            take(vector)

        head.errors.put = slowly  # type: ignore[method-assign]
        head.subscribe()
        head.publisher.wait_for_subscribers(LIVENESS)
        for step in range(count):
            head.publish(step, torch.full((100, 3), float(step)))
        awake.set()
        got = head.errors.take(count)
        assert [vector.sequence for vector in got] == list(range(count))
        assert all(float(vector.error[-1, -1]) == vector.ticket.step for vector in got)


def test_a_renewed_connection_has_a_pipe_of_its_own() -> None:
    with broadcast(capacity=200) as head:
        subscriber = head.subscribe()
        head.publish(0)
        head.errors.get()
        before = pipes()
        for step in range(1, 20):
            subscriber.renew()
            head.publish(step)
            assert head.errors.get().sequence == step
        eventually(lambda: pipes() <= before)
    with broadcast() as head:
        before = pipes()
        head.subscribe()
        head.publisher.wait_for_subscribers(LIVENESS)
        head.subscribers[0].close()
        eventually(lambda: pipes() <= before)


def test_a_part_of_a_message_is_none() -> None:
    inlet = Inlet()
    outlet = open_outlet(inlet.offer)
    assert outlet is not None
    assert outlet.write(framed([b"one", b"", b"two"]))
    assert outlet.write(framed([b"three"])[:-1])
    inlet.finish()
    assert list(inlet.messages()) == [b"one", b"", b"two"]
    assert not outlet.write(bytes(2 * PIPE_BYTES))
    outlet.close()
    inlet.close()


def test_an_abandoned_pipe_gives_nothing() -> None:
    inlet = Inlet()
    outlet = open_outlet(inlet.offer)
    assert outlet is not None
    assert outlet.write(framed([b"one"]))
    inlet.finish(abandon=True)
    assert list(inlet.messages()) == []
    inlet.close()
    assert not outlet.write(framed([b"two"]))
    outlet.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda p: ["0" * 36, *p[1:]],  # another kernel
        lambda p: [p[0], "pid:[1]", *p[2:]],  # another numbering of processes
        lambda p: [*p[:2], "99999999", *p[3:]],
        lambda p: [*p[:3], "99999", p[4]],
        lambda p: [*p[:3], "0", p[4]],
        lambda p: [*p[:4], "1"],  # another pipe
        lambda p: p[:4],
        lambda p: [*p, "1"],
        lambda p: [p[0], p[1], f"{p[2]}/../self", *p[3:]],
    ],
)
def test_an_offer_that_is_not_quite_right_is_refused(change: Callable[[list[str]], list[str]]) -> None:
    inlet = Inlet()
    boot, *space, process, number, inode = inlet.offer.split(":")
    parts = [boot, ":".join(space), process, number, inode]
    assert ":".join(parts) == inlet.offer
    before = pipes()
    assert open_outlet(":".join(change(parts))) is None
    assert pipes() == before
    inlet.close()


def test_what_is_no_pipe_is_not_opened(tmp_path: Path) -> None:
    inlet = Inlet()
    (tmp_path / "file").touch()
    opened = os.open(tmp_path / "file", os.O_RDWR)
    *rest, _, _ = inlet.offer.split(":")
    assert open_outlet(":".join([*rest, str(opened), str(os.fstat(opened).st_ino)])) is None
    os.close(opened)
    inlet.close()
