"""The head: the error it makes, its projection, its own gradient, and what it counts."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.build import build_head
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.data.base import Task
from lowdimfa.errors import InputError, NotFiniteError
from lowdimfa.feedback.resolving import error_shape
from lowdimfa.head import Evaluation, Head
from lowdimfa.loss_check import checked_loss
from lowdimfa.losses import Loss, make_loss, right_predictions, validate_class_targets
from lowdimfa.partitioning import partition
from lowdimfa.tickets import Ticket

FIRST = Ticket(0, 0)
BATCH, TOKENS, CLASSES = 12, 5, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(seed))


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of a user's own."""
    return (outputs - targets).abs().mean()


def steep(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that is finite where its slope isn't."""
    return (outputs * 0).sqrt().sum()


def careless(outputs: Tensor, targets: Tensor) -> Tensor:
    """A user's loss with a bug."""
    return {"outputs": outputs}["targets"]


def make_head(
    loss: str | Loss = "auto",
    task: Task = "classification",
    *,
    tokens: bool = False,
    body: nn.Module | None = None,
    feedback: FeedbackConfig | None = None,
    microbatches: int = 1,
) -> Head:
    """Return a head on 6 features (per token) with 4 outputs."""
    torch.manual_seed(5)
    body = body or nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    example = normal(3, TOKENS, 6) if tokens else normal(3, 6)
    plans = partition(nn.Sequential(body), 1, example)
    feedback = feedback or FeedbackConfig()
    update = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.1}))
    training = TrainingConfig(total_steps=10, microbatches=microbatches, loss=loss, update=update)
    return build_head(plans[0], error_shape(plans, feedback), feedback, training, task)


CASES: dict[str, tuple[str, Task, bool, Tensor]] = {
    "cross-entropy": ("auto", "classification", False, classes(BATCH)),
    "per token": ("auto", "tokens", True, classes(BATCH, TOKENS)),
    "mse": ("auto", "regression", False, normal(BATCH, CLASSES, seed=2)),
    "bce": ("bce", "regression", False, torch.rand(BATCH, CLASSES)),
    "a user's": (f"{__name__}:absolute_error", "regression", False, normal(BATCH, CLASSES, seed=2)),
}
each_case = pytest.mark.parametrize("case", CASES)


def closed_form(case: str, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return a case's mean loss and its gradient by the outputs, as written on paper."""
    if case in ("cross-entropy", "per token"):
        one_hot = functional.one_hot(targets, CLASSES)
        losses = -(one_hot * outputs.log_softmax(-1)).sum(-1)
        return losses.mean(), (outputs.softmax(-1) - one_hot) / targets.numel()
    if case == "mse":
        return 0.5 * (outputs - targets).square().sum() / BATCH, (outputs - targets) / BATCH
    if case == "bce":
        likelihoods = targets * outputs.sigmoid().log() + (1 - targets) * (1 - outputs.sigmoid()).log()
        return -likelihoods.sum() / BATCH, (outputs.sigmoid() - targets) / BATCH
    return (outputs - targets).abs().mean(), (outputs - targets).sign() / outputs.numel()


def inputs_of(tokens: bool) -> Tensor:
    return normal(BATCH, TOKENS, 6) if tokens else normal(BATCH, 6)


@each_case
def test_the_error_is_the_gradient_of_the_mean_loss(case: str) -> None:
    loss, task, tokens, targets = CASES[case]
    head = make_head(loss, task, tokens=tokens)
    sent = head.forward(inputs_of(tokens), targets, FIRST)
    expected_loss, expected_error = closed_form(case, head.evaluate(inputs_of(tokens)), targets)
    torch.testing.assert_close(sent.error, expected_error)  # P is the identity where r = m
    assert float(sent.loss) == pytest.approx(float(expected_loss), rel=1e-5)
    assert not sent.error.requires_grad
    assert sent.response is None


@each_case
@pytest.mark.parametrize("microbatches", [2, 4])
def test_errors_of_micro_batches_are_those_of_the_whole_batch(case: str, microbatches: int) -> None:
    loss, task, tokens, targets = CASES[case]
    whole = make_head(loss, task, tokens=tokens)
    cut = make_head(loss, task, tokens=tokens, microbatches=microbatches)
    inputs = inputs_of(tokens)
    expected = whole.forward(inputs, targets, FIRST)
    parts = [
        cut.forward(*pair, Ticket(0, index))
        for index, pair in enumerate(
            zip(inputs.chunk(microbatches), targets.chunk(microbatches), strict=True)
        )
    ]
    torch.testing.assert_close(torch.cat([part.error for part in parts]), expected.error)
    assert float(sum(part.loss for part in parts)) / microbatches == pytest.approx(
        float(expected.loss), rel=1e-5
    )
    assert sum(part.correct for part in parts) == expected.correct
    for one, other in zip(whole.module.parameters(), cut.module.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


@each_case
def test_the_heads_own_gradient_is_exact(case: str) -> None:
    loss, task, tokens, targets = CASES[case]
    head = make_head(loss, task, tokens=tokens)
    outputs = head.module(inputs_of(tokens))
    expected = torch.autograd.grad(make_loss(loss, task)(outputs, targets), list(head.module.parameters()))
    inputs = inputs_of(tokens).requires_grad_()
    head.forward(inputs, targets, FIRST)
    torch.testing.assert_close([parameter.grad for parameter in head.module.parameters()], list(expected))
    assert inputs.grad is None


@pytest.mark.parametrize("tokens", [False, True])
def test_the_broadcast_is_the_projected_error(tokens: bool) -> None:
    task: Task = "tokens" if tokens else "classification"
    head, full = (
        make_head(task=task, tokens=tokens, feedback=FeedbackConfig(error_dim=r)) for r in (2, None)
    )
    targets = classes(BATCH, TOKENS) if tokens else classes(BATCH)
    sent = head.forward(inputs_of(tokens), targets, FIRST).error
    error = full.forward(inputs_of(tokens), targets, FIRST).error
    assert sent.shape == (*targets.shape, 2)
    torch.testing.assert_close(sent, error @ head.projection.weights.t())


def test_oja_learns_from_the_error_itself_at_the_steps_end() -> None:
    head = make_head(feedback=FeedbackConfig(error_dim=2, p_rule="oja", p_lr=0.5))
    _, error = head.output_error(head.evaluate(normal(BATCH, 6)), classes(BATCH))
    before = head.projection.weights.clone()
    head.forward(normal(BATCH, 6), classes(BATCH), FIRST)
    assert torch.equal(head.projection.weights, before)
    head.step()
    correlation = error.t() @ error
    correlation /= correlation.trace()
    expected = before + 0.5 * before @ correlation @ (torch.eye(CLASSES) - before.t() @ before)
    torch.testing.assert_close(head.projection.weights, expected)


def test_a_probe_measures_the_projected_change_of_the_output_and_changes_nothing() -> None:
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, CLASSES))
    feedback = FeedbackConfig(error_dim=3)
    probed, plain = (make_head(body=body, feedback=feedback) for _ in range(2))
    inputs, moved = normal(BATCH, 6), normal(BATCH, 6) + 0.1 * normal(BATCH, 6, seed=3)
    sent = probed.forward(inputs, classes(BATCH), FIRST, moved)
    buffers = {name: buffer.clone() for name, buffer in probed.module.named_buffers()}
    gradients = [parameter.grad for parameter in probed.module.parameters()]
    change = plain.run(moved, FIRST) - plain.run(inputs, FIRST)
    assert sent.response is not None
    torch.testing.assert_close(sent.response, (change @ probed.projection.weights.t()).detach())
    assert int(buffers["_layers.0.1.num_batches_tracked"]) == 1
    assert torch.equal(plain.forward(inputs, classes(BATCH), FIRST).error, sent.error)
    torch.testing.assert_close(
        [parameter.grad for parameter in plain.module.parameters()], gradients, rtol=0, atol=0
    )


def test_an_evaluation_sums_over_batches_of_any_size() -> None:
    head = make_head()
    inputs, targets = normal(BATCH, 6), classes(BATCH)
    totals = Evaluation()
    for part in (slice(0, 7), slice(7, 12)):
        head.evaluate_outputs(inputs[part], targets[part], totals)
    outputs = head.evaluate(inputs)
    right = int((outputs.argmax(-1) == targets).sum())
    assert (totals.samples, totals.counted, totals.correct) == (BATCH, BATCH, right)
    assert totals.loss == pytest.approx(float(functional.cross_entropy(outputs, targets)), rel=1e-5)
    assert totals.accuracy == right / BATCH
    assert head.forward(inputs, targets, FIRST).correct == right
    assert Evaluation().accuracy is None


@pytest.mark.parametrize(("loss", "what"), [("auto", "loss"), (f"{__name__}:steep", "error")])
def test_what_is_not_finite_names_the_head_and_the_step(loss: str, what: str) -> None:
    head = make_head(loss, body=nn.Sequential(nn.Linear(6, CLASSES, bias=False)))
    inputs = normal(BATCH, 6) if what == "error" else torch.full((BATCH, 6), torch.inf)
    with pytest.raises(NotFiniteError, match=rf"the {what} is not finite at step 3 in the head") as caught:
        head.forward(inputs, classes(BATCH), Ticket(3, 0))
    assert (caught.value.block, caught.value.step) == (0, 3)


@pytest.mark.parametrize(
    "targets", [torch.tensor([0, 4]), torch.tensor([-1, 2]), torch.tensor([[0, 1], [9, 0]])]
)
def test_class_targets_without_an_output_are_refused(targets: Tensor) -> None:
    with pytest.raises(InputError, match=r"model\.args: found an output of 4 classes"):
        validate_class_targets(targets, 4)


@pytest.mark.parametrize(
    "targets", [torch.tensor([0, 3]), torch.tensor([7.5]), torch.tensor([], dtype=torch.int64)]
)
def test_other_targets_are_accepted(targets: Tensor) -> None:
    validate_class_targets(targets, 4)


@pytest.mark.parametrize(
    ("outputs", "targets", "task", "expected"),
    [
        (torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([1, 1]), "classification", (1, 2)),
        (torch.eye(3).expand(2, 3, 3), torch.tensor([[0, 1, 2], [0, 0, 0]]), "tokens", (4, 6)),
        (torch.eye(2), torch.tensor([0, 1]), "regression", (0, 0)),
        (torch.eye(2), torch.eye(2), "classification", (0, 0)),
        (torch.rand(3, 2), torch.ones(3, 2, dtype=torch.int64), "tokens", (0, 0)),  # several labels each
        (torch.rand(3, 1), torch.ones(3, dtype=torch.int64), "classification", (0, 0)),  # one logit
    ],
)
def test_only_a_class_for_each_prediction_is_counted(
    outputs: Tensor, targets: Tensor, task: Task, expected: tuple[int, int]
) -> None:
    right, counted = right_predictions(outputs, targets, task)
    assert (int(right), int(counted)) == expected


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "message"),
    [
        (
            "cross_entropy",
            torch.zeros(2, 3),
            torch.zeros(5, dtype=torch.int64),
            "a loss that fails on outputs",
        ),
        ("mse", torch.zeros(2, 3), torch.zeros(2), r"outputs \(2, 3\) .* targets \(2,\)"),
        (f"{__name__}:absolute_error", torch.zeros(2, 3), torch.zeros(5), "a loss that fails on outputs"),
        (f"{__name__}:careless", torch.zeros(2, 3), torch.zeros(5), "a loss that fails on outputs"),
        ("torch.sub", torch.zeros(2, 3), torch.zeros(2, 3), r"shape \(2, 3\); expected a scalar tensor"),
        ("math:hypot", torch.tensor(1.0), torch.tensor(1.0), "returns float; expected a scalar tensor"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(
    name: str, outputs: Tensor, targets: Tensor, message: str
) -> None:
    loss = make_loss(name, "classification")
    with pytest.raises(InputError, match=rf"^train\.loss: found .*({message})"):
        checked_loss(loss, outputs, targets)


def broadcasting_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """A user's loss: it compares all outputs with all targets where those lack a dimension."""
    return (outputs - targets).square().mean()


def broadcasting_distance(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets.float()).abs().mean()


def squeezed(outputs: Tensor, targets: Tensor) -> Tensor:
    """A user's loss that knows of the missing dimension."""
    return functional.binary_cross_entropy_with_logits(outputs.squeeze(-1), targets.float())


def masked(outputs: Tensor, targets: Tensor) -> Tensor:
    """As above, over what counts: the mean depends on how much of the others' targets does."""
    counted = targets != -100
    return squeezed(outputs.squeeze(-1)[counted].unsqueeze(-1), targets[counted])


def clamping(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs.clamp_(-1, 1), targets)


def clamping_unseen(outputs: Tensor, targets: Tensor) -> Tensor:
    outputs.data.add_(1)
    return functional.mse_loss(outputs, targets)


def marking(outputs: Tensor, targets: Tensor) -> Tensor:
    targets[targets == 0] = 1
    return functional.mse_loss(outputs, targets)


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.functional.mse_loss",
        "torch.nn.functional.l1_loss",
        "torch.nn.functional.huber_loss",
        "torch.nn.functional.smooth_l1_loss",
        f"{__name__}:broadcasting_squares",
        f"{__name__}:broadcasting_distance",
    ],
)
@pytest.mark.parametrize("targets", [torch.arange(5.0) - 1, torch.arange(5)])
def test_a_loss_that_broadcasts_is_refused_with_both_shapes(name: str, targets: Tensor) -> None:
    with pytest.raises(InputError, match=r"^train\.loss: .*outputs \(5, 1\) .* targets \(5,\)") as refusal:
        checked_loss(make_loss(name, "regression"), torch.zeros(5, 1), targets)
    assert "broadcast" in refusal.value.message
    checked_loss(make_loss(name, "regression"), torch.zeros(5, 1), targets.unsqueeze(1).float())


def test_losses_that_reshape_themselves_are_taken() -> None:
    targets = torch.tensor([[0, 1, 1], [1, -100, 0]])
    checked_loss(squeezed, torch.zeros(5, 1), torch.tensor([0, 1, 1, 0, 1]))
    checked_loss(masked, torch.zeros(2, 3, 1), targets, targets != -100)
    for name in ("mse", "bce"):
        checked_loss(make_loss(name, "regression"), torch.zeros(5, 1), torch.rand(5))


def squares_of_the_known(outputs: Tensor, targets: Tensor) -> Tensor:
    known = ~targets.isnan()
    return functional.mse_loss(outputs.reshape(targets.shape)[known], targets[known])


def squares_of_the_known_broadcast(outputs: Tensor, targets: Tensor) -> Tensor:
    known = ~targets.isnan()
    return ((outputs - targets.nan_to_num()).square() * known).mean()


def test_losses_that_leave_out_missing_numbers_are_taken() -> None:
    """NaN is equal to nothing, not to itself: it looked as if the loss had written to the targets."""
    checked_loss(squares_of_the_known, torch.zeros(5, 2), torch.tensor([[0.5, math.nan]] * 5))
    some = torch.tensor([1.0, math.nan, 2.0, 0.0, 0.5])
    checked_loss(squares_of_the_known, torch.zeros(5, 1), some)
    with pytest.raises(InputError, match="compares the output of one sample with the targets of others"):
        checked_loss(squares_of_the_known_broadcast, torch.zeros(5, 1), some)


def test_truth_values_go_with_one_output_each() -> None:
    """Torch doesn't subtract them, as was tried to find out whether the loss broadcasts."""
    checked_loss(make_loss("bce", "classification"), torch.zeros(3, 1), torch.tensor([True, False, True]))


@pytest.mark.parametrize("name", ["mse", "bce"])
def test_built_in_losses_refuse_targets_of_another_shape_with_as_many_numbers(name: str) -> None:
    with pytest.raises(InputError, match=r"outputs \(5, 2, 3\) .* targets \(5, 3, 2\).*different shapes"):
        checked_loss(make_loss(name, "regression"), torch.zeros(5, 2, 3), torch.rand(5, 3, 2))


@pytest.mark.parametrize(
    ("loss", "what"), [(clamping, "outputs"), (clamping_unseen, "outputs"), (marking, "targets")]
)
def test_a_loss_that_writes_in_place_is_refused(loss: Loss, what: str) -> None:
    with pytest.raises(InputError, match=rf"^train\.loss: found a loss that writes to the {what} in place"):
        checked_loss(loss, torch.zeros(5, 1), torch.arange(5.0).unsqueeze(1))


def root_of_the_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs.squeeze(1), targets).sqrt()


def concordance(outputs: Tensor, targets: Tensor) -> Tensor:
    """A user's loss over the whole batch, in which no sample has a loss of its own."""
    outputs = outputs.flatten()
    apart = (outputs - targets).square().mean()
    return apart / (outputs.var() + targets.var() + (outputs.mean() - targets.mean()).square())


@pytest.mark.parametrize("loss", [root_of_the_mean, concordance])
@pytest.mark.parametrize("targets", [torch.arange(5.0) - 1, torch.tensor([3.0, 3.0, 700.0, 3.0, 3.0])])
def test_losses_over_the_whole_batch_are_taken(loss: Loss, targets: Tensor) -> None:
    """The first sample's gradient depends on the others' targets, though nothing is broadcast."""
    checked_loss(loss, torch.zeros(5, 1), targets)


class Penalised(nn.Module):
    """A user's loss with a temperature, called by one of its methods."""

    def __init__(self, trained: bool = True) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()), requires_grad=trained)

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs / self.temperature, targets)


def losses_with_parameters() -> dict[str, Loss]:
    layer, own = nn.Linear(3, 3), Penalised()

    def penalised(outputs: Tensor, targets: Tensor, weight: float = 1e-4) -> Tensor:
        return functional.cross_entropy(outputs, targets) + weight * layer.weight.abs().sum()

    derived = own.temperature.exp()
    return {
        "closure": penalised,
        "partial": partial(penalised, weight=0.1),
        "method": own.value,
        "derived": lambda outputs, targets: functional.cross_entropy(derived * outputs, targets),
        "alone": lambda outputs, targets: layer.bias.square().mean(),
        "itself": lambda outputs, targets: own.temperature,
    }


@pytest.mark.parametrize("case", losses_with_parameters())
def test_a_loss_that_depends_on_parameters_beside_the_outputs_is_refused(case: str) -> None:
    """The error is the gradient at the outputs: such a penalty would be a constant."""
    with pytest.raises(
        InputError, match=r"^train\.loss: found a loss that depends on parameters .*weight_decay"
    ):
        checked_loss(losses_with_parameters()[case], torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))


def test_a_loss_that_depends_on_what_is_fixed_is_taken() -> None:
    checked_loss(Penalised(trained=False).value, torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(InputError, match="a loss that doesn't depend on the outputs"):
        checked_loss(lambda outputs, targets: torch.ones(()), torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))


def test_a_loss_may_make_a_tensor_to_begin_with() -> None:
    def summed(outputs: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), requires_grad=True)
        for output, target in zip(outputs, targets, strict=True):
            total = total + functional.cross_entropy(output, target) / len(targets)
        return total

    value = checked_loss(summed, torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    assert float(value) == pytest.approx(math.log(3))


def test_a_loss_that_remembers_what_it_saw_is_refused_wherever_it_does() -> None:
    seen: list[float] = []

    def adapting(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(1.0)
        return functional.cross_entropy(outputs, targets) * (1 + len(seen))

    with pytest.raises(InputError, match="calls change a state of its own"):
        checked_loss(adapting, normal(4, 3), torch.tensor([0, 1, 2, 0]))
    noisy = nn.Sequential(nn.Dropout())  # drawn anew, but no state

    def dropping(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(noisy(outputs), targets)

    checked_loss(dropping, normal(4, 3), torch.tensor([0, 1, 2, 0]))


class Balanced(nn.Module):
    """A user's loss: it weighs classes by how often they came, and smooths in training alone."""

    def __init__(self, moves: bool = True) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(CLASSES))
        self.moves = moves
        self.fixed = nn.Dropout().eval()
        self.inner = nn.Identity()

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.moves:
            self.seen += torch.bincount(targets, minlength=CLASSES)
        smoothing = 0.2 if self.inner.training else 0.0
        weights = self.seen / self.seen.sum()
        return functional.cross_entropy(self.fixed(outputs), targets, weights, label_smoothing=smoothing)


def test_a_loss_whose_calls_move_a_buffer_is_refused_and_left_as_it_was() -> None:
    """Evaluations would move it too, and no checkpoint has it."""
    moving = Balanced()
    with pytest.raises(InputError, match="calls change a state of its own, 'seen'"):
        checked_loss(moving, torch.zeros(BATCH, CLASSES), classes(BATCH))
    assert torch.equal(moving.seen, torch.ones(CLASSES))
    checked_loss(Balanced(moves=False), torch.zeros(BATCH, CLASSES), classes(BATCH))


def test_a_loss_is_in_evaluation_mode_where_layers_are() -> None:
    head = make_head(Balanced(moves=False))
    inputs, targets = normal(BATCH, 6), classes(BATCH)
    loss, totals = head.objective.loss, Evaluation()
    assert isinstance(loss, Balanced)
    expected = functional.cross_entropy(head.evaluate(inputs), targets)
    head.evaluate_outputs(inputs, targets, totals)
    assert totals.loss == pytest.approx(float(expected), rel=1e-5)
    assert loss.training and loss.inner.training and not loss.fixed.training
    trained = float(head.forward(inputs, targets, FIRST).loss)
    smoothed = functional.cross_entropy(head.evaluate(inputs), targets, label_smoothing=0.2)
    assert trained == pytest.approx(float(smoothed), rel=1e-5)


@pytest.mark.parametrize("wrapped", [lambda loss: loss.forward, lambda loss: partial(loss.forward)])
def test_so_is_one_of_which_a_method_is_the_loss(wrapped: Any) -> None:
    loss = Balanced(moves=False)
    objective = make_head(wrapped(loss)).objective
    own = objective.loss.func if isinstance(objective.loss, partial) else objective.loss
    with objective.evaluating():
        assert not own.__self__.inner.training
    assert own.__self__.inner.training


def test_a_loss_that_fits_gives_its_value() -> None:
    value = checked_loss(make_loss("auto", "classification"), torch.zeros(2, 4), torch.tensor([0, 3]))
    assert float(value) == pytest.approx(math.log(4))


@pytest.mark.parametrize("name", ["crossentropy", "nowhere:loss", "torch.nn.functional.no_such_loss"])
def test_an_unknown_loss_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"^train\.loss: found "):
        make_loss(name, "classification")


def test_state_round_trip() -> None:
    feedback = FeedbackConfig(error_dim=2, p_rule="oja", p_lr=0.5)
    original, restored = (make_head(feedback=feedback) for _ in range(2))
    for head, steps in ((original, range(3)), (restored, range(0))):
        for step in steps:
            head.forward(normal(BATCH, 6, seed=step), classes(BATCH), Ticket(step, 0))
            head.step()
    restored.load(
        {name: value.clone() for name, value in original.state().tensors.items()}, original.state().scalars
    )
    one, other = (head.forward(normal(BATCH, 6), classes(BATCH), FIRST) for head in (original, restored))
    assert torch.equal(one.error, other.error)
    assert one.loss == other.loss


def test_a_loss_that_counts_what_is_to_be_ignored_is_refused() -> None:
    """Else parts of a batch would weigh as if it didn't, and accuracy would leave those targets out."""
    targets = torch.tensor([3, -100, 7, -100])

    def scaled(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.smooth_l1_loss(outputs.squeeze(1), targets.float() / 100)

    with pytest.raises(InputError, match=r"train\.ignore_index: found a number that is among the targets"):
        checked_loss(scaled, torch.zeros(4, 1), targets, targets != -100)
    checked_loss(scaled, torch.zeros(4, 1), targets, targets != -99)
    classes = torch.tensor([[0, -100, 2], [-100, 1, 0]])
    checked_loss(
        lambda outputs, targets: functional.cross_entropy(outputs.movedim(-1, 1), targets),
        torch.zeros(2, 3, 4),
        classes,
        classes != -100,
    )
    checked_loss(functional.cross_entropy, torch.zeros(2, 4, 3), classes, classes != -100)
    with pytest.raises(InputError, match="a loss that counts it"):
        checked_loss(
            lambda outputs, targets: functional.cross_entropy(outputs, targets.clamp(min=0)),
            torch.zeros(2, 4, 3),
            classes,
            classes != -100,
        )


def test_a_loss_with_the_classes_second_is_refused_where_accuracy_would_take_positions_for_them() -> None:
    targets = torch.tensor([[0, 1, 2, 3], [3, 3, 1, 0]])
    with pytest.raises(InputError, match="takes the classes in the second dimension"):
        checked_loss(functional.cross_entropy, torch.zeros(2, 4, 4), targets)
    checked_loss(functional.cross_entropy, torch.zeros(2, 5, 4), targets)
    checked_loss(
        lambda outputs, targets: functional.cross_entropy(outputs.movedim(-1, 1), targets),
        torch.zeros(2, 4, 4),
        targets,
    )
