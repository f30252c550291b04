"""Memory shared by two blocks: what is written is read, and no offer or place makes a receiver read anything else."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from descriptors import none_left_open
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdimfa.errors import ProtocolError
from lowdimfa.services.block.doorbell import Doorbell, Receipts
from lowdimfa.services.block.ring import Place, Ring, slot_bytes
from lowdimfa.services.block.ring_view import RingView, open_ring

LARGEST = 40_000
SLOTS = 3


class Sender:
    """What a sender has: a ring, the doorbell of one connection, the receipts of all."""

    def __init__(self) -> None:
        self.ring, self.bell, self.receipts = Ring(SLOTS, LARGEST), Doorbell(SLOTS), Receipts(SLOTS)

    @property
    def offer(self) -> str:
        return self.ring.offer(self.bell, self.receipts)

    def close(self) -> None:
        self.ring.close()
        self.bell.close()
        self.receipts.close()


@pytest.fixture
def sender() -> Iterator[Sender]:
    sender = Sender()
    yield sender
    sender.close()


def opens(offer: str) -> bool:
    """Open a ring, and close it again; return whether that was possible."""
    found = open_ring(offer, SLOTS, LARGEST)
    if found is not None:
        found.close()
    return found is not None


@contextmanager
def pair() -> Iterator[tuple[Sender, RingView]]:
    sender = Sender()
    found = open_ring(sender.offer, SLOTS, LARGEST)
    assert found is not None
    yield sender, found
    found.close()
    sender.close()


@given(st.lists(st.integers(1, LARGEST // 8), min_size=1, max_size=8), st.booleans())
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read(sizes: list[int], probe: bool) -> None:
    with pair() as (sender, there):
        for sequence, size in enumerate(sizes):
            tensors = tuple(torch.randn(size) for _ in range(1 + probe))
            place = sender.ring.write(sequence, tensors)
            assert place == Place(sequence % SLOTS, 4 * size * len(tensors))
            data = there.read(sequence, Place.parse(memoryview(place.serialised())))
            expected = torch.cat(tensors)
            assert bytes(data) == expected.numpy().tobytes()
            kept = sender.ring.tensors(place, [(tensor.dtype, tensor.shape) for tensor in tensors])
            assert all(torch.equal(one, other) for one, other in zip(kept, tensors, strict=True))


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=2 * SLOTS))
@settings(max_examples=30, deadline=None)
def test_the_bell_brings_each_frame_to_its_buffers_and_receipts_return(frames: list[bytes]) -> None:
    with pair() as (sender, there):
        arriving = there.frames()
        for sequence, frame in enumerate(frames):
            written = torch.full((9,), float(sequence))
            place = sender.ring.write(sequence, (written,))
            sender.ring.label(place, frame)
            sender.bell.ring(sequence)
            assert next(arriving) == frame
            assert bytes(there.read(sequence, place)) == written.numpy().tobytes()
            there.acknowledge(sequence)
            assert sender.receipts.take() == sequence
        there.stop()
        assert next(arriving, None) is None


def test_a_message_outlives_the_sender_s_end(sender: Sender) -> None:
    place = sender.ring.write(0, (torch.arange(2000.0),))
    there = open_ring(sender.offer, SLOTS, LARGEST)
    assert there is not None
    sender.ring.close()
    assert not opens(sender.offer)
    assert bytes(there.read(0, place)) == torch.arange(2000.0).numpy().tobytes()
    there.close()


def test_a_message_larger_than_announced_is_refused(sender: Sender) -> None:
    room = slot_bytes(LARGEST) - 512
    sender.ring.write(0, (torch.zeros(room, dtype=torch.uint8),))
    with pytest.raises(ProtocolError, match=f"{room + 1} bytes, where at most {room} were announced"):
        sender.ring.write(1, (torch.zeros(room + 1, dtype=torch.uint8),))


@given(st.integers(0, 2**64 - 1) | st.integers(0, 4), st.integers(0, 2**64 - 1) | st.integers(0, LARGEST))
@settings(max_examples=60, deadline=None)
def test_no_place_leads_out_of_its_slot(slot: int, nbytes: int) -> None:
    with pair() as (_, there):
        try:
            data = there.read(0, Place(slot, nbytes))
        except ProtocolError:
            assert slot != 0 or nbytes > LARGEST
        else:
            assert slot < SLOTS and len(data) == nbytes <= slot_bytes(LARGEST)


@given(st.integers(-(2**63), 2**63 - 1), st.binary(min_size=12, max_size=40))
@settings(max_examples=60, deadline=None)
def test_no_ring_of_the_bell_leads_out_of_a_slot(sequence: int, prefix: bytes) -> None:
    with pair() as (sender, there):
        start = 4096 + sequence % SLOTS * slot_bytes(LARGEST)
        sender.ring._memory[start : start + len(prefix)] = prefix
        sender.bell.ring(sequence)
        frame = next(there.frames())
        assert len(frame) == min(int.from_bytes(prefix[8:12], "little"), 500)
        assert frame.startswith(prefix[12 : 12 + len(frame)])


def test_a_slot_that_holds_another_message_is_noticed() -> None:
    with pair() as (sender, there):
        place = sender.ring.write(0, (torch.zeros(10),))
        sender.ring.write(SLOTS, (torch.ones(10),))
        with pytest.raises(ProtocolError, match="holds activation 3, not 0"):
            there.read(0, place)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_place_has_sixteen_bytes(length: int) -> None:
    with pytest.raises(ProtocolError, match="16 were expected"):
        Place.parse(memoryview(bytes(length)))


@given(st.text(max_size=60) | st.from_regex(r"[0-9./:a-f]{1,60}", fullmatch=True))
@settings(max_examples=100, deadline=None)
def test_other_words_are_no_offer(offer: str) -> None:
    assert not opens(offer)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: [*p[:4], "0" * 32, *p[5:]],  # another token
        lambda p: [*p[:2], "0", *p[3:]],
        lambda p: [*p[:2], "4", *p[3:]],  # more slots than the window
        lambda p: [*p[:2], "2", *p[3:]],  # fewer than there are
        lambda p: [*p[:3], "4096", *p[4:]],
        lambda p: [*p[:3], str(2**50), *p[4:]],
        lambda p: [*p[:3], "4097", *p[4:]],
        lambda p: ["../../1", *p[1:]],
        lambda p: [p[0], "../environ", *p[2:]],
        lambda p: [f"{p[0]}/../self", *p[1:]],
        lambda p: ["4294967", *p[1:]],
        lambda p: [p[0], "99999", *p[2:]],
        lambda p: [*p[:5], "99999", *p[6:]],  # no such bell
        lambda p: [*p[:5], p[1], *p[6:]],  # the bell is no pipe
        lambda p: [*p[:6], "1", *p[7:]],  # it is another pipe
        lambda p: [*p[:7], "99999", p[8]],
        lambda p: [*p[:7], p[5], p[8]],  # receipts into the bell
        lambda p: p[:7],
        lambda p: [*p, "1"],
    ],
)
def test_an_offer_that_is_not_quite_right_is_refused(change: Any, sender: Sender) -> None:
    parts = sender.offer.split(":")
    with none_left_open():
        assert opens(":".join(parts))
        assert not opens(":".join(change(parts)))


def offers(descriptor: int, sender: Sender) -> str:
    memory = os.getpid(), descriptor, SLOTS, slot_bytes(LARGEST), "00" * 16
    return ":".join(map(str, (*memory, *sender.bell.place, *sender.receipts.place)))


def test_a_file_that_could_be_cut_short_is_refused(tmp_path: Path, sender: Sender) -> None:
    size = 4096 + SLOTS * slot_bytes(LARGEST)
    with (tmp_path / "ring").open("wb+") as file:
        file.truncate(size)
        assert not opens(offers(file.fileno(), sender))
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, size)
    assert not opens(offers(unsealed, sender))
    fcntl.fcntl(unsealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    assert opens(offers(unsealed, sender))  # all is as it should be now
    os.close(unsealed)


def test_a_pipe_or_a_link_is_refused_without_waiting(tmp_path: Path, sender: Sender) -> None:
    assert not opens(offers(sender.bell.place[0], sender))
    folder = os.open(tmp_path, os.O_RDONLY)
    assert not opens(offers(folder, sender))
    os.close(folder)


def test_nothing_has_a_name(sender: Sender) -> None:
    sender.ring.write(0, (torch.zeros(5000),))
    assert not [path for path in Path("/dev/shm").iterdir() if "lowdimfa" in path.name]
