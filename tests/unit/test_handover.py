"""The socket between two blocks on one host: who gets the memory, and that nobody waits or is missed at it for ever."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import pytest
from descriptors import none_left_open

from lowdimfa.services.stream import handover
from lowdimfa.services.stream.handover import Alarm, Meeting

SKIPPED = 77


class Line(handover.Line):
    """A line to somebody who needs to be told no more than that there is more."""

    def announce(self, sequence: int) -> None:
        self.ring()


class Ends(NamedTuple):
    line: Line
    meeting: Meeting


@contextmanager
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("test")
    yield descriptor
    os.close(descriptor)


@contextmanager
def ends() -> Iterator[Ends]:
    with none_left_open(), memory() as handed:
        meeting = Meeting()
        line = Line(meeting.name, handed)
        got = meeting.accept()
        assert got is not None
        assert os.fstat(got).st_ino == os.fstat(handed).st_ino
        assert not os.get_inheritable(got)
        os.close(got)
        yield Ends(line, meeting)
        line.close()
        meeting.close()
        meeting.close()


def refuses(meeting: Meeting) -> bool:
    with memory() as handed, suppress(OSError):
        Line(meeting.name, handed).close()
        return False
    return True


def test_a_ring_of_the_bell_is_heard_and_what_was_consumed_returns() -> None:
    with ends() as (line, meeting):
        for sequence in range(5):
            line.ring()
            assert meeting.wait()
            assert meeting.acknowledge(sequence)
            assert line.take() == sequence
        assert line.take() == -1
        assert not line.ended


def test_rings_before_anybody_listens_are_one_and_the_highest_receipt_counts() -> None:
    with ends() as (line, meeting):
        for sequence in range(50):
            line.ring()
            meeting.acknowledge(sequence)
        assert meeting.wait()
        assert line.take() == 49


def test_no_number_of_rings_or_receipts_blocks_anybody() -> None:
    with ends() as (line, meeting):
        for _ in range(20_000):
            line.ring()
        assert meeting.wait()
        told = [sequence for sequence in range(20_000) if meeting.acknowledge(sequence)]
        found = []
        while (last := line.take()) >= 0:
            found.append(last)
        assert found == sorted(found) and found[-1] == told[-1]


def test_the_sender_s_end_is_the_end_after_what_it_said() -> None:
    with ends() as (line, meeting):
        line.ring()
        line.close()
        assert meeting.wait()
        assert not meeting.wait()
        assert not meeting.acknowledge(0)


def test_the_receiver_s_end_comes_after_its_receipts() -> None:
    with ends() as (line, meeting):
        meeting.acknowledge(3)
        meeting.close()
        line.ring()
        assert line.take() == 3
        assert line.take() == -1
        assert line.ended
        assert line.take() == -1


def test_a_wait_can_be_stopped_by_another_thread() -> None:
    with ends() as (line, meeting):
        heard: list[bool] = []
        first = threading.Event()

        def listen() -> None:
            while meeting.wait():
                heard.append(True)
                first.set()

        waiting = threading.Thread(target=listen)
        waiting.start()
        line.ring()
        assert first.wait(30)
        meeting.stop()
        waiting.join(30)
        assert not waiting.is_alive()
        assert not meeting.acknowledge(0)


def test_stopping_comes_before_accepting_and_after_closing() -> None:
    with none_left_open(), memory() as handed:
        meeting = Meeting()
        line = Line(meeting.name, handed)
        meeting.stop()
        assert meeting.accept() is None
        assert not meeting.wait()
        meeting.close()
        meeting.stop()
        assert not meeting.acknowledge(1)
        line.close()


def test_nobody_comes() -> None:
    with none_left_open():
        meeting = Meeting()
        assert meeting.accept() is None
        meeting.close()
        assert refuses(meeting)


def test_another_user_gets_no_memory_and_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says whose each end is; here the test's own user counts as another one."""
    with none_left_open(), memory() as handed:
        meeting = Meeting()
        stranger = Line(meeting.name, handed)
        with monkeypatch.context() as patch:
            patch.setattr(handover, "_same_user", lambda connection: False)
            assert refuses(meeting)
            assert meeting.accept() is None
        line = Line(meeting.name, handed)
        got = meeting.accept()
        assert got is not None
        os.close(got)
        assert stranger.take() == -1 and stranger.ended
        for end in (line, stranger, meeting):
            end.close()


def in_another_network() -> None:
    if ctypes.CDLL(None).unshare(0x40000000) != 0:  # CLONE_NEWNET
        os._exit(SKIPPED)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, or leave its network")
@pytest.mark.parametrize("change", [lambda: os.setuid(12345), in_another_network])
def test_who_belongs_elsewhere_is_known_by_the_kernel_s_word(change: Callable[[], None]) -> None:
    meeting = Meeting()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            change()
            os._exit(0 if refuses(meeting) else 1)
        os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == SKIPPED:
        pytest.skip("networks can't be left here")
    assert code == 0
    assert meeting.accept() is None
    meeting.close()


@pytest.mark.parametrize("count", [0, 2])
def test_who_brings_no_memory_or_more_than_one_is_refused(count: int) -> None:
    with none_left_open(), memory() as handed:
        meeting = Meeting()
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(f"\0{meeting.name}")
        socket.send_fds(caller, [b"m"], count * [handed])
        with pytest.raises(OSError, match="not one descriptor"):
            meeting.accept()
        caller.close()
        meeting.close()


def test_who_says_nothing_is_not_waited_for() -> None:
    with none_left_open():
        meeting = Meeting()
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(f"\0{meeting.name}")
        with pytest.raises(OSError):
            meeting.accept()
        caller.close()
        meeting.close()


@pytest.mark.parametrize(
    "name", ["", "lowdimfa", "/tmp/lowdimfa-1", "other-1", "lowdimfa-ü", "lowdimfa-\0", "lowdimfa-" * 20]
)
def test_other_words_are_no_name(name: str) -> None:
    with none_left_open(), memory() as handed, pytest.raises(OSError):
        Line(name, handed)


@pytest.mark.parametrize("how", ["acknowledge", "wake", "follow", "close"])
def test_a_wait_for_room_ends(how: str) -> None:
    with ends() as (line, meeting):
        alarm = Alarm()
        alarm.follow(line)
        waiting = threading.Thread(target=alarm.wait, args=(600,))
        waiting.start()
        {
            "acknowledge": lambda: meeting.acknowledge(0),
            "wake": alarm.wake,
            "follow": lambda: alarm.follow(None),
            "close": alarm.close,
        }[how]()
        waiting.join(30)
        assert not waiting.is_alive()
        alarm.close()
        alarm.close()


def test_a_receiver_that_is_gone_does_not_keep_a_sender_awake() -> None:
    with ends() as (line, meeting):
        alarm = Alarm()
        alarm.follow(line)
        meeting.close()
        alarm.wait(600)  # it is noticed
        assert line.take() == -1
        waiting = threading.Thread(target=alarm.wait, args=(600,))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        alarm.close()
        waiting.join(30)
        assert not waiting.is_alive()


def test_waking_often_blocks_nobody() -> None:
    with none_left_open():
        alarm = Alarm()
        for _ in range(100_000):
            alarm.wake()
        alarm.wait(600)
        alarm.close()
