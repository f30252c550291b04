"""The error of a hidden state: exact where nothing lies between, a closed form elsewhere, and the P that goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.alignment import measure_alignment
from lowdimfa.config import IGNORED, FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.data.base import Task
from lowdimfa.errors import InputError
from lowdimfa.feedback.entering import settled
from lowdimfa.feedback.projection import OjaProjection, PRule, WholeError
from lowdimfa.feedback.resolving import error_shape, resolve_feedback
from lowdimfa.feedback.rules import HebbianFeedback, ProbedFeedback, TransposedFeedback
from lowdimfa.models import char_transformer, mlp, resnet, vit
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.partitioning import partition
from lowdimfa.rules import P_RULES
from lowdimfa.services.run.notes import notes
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import parse_specification
from lowdimfa.stage import Stage
from lowdimfa.tickets import Ticket

WIDTH, TOKENS, CLASSES = 8, 5, 7
SOURCES = ["head_input", "hidden"]


def model(kind: str) -> nn.Sequential:
    torch.manual_seed(3)
    if kind == "tokens":
        return char_transformer(CLASSES, TOKENS, WIDTH, depth=4, heads=2)
    if kind == "vit":
        return vit(8, 4, 1, WIDTH, depth=4, heads=2, classes=CLASSES)
    return mlp(6, WIDTH, depth=5, classes=CLASSES)


def batch(kind: str, samples: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (samples, TOKENS) if kind == "tokens" else (samples,)
    targets = torch.randint(0, CLASSES, labels, generator=generator)
    if kind == "tokens":
        return torch.randint(0, CLASSES, labels, generator=generator), targets
    return torch.randn(samples, *((1, 8, 8) if kind == "vit" else (6,)), generator=generator), targets


def network(kind: str, blocks: int, microbatches: int = 1, **feedback: Any) -> DecoupledNetwork:
    task: Task = "tokens" if kind == "tokens" else "classification"
    update = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.1}))
    training = TrainingConfig(total_steps=9, microbatches=microbatches, update=update)
    return decouple(
        model(kind),
        batch(kind)[0],
        blocks=blocks,
        total_steps=9,
        feedback=FeedbackConfig(**feedback),
        training=training,
        task=task,
    )


def gradients(stages: Sequence[Stage]) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for stage in stages
        for name, parameter in stage.module.named_plain_parameters()
        if parameter.grad is not None
    }


def learn(made: DecoupledNetwork, parts: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return all gradients of one step."""
    weights = made.head.objective.weights([targets for _, targets in parts])
    for number, ((inputs, targets), weight) in enumerate(zip(parts, weights, strict=True)):
        made.form.run(inputs, targets, Ticket(0, number), weight)
    return gradients(made.stages)


def reference(kind: str, blocks: int, source: str, directions: Tensor | None = None) -> dict[str, Tensor]:
    """Return every block's gradients as written on paper: its output under ``Pᵀ P g``, and the head's own exact ones."""
    inputs, targets = batch(kind)
    made = network(kind, blocks)
    outputs = [inputs]
    for stage in made.stages[:-1]:
        outputs.append(stage.module(outputs[-1].detach()))
    layers = list(dict(made.head.module.named_layers()).values())
    body, last = nn.Sequential(*layers[:-1]), layers[-1]
    entering = outputs[-1].detach().requires_grad_()
    hidden = body(entering)
    loss = functional.cross_entropy(last(hidden).flatten(0, -2), targets.flatten())
    sent = {"head_input": entering, "hidden": hidden}[source]
    (error,) = torch.autograd.grad(loss, sent, retain_graph=True)
    loss.backward()
    if directions is not None:
        error = error @ directions.T @ directions
    for output in outputs[1:]:
        output.backward(error)
    return gradients(made.stages)


@settings(max_examples=6, deadline=None)
@given(
    kind=st.sampled_from(["tokens", "vit", "mlp"]), microbatches=st.sampled_from([1, 2, 3]), data=st.data()
)
def test_with_two_blocks_the_error_of_the_heads_input_is_backpropagation(
    kind: str, microbatches: int, data: st.DataObject
) -> None:
    inputs, targets = batch(kind)
    if kind == "tokens":
        ignored = data.draw(st.lists(st.booleans(), min_size=targets.numel(), max_size=targets.numel()))
        targets = targets.masked_fill(torch.tensor(ignored).view_as(targets), IGNORED)
    parts = list(zip(inputs.chunk(microbatches), targets.chunk(microbatches), strict=True))
    found = learn(network(kind, 2, microbatches, source="head_input"), parts)
    expected = learn(network(kind, 2, microbatches, form="backprop"), parts)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["tokens", "vit", "mlp"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("blocks", [2, 3])
def test_blocks_learn_from_the_error_of_the_hidden_state(kind: str, source: str, blocks: int) -> None:
    found = learn(network(kind, blocks, source=source), [batch(kind)])
    torch.testing.assert_close(found, reference(kind, blocks, source))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("p_rule", ["fixed", "oja", "pca"])
def test_fewer_numbers_are_the_projected_error(source: str, p_rule: str) -> None:
    made = network("tokens", 3, source=source, error_dim=3, p_rule=p_rule)
    directions = made.head.projection.weights.clone()
    found = learn(made, [batch("tokens")])
    torch.testing.assert_close(found, reference("tokens", 3, source, directions))
    sent = made.head.forward(torch.randn(6, TOKENS, WIDTH), batch("tokens")[1], Ticket(0, 1))
    assert sent.error.shape == (6, TOKENS, 3)
    assert sent.error.dtype == torch.float32


@pytest.mark.parametrize("p_rule", ["oja", "pca"])
def test_blocks_follow_a_projection_that_learns(p_rule: str) -> None:
    made = network("tokens", 3, source="head_input", error_dim=3, p_rule=p_rule, p_every=4, every_layer=True)
    told = []
    for step in range(6):
        before = made.head.projection.weights.clone()
        inputs, targets = batch("tokens", seed=step)
        for block in made.blocks:
            inputs = block.forward(inputs, Ticket(step, 0))
        sent = made.head.forward(inputs, targets, Ticket(step, 0))
        told.append(sent.projection is not None)
        for stage in made.stages:
            if stage is not made.head:
                stage.receive_error(Ticket(step, 0), sent.error, projection=sent.projection)
            for site in stage.sites:
                torch.testing.assert_close(site.feedback.weights.data, before.T, rtol=0, atol=0)
        made.form.step()
    # pca refreshes after the steps 1, 2 and 4; nothing is told before it was learned, or twice
    assert told == ([False, True, True, False, True, False] if p_rule == "pca" else [False, *5 * [True]])


def test_every_micro_batch_of_a_step_brings_the_projection() -> None:
    made = network("tokens", 2, microbatches=2, source="head_input", error_dim=3, p_rule="pca")
    learn(made, [batch("tokens"), batch("tokens", seed=1)])
    made.form.step()
    inputs, targets = made.blocks[0].evaluate(batch("tokens")[0]), batch("tokens")[1]
    for number in range(2):
        sent = made.head.forward(inputs, targets, Ticket(1, number)).projection
        assert sent is not None
        assert torch.equal(sent, made.head.projection.weights)
    made.head.step()
    assert made.head.forward(inputs, targets, Ticket(2, 0)).projection is not None  # the second refresh


def test_a_restored_head_tells_its_projection_again() -> None:
    one, other = (network("tokens", 2, source="head_input", error_dim=3, p_rule="pca") for _ in range(2))
    one.train_step(0, [batch("tokens")])
    for stage, twin in zip(one.stages, other.stages, strict=True):
        twin.load(*stage.state())
    assert not any(name.startswith("feedback/") for name in one.blocks[0].state().tensors)
    for step in (1, 2, 3):
        results = [made.train_step(step, [batch("tokens", seed=step)]).loss for made in (one, other)]
        assert results[0] == results[1]
    expected = one.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


def test_blocks_get_a_restored_projection_that_learns_no_more() -> None:
    made, resumed = (
        network("tokens", 3, source="head_input", error_dim=3, p_rule=rule, every_layer=True)
        for rule in ("oja", "fixed")
    )
    made.train_step(0, [batch("tokens")])
    for stage, twin in zip(made.stages, resumed.stages, strict=True):
        twin.load(*stage.state())
    resumed.train_step(1, [batch("tokens", seed=1)])
    for stage in resumed.stages:
        for site in stage.sites:
            assert torch.equal(site.feedback.weights.data, made.head.projection.weights.T)


def test_what_learns_starts_as_the_identity_and_goes_its_own_way() -> None:
    made = network("tokens", 3, source="hidden", error_dim=3, q_rule="hebbian", p_rule="pca")
    directions = made.head.projection.weights.clone()
    rule = made.blocks[0].sites[0].feedback
    assert type(rule) is HebbianFeedback
    assert torch.equal(rule.weights.data, directions.T)
    made.train_step(0, [batch("tokens")])
    assert not torch.equal(rule.weights.data, directions.T)
    assert (
        made.head.forward(
            made.blocks[1].evaluate(made.blocks[0].evaluate(batch("tokens")[0])),
            batch("tokens")[1],
            Ticket(1, 0),
        ).projection
        is None
    )


def test_where_a_probe_leads_to_is_the_hidden_state() -> None:
    made = network("mlp", 2, source="head_input", q_rule="probed", q_start="random", tap="identity")
    assert type(made.blocks[0].sites[0].feedback) is ProbedFeedback
    inputs, targets = batch("mlp")
    clean = made.blocks[0].forward(inputs, Ticket(0, 0))
    noisy = clean + 0.1
    sent = made.head.forward(clean, targets, Ticket(0, 0), noisy)
    assert sent.response is not None
    torch.testing.assert_close(sent.response, noisy - clean)
    made = network("mlp", 2, source="hidden", q_rule="probed", tap="identity")
    body = nn.Sequential(*list(dict(made.head.module.named_layers()).values())[:-1])
    sent = made.head.forward(clean, targets, Ticket(0, 0), noisy)
    torch.testing.assert_close(sent.response, (body(noisy) - body(clean)).detach())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("every_layer", [False, True])
def test_alignment_is_that_of_what_blocks_learn(source: str, every_layer: bool) -> None:
    made = network("tokens", 2, source=source, every_layer=every_layer)
    found = measure_alignment(made.blocks, made.head, *batch("tokens"))
    exact = source == "head_input" and not every_layer
    assert (found.blocks[0].angle_degrees < 0.1) == exact
    assert found.explained_error_energy == pytest.approx(1, abs=1e-5)


def resolved(kind: str, blocks: int, **feedback: Any) -> list[tuple[str, str]]:
    """Return tap and kind of rule of every block."""
    made = network(kind, blocks, **feedback)
    sites = [site for block in made.blocks for site in block.sites]
    return [(site.tap.name, type(site.feedback).__name__) for site in sites]


def test_auto_takes_the_identity_where_widths_fit() -> None:
    assert resolved("tokens", 2, source="hidden") == [("identity", "TransposedFeedback")]
    assert resolved("tokens", 2, source="hidden", q_start="random") == [("normalised", "HebbianFeedback")]
    assert resolved("tokens", 2, source="hidden", tap="normalised") == [("normalised", "TransposedFeedback")]
    assert resolved("tokens", 2, source="hidden", q_rule="fixed", q_start="random") == [
        ("normalised", "QRule")
    ]
    assert resolved("tokens", 2) == [("normalised", "ReadoutFeedback")]
    torch.manual_seed(0)
    narrowing = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    made = decouple(
        narrowing,
        torch.randn(2, 6),
        blocks=["1", "2"],
        total_steps=1,
        feedback=FeedbackConfig(source="head_input"),
    )
    assert [type(block.sites[0].feedback) for block in made.blocks] == [HebbianFeedback, TransposedFeedback]


def test_an_error_per_sample_enters_at_the_mean_over_tokens() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(
        *model("vit")[:-1], nn.Sequential(nn.LayerNorm(WIDTH), Mean()), nn.Linear(WIDTH, CLASSES)
    )
    example, targets = batch("vit")
    made = decouple(layers, example, blocks=2, total_steps=1, feedback=FeedbackConfig(source="hidden"))
    assert made.blocks[0].sites[0].tap.name == "pooled"
    sent = made.head.forward(made.blocks[0].forward(example, Ticket(0, 0)), targets, Ticket(0, 0))
    assert sent.error.shape == (6, WIDTH)


def test_before_a_pooling_the_error_of_channels_is_backpropagation() -> None:
    torch.manual_seed(0)
    layers = resnet(1, [4, 4, 6], CLASSES, 1)  # stem, three stages, pooling and output
    example = torch.randn(6, 1, 8, 8)
    targets = torch.randint(0, CLASSES, (6,))
    found, expected = (
        decouple(deepcopy(layers), example, blocks=["4"], total_steps=1, feedback=FeedbackConfig(**feedback))
        for feedback in ({"source": "hidden"}, {"form": "backprop"})
    )
    assert found.blocks[0].sites[0].tap.name == "pooled"
    torch.testing.assert_close(learn(found, [(example, targets)]), learn(expected, [(example, targets)]))
    deeper = decouple(
        layers, example, blocks=["2", "3", "4"], total_steps=1, feedback=FeedbackConfig(source="hidden")
    )
    kinds = [type(block.sites[0].feedback) for block in deeper.blocks]
    assert kinds == [HebbianFeedback, HebbianFeedback, TransposedFeedback]
    clean = torch.randn(6, 6, 2, 2)
    sent = deeper.head.forward(clean, targets, Ticket(0, 0), clean + 0.5)
    assert sent.error.shape == (6, 6)
    torch.testing.assert_close(sent.response, torch.full((6, 6), 0.5))


class Mean(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Own(PRule):
    """A user's own."""


@pytest.mark.parametrize(
    ("kind", "feedback", "message"),
    [
        ("tokens", {"source": "hidden", "error_dim": 9}, "between 1 and the hidden state's dimension, 8"),
        ("tokens", {"source": "hidden", "q_rule": "readout"}, "source 'logits'"),
        ("tokens", {"q_start": "identity", "q_rule": "readout"}, "a readout is one of the classes"),
        ("tokens", {"q_start": "identity"}, "8 features under an error of width 7"),
        (
            "mlp",
            {"source": "hidden", "q_start": "identity", "p_rule": f"{__name__}:Own"},
            "a built-in p_rule",
        ),
    ],
)
def test_what_does_not_fit_is_refused(kind: str, feedback: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        network(kind, 3, **feedback)


def test_a_source_without_an_error_is_refused() -> None:
    layers = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    volumes = partition(layers, 2, torch.zeros(2, 1, 2, 2, 2))
    with pytest.raises(InputError, match=r"shape \(2, 2, 2, 2\) per sample"):
        error_shape(volumes, FeedbackConfig(source="head_input"))
    alone = partition(model("tokens"), 1, batch("tokens")[0])
    with pytest.raises(InputError, match="nothing to broadcast"):
        error_shape(alone, FeedbackConfig(source="head_input"))
    by_name = partition(nn.Sequential(nn.Linear(3, 2)), 1, {"input": torch.zeros(2, 3)})
    with pytest.raises(InputError, match="begins with its inputs by name"):
        error_shape(by_name, FeedbackConfig(source="head_input"))


def test_rules_for_p_of_a_users_own_leave_q_random() -> None:
    feedback = FeedbackConfig(source="hidden", p_rule=f"{__name__}:Own")
    plans = partition(model("mlp"), 3, batch("mlp")[0])
    found = resolve_feedback(feedback, error_shape(plans, feedback), TrainingConfig(1), "classification")
    assert found.q_rule == "hebbian"


def test_a_plan_says_where_q_starts() -> None:
    plain = {
        "model": {
            "factory": "lowdimfa.models:mlp",
            "args": {"in_features": 64, "width": 8, "depth": 4, "classes": 10},
        },
        "data": {"factory": "lowdimfa.data:digits"},
        "feedback": {"source": "hidden"},
        "train": {"steps": 1},
    }
    plain["model"]["blocks"] = 3
    found = make_run_plan(parse_specification(plain, "test"), rehearsed=False).describe()
    assert [block["q_start"] for block in found["blocks"]] == ["identity", "identity", None]
    assert [block["q_rule"] for block in found["blocks"]] == ["fixed", "fixed", None]
    assert (found["source"], found["task_dim"], found["feedback_parameters"]) == ("hidden", 8, 0)
    plain["feedback"] = {"source": "hidden", "q_start": "random"}
    found = make_run_plan(parse_specification(plain, "test"), rehearsed=False).describe()
    assert [block["q_start"] for block in found["blocks"]] == ["random", "random", None]
    assert [block["q_rule"] for block in found["blocks"]] == ["hebbian", "hebbian", None]
    assert found["feedback_parameters"] == 2 * 8 * 8


@pytest.mark.parametrize(("order", "told"), [("sorted", True), ("mixed", False)])
def test_a_run_says_which_classes_are_held_out_alone(
    order: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = torch.arange(40) // 4 if order == "sorted" else torch.arange(40) % 10
    plain = {
        "model": {"factory": "lowdimfa.models:mlp", "blocks": 2}
        | {"args": {"in_features": 3, "width": 8, "depth": 3, "classes": 10}},
        "data": {"factory": f"{__name__}:four", "validation": 0.15},
        "train": {"steps": 1, "batch_size": 4},
    }
    monkeypatch.setattr(f"{__name__}.four", lambda: (torch.randn(40, 3), targets) * 2, raising=False)
    plan = make_run_plan(parse_specification(plain, "test"), rehearsed=False)
    found = [note for note in notes(plan) if "none of the classes 9: shuffle" in note]
    assert len(found) == told


def doubled(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of a user's own."""
    return 2 * functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("loss", "feedback", "told"),
    [
        (f"{__name__}:doubled", {"error_dim": 4}, True),
        (f"{__name__}:doubled", {"error_dim": 4, "broadcast": "bf16"}, True),
        (f"{__name__}:doubled", {}, False),
        (f"{__name__}:doubled", {"error_dim": 4, "q_rule": "hebbian"}, False),
        (f"{__name__}:doubled", {"error_dim": 4, "p_rule": "pca"}, False),  # with which it couldn't be either
        (f"{__name__}:doubled", {"error_dim": 4, "source": "hidden"}, False),
        ("torch.nn.functional.cross_entropy", {"error_dim": 4}, False),
        ("auto", {"error_dim": 4}, False),
    ],
)
def test_a_run_says_that_its_loss_leaves_it_without_a_readout(
    loss: str, feedback: dict[str, Any], told: bool
) -> None:
    factory = {"factory": "lowdimfa.models:mlp"}
    plain = {
        "model": factory | {"args": {"in_features": 64, "width": 8, "depth": 3, "classes": 10}, "blocks": 2},
        "data": {"factory": "lowdimfa.data:digits"},
        "feedback": feedback,
        "train": {"steps": 1, "loss": loss},
    }
    plan = make_run_plan(parse_specification(plain, "test"), rehearsed=False)
    assert any("auto is hebbian with a loss of your own" in note for note in notes(plan)) is told


@pytest.mark.parametrize(
    ("width", "feedback", "blocks", "told"),
    [
        (4, {}, 2, True),
        (4, {}, 1, False),  # which hears no error
        (4, {"error_dim": 7}, 2, False),
        (4, {"source": "head_input"}, 2, False),
        (4, {"form": "frozen"}, 2, False),
        (8, {}, 2, False),
    ],
)
def test_a_run_says_where_another_source_has_fewer_numbers(
    width: int, feedback: dict[str, Any], blocks: int, told: bool
) -> None:
    arguments = {"in_features": 64, "width": width, "depth": 3, "classes": 10}
    plain = {
        "model": {"factory": "lowdimfa.models:mlp", "args": arguments, "blocks": blocks},
        "data": {"factory": "lowdimfa.data:digits"},
        "feedback": feedback,
        "train": {"steps": 1},
    }
    found = list(notes(make_run_plan(parse_specification(plain, "test"), rehearsed=False)))
    assert any("which blocks of that width need not learn" in note for note in found) is told


def test_baselines_learn_as_without_it() -> None:
    for form in ("backprop", "frozen", "local"):
        found, expected = (
            learn(network("tokens", 3, form=form, **kind), [batch("tokens")])
            for kind in ({"source": "hidden"}, {})
        )
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("projection", [WholeError(4), OjaProjection(4, 4, torch.Generator())])
def test_a_whole_error_needs_no_matrix(projection: PRule) -> None:
    rule = TransposedFeedback(projection)
    error = torch.randn(3, 4)
    assert rule.weights.numel() == 0
    rule.follow(torch.eye(4).roll(1, 0))  # as a measurement of alignment has it follow what P has become
    assert rule.deliver(error) is error
    assert rule.received == 4


@pytest.mark.parametrize(
    ("feedback", "expected"),
    [
        ({"source": "head_input", "error_dim": 3}, "pca"),
        ({"source": "hidden", "error_dim": 3, "q_rule": "fixed"}, "pca"),
        ({"source": "head_input", "error_dim": 3, "every_layer": True}, "pca"),
        ({"source": "head_input"}, "fixed"),  # there is nothing to choose from
        ({"source": "head_input", "error_dim": 3, "q_rule": "hebbian"}, "fixed"),
        ({"source": "head_input", "error_dim": 3, "q_start": "random"}, "fixed"),
        ({"error_dim": 3}, "fixed"),
        ({"source": "head_input", "error_dim": 3, "form": "frozen"}, "fixed"),
        ({"source": "head_input", "error_dim": 3, "p_rule": "oja"}, "oja"),
    ],
)
def test_auto_learns_a_projection_where_every_block_follows_it(
    feedback: dict[str, Any], expected: str
) -> None:
    plans = partition(model("vit"), 3, batch("vit")[0])
    shape, found = settled(plans, FeedbackConfig(**feedback), TrainingConfig(1), "classification")
    assert found.p_rule == expected
    assert shape.error_dim == feedback.get("error_dim", WIDTH)
    if feedback.get("form") is None:
        head = network("vit", 3, **feedback).head
        assert P_RULES.name_of(type(head.projection)) == expected or isinstance(head.projection, WholeError)


def test_auto_leaves_a_projection_where_some_block_has_feedback_of_its_own() -> None:
    widening = nn.Sequential(
        nn.Linear(6, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 5),
        nn.ReLU(),
        nn.Linear(5, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 3),
    )
    plans = partition(widening, ["2", "4", "6"], batch("mlp")[0])
    feedback = FeedbackConfig(source="head_input", error_dim=3)
    assert settled(plans, feedback, TrainingConfig(1), "classification")[1].p_rule == "fixed"
    assert settled(plans[::2] + plans[-1:], feedback, TrainingConfig(1), "classification")[1].p_rule == "pca"
