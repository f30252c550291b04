"""Targets that don't count: one mean over those that do, as torch has it for the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.data import BatchOrder, Dataset, TensorSplit
from lowdimfa.errors import InputError
from lowdimfa.head import Evaluation
from lowdimfa.losses import make_loss, validate_class_targets
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.tickets import Ticket
from lowdimfa.trainer import InProcessTrainer

BATCH, TOKENS, WIDTH, CLASSES = 12, 5, 6, 4


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A user's loss that leaves out class 1."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=1)


def data(ignored: int, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return inputs and targets per token, some of them ignored, unevenly over the samples."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(BATCH, TOKENS, WIDTH, generator=generator)
    targets = torch.randint(2, CLASSES, (BATCH, TOKENS), generator=generator)
    padding = torch.rand(BATCH, TOKENS, generator=generator) < share * torch.linspace(0, 2, BATCH).unsqueeze(
        1
    )
    return inputs, targets.masked_fill(padding, ignored)


def network(
    microbatches: int = 1, form: str = "backprop", loss: str = "auto", ignore_index: int = -100
) -> DecoupledNetwork:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh()), nn.Linear(8, CLASSES))
    training = TrainingConfig(
        total_steps=4,
        microbatches=microbatches,
        loss=loss,
        ignore_index=ignore_index,
        update=UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 1.0})),
    )
    feedback = FeedbackConfig(form=form)  # type: ignore[arg-type]
    example = torch.zeros(2, TOKENS, WIDTH)
    return decouple(
        model, example, blocks=2, total_steps=4, feedback=feedback, training=training, task="tokens"
    )


def batches(inputs: Tensor, targets: Tensor, microbatches: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.chunk(microbatches), targets.chunk(microbatches), strict=True))


@given(st.sampled_from([1, 2, 3, 4, 12]), st.floats(0, 1), st.integers(0, 1000), st.booleans())
def test_a_step_is_that_of_plain_torch_on_the_whole_batch(
    microbatches: int, share: float, seed: int, own: bool
) -> None:
    ignored, loss = (1, f"{__name__}:own_loss") if own else (-100, "auto")
    inputs, targets = data(ignored, share, seed)
    trained = network(microbatches, loss=loss, ignore_index=ignored)
    plain = nn.Sequential(nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh()), nn.Linear(8, CLASSES))
    plain.load_state_dict(trained.state_dict())
    outputs = plain(inputs)
    expected = functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=ignored)
    expected.backward()
    result = trained.train_step(0, batches(inputs, targets, microbatches))
    counted = targets != ignored
    if not counted.any():
        assert result.loss == 0 and result.accuracy is None
        return
    assert result.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert result.counted == int(counted.sum())
    assert result.correct == int((outputs.argmax(-1) == targets)[counted].sum())
    for name, parameter in plain.named_parameters():
        step = trained.state_dict()[name]
        torch.testing.assert_close(step, parameter.detach() - parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["broadcast", "backprop", "local", "frozen"])
def test_what_does_not_count_teaches_nothing(form: str) -> None:
    trained, empty = network(2, form), network(2, form)
    inputs, targets = data(-100, 0.5)
    nothing = torch.full_like(targets, -100)
    assert empty.train_step(0, batches(inputs, nothing, 2)).loss == 0
    for name, value in network(2, form).state_dict().items():
        assert torch.equal(empty.state_dict()[name], value)
    # A micro-batch without anything weighs nothing: the other one is the whole batch.
    halves = batches(torch.cat([inputs, inputs]), torch.cat([nothing, targets]), 2)
    alone = network(1, form).train_step(0, [halves[1]])
    assert trained.train_step(0, halves).loss == pytest.approx(alone.loss)


def test_the_readout_learns_from_the_mean_over_what_counts() -> None:
    """A padded batch teaches a block what the batch without its padding does."""
    inputs, targets = data(-100, 0.5)
    targets[:, 3:], targets[:, :3] = -100, torch.arange(3) + 1
    padded, short = network(1, "broadcast"), network(1, "broadcast")
    padded.train_step(0, [(inputs, targets)])
    short.form.run(inputs[:, :3], targets[:, :3], Ticket(0, 0))
    short.form.step()
    for name, value in short.state_dict().items():
        torch.testing.assert_close(padded.state_dict()[name], value)


def test_an_evaluation_is_over_what_counts_too() -> None:
    inputs, targets = data(-100, 0.6)
    found = network()
    expected = functional.cross_entropy(found.forward(inputs).flatten(0, -2), targets.flatten())
    split = TensorSplit(inputs, targets)
    totals = Evaluation()
    for part in (slice(0, 7), slice(7, 11), slice(11, 12)):
        found.head.evaluate_outputs(found.blocks[0].evaluate(inputs[part]), targets[part], totals)
    assert totals.loss == pytest.approx(float(expected), rel=1e-5)
    counted = targets != -100
    right = (found.forward(inputs).argmax(-1) == targets)[counted]
    assert totals.accuracy == pytest.approx(float(right.float().mean()))
    assert totals.samples == BATCH
    nothing = TensorSplit(inputs, torch.full_like(targets, -100))
    trainer = InProcessTrainer(
        found, Dataset("padding", split, nothing, "tokens"), BatchOrder(BATCH, 4, 1, 0)
    )
    empty = trainer.evaluate()
    assert empty.loss == 0 and empty.accuracy is None


def padded_text() -> Dataset:
    """A user's factory: what to say of a token is the token, and padding is class 0."""
    tokens = torch.arange(40).view(8, 5) % 3 + 1
    targets = tokens.clone()
    targets[:, 3:] = 0
    one_hot = functional.one_hot(tokens, CLASSES).float()
    split = TensorSplit(one_hot, targets)
    return Dataset("padded text", split, split, "tokens")


def tagger() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Linear(CLASSES, 16), nn.Tanh()), nn.Linear(16, CLASSES))


def test_a_specification_names_the_class_that_does_not_count(tmp_path: Path) -> None:
    plain: dict[str, Any] = {
        "model": {"factory": f"{__name__}:tagger", "blocks": 2},
        "data": {"factory": f"{__name__}:padded_text"},
        "train": {
            "steps": 60,
            "batch_size": 8,
            "microbatches": 2,
            "ignore_index": 0,
            "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.05}},
        },
        "run": {"evaluate_every_epochs": 0, "tensorboard": False},
    }
    metrics = DecoupledTrainer(plain, engine="local", run_dir=tmp_path / "run").fit().metrics
    assert metrics["test_accuracy"] == 1.0  # of padding too it is 0.6 at most
    assert metrics["test_loss"] < 0.1
    assert parse_specification(plain, "test").train.ignore_index == 0


def test_only_a_loss_that_knows_classes_can_leave_one_out() -> None:
    with pytest.raises(InputError, match=r"^train\.ignore_index: found 3 with the loss 'mse'"):
        make_loss("auto", "regression", 3)
    targets = torch.tensor([0.0, -100.0])
    assert make_loss("mse", "regression")(torch.zeros(2, 1), targets) == 0.5 * 100**2 / 2


def test_targets_to_ignore_are_no_classes_without_an_output() -> None:
    validate_class_targets(torch.tensor([0, -100, 3]), 4)
    validate_class_targets(torch.tensor([0, 9, 3]), 4, ignore_index=9)
    validate_class_targets(torch.tensor([-100, -100]), 4)
    with pytest.raises(InputError, match=r"targets -100 to 3 of the data.*ignore_index"):
        validate_class_targets(torch.tensor([0, -100, 3]), 4, ignore_index=9)
