"""The pipes beside shared memory: nothing is lost in them, and nobody waits at them for ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from descriptors import none_left_open
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdimfa.services.block.doorbell import Doorbell, Listener, Receipts


class Ends(NamedTuple):
    bell: Doorbell
    receipts: Receipts
    listener: Listener


@contextmanager
def ends(messages: int = 8) -> Iterator[Ends]:
    with none_left_open():
        bell, receipts = Doorbell(messages), Receipts(messages)
        listener = Listener(os.getpid(), bell.place, receipts.place)
        yield Ends(bell, receipts, listener)
        listener.close()
        listener.close()
        bell.close()
        receipts.close()
        receipts.close()


@given(st.lists(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20), max_size=5))
@settings(max_examples=50, deadline=None)
def test_everything_comes_in_order_however_it_gathers(rings: list[list[int]]) -> None:
    with ends() as (bell, _, listener):
        arriving = listener.sequences()
        for together in rings:
            for sequence in together:
                bell.ring(sequence)
            assert [next(arriving) for _ in together] == together


def test_the_sender_s_end_is_the_end_after_what_was_announced() -> None:
    bell, receipts = Doorbell(8), Receipts(8)
    listener = Listener(os.getpid(), bell.place, receipts.place)
    for sequence in range(5):
        bell.ring(sequence)
    bell.close()
    assert list(listener.sequences()) == [0, 1, 2, 3, 4]
    listener.close()
    receipts.close()


def test_a_listener_that_waits_can_be_stopped_by_another_thread() -> None:
    with ends() as (bell, _, listener):
        heard: list[int] = []
        first = threading.Event()

        def listen() -> None:
            for sequence in listener.sequences():
                heard.append(sequence)
                first.set()

        waiting = threading.Thread(target=listen)
        waiting.start()
        bell.ring(7)
        assert first.wait(10)
        listener.stop()
        waiting.join(10)
        assert not waiting.is_alive()
        assert heard == [7]


def test_stopping_comes_before_listening_and_after_closing() -> None:
    with ends() as (bell, _, listener):
        bell.ring(1)
        listener.stop()
        assert list(listener.sequences()) == []
        listener.close()
        listener.stop()
        listener.acknowledge(1)


@pytest.mark.parametrize("messages", [1, 600, 60_000])
def test_pipes_hold_what_they_were_made_for(messages: int) -> None:
    with ends(messages) as (bell, receipts, listener):
        for sequence in range(messages):
            bell.ring(sequence)
            listener.acknowledge(sequence)
        arriving = listener.sequences()
        assert [next(arriving) for _ in range(messages)] == list(range(messages))
        found = []
        while (last := receipts.take()) >= 0:
            found.append(last)
        assert found == sorted(found) and found[-1] == messages - 1


@pytest.mark.parametrize("kind", [Doorbell, Receipts])
def test_more_than_a_pipe_can_hold_is_refused(kind: type[Doorbell] | type[Receipts]) -> None:
    with none_left_open(), pytest.raises(OSError, match="a pipe can't hold"):
        kind(2**40)


def test_the_highest_receipt_counts_and_waking_is_none() -> None:
    with ends() as (_, receipts, listener):
        assert receipts.take() == -1
        receipts.wake()
        assert receipts.take() == -1
        listener.acknowledge(3)
        receipts.wake()
        listener.acknowledge(4)
        assert receipts.take() == 4
        assert receipts.take() == -1


@pytest.mark.parametrize("how", ["acknowledge", "wake", "close"])
def test_a_wait_ends(how: str) -> None:
    with ends() as (_, receipts, listener):
        waiting = threading.Thread(target=receipts.wait, args=(60,))
        waiting.start()
        {"acknowledge": lambda: listener.acknowledge(0), "wake": receipts.wake, "close": receipts.close}[
            how
        ]()
        waiting.join(10)
        assert not waiting.is_alive()


def test_waking_often_blocks_nobody() -> None:
    with ends() as (_, receipts, listener):
        for _ in range(20_000):
            receipts.wake()
        receipts.wait(60)
        while receipts.take() == -1:
            listener.acknowledge(5)
        assert receipts.take() in (-1, 5)


def test_a_receipt_for_a_sender_that_is_gone_is_none() -> None:
    bell, receipts = Doorbell(8), Receipts(8)
    listener = Listener(os.getpid(), bell.place, receipts.place)
    receipts.close()
    listener.acknowledge(0)
    listener.close()
    bell.close()


def test_a_number_that_has_become_another_pipe_is_refused() -> None:
    bell, other, receipts = Doorbell(8), Doorbell(8), Receipts(8)
    place = other.place[0], bell.place[1]
    with none_left_open(), pytest.raises(OSError, match="another pipe"):
        Listener(os.getpid(), place, receipts.place)
    bell.close()
    other.close()
    receipts.close()
