"""Injected faults: each happens where it is asked for, once, also if the block is restarted."""

from __future__ import annotations

import errno
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import forked

from lowdimfa.errors import ProtocolError
from lowdimfa.services.block.faults import FaultInjector, faults_dir
from lowdimfa.services.spec.faults import Fault, FaultKind
from lowdimfa.services.stream.frames import HEADER_AT, Message, split, unpack
from lowdimfa.tickets import Ticket

STEPS = range(5)
WIRE: dict[str, list[int]] = {
    "drop": [0, 1, 3, 4],
    "duplicate": [0, 1, 2, 2, 3, 4],
    "reorder": [0, 1, 3, 2, 4],
    "corrupt": [0, 1, 2, 3, 4],
}
"""What arrives of the messages of `STEPS` when one thing happens to that of step 2."""


def injector(run_dir: Path, *faults: Fault, block: int = 1) -> FaultInjector:
    return FaultInjector(faults, block, run_dir)


def fault(kind: FaultKind, step: int = 2, block: int = 1, seconds: float = 0.0) -> Fault:
    return Fault(kind=kind, block=block, step=step, seconds=seconds)


def frames(kind: Any = "train", length: int = 3) -> list[bytes]:
    """Return the frames of one message for each of the steps, one frame each if they are short."""
    tensors = (torch.arange(float(length)).reshape(1, length),)
    return [
        frame
        for step in STEPS
        for frame in split(Message(kind, Ticket(step, 0), tensors, step), 3, 0, guarded=kind == "error")
    ]


def step_of(frame: bytes) -> int:
    try:
        return int(unpack(frame)[0].step)
    except ProtocolError:
        return int(unpack(frame[:HEADER_AT] + bytes([frame[HEADER_AT] ^ 1]) + frame[HEADER_AT + 1 :])[0].step)


def arrived(arrives: Callable[[Any], Any], messages: list[Any]) -> list[Any]:
    return [message for sent in messages for message in arrives(sent)]


@pytest.mark.parametrize("what", ["train", "error", "probe"])
@pytest.mark.parametrize("kind", WIRE)
def test_faults_of_the_wire_happen_once(kind: FaultKind, what: str, tmp_path: Path) -> None:
    faulty, sent = injector(tmp_path, fault(kind)), frames(what)
    found = arrived(faulty.frame_arrives, sent)
    assert [step_of(frame) for frame in found] == WIRE[kind]
    garbled = [frame for frame in found if frame not in sent]
    assert len(garbled) == (kind == "corrupt")
    for frame in garbled:
        with pytest.raises(ProtocolError, match="checksum"):
            unpack(frame)
    assert arrived(faulty.frame_arrives, frames(what)) == frames(what)


def test_the_first_message_of_the_step_is_the_one_and_a_repetition_passes(tmp_path: Path) -> None:
    faulty = injector(tmp_path, fault("drop"))
    message = frames("error")[2]
    assert [list(faulty.frame_arrives(message)) for _ in range(3)] == [[], [message], [message]]


def test_only_the_first_frame_of_a_training_activation_is_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lowdimfa.services.stream.frames.CHUNK_BYTES", 64)
    long = frames(length=50)
    assert len(long) > 2 * len(STEPS)
    found = arrived(injector(tmp_path, fault("drop")).frame_arrives, long)
    missing = [frame for frame in long if frame not in found]
    assert len(missing) == 1 and step_of(missing[0]) == 2 and unpack(missing[0])[0].offset == 0


def test_activations_of_an_evaluation_are_spared(tmp_path: Path) -> None:
    sent = frames("evaluate")
    assert arrived(injector(tmp_path, fault("drop")).frame_arrives, sent) == sent


def test_what_is_no_frame_is_left_to_the_receiver(tmp_path: Path) -> None:
    assert list(injector(tmp_path, fault("drop")).frame_arrives(b"no frame")) == [b"no frame"]


@pytest.mark.parametrize("kind", ["crash", "hang", "slow", "nan", "disk_full", *WIRE])
def test_a_fault_that_happened_does_not_happen_to_a_restarted_block(kind: FaultKind, tmp_path: Path) -> None:
    seconds = 1e-6 if kind in ("hang", "slow") else 0.0
    faults = [fault(kind, seconds=seconds), fault(kind, step=4, seconds=seconds)]
    faults_dir(tmp_path).mkdir()
    (faults_dir(tmp_path) / "0.json").write_text("{}")
    again = injector(tmp_path, *faults)
    again.before_forward(Ticket(2, 0))
    assert not again.poisoned(Ticket(2, 0), torch.zeros(1)).isnan().any()
    assert [step_of(frame) for frame in arrived(again.frame_arrives, frames("error")[:4])] == [0, 1, 2, 3]
    again.before_save(3)
    assert not (faults_dir(tmp_path) / "1.json").exists()


def test_what_happened_is_noted_before_it_does(tmp_path: Path) -> None:
    faulty = injector(tmp_path, fault("drop", step=0), fault("slow", seconds=1e-6))
    began = time.time()
    faulty.before_forward(Ticket(1, 0))
    assert not faults_dir(tmp_path).exists()
    faulty.before_forward(Ticket(2, 1))
    (note,) = faults_dir(tmp_path).iterdir()
    assert note.name == "1.json"  # its place in the specification
    said = json.loads(note.read_text())
    assert began <= said.pop("time") <= time.time()
    assert said == {"kind": "slow", "block": 1, "replica": 0, "step": 2, "seconds": 1e-6}


def test_two_faults_of_one_step_happen_one_after_the_other(tmp_path: Path) -> None:
    faulty = injector(tmp_path, fault("drop"), fault("duplicate"))
    message = frames("error")[2]
    assert [len(list(faulty.frame_arrives(message))) for _ in range(3)] == [0, 2, 1]


def test_faults_of_other_blocks_are_theirs(tmp_path: Path) -> None:
    other = injector(tmp_path, fault("crash", block=0), fault("drop", block=2), fault("nan", block=0))
    other.before_forward(Ticket(2, 0))
    assert arrived(other.frame_arrives, frames("error")) == frames("error")
    assert not other.poisoned(Ticket(2, 0), torch.zeros(2)).isnan().any()


def test_an_output_is_poisoned_once(tmp_path: Path) -> None:
    faulty = injector(tmp_path, fault("nan"))
    tensor = torch.ones(2, 3, dtype=torch.bfloat16)
    assert faulty.poisoned(Ticket(1, 0), tensor) is tensor
    poisoned = faulty.poisoned(Ticket(2, 0), tensor)
    assert (poisoned.shape, poisoned.dtype) == (tensor.shape, tensor.dtype)
    assert bool(poisoned.isnan().all()) and bool((tensor == 1).all())
    assert faulty.poisoned(Ticket(2, 1), tensor) is tensor


def test_the_first_checkpoint_from_a_step_on_finds_no_room(tmp_path: Path) -> None:
    faulty = injector(tmp_path, fault("disk_full", step=3))
    faulty.before_save(2)
    with pytest.raises(OSError, match="injected") as caught:
        faulty.before_save(4)
    assert caught.value.errno == errno.ENOSPC
    faulty.before_save(4)
    faulty.before_save(6)


def longest_silence(call: Callable[[], object]) -> float:
    """Return the longest time, in seconds, for which another thread did not run during a call."""
    marks, ended = [time.monotonic()], threading.Event()

    def mark() -> None:
        while not ended.wait(0.001):
            marks.append(time.monotonic())

    thread = threading.Thread(target=mark)
    thread.start()
    call()
    ended.set()
    thread.join()
    marks.append(time.monotonic())
    return max(later - earlier for earlier, later in itertools.pairwise(marks))


def test_a_hang_silences_every_thread_of_the_process(tmp_path: Path) -> None:
    faulty = injector(tmp_path, fault("hang", seconds=0.4))
    assert longest_silence(lambda: faulty.before_forward(Ticket(2, 0))) >= 0.4


def test_slow_work_lets_the_other_threads_run(tmp_path: Path) -> None:
    """Whatever the machine's load: another thread answers while the slow one sleeps, which a hang does not let it."""
    faulty = injector(tmp_path, fault("slow", seconds=0.2))
    answered: list[float] = []
    slow = threading.Thread(target=lambda: faulty.before_forward(Ticket(2, 0)))
    began = time.monotonic()
    slow.start()
    while slow.is_alive():
        answered.append(time.monotonic())
        slow.join(0.005)
    assert time.monotonic() - began >= 0.2
    assert len(answered) > 2


def test_a_crash_kills_the_process_once(tmp_path: Path) -> None:
    def steps() -> None:
        faulty = injector(tmp_path, fault("crash", step=2))
        for step in range(4):
            print(step, flush=True)
            faulty.before_forward(Ticket(step, 0))

    first, second = forked(steps, tmp_path), forked(steps, tmp_path)
    assert (first.code, first.stdout.split()) == (-signal.SIGKILL, ["0", "1", "2"]), first.stderr
    assert (second.code, second.stdout.split()) == (0, ["0", "1", "2", "3"]), second.stderr
