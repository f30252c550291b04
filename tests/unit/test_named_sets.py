"""Blocks that get inputs of the data by name, or hand on named sets: what they learn, and what is refused later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowdimfa.alignment import measure_alignment
from lowdimfa.build import build_stages
from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.errors import InputError, LowdimfaError, NotFiniteError
from lowdimfa.exactness import refuse_inexact
from lowdimfa.memory import measure_memory
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.partitioning import partition
from lowdimfa.rules import TAPS
from lowdimfa.tickets import Ticket
from lowdimfa.values import Activation, Values, entering

BATCH, FEATURES = 4, 3


class Begin(nn.Module):
    """Puts out two tensors that learn, one of floats and one of integers that don't."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(FEATURES, 5), nn.Linear(FEATURES, 2)
        self.change: Callable[[dict[str, Any]], dict[str, Any]] = lambda members: members

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Any]:
        members = {
            "left": self.left(x).tanh(),
            "right": self.right(x),
            "floor": (1 / mask).relu(),
            "which": mask.long(),
        }
        return self.change(members)


class Middle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 5)

    def forward(self, left: Tensor, which: Tensor, *, mask: Tensor) -> Tensor:
        return left + torch.tanh(self.mix(left)) * mask.mean(1, keepdim=True) + which[:, :1]


class End(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(7, 2)

    def forward(self, left: Tensor, right: Tensor, floor: Tensor) -> Tensor:
        output: Tensor = self.out(torch.cat([left, right], 1)) + 1 / (1 + floor.mean(1, keepdim=True))
        return output


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Begin(), Middle(), Middle(), End())


def data(seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(BATCH, FEATURES, generator=generator) > 0.3).float()
    return {"x": torch.rand(BATCH, FEATURES, generator=generator), "mask": mask}, torch.arange(BATCH) % 2


def training(**changes: Any) -> TrainingConfig:
    return TrainingConfig(total_steps=4, **changes)


def network(
    layers: nn.Sequential, blocks: Any = 4, train: dict[str, Any] | None = None, **feedback: Any
) -> DecoupledNetwork:
    config = FeedbackConfig(**({"q_rule": "fixed"} | feedback))
    return decouple(
        layers, data()[0], blocks=blocks, total_steps=4, feedback=config, training=training(**(train or {}))
    )


def test_a_set_is_declared_and_tapped_where_the_block_learns() -> None:
    plans = partition(model(), 4, data()[0])
    assert [list(plan.inputs) for plan in plans] == [
        [],
        *[["floor", "left", "right", "which"]] * 2,
        ["floor", "left", "right"],
    ]
    assert [plan.tapped for plan in plans] == [("left", "right"), ("left",), ("left",), ("",)]
    assert [plan.side for plan in plans] == [("mask", "x"), ("mask",), ("mask",), ()]
    assert str(plans[0].outputs["which"]) == f"int64 of shape [{FEATURES}]"


@given(st.sets(st.sampled_from("123")), st.sampled_from(["auto", *TAPS.built_in]), st.booleans())
def test_gradients_are_those_of_autograd_at_the_same_taps(
    cuts: set[str], tap: str, every_layer: bool
) -> None:
    layers = model()
    net = network(layers, sorted(cuts), tap=tap, every_layer=every_layer, q_rule="readout")
    refuse_inexact(
        [*net.blocks, net.head],
        [(entering(data(seed)[0]), data(seed)[1]) for seed in (0, 1)],
        overlapping=True,
        stale=False,
    )


def test_every_parameter_learns_from_the_error() -> None:
    layers = model()
    net = network(layers)
    inputs, targets = data()
    stream: Activation = entering(inputs)
    for block in net.blocks:
        stream = block.forward(stream, Ticket(0, 0))
    sent = net.head.forward(stream, targets, Ticket(0, 0))
    for block in net.blocks:
        block.receive_error(Ticket(0, 0), sent.error)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layers.parameters())


@pytest.mark.parametrize("form", ["backprop", "local", "frozen", "broadcast"])
def test_every_form_trains_and_backpropagation_is_plain_torchs(form: str) -> None:
    layers, plain = model(), model()
    net = network(layers, form=form, train={"staleness": 1} if form == "broadcast" else {})
    inputs, targets = data()
    net.form.run(entering(inputs), targets, Ticket(0, 0))
    if form == "backprop":
        x, mask = inputs["x"], inputs["mask"]
        first = plain[0](x, mask)
        left = plain[2](plain[1](first["left"], first["which"], mask=mask), first["which"], mask=mask)
        output = plain[3](left, first["right"], first["floor"])
        nn.functional.cross_entropy(output, targets).backward()
        pairs = zip(layers.parameters(), plain.parameters(), strict=True)
        assert all(torch.equal(ours.grad, theirs.grad) for ours, theirs in pairs)  # type: ignore[arg-type]
        assert torch.equal(net.forward(inputs), output)
    net.form.step()


def test_probes_alignment_and_memory_take_sets() -> None:
    net = network(model(), q_rule="probed", probe_every=1)
    inputs, targets = data()
    before = [site.feedback.weights.clone() for block in net.blocks for site in block.sites]
    net.train_step(0, [(entering(inputs), targets)])
    after = [site.feedback.weights for block in net.blocks for site in block.sites]
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert len(measure_alignment(net.blocks, net.head, entering(inputs), targets).blocks) == 3
    assert measure_memory(net.blocks[0], entering(inputs), 0).kept > 0


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a member less": (
        lambda members: {**members, "right": None},
        r"found nothing as 'right' of block 0 \(0\); expected float32 of shape \[2\]",
    ),
    "a member of another type": (
        lambda members: {**members, "which": members["which"].int()},
        r"found int32 of shape \[3\] as 'which' of block 0 \(0\); expected int64 of shape \[3\], as when",
    ),
    "a member of another shape": (
        lambda members: {**members, "right": members["right"].repeat(1, 2)},
        r"found float32 of shape \[4\] as 'right' of block 0 \(0\); expected float32 of shape \[2\]",
    ),
    "one tensor": (lambda members: members["left"], "found nothing as 'floor' of block 0"),
    "a tuple": (lambda members: (members["left"],), "'0', which puts out a tuple"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_set_that_changes_between_steps_is_refused(kind: str) -> None:
    change, message = CHANGES[kind]
    layers = model()
    net = network(layers)
    inputs, targets = data()
    net.train_step(0, [(entering(inputs), targets)])
    layers[0].change = change  # type: ignore[assignment]
    with pytest.raises(InputError, match=message):
        net.train_step(1, [(entering(inputs), targets)])


def test_what_is_infinite_stops_a_run_only_where_the_block_learns() -> None:
    layers = model()
    net = network(layers)
    inputs, targets = data()
    assert inputs["mask"].eq(0).any()  # so the floor is infinite
    net.train_step(0, [(entering(inputs), targets)])
    layers[0].change = lambda members: {**members, "left": members["left"] / 0}  # type: ignore[assignment]
    with pytest.raises(NotFiniteError, match="the output 'left' of block 0"):
        net.train_step(1, [(entering(inputs), targets)])


class Writes(nn.Module):
    """Writes to a member of the set, or to the data only while it trains."""

    def __init__(self, to_data: bool) -> None:
        super().__init__()
        self.to_data, self.mix = to_data, nn.Linear(2, 2)

    def forward(self, left: Tensor, right: Tensor, mask: Tensor) -> Mapping[str, Tensor]:
        if self.to_data and self.training:
            mask.mul_(0)
        return {"left": left.add_(1), "right": self.mix(right.mul_(2))}


def test_writing_in_place_changes_nothing_of_what_others_hold() -> None:
    layers = model()
    layers[1] = Writes(to_data=False)
    net = network(layers)
    inputs, _ = data()
    first = net.blocks[0].forward(entering(inputs), Ticket(0, 0))
    assert isinstance(first, Values) and isinstance(first.stream, dict)
    kept = {name: value.clone() for name, value in first.stream.items()}
    for ticket in range(2):
        net.blocks[1].forward(first, Ticket(0, ticket))
        assert all(torch.equal(first.stream[name], value) for name, value in kept.items())


def test_writing_to_the_data_while_training_ends_the_run() -> None:
    layers = model()
    layers[1] = Writes(to_data=True)
    inputs, targets = data()
    with pytest.raises(LowdimfaError, match="block 1 wrote in place to an input of the data"):
        network(layers).train_step(0, [(entering(inputs), targets)])


def test_ids_and_masks_keep_their_types_on_a_coarse_wire() -> None:
    config = FeedbackConfig(q_rule="fixed")
    plans = partition(model(), 4, data()[0])
    blocks, _ = build_stages(plans, config, training(activations="bf16"), "classification")
    out = blocks[0].forward(entering(data()[0]), Ticket(0, 0))
    assert isinstance(out, Values) and isinstance(out.stream, dict)
    types = {name: value.dtype for name, value in out.stream.items()}
    packed = dict.fromkeys(("left", "right"), torch.bfloat16)
    assert types == packed | {"floor": torch.float32, "which": torch.int64}


class Tabled(nn.Module):
    """Puts out a table beside what weights make of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(5, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"hidden": self.tokens(x), "table": torch.full((len(x), 3), -torch.inf)}


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        return self.out(hidden.sum(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("frozen", [False, True])
def test_what_a_layer_hands_on_is_none_of_what_it_makes_if_it_is_frozen_either(frozen: bool) -> None:
    first = Tabled()
    first.requires_grad_(not frozen)
    plans = partition(nn.Sequential(first, Summed()), ["1"], torch.zeros(2, 3, dtype=torch.int64))
    assert plans[0].tapped == ("hidden",)
    assert [value.requires_grad for value in first.parameters()] == [not frozen]


class Twice(nn.Module):
    """Puts one tensor out under two names, or a view of it."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(6, 6), change

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.linear(x)
        return {"h": h, "skip": self.change(h)}


class AddsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, h: Tensor, skip: Tensor) -> Tensor:
        return self.linear(torch.relu_(h) + skip)


@pytest.mark.parametrize("blocks", [1, 2])
def test_writing_to_what_a_member_shares_is_refused_wherever_the_cut(blocks: int) -> None:
    for change in (lambda h: h, lambda h: h.flatten(1)):
        with pytest.raises(InputError, match="writes in place to 'h', whose memory 'skip' shares"):
            partition(nn.Sequential(Twice(change), AddsInPlace()), blocks, torch.randn(4, 6))
    partition(nn.Sequential(Twice(torch.clone), AddsInPlace()), blocks, torch.randn(4, 6))
