"""The loss in chunks: the gradients, losses and scores of all positions at once, without their logits."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowdimfa.alignment import measure_alignment
from lowdimfa.config import IGNORED, FactoryConfig, FeedbackConfig, RankConfig, TrainingConfig, UpdateConfig
from lowdimfa.errors import InputError
from lowdimfa.exactness import refuse_inexact
from lowdimfa.models import char_transformer, vit
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.tickets import Ticket

WIDTH, TOKENS, CLASSES, SAMPLES = 8, 5, 23, 6


class RowWise(nn.Linear):
    """A layer of a user's own."""

    by_position: ClassVar[bool] = True


class Centred(nn.Linear):
    """One that says what it doesn't do."""

    by_position: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = super().forward(x)
        return made - made.mean(0)


class Folded(nn.Linear):
    """One that says so of rows whose number it needs."""

    by_position: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = super().forward(x.view(-1, TOKENS, WIDTH))
        return made


class Shifted(nn.Module):
    """Adds what it takes away again: the shift's gradient is nothing but rounding, as that of a key's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.map = nn.Parameter(torch.zeros(1)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shifted = self.map(x) + self.shift
        made: Tensor = x + shifted - shifted.mean(-1, keepdim=True)
        return made


def batch(seed: int = 0, ignored: list[bool] | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = (torch.randint(0, CLASSES, (SAMPLES, TOKENS), generator=generator) for _ in range(2))
    if ignored is not None:
        targets = targets.masked_fill(torch.tensor(ignored).view_as(targets), IGNORED)
    return tokens, targets


def network(
    chunk: int | None,
    blocks: int = 3,
    output: nn.Module | None = None,
    loss: str = "auto",
    microbatches: int = 1,
    **feedback: Any,
) -> DecoupledNetwork:
    torch.manual_seed(3)
    layers = char_transformer(CLASSES, TOKENS, WIDTH, depth=4, heads=2)
    if output is not None:
        layers = nn.Sequential(*layers[:-1], output)
    training = TrainingConfig(
        total_steps=9,
        microbatches=microbatches,
        loss=loss,
        loss_chunk=chunk,
        update=UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.1})),
    )
    return decouple(
        layers,
        batch()[0],
        blocks=blocks,
        total_steps=9,
        feedback=FeedbackConfig(**{"source": "hidden", **feedback}),
        training=training,
        task="tokens",
    )


def learn(made: DecoupledNetwork, parts: list[tuple[Tensor, Tensor]]) -> tuple[Any, ...]:
    """Return gradients, and what each micro-batch of one step counted."""
    weights = made.head.objective.weights([targets for _, targets in parts])
    counted = [
        made.form.run(*part, Ticket(0, number), weight)
        for number, (part, weight) in enumerate(zip(parts, weights, strict=True))
    ]
    named = [pair for stage in made.stages for pair in stage.module.named_plain_parameters()]
    return {name: value.grad for name, value in named if value.grad is not None}, counted


@settings(max_examples=8, deadline=None)
@given(
    chunk=st.integers(1, SAMPLES * TOKENS + 3),
    ignored=st.lists(st.booleans(), min_size=SAMPLES * TOKENS, max_size=SAMPLES * TOKENS),
    microbatches=st.sampled_from([1, 2, 3]),
    feedback=st.sampled_from(
        [
            {},
            {"source": "head_input"},
            {"source": "head_input", "error_dim": 3, "p_rule": "pca"},
            {"every_layer": True},
            {"form": "backprop"},
            {"form": "frozen"},
        ]
    ),
    blocks=st.sampled_from([2, 3, 5]),
)
def test_chunks_have_the_gradients_of_the_whole(
    chunk: int, ignored: list[bool], microbatches: int, feedback: dict[str, Any], blocks: int
) -> None:
    inputs, targets = batch(ignored=ignored)
    parts = list(zip(inputs.chunk(microbatches), targets.chunk(microbatches), strict=True))
    found, counted = learn(network(chunk, blocks, microbatches=microbatches, **feedback), parts)
    expected, of_whole = learn(network(None, blocks, microbatches=microbatches, **feedback), parts)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.tensor(counted), torch.tensor(of_whole))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_head_of_the_output_layer_alone_learns_in_chunks(chunk: int) -> None:
    found, expected = (
        learn(network(size, ["3", "5"], source="head_input"), [batch()])[0] for size in (chunk, None)
    )
    torch.testing.assert_close(found, expected)


@settings(max_examples=6, deadline=None)
@given(
    chunk=st.integers(1, 40),
    ignored=st.lists(st.booleans(), min_size=SAMPLES * TOKENS, max_size=SAMPLES * TOKENS),
)
def test_an_evaluation_in_chunks_counts_the_same(chunk: int, ignored: list[bool]) -> None:
    batches = [batch(ignored=ignored), batch(1)]
    found, expected = (network(size).evaluate(batches) for size in (chunk, None))
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.ignored == pytest.approx(expected.ignored)
    assert (found.samples, found.correct, found.counted) == (
        expected.samples,
        expected.correct,
        expected.counted,
    )


class Largest(TorchDispatchMode):
    """Notes the most numbers that a tensor of the classes' width has."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.shape[-1:] == (CLASSES,) and made.dim() > 1:
            self.rows = max(self.rows, made.numel() // CLASSES)
        return made


def test_the_logits_of_all_tokens_are_never_there() -> None:
    made, whole = network(9), network(None)
    with Largest() as noted:
        made.train_step(0, [batch()])
        made.evaluate([batch()])
    with Largest() as all_at_once:
        whole.train_step(0, [batch()])
    assert all_at_once.rows == SAMPLES * TOKENS
    assert noted.rows <= max(9, WIDTH)


def test_what_looks_at_a_head_sees_the_same() -> None:
    found, expected = (
        measure_alignment((net := network(size)).blocks, net.head, *batch()) for size in (4, None)
    )
    for one, other in zip(found.blocks, expected.blocks, strict=True):
        assert one.angle_degrees == pytest.approx(other.angle_degrees, abs=0.1)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
    made = network(4, every_layer=True)
    refuse_inexact([*made.blocks, made.head], [batch(), batch(1)], overlapping=False, stale=False)


def test_a_head_in_chunks_is_checked_on_a_few_of_samples_that_come_packed_together() -> None:
    layers = [nn.Embedding(CLASSES, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)]
    made = decouple(
        layers,
        batch()[0],
        blocks=3,
        total_steps=1,
        feedback=FeedbackConfig(source="hidden"),
        training=TrainingConfig(1, loss_chunk=4, activations=RankConfig(1)),
        task="tokens",
    )
    refuse_inexact(made.stages, [batch(), batch(1)], overlapping=False, stale=False)


def test_gradients_that_are_rounding_may_differ_in_chunks() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Embedding(CLASSES, WIDTH), Shifted(), nn.Linear(WIDTH, CLASSES))
    made = decouple(
        layers,
        batch()[0],
        blocks=["1"],
        total_steps=1,
        feedback=FeedbackConfig(source="hidden"),
        training=TrainingConfig(1, loss_chunk=1),
        task="tokens",
    )
    refuse_inexact([*made.blocks, made.head], [batch(), batch(1)], overlapping=False, stale=False)
    shift = dict(made.head.module.named_plain_parameters())["1.shift"]
    learned: list[Tensor] = []
    for chunk in (1, 1000):
        made.head.chunk, shift.grad = chunk, None
        learn(made, [batch()])
        assert shift.grad is not None
        learned.append(shift.grad)
    assert not torch.allclose(learned[0], learned[1], rtol=1e-3, atol=0.0)


def test_a_probe_ends_at_the_hidden_state() -> None:
    found, expected = (network(size, q_rule="probed", q_start="random").head for size in (4, None))
    clean, noisy = torch.randn(2, SAMPLES, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    responses = [head.forward(clean, batch()[1], Ticket(0, 0), noisy).response for head in (found, expected)]
    torch.testing.assert_close(*responses)


def test_a_module_of_ones_own_may_say_that_it_works_by_position() -> None:
    def made(size: int | None) -> DecoupledNetwork:
        torch.manual_seed(1)
        return network(size, output=RowWise(WIDTH, CLASSES))

    torch.testing.assert_close(learn(made(4), [batch()]), learn(made(None), [batch()]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "logits"}, "as wide as they are"),
        ({"form": "local"}, "feedback.source"),
        ({"loss": "bce"}, "cross_entropy"),
        ({"output": nn.Sequential(nn.Linear(WIDTH, CLASSES), nn.Dropout(0.1))}, "isn't known"),
        ({"output": Centred(WIDTH, CLASSES)}, "one position alone"),
        ({"output": Folded(WIDTH, CLASSES)}, "fails on positions alone"),
    ],
)
def test_what_needs_all_outputs_at_once_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        network(4, **settings)


def test_a_mean_over_tokens_is_refused() -> None:
    layers = vit(8, 4, 1, WIDTH, depth=3, heads=2, classes=CLASSES)
    with pytest.raises(InputError, match="Sequential"):
        decouple(
            layers,
            torch.zeros(2, 1, 8, 8),
            blocks=2,
            total_steps=1,
            feedback=FeedbackConfig(source="hidden"),
            training=TrainingConfig(1, loss_chunk=4),
        )
