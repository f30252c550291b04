"""Rules that learn ``Q`` and ``P``, against closed forms, backpropagation and exact Jacobians."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.feedback.projection import OjaProjection, PcaProjection, PRule, WholeError
from lowdimfa.feedback.rules import (
    HebbianFeedback,
    ProbedFeedback,
    QRule,
)
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.tickets import Ticket


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def linear_network(lr: float, weight_decay: float, q_rule: str = "hebbian") -> DecoupledNetwork:
    """Return a linear network of two blocks, in which the true feedback is the head's transposed weights."""
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 4, bias=False))
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            weight.copy_(normal(*weight.shape, seed=index) / 3)
    update = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": lr, "weight_decay": weight_decay}))
    return decouple(
        model,
        normal(2, 6),
        blocks=2,
        total_steps=1,
        feedback=FeedbackConfig(tap="identity", q_rule=q_rule),
        training=TrainingConfig(1, loss="mse", update=update),
        task="regression",
    )


def test_a_fixed_rule_draws_weights_of_variance_one_over_r_and_keeps_them() -> None:
    feedback = QRule(4000, 5, generator())
    before = feedback.weights.clone()
    feedback.accumulate(normal(3, 4000), normal(3, 5))
    feedback.accumulate_probe(normal(3, 4000), normal(3, 5))
    feedback.step()
    assert torch.equal(feedback.weights, before)
    assert feedback.weights.grad is None
    assert feedback.weights.var().item() == pytest.approx(1 / 5, rel=0.05)


def test_delivery_is_the_error_through_the_weights() -> None:
    feedback = QRule(7, 3, generator())
    error = normal(2, 5, 3)
    expected = torch.einsum("btr,nr->btn", error, feedback.weights)
    torch.testing.assert_close(feedback.deliver(error), expected)


@pytest.mark.parametrize("positions", [(), (5,)])
def test_the_hebbian_gradient_is_the_correlation_summed_over_micro_batches(
    positions: tuple[int, ...],
) -> None:
    feedback = HebbianFeedback(7, 3, generator())
    drawn = feedback.weights.clone()
    pairs = [(normal(4, *positions, 7, seed=i), normal(4, *positions, 3, seed=9 + i)) for i in range(3)]
    for tapped, error in pairs:
        feedback.accumulate(tapped, error)
    expected = sum(torch.einsum("bn,br->nr", t.reshape(-1, 7), c.reshape(-1, 3)) for t, c in pairs)
    torch.testing.assert_close(feedback.weights.grad, expected)
    assert torch.equal(feedback.weights, drawn)  # constant within a step


@pytest.mark.parametrize("kind", [HebbianFeedback, ProbedFeedback])
def test_learned_feedback_starts_at_the_scale_of_forward_weights(kind: type[HebbianFeedback]) -> None:
    assert kind(2500, 4, generator()).weights.std().item() == pytest.approx(1 / 50, rel=0.05)


def test_with_the_true_weights_a_block_learns_what_backpropagation_teaches() -> None:
    network = linear_network(lr=0.1, weight_decay=0.0)
    block, head = network.blocks[0], network.head
    first, second = (
        block.module.get_parameter("_layers.0.weight"),
        head.module.get_parameter("_layers.0.weight"),
    )
    block.sites[-1].feedback.weights.data.copy_(second.detach().t())
    inputs, targets = normal(16, 6, seed=3), normal(16, 4, seed=4)
    network.form.run(inputs, targets, Ticket(0, 0))

    def loss_of(weight: Tensor) -> Tensor:
        outputs = inputs.double() @ weight.t() @ second.detach().double().t()
        return 0.5 * (outputs - targets.double()).square().sum(-1).mean()

    weight, small = first.detach().double(), 1e-6
    differences = torch.zeros(8, 6)
    for row in range(8):
        for column in range(6):
            shift = torch.zeros(8, 6, dtype=torch.float64)
            shift[row, column] = small
            differences[row, column] = (loss_of(weight + shift) - loss_of(weight - shift)) / (2 * small)
    torch.testing.assert_close(first.grad, differences, rtol=1e-4, atol=1e-5)


def test_hebbian_feedback_converges_to_the_transposed_weights() -> None:
    lr, decay = 0.05, 0.5
    network = linear_network(lr, decay)
    weight = network.head.module.get_parameter("_layers.0.weight")
    feedback = network.blocks[0].sites[-1].feedback.weights
    start = float((feedback - weight.t()).norm().detach())
    teacher = normal(6, 4, seed=5) * 2
    for step in range(100):
        inputs = normal(32, 6, seed=100 + step)
        network.train_step(step, [(inputs, inputs @ teacher)])
    distance = float((feedback - weight.t()).norm().detach())
    assert start > 0.5
    assert distance == pytest.approx(start * (1 - lr * decay) ** 100, rel=1e-3)
    assert float(weight.norm().detach()) > 5 * distance  # the weights themselves don't decay to nothing


@pytest.mark.parametrize("rule", [PRule, OjaProjection, PcaProjection])
def test_at_full_dimension_the_projection_is_and_stays_the_identity(rule: type[PRule]) -> None:
    projection = rule(6, 6, generator())
    error = normal(20, 6)
    for _ in range(3):
        projection.accumulate(error)
        projection.step()
    assert torch.equal(projection.project(error), error)
    assert projection.explained_energy(error) == pytest.approx(1, abs=1e-5)


def test_a_projection_starts_with_orthonormal_rows_and_a_fixed_one_never_moves() -> None:
    projection = PRule(9, 4, generator())
    before = projection.weights.clone()
    torch.testing.assert_close(before @ before.t(), torch.eye(4))
    projection.accumulate(normal(5, 9))
    projection.step()
    assert torch.equal(projection.weights, before)
    torch.testing.assert_close(projection.project(normal(2, 3, 9)), normal(2, 3, 9) @ before.t())


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_ojas_rule_finds_the_principal_subspace_of_the_error_at_any_scale(scale: float) -> None:
    directions, _ = torch.linalg.qr(normal(10, 10, seed=2))
    deviations = torch.tensor([3.0, 2.5, 2.0, *[0.3] * 7])
    projection = OjaProjection(10, 3, generator(), 0.3)
    before = projection.explained_energy(normal(500, 10, seed=1) * deviations @ directions.t())
    for step in range(150):
        for microbatch in range(2):
            drawn = normal(20, 10, seed=1000 + 2 * step + microbatch)
            projection.accumulate(scale * drawn * deviations @ directions.t())
        projection.step()
    rows, principal = projection.weights, directions[:, :3]
    torch.testing.assert_close(rows @ rows.t(), torch.eye(3), rtol=0, atol=0.05)
    basis, _ = torch.linalg.qr(rows.t())
    cosines = torch.linalg.svdvals(basis.t() @ principal)
    assert cosines.min() > 0.99
    error = normal(500, 10, seed=1) * deviations @ directions.t()
    assert projection.explained_energy(error) > max(0.95, before)


def test_ojas_rule_takes_all_micro_batches_of_a_step_as_one_and_forgets_them() -> None:
    whole, parts = (OjaProjection(8, 3, generator(), 0.1) for _ in range(2))
    for step in range(3):
        error = normal(12, 8, seed=step)
        whole.accumulate(error)
        for part in error.chunk(3):
            parts.accumulate(part)
        whole.step()
        parts.step()
    torch.testing.assert_close(whole.weights, parts.weights)
    before = whole.weights.clone()
    whole.step()
    assert torch.equal(whole.weights, before)


def refreshed(seed: int = 0, steps: int = 5, every: int = 1) -> tuple[PcaProjection, Tensor, Tensor]:
    """Return a projection after some steps, its rows before the last of these, and the running correlation."""
    projection, running = PcaProjection(9, 3, generator(seed), p_decay=0.9, p_every=every), torch.zeros(9, 9)
    for step in range(steps):
        before = projection.weights.clone()
        error = normal(20, 9, seed=100 * seed + step) * torch.linspace(2, 0.2, 9)
        for part in error.chunk(2):
            projection.accumulate(part)
        projection.step()
        running = 0.9 * running + error.t() @ error
    return projection, before, running


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_pca_spans_the_leading_eigenvectors_of_the_running_correlation(seed: int) -> None:
    projection, _, running = refreshed(seed)
    rows = projection.weights
    torch.testing.assert_close(rows @ rows.t(), torch.eye(3), rtol=0, atol=1e-5)
    kept = (rows @ running @ rows.t()).trace()
    torch.testing.assert_close(kept, torch.linalg.eigvalsh(running)[-3:].sum(), rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_no_other_basis_of_the_span_is_nearer_to_the_one_before(seed: int) -> None:
    projection, before, _ = refreshed(seed)
    distance = torch.dist(projection.weights, before)
    for turn in range(20):
        rotation, _ = torch.linalg.qr(normal(3, 3, seed=turn))
        assert torch.dist(rotation @ projection.weights, before) >= distance - 1e-5


def test_the_order_and_signs_of_eigenvectors_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = refreshed()[0].weights
    solve = torch.linalg.eigh

    def otherwise(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = solve(matrix)
        return values, torch.cat([vectors[:, :-3], -vectors[:, -3:].flip(1)], 1)

    monkeypatch.setattr(torch.linalg, "eigh", otherwise)
    torch.testing.assert_close(refreshed()[0].weights, expected)


def test_pca_refreshes_early_and_then_at_its_interval() -> None:
    projection, changed = PcaProjection(9, 3, generator(), p_every=10), []
    for step in range(1, 31):
        before = projection.weights.clone()
        projection.accumulate(normal(20, 9, seed=step))
        projection.step()
        if not torch.equal(projection.weights, before):
            changed.append(step)
    assert changed == [1, 2, 4, 8, 10, 20, 30]


def test_pca_goes_on_from_its_state() -> None:
    whole, first, second = (PcaProjection(9, 3, generator(), p_every=4) for _ in range(3))
    for step in range(12):
        for one in (whole, first if step < 6 else second):
            one.accumulate(normal(20, 9, seed=step))
            one.step()
        if step == 5:
            second.weights.copy_(first.weights)
            second.load(first.state())
    assert torch.equal(second.weights, whole.weights)


def test_pca_keeps_its_rows_where_nothing_is_wrong() -> None:
    projection = PcaProjection(9, 3, generator(), p_every=1)
    before = projection.weights.clone()
    projection.accumulate(torch.zeros(4, 9))
    projection.step()
    assert torch.equal(projection.weights, before)


def test_the_whole_error_is_the_identity_without_a_matrix_until_a_turned_one_is_restored() -> None:
    whole, identity, error = WholeError(5), PRule(5, 5, generator()), normal(7, 5)
    assert whole.weights.numel() == 0
    assert torch.equal(whole.project(error), identity.project(error))
    assert whole.explained_energy(error) == pytest.approx(identity.explained_energy(error))
    whole.restore(torch.eye(5))
    assert whole.is_identity
    turned = torch.eye(5).roll(1, 0)
    whole.restore(turned)
    assert torch.equal(whole.project(error), error @ turned.t())
    assert whole.weights.data_ptr() != turned.data_ptr()


@pytest.mark.parametrize("args", [{"p_decay": 1.0}, {"p_decay": -0.1}, {"p_every": 0}])
def test_settings_of_pca_out_of_bounds_are_refused(args: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PcaProjection(9, 3, generator(), **args)  # type: ignore[arg-type]


def test_explained_energy_is_that_of_the_orthogonal_projection() -> None:
    projection = PRule(9, 4, generator())
    inside = normal(20, 4) @ projection.weights
    error = normal(20, 9, seed=1)
    outside = error - error @ projection.weights.t() @ projection.weights
    projection.weights *= 3  # the share is of the row space, whatever the rows' length
    assert projection.explained_energy(inside) == pytest.approx(1, abs=1e-5)
    assert projection.explained_energy(outside) == pytest.approx(0, abs=1e-5)
    energies = inside.square().sum(), outside.square().sum()
    share = float(energies[0] / (energies[0] + energies[1]))
    assert projection.explained_energy(torch.cat([inside, outside])) == pytest.approx(share, rel=1e-4)
    assert projection.explained_energy(torch.zeros(2, 9)) == 0


def test_probes_average_to_the_mean_jacobian_seen_through_the_projection() -> None:
    features, task_dim, error_dim, batch = 8, 5, 3, 64
    rest = nn.Sequential(nn.Tanh(), nn.Linear(features, 6), nn.Tanh(), nn.Linear(6, task_dim))
    for index, parameter in enumerate(rest.parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=index) / math.sqrt(features))
    projection = PRule(task_dim, error_dim, generator(4))
    activity = normal(batch, features, seed=5)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: rest(one)))(activity).detach().mean(0)
    exact = (projection.weights @ jacobian).t()

    def relative_error(probes: int) -> float:
        decay = 1 - 0.5 / probes
        feedback = ProbedFeedback(features, error_dim, generator(6), decay)
        left = feedback.weights.clone() * decay**probes  # of what was drawn
        for probe in range(probes):
            noise = 1e-3 * normal(batch, features, seed=50 + probe)
            with torch.no_grad():
                response = projection.project(rest(activity + noise) - rest(activity))
            feedback.accumulate_probe(noise, response)
            feedback.step()
        mean = (feedback.weights - left) / (1 - decay**probes)
        return float((mean - exact).norm() / exact.norm())

    few, many = relative_error(10), relative_error(1000)
    assert many < 0.03  # without bias the error falls as one over the square root of the probes
    assert many == pytest.approx(few / 10, rel=0.6)


def test_a_probe_draws_the_feedback_weights_towards_its_estimate_at_the_steps_end() -> None:
    feedback = ProbedFeedback(4, 2, generator(), probe_decay=0.75)
    moved, responses = torch.eye(4), [normal(4, 2, seed=seed) for seed in range(3)]
    # For this noise an estimate is the response itself.
    drawn = expected = feedback.weights.clone()
    for response in responses:
        feedback.accumulate_probe(moved, response)
        assert torch.equal(feedback.weights, drawn)  # constant within a step
        expected = 0.75 * expected + 0.25 * response
    feedback.step()
    torch.testing.assert_close(feedback.weights.data, expected)
    feedback.step()
    torch.testing.assert_close(feedback.weights.data, expected)


def test_probed_weights_learn_the_hebbian_way_too() -> None:
    tapped, error = normal(6, 4, seed=1), normal(6, 2, seed=2)
    hebbian, probed = HebbianFeedback(4, 2, generator()), ProbedFeedback(4, 2, generator())
    for feedback in (hebbian, probed):
        feedback.accumulate(tapped, error)
    assert probed.trained_by_optimizer
    assert probed.weights.grad is not None
    assert hebbian.weights.grad is not None
    assert torch.equal(probed.weights.grad, hebbian.weights.grad)


def test_a_probe_of_a_dead_block_teaches_nothing_and_stays_finite() -> None:
    feedback = ProbedFeedback(4, 2, generator(), probe_decay=0.75)
    drawn = feedback.weights.clone()
    feedback.accumulate_probe(torch.zeros(3, 4), normal(3, 2))
    feedback.step()
    torch.testing.assert_close(feedback.weights.data, 0.75 * drawn)


@pytest.mark.parametrize(
    "feedback",
    [
        FeedbackConfig(),
        FeedbackConfig(q_rule="hebbian", p_rule="oja", error_dim=2),
        FeedbackConfig(q_rule="probed"),
        FeedbackConfig(form="local"),
    ],
)
def test_a_network_in_double_precision_learns_whatever_torch_s_default_type_is(
    feedback: FeedbackConfig,
) -> None:
    """Feedback is float32, and drawn alike."""
    drawn = []
    for default in (torch.float32, torch.float64):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)
        ).double()
        x, y = torch.randn(5, 6, dtype=torch.float64), torch.arange(5) % 4
        torch.set_default_dtype(default)
        try:
            network = decouple(model, x, blocks=2, total_steps=2, feedback=feedback)
            results = [network.train_step(step, [(x, y)]) for step in range(2)]
        finally:
            torch.set_default_dtype(torch.float32)
        drawn.append([result.loss for result in results])
    assert drawn[0] == pytest.approx(drawn[1], rel=1e-6)
