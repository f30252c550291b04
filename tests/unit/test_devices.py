"""Copies between a block's device and the host: their order, on a device that copies as late as it may."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerators import LateDevice
from torch import Tensor, nn

from lowdimfa.build import build_stages
from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.data import BatchOrder
from lowdimfa.errors import LowdimfaError, NotFiniteError, PeerError, ResourceError
from lowdimfa.partitioning import partition
from lowdimfa.services.block.devices import Check, NoCopies, OnHost, StreamedCopies, block_device, copies_for
from lowdimfa.services.block.instructions import Halt, Policy, RunUpdate
from lowdimfa.services.block.mailboxes import AtOnce, Inbox, Outbox
from lowdimfa.services.block.observer import Observer
from lowdimfa.services.block.runner import BlockRunner
from lowdimfa.services.block.work import Work
from lowdimfa.services.monitoring.metrics import BlockMetrics
from lowdimfa.services.stream.frames import Message
from lowdimfa.tickets import Ticket


def test_a_gpu_that_is_not_there_is_refused_with_what_to_do() -> None:
    assert block_device(0) == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match=r"finds no GPU.*gpus_per_block to 0"):
            block_device(0.5)


def failure() -> NotFiniteError:
    return NotFiniteError("not finite", block=1, step=2)


def test_on_processors_nothing_is_copied() -> None:
    copies = copies_for(torch.device("cpu"), direct=False)
    assert isinstance(copies, NoCopies) and not copies.deferred
    tensor = torch.ones(3)
    assert copies.to_device(tensor, tensor).use()[1] is tensor
    assert copies.to_host(tensor).wait()[0] is tensor
    assert copies.to_next_block(tensor).wait()[0] is tensor


def test_computation_waits_for_its_input_and_for_nothing_else() -> None:
    device = LateDevice()
    copies = StreamedCopies(device)
    first = copies.to_device(torch.arange(3.0))
    second = copies.to_device(torch.arange(4.0))
    assert first.tensors[0][1] == 77  # not there yet
    device.log.clear()
    assert first.use()[0].tolist() == [0, 1, 2]
    assert device.log == ["computing waits"]
    assert second.tensors[0][1] == 77
    assert second.use()[0].tolist() == [0, 1, 2, 3]


def test_memory_of_a_copy_is_kept_for_the_stream_that_computes_with_it() -> None:
    device = LateDevice()
    arrived = StreamedCopies(device).to_device(torch.ones(2))
    assert [(kept is arrived.tensors[0], stream) for kept, stream in device.kept] == [(True, "computing")]


def test_a_tensor_given_twice_is_copied_once_and_one_that_is_there_not_at_all() -> None:
    device = LateDevice()
    tensor, there = torch.ones(2), torch.zeros(2)
    device.resident.add(id(there))
    one, two, three = StreamedCopies(device).to_device(tensor, tensor, there).use()
    assert one is two and three is there
    assert device.log.count("device") == 1
    assert (there, "computing") in [(kept, stream) for kept, stream in device.kept if kept is there]


def test_the_source_of_a_copy_may_be_written_at_once() -> None:
    copies = StreamedCopies(LateDevice())
    tensor = torch.ones(3)
    arrived = copies.to_device(tensor)
    tensor.zero_()  # what a receiver does with a buffer that it was given back
    assert arrived.use()[0].sum() == 3


def test_an_output_is_there_once_somebody_has_waited_and_its_memory_is_kept_until_then() -> None:
    device = LateDevice()
    copies = StreamedCopies(device)
    output = torch.arange(3.0)
    computed = copies.to_host(output)
    assert computed.tensors[0][1] == 77
    assert [(kept is output, stream) for kept, stream in device.kept] == [(True, "outward")]
    assert computed.wait()[0].tolist() == [0, 1, 2]
    assert "outward waits" in device.log  # for what computes the output


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_layer_may_write_its_next_output_to_the_memory_of_the_one_that_is_on_its_way(
    on_device: bool, direct: bool
) -> None:
    copies = StreamedCopies(LateDevice(), direct) if on_device else copies_for(torch.device("cpu"), direct)
    output = torch.ones(3)
    sent = copies.to_next_block(output)
    if on_device or direct:  # else the stream has copied it before the next forward
        output.zero_()
    assert sent.wait()[0].sum() == 3


@pytest.mark.parametrize("direct", [False, True])
def test_findings_come_with_what_they_are_about(direct: bool) -> None:
    device = LateDevice()
    copies = StreamedCopies(device, direct)
    output = torch.ones(2)
    (sent,) = copies.to_next_block(output, checks=[Check(torch.tensor(True), failure)]).wait()
    assert torch.equal(sent, output)
    assert device.log.count("locked") == 2 - direct
    wrong = copies.to_next_block(output, checks=[Check(torch.tensor(False), failure)])
    with pytest.raises(NotFiniteError):
        wrong.wait()


def on_host(value: float, passed: bool = True) -> OnHost:
    return OnHost((torch.tensor(value),), (Check(torch.tensor(passed), failure),))


def test_an_outbox_sends_in_order_and_not_before_the_tensors_are_there() -> None:
    sent: list[float] = []
    there = threading.Event()
    outbox = Outbox("block-0", 4, pytest.fail)
    outbox.put(OnHost((torch.tensor(1.0),), (), lambda: there.wait(10) and None), _into(sent))
    outbox.put(on_host(2.0), _into(sent))
    assert sent == []
    there.set()
    outbox.close()
    assert sent == [1.0, 2.0]


def test_after_a_failed_check_nothing_is_sent_and_nobody_waits() -> None:
    sent: list[float] = []
    failures: list[LowdimfaError] = []
    outbox = Outbox("block-0", 1, failures.append)
    outbox.put(on_host(1.0, passed=False), _into(sent))
    for value in range(5):  # more than it has room for
        outbox.put(on_host(value), _into(sent))
    outbox.close()
    assert sent == []
    assert [type(error) for error in failures] == [NotFiniteError]


def test_what_a_connection_raises_is_told_once() -> None:
    failures: list[LowdimfaError] = []

    def lost(_tensors: object) -> None:
        raise PeerError("block 1 is lost")

    outbox = Outbox("block-0", 2, failures.append)
    for _ in range(3):
        outbox.put(on_host(0.0), lost)
    outbox.close()
    assert [type(error) for error in failures] == [PeerError]


@pytest.mark.parametrize("passed", [True, False])
def test_an_outbox_has_settled_when_all_was_sent_or_dropped(passed: bool) -> None:
    sent: list[float] = []
    there = threading.Event()
    outbox = Outbox("block-0", 4, lambda error: None)
    outbox.put(OnHost((torch.tensor(1.0),), (), lambda: there.wait(10) and None), _into(sent))
    outbox.put(on_host(2.0, passed), _into(sent))
    outbox.put(on_host(3.0), _into(sent))
    assert not outbox.settle(0.01) and sent == []
    there.set()
    assert outbox.settle(10) and sent == ([1.0, 2.0, 3.0] if passed else [1.0])
    outbox.close()


class Deferred(NoCopies):
    """Leaves findings for whoever sends, as a GPU does, and has nothing ready before it is waited for at the end."""

    deferred = True

    def __init__(self) -> None:
        self.waited_for = threading.Event()

    def to_host(self, *tensors: Tensor, checks: Sequence[Check] = ()) -> OnHost:
        return OnHost(tensors, tuple(checks), lambda: self.waited_for.wait(10) and None)


class Settling(Outbox):
    """Lets the device get ready when somebody waits for the outbox to come to rest."""

    def __init__(self, copies: Deferred, failures: list[LowdimfaError]) -> None:
        super().__init__("block-1", 4, failures.append)
        self._copies = copies

    def settle(self, patience: float) -> bool:
        self._copies.waited_for.set()
        return super().settle(patience)


@pytest.mark.parametrize("probed", [False, True])
@pytest.mark.parametrize("wrong", [1, 0])
def test_an_error_that_was_not_broadcast_is_none_that_the_head_says_it_has(wrong: int, probed: bool) -> None:
    """It may have run its forward; but its check fails in the outbox, and no other block may wait for it."""
    heard: list[RunUpdate] = []
    failures: list[LowdimfaError] = []
    inbox, copies = Inbox(), Deferred()
    outbox = Settling(copies, failures)
    plans = partition(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), 2, torch.zeros(4, 6))
    head = build_stages(plans, FeedbackConfig(q_rule="probed"), TrainingConfig(9), "classification")[1]
    targets = SimpleNamespace(targets=lambda: torch.tensor([0, 1, 2, 0]))
    data = SimpleNamespace(order=BatchOrder(12, 12, 3, seed=0), microbatch=lambda ticket: targets)

    class Halted(Work):
        def forward(self, ticket: Ticket, probe: bool) -> None:
            super().forward(ticket, probe)
            if ticket.microbatch == 1:
                inbox.put(Halt(None))

    neighbours: Any = SimpleNamespace(
        publish=lambda ticket, kind, *tensors: heard.append(RunUpdate(ticket, kind)),
        release=lambda message: None,
    )
    observer = Observer(BlockMetrics("job", "1", "0"), None, lambda: None)
    work = Halted(head, neighbours, cast(Any, data), observer, None, 1.0, copies, outbox)
    for microbatch in range(2):
        values = torch.full((4, 5), torch.inf if microbatch == wrong else 1.0)
        inbox.put(Message("train", Ticket(2, microbatch), (values,) * (1 + probed), microbatch))
    policy = Policy(False, True, 3, 6, 1, probe_every=int(probed))
    runner = BlockRunner(work, policy, inbox, neighbours, observer, 1.0, 2.0)
    assert runner.published is None
    assert runner.run(2, 4) == 2
    outbox.close()
    last = RunUpdate(Ticket(2, 0), "probe" if probed else "train")
    assert (runner.published, heard[-1:]) == ((last, [last]) if wrong else (None, []))
    assert [type(error) for error in failures] == [NotFiniteError]


def test_on_processors_a_failed_check_is_raised_at_once() -> None:
    with pytest.raises(NotFiniteError):
        AtOnce().put(on_host(0.0, passed=False), lambda tensors: pytest.fail("it was sent"))


def _into(sent: list[float]):  # type: ignore[no-untyped-def]
    return lambda tensors: sent.append(float(tensors[0]))
