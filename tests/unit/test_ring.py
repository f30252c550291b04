"""Memory shared by two blocks: what is written is read, and no offer or place makes a receiver read anything else."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from descriptors import none_left_open
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.errors import ProtocolError
from lowdimfa.services.stream.handover import Line
from lowdimfa.services.stream.ring import PREFIX, RING_KEY, Ring, RingView, Shape, slot_bytes, take_offer

LARGEST = 40_000
SLOTS = 3


class Sender:
    """What a sender has: a ring, and a connection to the receiver that takes it."""

    def __init__(self) -> None:
        self.ring = Ring(SLOTS, LARGEST)
        self.line: Line | None = None

    @property
    def offer(self) -> str:
        return self.ring.shape.offer()

    def announce(self, sequence: int, frame: bytes, *tensors: torch.Tensor) -> None:
        self.ring.write(sequence, frame, tensors)
        self.ring.announce(sequence)
        assert self.line is not None
        self.line.ring()

    def close(self) -> None:
        self.ring.close()
        if self.line is not None:
            self.line.close()


def taken(offer: str) -> bool:
    """Return whether an offer is taken."""
    found = take_offer(offer, SLOTS, LARGEST)
    if found is not None:
        found.close()
    return found is not None


def handed(offer: str, descriptor: int) -> RingView:
    """Return the other end of memory that was handed over, of which it is not known yet whether it is accepted."""
    there = take_offer(offer, SLOTS, LARGEST)
    assert there is not None
    Line(dict(there.answer)[RING_KEY], descriptor).close()
    return there


@contextmanager
def pair() -> Iterator[tuple[Sender, RingView]]:
    sender = Sender()
    there = take_offer(sender.offer, SLOTS, LARGEST)
    assert there is not None
    sender.line = Line(dict(there.answer)[RING_KEY], sender.ring.fileno())
    assert there.accept()
    yield sender, there
    there.close()
    sender.close()


@given(st.lists(st.integers(1, LARGEST // 8), min_size=1, max_size=8), st.booleans())
def test_what_is_written_is_read(sizes: list[int], probe: bool) -> None:
    with pair() as (sender, there):
        for sequence, size in enumerate(sizes):
            tensors = tuple(torch.randn(size) for _ in range(1 + probe))
            sender.ring.write(sequence, b"", tensors)
            data = there.read(sequence, 4 * size * len(tensors))
            expected = torch.cat(tensors)
            assert bytes(data) == expected.numpy().tobytes()
            kept = sender.ring.tensors(sequence, [(tensor.dtype, tensor.shape) for tensor in tensors])
            assert all(torch.equal(one, other) for one, other in zip(kept, tensors, strict=True))


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=2 * SLOTS))
def test_each_announcement_brings_a_frame_to_its_buffers_and_receipts_return(frames: list[bytes]) -> None:
    with pair() as (sender, there):
        arriving = there.frames(0)
        for sequence, frame in enumerate(frames):
            written = torch.full((9,), float(sequence))
            sender.announce(sequence, frame, written)
            assert next(arriving) == frame
            assert bytes(there.read(sequence, written.nbytes)) == written.numpy().tobytes()
            assert there.acknowledge(sequence)
            assert sender.line is not None and sender.line.take() == sequence
        there.stop()
        assert next(arriving, None) is None


def test_what_was_announced_before_anybody_looked_comes_from_where_it_is_wanted() -> None:
    with pair() as (sender, there):
        for sequence in range(SLOTS):
            sender.announce(sequence, str(sequence).encode(), torch.zeros(3))
        arriving = there.frames(1)
        assert [next(arriving) for _ in range(SLOTS - 1)] == [str(n).encode() for n in range(1, SLOTS)]
        sender.close()
        assert list(arriving) == []


def test_a_large_message_gives_its_memory_back_to_the_small_ones_after_it() -> None:
    ring, few, many = Ring(2, 4 << 20), torch.arange(100.0), torch.ones(1 << 20)
    try:
        for sequence in range(2):
            ring.write(sequence, b"", (many,))
        assert os.fstat(ring.fileno()).st_blocks * 512 > 8 << 20
        for sequence in range(2, 4):
            ring.write(sequence, b"", (few,))
        assert os.fstat(ring.fileno()).st_blocks * 512 <= 3 * slot_bytes(few.nbytes)
        for sequence, tensor in ((4, many), (5, few), (6, many)):
            ring.write(sequence, b"", (tensor,))
            assert torch.equal(*ring.tensors(sequence, [(tensor.dtype, tensor.shape)]), tensor)
    finally:
        ring.close()


def test_a_message_outlives_the_sender_s_end() -> None:
    with pair() as (sender, there):
        sender.ring.write(0, b"", (torch.arange(2000.0),))
        sender.close()
        assert bytes(there.read(0, 8000)) == torch.arange(2000.0).numpy().tobytes()


def test_a_message_larger_than_announced_is_refused() -> None:
    ring = Ring(SLOTS, LARGEST)
    room = slot_bytes(LARGEST) - PREFIX
    ring.write(0, b"", (torch.zeros(room, dtype=torch.uint8),))
    with pytest.raises(ProtocolError, match=f"{room + 1} bytes, where at most {room} were announced"):
        ring.write(1, b"", (torch.zeros(room + 1, dtype=torch.uint8),))
    ring.close()


@given(st.integers(0, 2**64 - 1) | st.integers(0, slot_bytes(LARGEST)))
def test_no_message_is_longer_than_its_slot(nbytes: int) -> None:
    with pair() as (_, there):
        room = slot_bytes(LARGEST) - PREFIX
        if nbytes <= room:
            assert len(there.read(0, nbytes)) == nbytes
        else:
            with pytest.raises(ProtocolError, match=f"where a slot has {room}"):
                there.read(0, nbytes)


@given(st.integers(0, 2**64 - 1), st.binary(min_size=12, max_size=40))
def test_no_announcement_leads_out_of_a_slot(sequence: int, prefix: bytes) -> None:
    with pair() as (sender, there):
        start = sender.ring.shape.slot(sequence)
        sender.ring._memory[start : start + len(prefix)] = prefix
        sender.ring._memory[:8] = (2**64 - 1).to_bytes(8, "little")
        assert sender.line is not None
        sender.line.ring()
        if sequence < 2**64 - 1:
            frame = next(there.frames(sequence))
            assert len(frame) == min(int.from_bytes(prefix[8:12], "little"), PREFIX - 12)
            assert frame.startswith(prefix[12 : 12 + len(frame)])


def test_memory_that_was_not_handed_over_is_not_read() -> None:
    there = take_offer(Shape(SLOTS, slot_bytes(LARGEST)).offer(), SLOTS, LARGEST)
    assert there is not None
    assert not there.accept()
    with pytest.raises(ProtocolError, match="of which there is none"):
        there.read(0, 4)
    there.close()


def test_a_slot_that_holds_another_message_is_noticed() -> None:
    with pair() as (sender, there):
        sender.ring.write(SLOTS, b"", (torch.ones(10),))
        with pytest.raises(ProtocolError, match="holds activation 3, not 0"):
            there.read(0, 40)


@given(st.text(max_size=60) | st.from_regex(r"[0-9:]{1,60}", fullmatch=True))
def test_other_words_are_no_offer(offer: str) -> None:
    shape = [int(part) for part in offer.split(":")] if re.fullmatch("[0-9]+:[0-9]+", offer, re.ASCII) else []
    assert not taken(offer) or (1 <= shape[0] <= SLOTS and 4096 <= shape[1] <= slot_bytes(LARGEST))


@pytest.mark.parametrize(
    "offer",
    [
        "0:40960",
        "4:40960",
        "3:0",
        "3:4097",
        f"3:{2**50}",
        "-1:4096",
        "3",
        "3:4096:1",
        "3:4096 ",
        "٣:4096",
        "",
    ],
)
def test_an_offer_that_is_not_quite_right_is_refused(offer: str) -> None:
    assert taken("3:40960")
    with none_left_open():
        assert not taken(offer)


def test_memory_that_could_be_cut_short_is_refused(tmp_path: Path) -> None:
    shape = Shape(SLOTS, slot_bytes(LARGEST))
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, shape.nbytes)
    with (tmp_path / "ring").open("wb+") as file:
        file.truncate(shape.nbytes)
        for descriptor in (file.fileno(), unsealed):
            there = handed(shape.offer(), descriptor)
            with pytest.raises(OSError):
                there.accept()
            there.close()
    fcntl.fcntl(unsealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    there = handed(shape.offer(), unsealed)
    assert there.accept()  # all is as it should be now
    there.close()
    os.close(unsealed)


@pytest.mark.parametrize("change", [Shape(2, slot_bytes(LARGEST)), Shape(SLOTS, 4096)])
def test_memory_of_another_size_is_refused(change: Shape) -> None:
    ring = Ring(SLOTS, LARGEST)
    there = handed(change.offer(), ring.fileno())
    with pytest.raises(OSError, match="were offered"):
        there.accept()
    there.close()
    ring.close()


def test_a_pipe_or_a_folder_is_no_memory(tmp_path: Path) -> None:
    with none_left_open():
        for descriptor in (os.open(tmp_path, os.O_RDONLY), *os.pipe()):
            there = handed(Shape(1, 4096).offer(), descriptor)
            with pytest.raises(OSError):
                there.accept()
            there.close()
            os.close(descriptor)


def test_nothing_has_a_name() -> None:
    ring = Ring(SLOTS, LARGEST)
    ring.write(0, b"", (torch.zeros(5000),))
    assert not [path for path in Path("/dev/shm").iterdir() if "lowdimfa" in path.name]
    ring.close()
