"""The measurement of alignment: right where the answer is known, and without a trace."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from lowdimfa.alignment import _compare, measure_alignment
from lowdimfa.config import FeedbackConfig, RankConfig, TrainingConfig
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.stage import Stage
from lowdimfa.tickets import Ticket


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


INPUTS, TARGETS = normal(16, 6), torch.arange(16) % 4


def make_network(
    model: nn.Module, blocks: int | list[str] = 3, activations: Any = "fp32", **feedback: Any
) -> DecoupledNetwork:
    return decouple(
        model,
        INPUTS,
        blocks=blocks,
        total_steps=10,
        feedback=FeedbackConfig(**({"q_rule": "hebbian"} | feedback)),
        training=TrainingConfig(total_steps=10, activations=activations),
    )


def noisy_model() -> nn.Sequential:
    """Return a model with everything that a measurement might disturb."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)
    )


def linear_model() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 4))


def gradients_of(stage: Stage) -> list[Tensor]:
    return [parameter.grad for parameter in stage.module.parameters() if parameter.grad is not None]


def set_exact_feedback(network: DecoupledNetwork, factor: float = 1.0) -> None:
    """Give each block of a linear network the transposed product of all weights behind it."""
    behind = torch.eye(4)
    for block, after in zip(reversed(network.blocks), reversed(network.stages[1:]), strict=True):
        weight = next(after.module.parameters()).detach()
        behind = behind @ weight
        block.sites[-1].feedback.weights.data.copy_(factor * behind.t())


@pytest.mark.parametrize("activations", ["fp32", "bf16", "int4", RankConfig(1)], ids=str)
def test_what_is_measured_of_a_readout_is_what_it_delivers_in_training(activations: Any) -> None:
    network = make_network(linear_model(), 3, activations, tap="identity", q_rule="readout")
    found = measure_alignment(network.blocks, network.head, INPUTS, TARGETS)
    network.form.run(INPUTS, TARGETS, Ticket(0, 0))
    for block, measured in zip(network.blocks, found.blocks, strict=True):
        trained = torch.cat([gradient.flatten() for gradient in gradients_of(block)])
        assert measured.update_norm == pytest.approx(float(trained.norm()), rel=1e-5)


@pytest.mark.parametrize(
    ("factor", "cosine", "angle"), [(1.0, 1.0, 0.0), (3.0, 1.0, 0.0), (-1.0, -1.0, 180.0)]
)
def test_the_cosine_with_exact_feedback_is_one_whatever_its_scale(
    factor: float, cosine: float, angle: float
) -> None:
    network = make_network(linear_model(), tap="identity")
    set_exact_feedback(network, factor)
    measured = measure_alignment(network.blocks, network.head, INPUTS, TARGETS)
    for block in measured.blocks:
        assert block.cosine == pytest.approx(cosine, abs=1e-5)
        assert block.angle_degrees == pytest.approx(angle, abs=0.2)
        assert block.update_norm == pytest.approx(abs(factor) * block.gradient_norm, rel=1e-4)
        assert block.gradient_norm > 0
    assert measured.explained_error_energy == pytest.approx(1, abs=1e-5)


def test_random_feedback_is_far_from_the_gradient_and_the_head_is_left_out() -> None:
    network = make_network(linear_model(), tap="identity", q_rule="fixed", error_dim=2)
    measured = measure_alignment(network.blocks, network.head, INPUTS, TARGETS)
    assert [block.block for block in measured.blocks] == [0, 1]
    assert all(abs(block.cosine) < 0.9 for block in measured.blocks)
    assert 0 < measured.explained_error_energy < 1
    assert json.loads(json.dumps(measured.as_event()))["blocks"][1].keys() == {
        "block",
        "cosine",
        "angle_degrees",
        "update_norm",
        "gradient_norm",
    }


def test_norms_are_those_of_the_gradients_that_training_gives() -> None:
    network = make_network(noisy_model(), q_rule="fixed")
    measured = measure_alignment(network.blocks, network.head, INPUTS, TARGETS)
    network.form.run(INPUTS, TARGETS, Ticket(0, 0))
    for block, result in zip(network.blocks, measured.blocks, strict=True):
        own = torch.cat([gradient.flatten() for gradient in gradients_of(block)])
        assert float(own.norm()) == pytest.approx(result.update_norm, rel=1e-5)
    backprop = make_network(noisy_model(), form="backprop")
    backprop.form.run(INPUTS, TARGETS, Ticket(0, 0))
    for block, result in zip(backprop.blocks, measured.blocks, strict=True):
        true = torch.cat([gradient.flatten() for gradient in gradients_of(block)])
        assert float(true.norm()) == pytest.approx(result.gradient_norm, rel=1e-5)


def test_nothing_is_changed() -> None:
    network = make_network(noisy_model(), q_rule="fixed", p_rule="oja", error_dim=2)
    network.form.run(INPUTS, TARGETS, Ticket(0, 0))  # so that there are gradients and statistics to disturb
    state = {name: value.clone() for stage in network.stages for name, value in stage.state().tensors.items()}
    buffers = [buffer for stage in network.stages for buffer in stage.module.buffers()]
    kept = [
        block.forward(INPUTS if block.index == 0 else normal(16, 8), Ticket(0, 1)) for block in network.blocks
    ]
    state |= {
        name: value.clone() for stage in network.stages for name, value in stage.state().tensors.items()
    }
    gradients = [gradient.clone() for stage in network.stages for gradient in gradients_of(stage)]
    random_state = torch.get_rng_state()
    first = measure_alignment(network.blocks, network.head, INPUTS, TARGETS)
    assert torch.equal(torch.get_rng_state(), random_state)
    for stage in network.stages:
        for name, value in stage.state().tensors.items():
            assert torch.equal(value, state[name]), name
    unchanged = [gradient for stage in network.stages for gradient in gradients_of(stage)]
    assert all(torch.equal(one, other) for one, other in zip(gradients, unchanged, strict=True))
    after = [buffer for stage in network.stages for buffer in stage.module.buffers()]
    assert all(one is other for one, other in zip(buffers, after, strict=True))
    assert measure_alignment(network.blocks, network.head, INPUTS, TARGETS) == first
    for block in network.blocks:  # what a block keeps for its update is still there
        block.receive_error(Ticket(0, 1), normal(16, 2))
    assert len(kept) == 2


def test_probed_feedback_comes_to_align_where_random_feedback_does_not() -> None:
    cosines = {}
    for rule in ("fixed", "probed"):
        network = make_network(linear_model(), q_rule=rule, tap="identity", probe_every=1, probe_decay=0.9)
        for step in range(40):
            network.form.run(INPUTS, TARGETS, Ticket(step, 0))
            for block in network.blocks:
                block.sites[-1].feedback.step()  # the feedback alone: the weights stay
        measured = measure_alignment(network.blocks, network.head, INPUTS, TARGETS)
        cosines[rule] = [block.cosine for block in measured.blocks]
    assert min(cosines["probed"]) > 0.9
    assert min(cosines["fixed"]) < 0.7


def test_a_block_without_parameters_has_no_direction() -> None:
    model = nn.Sequential(nn.Tanh(), nn.Linear(6, 8), nn.Linear(8, 4))
    network = make_network(model, ["1", "2"])
    (other,) = measure_alignment(network.blocks, network.head, INPUTS, TARGETS).blocks
    assert other.block == 1
    assert other.gradient_norm > 0


def test_sparse_gradients_are_measured_as_the_dense_ones_that_they_are() -> None:
    tokens = torch.arange(64).view(16, 4) % 9
    found = []
    for sparse in (False, True):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Embedding(9, 3, sparse=sparse), nn.Flatten(), nn.Linear(12, 4))
        network = decouple(model, tokens, blocks=["2"], total_steps=1)
        found.append(measure_alignment(network.blocks, network.head, tokens, TARGETS).blocks)
    assert found[0] == found[1]
    assert found[0][0].gradient_norm > 0


def test_a_network_of_the_head_alone_has_nothing_to_align() -> None:
    network = make_network(linear_model(), 1)
    assert measure_alignment(network.blocks, network.head, INPUTS, TARGETS).blocks == []


def test_bf16_is_measured_as_it_is_trained() -> None:
    training = TrainingConfig(total_steps=1, precision="bf16")
    feedback = FeedbackConfig(tap="identity", q_rule="hebbian")
    network = decouple(linear_model(), INPUTS, blocks=3, total_steps=1, feedback=feedback, training=training)
    set_exact_feedback(network)
    measured = measure_alignment(network.blocks, network.head, INPUTS, TARGETS)
    assert all(block.cosine > 0.99 for block in measured.blocks)


def test_a_model_in_double_precision_is_measured() -> None:
    torch.manual_seed(2)
    layers = [nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 4)]
    network = decouple(nn.Sequential(*layers).double(), INPUTS.double(), blocks=3, total_steps=1)
    found = measure_alignment(network.blocks, network.head, INPUTS.double(), TARGETS)
    assert all(math.isfinite(one.cosine) for one in found.blocks)
    assert 0 <= found.explained_error_energy <= 1 + 1e-6


def test_nobodys_random_numbers_change_by_a_measurement() -> None:
    network = make_network(noisy_model())
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    expected = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    measure_alignment(network.blocks, network.head, INPUTS, TARGETS)
    found = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    assert found[:2] == expected[:2]
    assert torch.equal(found[2], expected[2])


def test_an_angle_to_what_is_no_number_is_none() -> None:
    """Python's min and max pass over a NaN in one order alone: it would read as no angle at all."""
    infinite = _compare(0, [torch.ones(3)], [torch.tensor([math.inf, 0.0, 1.0])])
    assert math.isnan(infinite.cosine) and math.isnan(infinite.angle_degrees)
    assert _compare(0, [torch.full((9,), 0.1)], [torch.full((9,), 0.1)]).cosine <= 1
