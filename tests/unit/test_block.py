"""Blocks: what they return, keep, accumulate and leave alone."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from lowdimfa import stash
from lowdimfa.block import Block
from lowdimfa.block_module import unchanged_buffers
from lowdimfa.build import build_block
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.errors import NotFiniteError, ProtocolError
from lowdimfa.feedback.resolving import error_shape
from lowdimfa.partitioning import partition
from lowdimfa.tickets import Ticket

FIRST = Ticket(0, 0)
PROBED = FeedbackConfig(q_rule="probed", probe_every=1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers(*extra: nn.Module) -> nn.Sequential:
    """Return the layers of a block on 6 features that keeps a graph of several steps."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *extra, nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5))


def make_block(
    body: nn.Module | None = None,
    feedback: FeedbackConfig | None = None,
    training: TrainingConfig | None = None,
) -> Block:
    """Return a block of the given layers; the head behind it has 3 outputs."""
    torch.manual_seed(4)
    feedback = feedback or FeedbackConfig(q_rule="fixed")
    plans = partition(nn.Sequential(body or layers(), nn.Linear(5, 3)), 2, normal(4, 6))
    update = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.5}))
    training = training or TrainingConfig(total_steps=10, update=update)
    return build_block(plans[0], error_shape(plans, feedback), feedback, training)


def gradients(block: Block) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in block.module.parameters() if parameter.grad is not None]


def snapshot(block: Block) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in block.module.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("body", [layers(), nn.Sequential(nn.Linear(6, 5), nn.Flatten()), nn.Linear(6, 5)])
def test_no_graph_crosses_a_blocks_boundary(body: nn.Module) -> None:
    block = make_block(body, PROBED)
    before = nn.Linear(6, 6)
    inputs = before(normal(4, 6))
    for output in (block.forward(inputs, FIRST), block.probe(inputs, FIRST), block.evaluate(inputs)):
        assert not output.requires_grad
        assert output.grad_fn is None
        assert output.is_contiguous()
    block.receive_error(FIRST, normal(4, 3))
    assert before.weight.grad is None
    assert all(gradient.abs().sum() > 0 for gradient in gradients(block))


def test_an_error_for_a_ticket_that_was_not_forwarded_is_refused() -> None:
    block = make_block()
    block.forward(normal(4, 6), FIRST)
    with pytest.raises(ProtocolError, match="step 7, micro-batch 1") as caught:
        block.receive_error(Ticket(7, 1), normal(4, 3))
    assert (caught.value.block, caught.value.step) == (0, 7)
    block.receive_error(FIRST, normal(4, 3))
    with pytest.raises(ProtocolError):
        block.receive_error(FIRST, normal(4, 3))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("q_rule", ["fixed", "hebbian"])
def test_errors_in_any_order_give_the_sum_over_micro_batches(q_rule: str, order: tuple[int, ...]) -> None:
    feedback = FeedbackConfig(q_rule=q_rule)  # type: ignore[arg-type]
    block = make_block(layers(nn.BatchNorm1d(8)), feedback)
    block.sites[-1].feedback.weights.data.copy_(normal(5, 3, seed=9))
    twin = deepcopy(block)
    parts = [(normal(4, 6, seed=part), normal(4, 3, seed=10 + part)) for part in range(3)]
    for part, (inputs, _) in enumerate(parts):
        block.forward(inputs, Ticket(0, part))
    for part in order:
        block.receive_error(Ticket(0, part), parts[part][1])
    total: list[Tensor] = []
    for part, (inputs, error) in enumerate(parts):
        twin.module.zero_grad()
        twin.forward(inputs, Ticket(0, part))
        twin.receive_error(Ticket(0, part), error)
        own = gradients(twin)
        total = [so_far + new for so_far, new in zip(total, own, strict=True)] if total else own
    torch.testing.assert_close(gradients(block), total)
    if q_rule == "hebbian":
        torch.testing.assert_close(
            block.sites[-1].feedback.weights.grad, twin.sites[-1].feedback.weights.grad
        )


def test_a_step_applies_the_gradients_once() -> None:
    block = make_block()
    before = snapshot(block)
    block.forward(normal(4, 6), FIRST)
    block.receive_error(FIRST, normal(4, 3))
    expected = [
        value - 0.5 * gradient for value, gradient in zip(before.values(), gradients(block), strict=True)
    ]
    block.step()
    torch.testing.assert_close(list(snapshot(block).values()), expected)
    after = snapshot(block)
    block.step()
    assert_same(snapshot(block), after)


def test_a_probe_between_a_forward_and_its_update_changes_neither() -> None:
    plain, probed = (make_block(layers(nn.BatchNorm1d(8)), PROBED) for _ in range(2))
    inputs, error = normal(4, 6), normal(4, 3, seed=1)
    plain.forward(inputs, FIRST)
    probed.forward(inputs, FIRST)
    before = snapshot(probed)
    for _ in range(2):
        probed.probe(inputs + 1, FIRST)
    assert_same(snapshot(probed), before)
    assert int(before["_layers.0.2.num_batches_tracked"]) == 1
    for block in (plain, probed):
        block.receive_error(FIRST, error)
    for one, other in zip(gradients(plain), gradients(probed), strict=True):
        assert torch.equal(one, other)


def test_buffers_that_are_part_of_a_kept_graph_survive_a_probe() -> None:
    class Whitened(nn.Module):
        """Divides by a running scale that it saves for its backward and updates in place."""

        scale: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            self.scale.mul_(0.9).add_(0.1 * x.detach().abs().mean(0))
            return x * self.scale

    block = make_block(nn.Sequential(nn.Linear(6, 5), Whitened()), PROBED)
    block.forward(normal(4, 6), FIRST)
    block.probe(normal(4, 6), FIRST)
    block.receive_error(FIRST, normal(4, 3))  # autograd refuses this where the probe wrote to the buffer
    assert len(gradients(block)) == 2


def test_unchanged_buffers_puts_them_back_after_a_failure_too() -> None:
    norm = nn.BatchNorm1d(3)
    before = norm.running_mean
    with pytest.raises(ValueError, match="more than 1 value"), unchanged_buffers(norm):
        norm(normal(4, 3) + 5)
        norm(normal(1, 3))
    assert before is not None
    assert norm.running_mean is before
    assert torch.equal(before, torch.zeros(3))


def test_dropout_depends_on_the_ticket_alone() -> None:
    block = make_block(nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5)), PROBED)
    other, inputs = deepcopy(block), normal(4, 6)
    first = block.forward(inputs, FIRST)
    torch.manual_seed(99)
    second = block.forward(inputs, Ticket(0, 1))
    third = block.forward(inputs, Ticket(1, 0))
    torch.rand(5)
    assert torch.equal(other.forward(inputs, Ticket(0, 1)), second)
    assert torch.equal(other.forward(inputs, FIRST), first)
    for one, another in itertools.combinations((first, second, third), 2):
        assert not torch.equal(one == 0, another == 0)
    assert torch.equal(block.probe(inputs, FIRST) - first, other.probe(inputs, FIRST) - first)


def test_dropout_draws_the_same_in_the_clean_and_in_the_probe_pass() -> None:
    feedback = FeedbackConfig(q_rule="probed", probe_noise=1e-6)
    block = make_block(nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5)), feedback)
    clean = block.forward(normal(8, 6), FIRST)
    torch.testing.assert_close(block.probe(normal(8, 6), FIRST), clean, rtol=0, atol=1e-4)
    assert (clean == 0).any()


@pytest.mark.parametrize("probe_first", [False, True])
def test_nothing_is_kept_after_all_errors(probe_first: bool) -> None:
    block = make_block(feedback=PROBED)
    tickets = [Ticket(0, part) for part in range(3)]
    for ticket in tickets:
        block.forward(normal(4, 6), ticket)
        block.probe(normal(4, 6), ticket)
    kept = [weakref.ref(block._kept[ticket].tapped[0]) for ticket in tickets]
    for ticket in tickets:
        for kind in ("probe", "train") if probe_first else ("train", "probe"):
            block.receive_error(ticket, normal(4, 3), kind)
    gc.collect()
    assert not block._kept
    assert all(reference() is None for reference in kept)


def test_the_graph_goes_with_the_training_error_though_the_probes_response_is_to_come() -> None:
    block = make_block(feedback=PROBED)
    block.forward(normal(4, 6), FIRST)
    block.probe(normal(4, 6), FIRST)
    kept = weakref.ref(block._kept[FIRST].tapped[0])
    block.receive_error(FIRST, normal(4, 3))
    gc.collect()
    assert kept() is None
    before = block.sites[-1].feedback.weights.clone()
    block.receive_error(FIRST, normal(4, 3), "probe")
    block.step()
    assert not torch.equal(block.sites[-1].feedback.weights, before)


def test_an_output_that_is_not_finite_names_block_and_step() -> None:
    block = make_block()
    inputs = normal(4, 6)
    inputs[1, 2] = torch.nan
    with pytest.raises(NotFiniteError, match=r"block 0 .* step 5; .* check the data$") as caught:
        block.forward(inputs, Ticket(5, 0))
    assert (caught.value.block, caught.value.step) == (0, 5)
    assert caught.value.setting == "train.optimizer.args.lr"


def test_a_block_without_parameters_runs_and_learns_nothing() -> None:
    plans = partition(nn.Sequential(nn.Tanh(), nn.Linear(6, 3)), ["1"], normal(4, 6))
    feedback = FeedbackConfig(q_rule="hebbian")
    block = build_block(plans[0], error_shape(plans, feedback), feedback, TrainingConfig(total_steps=1))
    output = block.forward(normal(4, 6), FIRST)
    with pytest.raises(ProtocolError, match="has not forwarded"):  # nothing is kept for an error
        block.receive_error(FIRST, normal(4, 3))
    block.step()
    assert torch.equal(output, normal(4, 6).tanh())
    assert not block.sites


def stale_training(staleness: int) -> TrainingConfig:
    update = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.5}))
    return TrainingConfig(total_steps=10, staleness=staleness, update=update)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_a_stale_update_uses_the_weights_of_its_own_forward(norm: type[nn.Module]) -> None:
    block = make_block(layers(norm(8)), training=stale_training(1))
    old = deepcopy(block)
    inputs, errors = (
        [normal(4, 6, seed=step) for step in range(2)],
        [normal(4, 3, seed=5 + s) for s in range(2)],
    )
    for step in range(2):
        block.forward(inputs[step], Ticket(step, 0))
    block.receive_error(Ticket(0, 0), errors[0])
    block.step()
    block.receive_error(Ticket(1, 0), errors[1])  # after the weights moved on
    old.forward(inputs[0], Ticket(0, 0))
    old.forward(inputs[1], Ticket(1, 0))
    old.receive_error(Ticket(1, 0), errors[1])
    torch.testing.assert_close(gradients(block), gradients(old), rtol=0, atol=0)
    new = make_block(layers(norm(8)), training=stale_training(1))
    new.module.load_state_dict(block.module.state_dict())
    new.forward(inputs[1], Ticket(1, 0))
    new.receive_error(Ticket(1, 0), errors[1])
    assert not torch.allclose(gradients(new)[0], gradients(old)[0], rtol=1e-3)


def test_without_staleness_autograd_keeps_references_and_refuses_a_late_update() -> None:
    block = make_block(training=stale_training(0))
    for step in range(2):
        block.forward(normal(4, 6), Ticket(step, 0))
    block.receive_error(Ticket(0, 0), normal(4, 3))
    block.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        block.receive_error(Ticket(1, 0), normal(4, 3))


class Followed(nn.Module):
    """Scales by a frozen average of another weight, which it moves before it uses it, or after."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.scale = nn.Parameter(normal(8, seed=7) + 2)
        self.average = nn.Parameter(torch.ones(8), requires_grad=False)

    def move(self) -> None:
        with torch.no_grad():
            self.average.lerp_(self.scale, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            self.move()
        y = x * self.average * self.scale
        if not self.first:
            self.move()
        return y


def test_a_stale_update_uses_a_frozen_weight_as_it_was_when_its_forward_had_moved_it() -> None:
    block = make_block(layers(Followed(first=True)), training=stale_training(1))
    twin = deepcopy(block)
    tickets = [Ticket(0, part) for part in range(3)]
    for ticket in tickets:
        block.forward(normal(4, 6, seed=ticket.microbatch), ticket)
    for ticket in tickets:
        block.receive_error(ticket, normal(4, 3))
        twin.forward(normal(4, 6, seed=ticket.microbatch), ticket)
        twin.receive_error(ticket, normal(4, 3))
    torch.testing.assert_close(gradients(block), gradients(twin), rtol=0, atol=0)


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_frozen_weight_that_is_moved_after_its_use_is_refused_as_autograd_does(staleness: int) -> None:
    block = make_block(layers(Followed(first=False)), training=stale_training(staleness))
    block.forward(normal(4, 6), FIRST)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        block.receive_error(FIRST, normal(4, 3))


class Mixing(nn.Module):
    """Multiplies features by a matrix that may be sparse, as one of neighbours is."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        matrix = normal(8, 8, seed=7)
        matrix[matrix < 0.3] = 0
        matrix = matrix if layout is torch.strided else matrix.to_sparse(layout=layout)
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.matrix @ x.t()).t()  # type: ignore[operator]


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_matrix_is_none_of_the_weights_that_a_stale_update_keeps(layout: torch.layout) -> None:
    sparse, dense = (
        make_block(layers(Mixing(kind)), training=stale_training(1)) for kind in (layout, torch.strided)
    )
    for block in (sparse, dense):
        for step in range(2):
            block.forward(normal(4, 6, seed=step), Ticket(step, 0))
        for step in range(2):  # the second after the weights have moved on
            block.receive_error(Ticket(step, 0), normal(4, 3, seed=5 + step))
            if step == 0:
                block.step()
    torch.testing.assert_close(gradients(sparse), gradients(dense))


def test_no_copy_is_kept_of_a_frozen_weight_that_stays() -> None:
    network = layers()
    network[2].requires_grad_(False)  # through which the gradient of the first passes
    block = make_block(network, training=stale_training(1))
    place = network[2].weight.untyped_storage().data_ptr()
    for part in range(2):
        block.forward(normal(4, 6, seed=part), Ticket(0, part))
    kept = [found.alias for found in gc.get_objects() if type(found) is stash._Unmoved]
    assert [alias.untyped_storage().data_ptr() for alias in kept].count(place) == 2


def test_stashing_changes_no_bit_where_nothing_is_stale() -> None:
    plain, stashing = (
        make_block(layers(nn.BatchNorm1d(8)), training=stale_training(staleness)) for staleness in (0, 2)
    )
    for step in range(3):
        outputs = [block.forward(normal(4, 6, seed=step), Ticket(step, 0)) for block in (plain, stashing)]
        assert torch.equal(*outputs)
        for block in (plain, stashing):
            block.receive_error(Ticket(step, 0), normal(4, 3, seed=step))
            block.step()
    assert_same(snapshot(plain), snapshot(stashing))


def test_forwards_share_one_copy_of_the_weights_that_lives_as_long_as_their_graphs() -> None:
    shared = nn.Linear(6, 6)
    network = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), shared, nn.Linear(6, 5))
    block = make_block(network, training=stale_training(2))
    copies: list[int] = []
    whole = stash.StashedWeights.copy

    def copy(weights: stash.StashedWeights) -> None:
        whole(weights)
        copies.append(id(weights))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stash.StashedWeights, "copy", copy)
        for microbatch in range(3):
            block.forward(normal(4, 6, seed=microbatch), Ticket(0, microbatch))
        kept = [weakref.ref(weights) for weights in _versions()]
        assert len(kept) == 1  # one version for three forwards, and nothing was copied yet
        assert not copies
        block.receive_error(Ticket(0, 0), normal(4, 3))
        block.step()
        assert len(copies) == 1  # two graphs need it
        for microbatch in (1, 2):
            block.receive_error(Ticket(0, microbatch), normal(4, 3))
        gc.collect()
        assert kept[0]() is None
        block.step()
        assert len(copies) == 1  # nothing was in flight


def _versions() -> list[stash.StashedWeights]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) is stash.StashedWeights]


@pytest.mark.parametrize("staleness", [0, 1])
def test_bf16_computes_coarsely_and_returns_float32(staleness: int) -> None:
    training = TrainingConfig(total_steps=1, precision="bf16", staleness=staleness)
    block, exact = make_block(feedback=PROBED, training=training), make_block()
    output, probe = block.forward(normal(4, 6), FIRST), block.probe(normal(4, 6), FIRST)
    block.receive_error(FIRST, normal(4, 3))
    block.receive_error(FIRST, normal(4, 3), "probe")
    block.step()
    wanted = exact.forward(normal(4, 6), FIRST)
    assert output.dtype is probe.dtype is block.evaluate(normal(4, 6)).dtype is torch.float32
    assert not torch.equal(output, wanted)
    torch.testing.assert_close(output, wanted, rtol=0.05, atol=0.05)
    assert all(tensor.dtype is torch.float32 for tensor in block.state().tensors.values())


def test_state_round_trip_continues_with_the_same_bits() -> None:
    training = TrainingConfig(total_steps=10)
    feedback = FeedbackConfig(q_rule="probed", probe_every=1)
    original, restored = (make_block(layers(), feedback, training) for _ in range(2))

    def step(block: Block, number: int) -> None:
        ticket = Ticket(number, 0)
        block.forward(normal(4, 6, seed=number), ticket)
        block.probe(normal(4, 6, seed=number), ticket)
        block.receive_error(ticket, normal(4, 3, seed=number))
        block.receive_error(ticket, normal(4, 3, seed=20 + number), "probe")
        block.step()

    for number in range(3):
        step(original, number)
    tensors = {name: value.clone() for name, value in original.state().tensors.items()}
    restored.load(tensors, original.state().scalars)
    for number in range(3, 5):
        step(original, number)
        step(restored, number)
    assert_same(original.state().tensors, restored.state().tensors)
    assert original.state().scalars == restored.state().scalars


def test_a_finding_can_be_left_for_later_but_not_lost() -> None:
    """On a GPU a look at each output would wait for it; whoever takes the findings looks before anything is sent."""
    found: list[tuple[Tensor, Callable[[], NotFiniteError]]] = []
    block = make_block()
    block.look_later = lambda passed, failure: found.append((passed, failure))
    inputs = normal(4, 6)
    block.forward(inputs, Ticket(3, 0))
    block.forward(inputs / 0, Ticket(4, 0))
    assert [bool(passed) for passed, _ in found] == [True, False]
    failure = found[1][1]()
    assert (failure.block, failure.step) == (block.index, 4)
    with pytest.raises(NotFiniteError):  # a checkpoint looks at once
        block.require_finite(inputs / 0, "parameter w", 5)


class Moving(nn.Module):
    """Puts another buffer in place of its own, whose memory then is that of what comes next."""

    level: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        self.level = x.detach().mean(0)
        for _ in range(4):
            x = x / (1.0 + x.square().mean(0)).sqrt()  # saved, and as large as the buffer
        return x - self.level


def test_stashing_keeps_what_lies_where_a_buffer_was() -> None:
    for width in range(100, 3000, 50):
        weight = nn.Parameter(normal(width))
        module = nn.Sequential(*[Moving(width) for _ in range(3)])
        found = []
        for keeping in (nullcontext(), stash.WeightStash(module).keeping()):
            x = torch.linspace(0.5, 1.5, 4 * width).view(4, width)
            with keeping:
                output = module(x * weight)
            found += torch.autograd.grad(output.square().sum(), [weight])
        assert torch.equal(*found)
