"""Whole networks in one process: exact baselines, learning, reproducibility, state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.block import Block
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.data.base import BatchOrder, Dataset
from lowdimfa.data.reading import evaluation_batches
from lowdimfa.data.splits import TensorSplit
from lowdimfa.errors import InputError, NotFiniteError
from lowdimfa.feedback.resolving import error_shape
from lowdimfa.losses import counts, make_loss
from lowdimfa.models import cnn, mlp, vit
from lowdimfa.network import DecoupledNetwork, StepResult, computing_threads, decouple
from lowdimfa.partitioning import partition
from lowdimfa.tickets import Ticket
from lowdimfa.trainer import InProcessTrainer

CLASSES, SIZE = 10, 8


def clusters(samples: int, seed: int, shape: tuple[int, ...] = (SIZE * SIZE,)) -> tuple[Tensor, Tensor]:
    """Return noisy copies of ten fixed patterns, as easy as small handwritten digits."""
    patterns = torch.randn(CLASSES, SIZE * SIZE, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (samples,), generator=generator)
    noise = torch.randn(samples, SIZE * SIZE, generator=generator)
    return (patterns[targets] + noise).view(-1, *shape), targets


def small_mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return mlp(SIZE * SIZE, 64, 4, CLASSES)


def small_cnn() -> nn.Sequential:
    torch.manual_seed(1)
    return cnn(1, [8, 8], CLASSES, SIZE)


def optimizer(name: str = "AdamW", **args: Any) -> UpdateConfig:
    return UpdateConfig(FactoryConfig(f"torch.optim.{name}", {"lr": 3e-3} | args))


def make_network(
    model: nn.Module, example: Tensor, blocks: int = 3, microbatches: int = 1, seed: int = 0, **feedback: Any
) -> DecoupledNetwork:
    training = TrainingConfig(total_steps=100, microbatches=microbatches, seed=seed, update=optimizer())
    return decouple(
        model, example, blocks=blocks, total_steps=100, feedback=FeedbackConfig(**feedback), training=training
    )


def train(network: DecoupledNetwork, steps: int, microbatches: int = 1, batch: int = 32) -> StepResult:
    data = clusters(steps * batch, seed=1)
    for step in range(steps):
        chosen = slice(step * batch, (step + 1) * batch)
        inputs, targets = (part[chosen].chunk(microbatches) for part in data)
        result = network.train_step(step, zip(inputs, targets, strict=True))
    return result


@pytest.mark.parametrize(
    ("make", "shape", "update"),
    [
        (small_mlp, (SIZE * SIZE,), optimizer()),
        (small_mlp, (SIZE * SIZE,), optimizer("SGD", momentum=0.9, weight_decay=0.01)),
        (small_cnn, (1, SIZE, SIZE), optimizer()),
    ],
)
def test_backprop_through_blocks_is_plain_training(
    make: Callable[[], nn.Sequential], shape: tuple[int, ...], update: UpdateConfig
) -> None:
    plain, cut = make(), make()
    training = TrainingConfig(total_steps=5, update=update)
    feedback = FeedbackConfig(form="backprop")
    inputs, targets = clusters(5 * 16, seed=3, shape=shape)
    network = decouple(cut, inputs[:2], blocks=3, total_steps=5, feedback=feedback, training=training)
    factory = getattr(torch.optim, update.optimizer.factory.rpartition(".")[2])
    reference = factory(plain.parameters(), fused=True, **update.optimizer.args)
    for step, (x, y) in enumerate(zip(inputs.chunk(5), targets.chunk(5), strict=True)):
        reference.zero_grad()
        loss = functional.cross_entropy(plain(x), y)
        torch.autograd.backward(loss)
        reference.step()
        assert network.train_step(step, [(x, y)]).loss == float(loss.detach())
    trained = network.state_dict()
    assert trained.keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(trained[name], value), name


@pytest.mark.parametrize(
    ("q_rule", "error_dim"),
    [("readout", None), *((rule, dim) for rule in ("hebbian", "probed", "fixed") for dim in (None, 6))],
)
def test_the_broadcast_error_teaches_every_block(q_rule: str, error_dim: int | None) -> None:
    network = make_network(small_mlp(), clusters(2, 0)[0], q_rule=q_rule, error_dim=error_dim, probe_every=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train(network, 50)
    totals = network.evaluate([clusters(500, seed=2)])
    assert totals.accuracy is not None
    assert totals.accuracy > 0.95
    for name, value in network.state_dict().items():
        assert not torch.equal(value, before[name]), name
    assert not any(block._kept for block in network.blocks)


def test_the_local_form_learns() -> None:
    network = make_network(small_mlp(), clusters(2, 0)[0], form="local")
    train(network, 40)
    accuracy = network.evaluate([clusters(500, seed=2)]).accuracy
    assert accuracy is not None
    assert accuracy > 0.95


def test_frozen_blocks_stay_as_drawn_and_the_head_learns() -> None:
    network = make_network(small_cnn(), clusters(2, 0)[0].view(-1, 1, SIZE, SIZE), form="frozen")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    inputs, targets = clusters(64, seed=1)
    batch = [(inputs.view(-1, 1, SIZE, SIZE), targets)]
    losses = [network.train_step(step, batch).loss for step in range(40)]
    assert losses[-1] < 0.8 * losses[0]
    head = {name for name, _ in network.head.module.named_plain_parameters()}
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    of_blocks = changed - head
    assert head <= changed
    assert of_blocks  # batch norm's statistics, without which evaluation is of another network
    assert all("running" in name or "num_batches" in name for name in of_blocks)


@pytest.mark.parametrize(("form", "independent"), [("local", True), ("backprop", False)])
def test_the_local_form_learns_nothing_from_the_blocks_behind(form: str, independent: bool) -> None:
    networks = [make_network(small_mlp(), clusters(2, 0)[0], form=form) for _ in range(2)]
    with torch.no_grad():
        for parameter in networks[1].blocks[1].module.parameters():
            parameter.neg_()
    for network in networks:
        network.form.run(*clusters(16, seed=4), Ticket(0, 0))
    one, other = (network.blocks[0].module.get_parameter("_layers.0.1.weight").grad for network in networks)
    assert one is not None
    assert other is not None
    assert torch.equal(one, other) == independent


@pytest.mark.parametrize("q_rule", ["readout", "hebbian", "probed"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(q_rule: str) -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.2), nn.ReLU(), nn.Linear(32, CLASSES))
        network = make_network(model, clusters(2, 0)[0], blocks=2, seed=seed, q_rule=q_rule)
        train(network, 5)
        return network.state_dict()

    torch.rand(3)
    first, second, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


@pytest.mark.parametrize("form", ["broadcast", "backprop", "local", "frozen"])
def test_micro_batches_give_the_step_of_the_whole_batch(form: str) -> None:
    states, results = [], []
    for microbatches in (1, 4):
        model = small_mlp()
        network = decouple(
            model,
            clusters(2, 0)[0],
            blocks=3,
            total_steps=10,
            feedback=FeedbackConfig(form=form, error_dim=6, p_rule="oja"),  # type: ignore[arg-type]
            training=TrainingConfig(
                total_steps=10, microbatches=microbatches, update=optimizer("SGD", lr=0.1)
            ),
        )
        results.append(train(network, 10, microbatches))
        states.append(network.state_dict() | {"P": network.head.projection.weights})
    one, four = states
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-4)
    assert results[0].counted == results[1].counted == 32
    assert len(results[1].losses) == 4


@pytest.mark.parametrize(
    ("make", "shape"), [(small_mlp, (SIZE * SIZE,)), (small_cnn, (1, SIZE, SIZE))], ids=["mlp", "cnn"]
)
def test_the_trained_state_loads_into_the_plain_model(
    make: Callable[[], nn.Sequential], shape: tuple[int, ...]
) -> None:
    inputs, targets = clusters(64, seed=5, shape=shape)
    network = make_network(make(), inputs[:2])
    for step in range(3):
        network.train_step(step, [(inputs, targets)])
    fresh = make()
    untrained = fresh.eval()(inputs)
    fresh.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(inputs), network.forward(inputs))
    assert not torch.allclose(untrained, network.forward(inputs))


def test_an_evaluation_counts_all_samples_and_changes_nothing() -> None:
    inputs, targets = clusters(70, seed=6, shape=(1, SIZE, SIZE))
    network = make_network(small_cnn(), inputs[:2])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    dataset = Dataset(
        "clusters", TensorSplit(inputs, targets), TensorSplit(inputs, targets), "classification"
    )
    trainer = InProcessTrainer(network, dataset, BatchOrder(70, 20, 2, 0))
    totals = trainer.evaluate()
    outputs = network.forward(inputs)
    assert (totals.samples, totals.counted) == (70, 70)
    assert totals.loss == pytest.approx(float(functional.cross_entropy(outputs, targets)), rel=1e-5)
    assert totals.correct == int((outputs.argmax(-1) == targets).sum())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("samples", [1, 255, 256, 257, 1000])
def test_evaluation_batches_hold_every_sample_once(samples: int) -> None:
    split = TensorSplit(torch.zeros(samples), torch.zeros(samples))
    for size in (256, 300):
        batches = evaluation_batches(split, size)
        assert torch.equal(torch.cat(batches), torch.arange(samples))
        assert all(len(batch) >= 256 for batch in batches[:-1])


def test_the_trainer_draws_the_order_and_can_be_stopped_and_continued() -> None:
    inputs, targets = clusters(96, seed=7)
    dataset = Dataset(
        "clusters", TensorSplit(inputs, targets), TensorSplit(inputs, targets), "classification"
    )
    results: list[StepResult] = []

    def trainer() -> InProcessTrainer:
        network = make_network(small_mlp(), inputs[:2], microbatches=2)
        return InProcessTrainer(network, dataset, BatchOrder(96, 32, 2, seed=0))

    whole, parts = trainer(), trainer()
    whole.run(0, 5, results.append)
    parts.run(0, 2)
    parts.run(2, 5)
    assert [result.step for result in results] == list(range(5))
    one, other = whole.network.state_dict(), parts.network.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_transformer_with_a_pooled_tap_is_probed_and_learns() -> None:
    torch.manual_seed(2)
    model = vit(SIZE, 4, 1, 16, 2, 2, CLASSES)
    inputs, targets = clusters(64, seed=8, shape=(1, SIZE, SIZE))
    network = make_network(model, inputs[:2], q_rule="probed", probe_every=1)
    assert "pooled-normalised" in {block.sites[-1].tap.name for block in network.blocks}
    losses = [network.train_step(step, [(inputs, targets)]).loss for step in range(60)]
    assert losses[-1] < 0.7 * losses[0]


def test_probes_come_with_the_first_micro_batch_of_every_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network(small_mlp(), clusters(2, 0)[0], q_rule="probed", probe_every=3, microbatches=2)
    probed: list[Ticket] = []
    probe = Block.probe

    def noted(block: Block, inputs: Tensor, ticket: Ticket) -> Tensor:
        probed.append(ticket)
        return probe(block, inputs, ticket)

    monkeypatch.setattr(Block, "probe", noted)
    train(network, 7, microbatches=2)
    assert probed == [Ticket(step, 0) for step in (0, 3, 6) for _ in network.blocks]


@pytest.mark.parametrize("error_dim", [0, 11])
def test_an_error_dimension_outside_the_tasks_is_refused(error_dim: int) -> None:
    plans = partition(small_mlp(), 2, clusters(2, 0)[0])
    with pytest.raises(InputError, match=r"^feedback\.error_dim: found .* between 1 and .* 10"):
        error_shape(plans, FeedbackConfig(error_dim=error_dim))


def test_an_output_with_two_position_dimensions_is_refused() -> None:
    plans = partition(nn.Sequential(nn.Conv2d(1, 3, 1)), 1, torch.rand(2, 1, 4, 4))
    with pytest.raises(InputError, match=r"an output of shape \(3, 4, 4\) per sample"):
        error_shape(plans, FeedbackConfig())


def test_a_block_that_loses_the_tokens_is_refused_under_errors_per_token() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Unflatten(1, (3, 4)), nn.Linear(4, 5))
    with pytest.raises(InputError, match=r"^model\.blocks: found block 0 .* for each of 3 tokens"):
        decouple(model, torch.rand(2, 3, 4), blocks=["2"], total_steps=1, task="tokens")


def test_blocks_can_have_optimisers_of_their_own() -> None:
    model = small_mlp()
    before = deepcopy(model.state_dict())
    training = TrainingConfig(total_steps=1, update=optimizer(), per_block={1: optimizer("SGD", lr=0.0)})
    network = decouple(model, clusters(2, 0)[0], blocks=3, total_steps=1, training=training)
    train(network, 1)
    frozen = network.blocks[1].module.plain_state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == (name in frozen), name


def test_computing_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), computing_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_learned_feedback_starts_at_zero_only_where_a_tap_has_features_for_every_pixel() -> None:
    def largest(model: nn.Module, example: Tensor) -> list[float]:
        network = decouple(model, example, blocks=2, total_steps=1)
        return [float(block.sites[-1].feedback.weights.detach().abs().max()) for block in network.blocks]

    assert largest(cnn(1, [4, 4], 3, 8), torch.zeros(2, 1, 8, 8)) == [0.0]
    assert min(largest(mlp(6, 5, 3, 2), torch.zeros(2, 6))) > 0.0


def of_trainable(parameters: list[nn.Parameter], **args: Any) -> torch.optim.Optimizer:
    """Make an optimiser as most scripts do: of what requires a gradient."""
    return torch.optim.AdamW([one for one in parameters if one.requires_grad], **args)


def of_vectors(parameters: list[nn.Parameter], **args: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([one for one in parameters if one.dim() < 2], **args)


def trained_by(factory: str, rule: str, steps: int = 3) -> dict[str, Tensor]:
    inputs, targets = clusters(32, 1, (1, SIZE, SIZE))
    update = UpdateConfig(FactoryConfig(factory, {"lr": 3e-3}))
    training = TrainingConfig(total_steps=100, update=update)
    feedback = FeedbackConfig(q_rule=rule)
    network = decouple(
        small_cnn(), inputs[:2], blocks=3, total_steps=100, feedback=feedback, training=training
    )
    for step in range(steps):
        network.train_step(step, [(inputs, targets)])
    return {
        name: value.clone()
        for block in network.blocks
        for name, value in block.state().tensors.items()
        if name.endswith("/Q")
    }


@pytest.mark.parametrize("rule", ["hebbian", "readout", "probed"])
def test_a_factory_of_what_requires_a_gradient_trains_the_feedback_too(rule: str) -> None:
    plain = trained_by("torch.optim.AdamW", rule)
    filtered = trained_by(f"{__name__}:of_trainable", rule)
    assert plain and plain.keys() == filtered.keys()
    for name, value in plain.items():
        assert value.abs().sum() > 0
        torch.testing.assert_close(filtered[name], value)


def test_a_factory_that_leaves_out_the_feedback_is_refused() -> None:
    with pytest.raises(InputError, match=r"leaves out the feedback weights '0\.Q'"):
        trained_by(f"{__name__}:of_vectors", "hebbian")
    trained_by(f"{__name__}:of_vectors", "fixed")


def test_as_many_micro_batches_as_the_settings_say_make_a_step() -> None:
    inputs, targets = clusters(20, 1)
    network = make_network(small_mlp(), inputs[:2], microbatches=2)
    for parts in (1, 5):
        batches = list(zip(inputs.chunk(parts), targets.chunk(parts), strict=True))
        with pytest.raises(InputError, match=f"found {parts} micro-batches in step 0; expected 2"):
            network.train_step(0, batches)
    dataset = Dataset("digits", TensorSplit(inputs, targets), TensorSplit(inputs, targets), "classification")
    with pytest.raises(InputError, match="Give TrainingConfig and BatchOrder the same number"):
        InProcessTrainer(network, dataset, BatchOrder(20, 20, 5, 0)).run(0, 1)


@pytest.mark.parametrize("form", ["local", "frozen", "backprop"])
def test_the_error_enters_at_every_layer_of_the_broadcast_form_alone(form: str) -> None:
    with pytest.raises(InputError, match=f"every_layer: found True with form '{form}'"):
        make_network(small_mlp(), torch.randn(2, SIZE * SIZE), form=form, every_layer=True)


class Scaled(nn.Module):
    def __init__(self, learned: bool = True) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()), requires_grad=learned)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self.scale * outputs, targets)


SCALED = Scaled()


@pytest.mark.parametrize("loss", [SCALED, f"{__name__}:SCALED"], ids=["itself", "by path"])
def test_a_loss_with_parameters_is_refused(loss: Any) -> None:
    example = torch.randn(2, SIZE * SIZE)
    with pytest.raises(InputError, match=r"train\.loss: found a .*with parameters"):
        decouple(small_mlp(), example, blocks=2, total_steps=1, training=TrainingConfig(1, loss=loss))
    decouple(small_mlp(), example, blocks=2, total_steps=1, training=TrainingConfig(1, loss=Scaled(False)))


def test_a_loss_that_leaves_out_another_class_is_refused() -> None:
    """Accuracy, metrics and the weights of micro-batches would count what it doesn't."""
    partly = partial(partial(functional.cross_entropy, ignore_index=-1), label_smoothing=0.1)
    for loss in (nn.CrossEntropyLoss(ignore_index=-1), f"{__name__}:LEAVING_OUT", partly):
        with pytest.raises(
            InputError, match=r"train\.ignore_index: found -100, with a loss whose ignore_index is -1"
        ):
            make_loss(loss, "classification")
    for loss in (nn.CrossEntropyLoss(ignore_index=-1), partly):
        assert make_loss(loss, "classification", -1)
    assert make_loss(partial(functional.cross_entropy, label_smoothing=0.1), "classification")


LEAVING_OUT = nn.CrossEntropyLoss(ignore_index=-1)


def test_a_users_loop_draws_what_it_would_without_a_network() -> None:
    """Such as the order of samples in each epoch, which would be the same one again and again."""
    inputs, targets = clusters(4, 0)
    network = make_network(small_mlp(), inputs)
    drawn = []
    for using in (False, True):
        torch.manual_seed(5)
        random.seed(5)
        for step in range(3):
            if using:
                network.train_step(step, [(inputs, targets)])
                network.evaluate([(inputs, targets)])
                network.forward(inputs)
            drawn.append((torch.rand(3).tolist(), random.random()))
    assert drawn[:3] == drawn[3:]


def test_gradients_from_before_are_no_part_of_the_first_update() -> None:
    found = []
    inputs, targets = clusters(4, 0)
    for before in (False, True):
        torch.manual_seed(0)
        model = small_mlp()
        if before:
            model(inputs).sum().backward()
        network = make_network(model, inputs)
        network.train_step(0, [(inputs, targets)])
        found.append(network.state_dict())
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_targets_of_eight_bits_have_no_class_that_does_not_count() -> None:
    """In torch -100 beside uint8 is 156."""
    counted = counts("cross_entropy", "classification", -100)(
        torch.tensor([155, 156, 157], dtype=torch.uint8)
    )
    assert counted is not None and counted.all()


class Failing(nn.Module):
    """Puts out no number, or raises what it is told to, when asked."""

    failure: BaseException | float = 1.0

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.failure, BaseException):
            raise self.failure
        return x * self.failure


def failed_step(
    network: DecoupledNetwork, failing: Failing, failure: BaseException | float, batches: Iterator[Any]
) -> None:
    """Run a step that fails in its second micro-batch."""
    run, runs = network.form.run, iter((1.0, failure))

    def fails(*arguments: Any) -> Any:
        failing.failure = next(runs)
        return run(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network.form, "run", fails)
        with pytest.raises((NotFiniteError, KeyboardInterrupt, RuntimeError)):
            network.train_step(2, batches)
    failing.failure = 1.0


@pytest.mark.parametrize("failure", [float("nan"), KeyboardInterrupt(), RuntimeError("the user's own")])
@pytest.mark.parametrize("place", [1, 3, 6])
@pytest.mark.parametrize(
    ("update", "feedback"),
    [
        (optimizer(), {"q_rule": "readout"}),
        (optimizer("SGD", momentum=0.9), {"q_rule": "hebbian", "p_rule": "oja", "error_dim": 3}),
        (optimizer(), {"q_rule": "probed", "p_rule": "pca", "error_dim": 3, "probe_every": 1}),
        (optimizer(), {"q_rule": "hebbian", "every_layer": True}),
        (optimizer(), {"form": "backprop"}),
        (optimizer(), {"form": "local"}),
    ],
)
def test_a_step_that_fails_leaves_nothing_to_the_next(
    update: UpdateConfig, feedback: dict[str, Any], place: int, failure: BaseException | float
) -> None:
    made = []
    for failing in (Failing(), Failing()):
        layers = list(small_mlp())
        layers.insert(place, failing)
        training = TrainingConfig(total_steps=100, microbatches=2, update=update)
        given = FeedbackConfig(**feedback)
        cut = decouple(
            layers, clusters(4, 0)[0], blocks=3, total_steps=100, feedback=given, training=training
        )
        made.append((cut, failing))

    def batches(step: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part.chunk(2) for part in clusters(16, seed=step)), strict=True)

    (network, failing), (whole, _) = made
    for step in range(4):
        if step == 2:
            failed_step(network, failing, failure, batches(99))
        results = [one.train_step(step, batches(step)) for one in (network, whole)]
        assert results[0] == results[1]
    for stage, other in zip(network.stages, whole.stages, strict=True):
        ours, theirs = stage.state().tensors, other.state().tensors
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert not any(block._kept for block in network.blocks)
