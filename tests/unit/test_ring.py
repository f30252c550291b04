"""Memory shared by two blocks: what is written is read, and no offer or place makes a receiver read anything else."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdimfa.errors import ProtocolError
from services.block.ring import SMALLEST, Place, Ring, RingView, open_ring, slot_bytes

LARGEST = 40_000
SLOTS = 3


@pytest.fixture
def ring() -> Ring:
    return Ring(SLOTS, LARGEST)


def view(ring: Ring) -> RingView:
    found = open_ring(ring.offer, SLOTS, LARGEST)
    assert found is not None
    return found


@given(st.lists(st.integers(1, LARGEST // 8), min_size=1, max_size=8), st.booleans())
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read(sizes: list[int], probe: bool) -> None:
    ring = Ring(SLOTS, LARGEST)
    there = view(ring)
    for sequence, size in enumerate(sizes):
        tensors = tuple(torch.randn(size) for _ in range(1 + probe))
        place, kept = ring.write(sequence, tensors)
        assert place == Place(sequence % SLOTS, 4 * size * len(tensors))
        data = there.read(sequence, Place.parse(memoryview(place.serialised())))
        expected = torch.cat(tensors)
        assert bytes(data) == expected.numpy().tobytes()
        assert torch.equal(torch.cat(kept), expected)
        assert all(tensor.data_ptr() % 4 == 0 for tensor in kept)
    ring.close()


def test_a_message_outlives_the_sender_s_end(ring: Ring) -> None:
    place, kept = ring.write(0, (torch.arange(2000.0),))
    there = view(ring)
    ring.close()
    assert open_ring(ring.offer, SLOTS, LARGEST) is None
    assert bytes(there.read(0, place)) == kept[0].numpy().tobytes()


def test_small_and_too_large_messages_are_left_to_the_connection(ring: Ring) -> None:
    assert not ring.holds(SMALLEST - 1)
    assert ring.holds(SMALLEST) and ring.holds(LARGEST)
    assert not ring.holds(slot_bytes(LARGEST))
    ring.close()


@given(st.integers(0, 2**64 - 1) | st.integers(0, 4), st.integers(0, 2**64 - 1) | st.integers(0, LARGEST))
@settings(max_examples=60, deadline=None)
def test_no_place_leads_out_of_its_slot(slot: int, nbytes: int) -> None:
    ring = Ring(SLOTS, LARGEST)
    there = view(ring)
    try:
        data = there.read(0, Place(slot, nbytes))
    except ProtocolError:
        assert slot != 0 or nbytes > LARGEST
    else:
        assert slot < SLOTS and len(data) == nbytes <= slot_bytes(LARGEST)
    finally:
        ring.close()


def test_a_slot_that_holds_another_message_is_noticed(ring: Ring) -> None:
    there = view(ring)
    place, _ = ring.write(0, (torch.zeros(10),))
    ring.write(SLOTS, (torch.ones(10),))
    with pytest.raises(ProtocolError, match="holds activation 3, not 0"):
        there.read(0, place)
    ring.close()


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_place_has_sixteen_bytes(length: int) -> None:
    with pytest.raises(ProtocolError, match="16 were expected"):
        Place.parse(memoryview(bytes(length)))


@given(st.text(max_size=60) | st.from_regex(r"[0-9./:a-f]{1,60}", fullmatch=True))
@settings(max_examples=100, deadline=None)
def test_other_words_are_no_offer(offer: str) -> None:
    assert open_ring(offer, SLOTS, LARGEST) is None


def offers(descriptor: int, size: int = slot_bytes(LARGEST), token: str = "00" * 16) -> str:
    return f"{os.getpid()}:{descriptor}:{SLOTS}:{size}:{token}"


@pytest.mark.parametrize(
    "change",
    [
        lambda p: [p[0], p[1], p[2], p[3], "0" * 32],  # another token
        lambda p: [p[0], p[1], "0", p[3], p[4]],
        lambda p: [p[0], p[1], "4", p[3], p[4]],  # more slots than the window
        lambda p: [p[0], p[1], "2", p[3], p[4]],  # fewer than there are
        lambda p: [p[0], p[1], p[2], "4096", p[4]],
        lambda p: [p[0], p[1], p[2], str(2**50), p[4]],
        lambda p: [p[0], p[1], p[2], "4097", p[4]],
        lambda p: ["../../1", *p[1:]],
        lambda p: [p[0], "../environ", *p[2:]],
        lambda p: [f"{p[0]}/../self", *p[1:]],
        lambda p: ["4294967", *p[1:]],
        lambda p: [p[0], "99999", *p[2:]],
        lambda p: [*p, "1"],
    ],
)
def test_an_offer_that_is_not_quite_right_is_refused(change: object, ring: Ring) -> None:
    parts = ring.offer.split(":")
    assert open_ring(":".join(parts), SLOTS, LARGEST) is not None
    assert open_ring(":".join(change(parts)), SLOTS, LARGEST) is None  # type: ignore[operator]
    ring.close()


def test_a_file_that_could_be_cut_short_is_refused(tmp_path: Path) -> None:
    size = 4096 + SLOTS * slot_bytes(LARGEST)
    with (tmp_path / "ring").open("wb+") as file:
        file.truncate(size)
        assert open_ring(offers(file.fileno()), SLOTS, LARGEST) is None
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, size)
    assert open_ring(offers(unsealed), SLOTS, LARGEST) is None
    fcntl.fcntl(unsealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    assert open_ring(offers(unsealed), SLOTS, LARGEST) is not None  # all is as it should be now
    os.close(unsealed)


def test_a_pipe_or_a_link_is_refused_without_waiting(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    assert open_ring(offers(reading), SLOTS, LARGEST) is None
    os.close(reading)
    os.close(writing)
    folder = os.open(tmp_path, os.O_RDONLY)
    assert open_ring(offers(folder), SLOTS, LARGEST) is None
    os.close(folder)


def test_nothing_has_a_name(ring: Ring) -> None:
    ring.write(0, (torch.zeros(5000),))
    assert not [path for path in Path("/dev/shm").iterdir() if "lowdimfa" in path.name]
    ring.close()
