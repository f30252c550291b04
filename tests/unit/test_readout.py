"""The readout rule: targets read off the error, the block's own error against autograd, and when it is the default."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.data.base import Task
from lowdimfa.errors import InputError
from lowdimfa.feedback.making import ErrorShape
from lowdimfa.feedback.projection import orthonormal_rows
from lowdimfa.feedback.readout import LocalReadout, ReadoutFeedback, with_classes
from lowdimfa.feedback.resolving import resolve_feedback
from lowdimfa.losses import Loss, make_loss
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.sites import FeedbackSite, deliver
from lowdimfa.taps import FlatTap
from lowdimfa.tickets import Ticket

FEATURES, CLASSES, BATCH = 7, 4, 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def readout(own_error: float, microbatches: int = 1) -> ReadoutFeedback:
    return ReadoutFeedback(FEATURES, CLASSES, torch.Generator().manual_seed(1), own_error, microbatches)


def respond(feedback: ReadoutFeedback, tapped: Tensor, error: Tensor) -> Tensor:
    """Let a site learn from a micro-batch; return what reaches a block's output, the site's tap being the output."""
    output = tapped.clone().requires_grad_()
    deliver([FeedbackSite("0", FlatTap(len(tapped.shape) - 2), feedback)], [output], error)
    assert output.grad is not None
    return output.grad


def output_error(logits: Tensor, targets: Tensor, microbatches: int = 1) -> Tensor:
    """Return what the head broadcasts at ``error_dim`` the task's: the gradient of the step's mean cross-entropy."""
    logits = logits.detach().requires_grad_()
    loss = functional.cross_entropy(logits.flatten(0, -2), targets.flatten()) / microbatches
    return torch.autograd.grad(loss, logits)[0]


def own_gradients(tapped: Tensor, weights: Tensor, targets: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of the readout's own mean cross-entropy at the tap and at ``Q``, by autograd."""
    tapped, weights = tapped.detach().requires_grad_(), weights.detach().clone().requires_grad_()
    loss = functional.cross_entropy((tapped @ weights).flatten(0, -2), targets.flatten()) / parts
    at_tap, at_weights = torch.autograd.grad(loss, (tapped, weights))
    return at_tap, at_weights


@pytest.mark.parametrize("positions", [(), (5,)])
@pytest.mark.parametrize("microbatches", [1, 3])
def test_q_learns_from_the_cross_entropy_of_its_own_prediction(
    positions: tuple[int, ...], microbatches: int
) -> None:
    feedback = readout(0.5, microbatches)
    expected = torch.zeros(FEATURES, CLASSES)
    for part in range(microbatches):
        tapped, logits = (
            normal(BATCH, *positions, width, seed=part + 10 * width) for width in (FEATURES, CLASSES)
        )
        targets = torch.arange(logits[..., 0].numel()).reshape(logits.shape[:-1]) % CLASSES
        expected += own_gradients(tapped, feedback.weights, targets, microbatches)[1]
        respond(feedback, tapped, output_error(logits, targets, microbatches))
    torch.testing.assert_close(feedback.weights.grad, expected)


@pytest.mark.parametrize("own_error", [0.0, 0.25, 1.0])
def test_what_is_delivered_goes_from_the_broadcast_error_to_the_gradient_of_the_own_loss(
    own_error: float,
) -> None:
    feedback = readout(own_error)
    tapped, targets = normal(BATCH, FEATURES), torch.arange(BATCH) % CLASSES
    error = output_error(normal(BATCH, CLASSES, seed=3), targets)
    own = own_gradients(tapped, feedback.weights, targets, 1)[0]
    expected = (1 - own_error) * error @ feedback.weights.t() + own_error * own
    torch.testing.assert_close(respond(feedback, tapped, error), expected)


@given(st.integers(0, 10_000), st.integers(2, 30), st.floats(0.01, 5))
def test_the_one_negative_number_of_an_error_is_that_of_the_target(
    seed: int, classes: int, scale: float
) -> None:
    targets = torch.arange(8) % classes
    error = output_error(scale * normal(8, classes, seed=seed), targets)
    assert torch.equal(error.argmin(-1), targets)
    # Where the softmax is 1 as far as single precision goes, the target's own error is 0.
    assert torch.equal((error < 0).sum(-1), (error.amin(-1) < 0).long())


def test_a_token_without_an_error_teaches_nothing() -> None:
    feedback = readout(1.0)
    error = output_error(normal(2, 3, CLASSES), torch.tensor([[0, -100, 2], [-100, -100, 1]]))
    learned, delivered = feedback.errors(normal(2, 3, FEATURES), error)
    ignored = torch.tensor([[False, True, False], [True, True, False]])
    for found in (learned, delivered):
        assert torch.equal((found == 0).all(-1), ignored)


def decoupled(loss: str | Loss = "auto", **feedback: Any) -> DecoupledNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(3)), nn.Linear(5, CLASSES)
    )
    training = TrainingConfig(2, loss=loss)
    given = FeedbackConfig(**feedback)
    return decouple(model, normal(2, 5), blocks=4, total_steps=2, feedback=given, training=training)


def test_with_its_own_error_alone_a_block_learns_as_from_a_greedy_local_loss() -> None:
    broadcast, local = decoupled(q_rule="readout", own_error=1.0), decoupled(form="local")
    inputs, targets = normal(BATCH, 5, seed=2), torch.arange(BATCH) % CLASSES
    for one, other in zip(broadcast.blocks, local.blocks, strict=True):
        other.sites[-1].feedback.weights.data.copy_(one.sites[-1].feedback.weights)
    for network in (broadcast, local):
        network.form.run(inputs, targets, Ticket(0, 0))
    for one, other in zip(broadcast.blocks, local.blocks, strict=True):
        torch.testing.assert_close(one.sites[-1].feedback.weights.grad, other.sites[-1].feedback.weights.grad)
        for mine, theirs in zip(one.module.parameters(), other.module.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)


def test_a_local_readout_predicts_from_the_tap_with_unit_variance() -> None:
    predictor = LocalReadout(500, 4, torch.Generator().manual_seed(0))
    prediction = predictor.predict(normal(200, 500, seed=3))
    assert prediction.shape == (200, 4)
    assert prediction.std().item() == pytest.approx(1, rel=0.15)
    assert predictor.weights.requires_grad


@pytest.mark.parametrize("feedback", [{"q_rule": "readout"}, {"q_rule": "hebbian"}, {"form": "local"}])
def test_learned_weights_for_every_pixel_start_at_zero(feedback: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sequential(nn.Flatten(), nn.Linear(48, 4)))
    network = decouple(
        model, normal(2, 1, 6, 6), blocks=2, total_steps=1, feedback=FeedbackConfig(**feedback)
    )
    assert not network.blocks[0].sites[-1].feedback.weights.any()


class Focal(nn.CrossEntropyLoss):
    """A user's loss, which is another one."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2 * super().forward(outputs, targets)


TORCHS = nn.CrossEntropyLoss()


def resolved(
    rule: str, error_dim: int, task: Task, loss: str | Loss = "auto", p_rule: str = "fixed"
) -> object:
    feedback = FeedbackConfig(q_rule=rule, p_rule=p_rule)
    training = TrainingConfig(1, loss=loss)
    return resolve_feedback(feedback, ErrorShape(CLASSES, error_dim, 0, 1), training, task).q_rule


@pytest.mark.parametrize(
    ("error_dim", "task", "loss", "expected"),
    [
        (CLASSES, "classification", "auto", "readout"),
        (CLASSES, "tokens", "auto", "readout"),
        (CLASSES, "classification", "cross_entropy", "readout"),
        (CLASSES - 1, "classification", "auto", "readout"),
        (1, "tokens", "auto", "readout"),
        (1, "regression", "auto", "hebbian"),
        (1, "classification", "mse", "hebbian"),
        (CLASSES, "regression", "auto", "hebbian"),
        (CLASSES, "classification", "mse", "hebbian"),
        (CLASSES, "classification", "torch.nn.functional:cross_entropy", "readout"),
        (1, "classification", functional.cross_entropy, "readout"),
        (1, "classification", nn.CrossEntropyLoss(), "readout"),
        (1, "classification", f"{__name__}:TORCHS", "readout"),
        (1, "classification", nn.CrossEntropyLoss(label_smoothing=0.1), "hebbian"),
        (1, "classification", nn.CrossEntropyLoss(torch.ones(CLASSES)), "hebbian"),
        (1, "classification", nn.CrossEntropyLoss(reduction="sum"), "hebbian"),
        (1, "classification", Focal(), "hebbian"),
        (1, "tokens", nn.CrossEntropyLoss(), "hebbian"),  # its classes are in another dimension
        (1, "regression", functional.cross_entropy, "hebbian"),  # of probabilities
    ],
)
def test_the_default_is_the_readout_where_blocks_can_be_told_the_targets(
    error_dim: int, task: Task, loss: str | Loss, expected: str
) -> None:
    assert resolved("auto", error_dim, task, loss) == expected
    assert resolved("hebbian", error_dim, task, loss) == "hebbian"
    if expected == "readout":
        assert resolved("readout", error_dim, task, loss) == "readout"
    else:
        with pytest.raises(InputError, match=r"feedback\.q_rule: found 'readout' with") as refusal:
            resolved("readout", error_dim, task, loss)
        assert "'auto' takes 'hebbian' elsewhere." in refusal.value.message


@pytest.mark.parametrize("p_rule", ["oja", "pca"])
def test_below_the_tasks_dimension_the_readout_needs_a_projection_that_blocks_have(p_rule: str) -> None:
    assert resolved("auto", 2, "classification", p_rule=p_rule) == "hebbian"
    assert resolved("auto", CLASSES, "classification", p_rule=p_rule) == "readout"
    with pytest.raises(
        InputError, match=rf"with 2 of 4 error numbers and p_rule '{p_rule}'; expected 'readout'"
    ):
        resolved("readout", 2, "classification", p_rule=p_rule)


def narrow(projection: Tensor, own_error: float = 0.5, microbatches: int = 1) -> ReadoutFeedback:
    return ReadoutFeedback(
        FEATURES, CLASSES, torch.Generator().manual_seed(1), own_error, microbatches, projection
    )


@pytest.mark.parametrize("positions", [(), (5,)])
@pytest.mark.parametrize("error_dim", [1, 2, 3])
def test_with_the_class_beside_the_error_it_learns_as_from_the_whole_one(
    positions: tuple[int, ...], error_dim: int
) -> None:
    """`Q` learns the same; what is delivered has what `P` keeps of the error in place of all of it."""
    projection = orthonormal_rows(error_dim, CLASSES, torch.Generator().manual_seed(2))
    whole, part = readout(0.25), narrow(projection, 0.25)
    tapped, logits = (normal(BATCH, *positions, width, seed=width) for width in (FEATURES, CLASSES))
    targets = torch.arange(logits[..., 0].numel()).reshape(logits.shape[:-1]) % CLASSES
    targets.flatten()[1] = -100  # doesn't count
    error = output_error(logits, targets)
    sent = with_classes(error @ projection.t(), error)
    assert sent.shape[-1] == part.received == error_dim + 1
    assert torch.equal(sent[..., -1].long(), targets.where(targets >= 0, -1))
    expected, found = whole.errors(tapped, error), part.errors(tapped, sent)
    torch.testing.assert_close(found.learned, expected.learned)
    kept = error @ projection.t() @ projection
    torch.testing.assert_close(found.delivered, 0.75 * kept + 0.25 * expected.learned)


def test_what_a_projection_loses_nothing_of_is_delivered_as_it_is() -> None:
    """Errors of a softmax add up to 0: rows that span all such errors keep all of them."""
    _, rows = torch.linalg.eigh(torch.eye(CLASSES) - 1 / CLASSES)
    projection = rows[:, 1:].t()
    tapped, targets = normal(BATCH, FEATURES), torch.arange(BATCH) % CLASSES
    error = output_error(normal(BATCH, CLASSES, seed=3), targets)
    found = respond(narrow(projection), tapped, with_classes(error @ projection.t(), error))
    torch.testing.assert_close(found, respond(readout(0.5), tapped, error))


class Unprojected(ReadoutFeedback):
    def __init__(self, features: int, error_dim: int, generator: torch.Generator) -> None:
        super().__init__(features, error_dim, generator)


@pytest.mark.parametrize("error_dim", [1, CLASSES - 1])
def test_a_readout_of_ones_own_without_the_projection_is_refused_below_the_tasks_dimension(
    error_dim: int,
) -> None:
    """With one number fewer than classes, the class would be taken for the last class's error."""
    path = f"{__name__}:{Unprojected.__name__}"
    with pytest.raises(InputError, match=r"feedback\.q_rule: .* takes no 'projection'"):
        decoupled(q_rule=path, error_dim=error_dim)
    decoupled(q_rule=path)


@pytest.mark.parametrize("every_layer", [False, True])
def test_blocks_have_the_heads_projection_and_learn_at_any_dimension(every_layer: bool) -> None:
    network = decoupled(error_dim=1, every_layer=every_layer)
    for stage in network.stages:
        for site in stage.sites:
            assert isinstance(site.feedback, ReadoutFeedback)
            assert site.feedback.weights.shape[-1] == CLASSES
            assert torch.equal(site.feedback.projection, network.head.projection.weights)  # type: ignore[arg-type]
    inputs, targets = normal(64, 5, seed=2), torch.arange(64) % CLASSES
    sent = network.head.forward(normal(64, 5, seed=3), targets, Ticket(0, 0))
    assert torch.equal(sent.error[:, -1].long(), targets)
    losses = [network.train_step(step, [(inputs, targets)]).loss for step in range(2)]
    assert losses[1] < losses[0]


def test_where_the_default_is_the_readout_the_error_is_a_softmax_less_a_one_hot_vector() -> None:
    """The condition of the default, and the loss that it stands for, are in two places: here they meet."""
    logits, targets = normal(BATCH, CLASSES).requires_grad_(), torch.arange(BATCH) % CLASSES
    loss = make_loss("auto", "classification")(logits, targets)
    error = torch.autograd.grad(loss, logits)[0] * BATCH
    expected = logits.detach().softmax(-1) - functional.one_hot(targets, CLASSES)
    torch.testing.assert_close(error, expected)


@pytest.mark.parametrize(
    "loss", [functional.cross_entropy, nn.CrossEntropyLoss(), "torch.nn.functional.cross_entropy"]
)
def test_torchs_own_cross_entropy_trains_to_the_bits_of_the_built_in_one(loss: str | Loss) -> None:
    inputs, targets = normal(32, 5, seed=2), torch.arange(32) % CLASSES
    targets[3] = -100
    found = []
    for each in ("cross_entropy", loss):
        network = decoupled(each, error_dim=2)
        losses = [network.train_step(step, [(inputs, targets)]).loss for step in range(2)]
        found.append((losses, network.state_dict()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


@pytest.mark.parametrize("loss", [functional.cross_entropy, "torch.nn.functional:cross_entropy"])
def test_torchs_own_cross_entropy_leaves_out_the_class_that_it_says(loss: str | Loss) -> None:
    with pytest.raises(
        InputError, match=r"train\.ignore_index: found 1, with a loss whose ignore_index is -100"
    ):
        make_loss(loss, "classification", 1)


def test_over_positions_torchs_own_cross_entropy_keeps_its_meaning() -> None:
    """It has the classes in the second dimension, and the built-in one in the last."""
    logits, targets = normal(BATCH, CLASSES, CLASSES), torch.arange(BATCH * CLASSES).view(BATCH, -1) % CLASSES
    loss = make_loss(nn.CrossEntropyLoss(), "tokens")(logits, targets)
    assert loss == functional.cross_entropy(logits, targets)
    assert loss != make_loss("cross_entropy", "tokens")(logits, targets)
