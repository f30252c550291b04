"""The error at every layer of a block: the same as a block for each layer, in fewer processes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.exactness import refuse_inexact
from lowdimfa.layers import channels_last
from lowdimfa.models import char_transformer, cnn, mlp
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.tickets import Ticket

CLASSES, STEPS, MICROBATCHES = 5, 6, 2
SIZE = 38  # whose stages put out maps of 19×19, 9×9 and 4×4


def network(model: str, blocks: int | list[str], q_rule: str, **training: Any) -> DecoupledNetwork:
    torch.manual_seed(1)
    made: dict[str, tuple[nn.Module, Tensor]] = {
        "mlp": (mlp(12, 16, 5, CLASSES), torch.zeros(2, 12)),
        "cnn": (cnn(1, [4, 6, 8], CLASSES, 8), torch.zeros(2, 1, 8, 8)),
        "large maps": (channels_last(cnn(1, [4, 6, 8], CLASSES, SIZE)), torch.zeros(2, 1, SIZE, SIZE)),
        "characters": (char_transformer(CLASSES, 4, 8, 3, 2), torch.zeros(2, 4, dtype=torch.long)),
    }
    module, example = made[model]
    feedback = FeedbackConfig(
        q_rule=q_rule,
        tap="grid-normalised" if model == "large maps" else "auto",
        every_layer=training.pop("every_layer", False),
        probe_every=2,
    )
    settings: dict[str, Any] = {
        "total_steps": STEPS,
        "microbatches": MICROBATCHES,
        "update": UpdateConfig(FactoryConfig("torch.optim.AdamW", {"lr": 0.01})),
    }
    return decouple(
        module,
        example,
        blocks=blocks,
        total_steps=STEPS,
        feedback=feedback,
        training=TrainingConfig(**settings | training),
    )


def batch(model: str, step: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    if model == "characters":
        tokens = torch.randint(0, CLASSES, (8, 5), generator=generator)
        pairs = tokens[:, :-1], tokens[:, 1:]
    else:
        shape = {"mlp": (12,), "cnn": (1, 8, 8), "large maps": (1, SIZE, SIZE)}[model]
        pairs = (
            torch.randn(8, *shape, generator=generator),
            torch.randint(0, CLASSES, (8,), generator=generator),
        )
    return list(zip(*(part.chunk(MICROBATCHES) for part in pairs), strict=True))


def train(trained: DecoupledNetwork, model: str) -> dict[str, Tensor]:
    """Return the state after some steps: weights, optimisers, feedback weights."""
    for step in range(STEPS):
        trained.train_step(step, batch(model, step))
    stages = (*trained.blocks, trained.head)
    return {name: value.clone() for stage in stages for name, value in stage.state().tensors.items()}


@cache
def finest(model: str) -> int:
    """Return the number of blocks of the finest cut."""
    whole = network(model, 2, "hebbian", every_layer=True)
    return sum(len(block.sites) for block in whole.blocks) + len(whole.head.sites) + 1


@cache
def with_a_block_for_each_layer(model: str, q_rule: str) -> dict[str, Tensor]:
    return train(network(model, finest(model), q_rule), model)


MODELS, RULES = ("mlp", "cnn", "characters", "large maps"), ("fixed", "hebbian", "readout")


@pytest.mark.parametrize(
    ("model", "q_rule", "blocks"),
    [  # every pair of the three
        (model, rule, 1 + (place + turn) % 3)
        for place, model in enumerate(MODELS)
        for turn, rule in enumerate(RULES)
    ],
)
def test_the_same_bits_as_a_block_for_each_layer(model: str, q_rule: str, blocks: int) -> None:
    one = train(network(model, blocks, q_rule, every_layer=True), model)
    other = with_a_block_for_each_layer(model, q_rule)
    assert one.keys() == other.keys()
    assert sum(name.startswith("feedback/") for name in one) == finest(model) - 1 > 2
    assert not [name for name, value in other.items() if not torch.equal(value, one[name])]


@pytest.mark.parametrize("every_layer", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("q_rule", ["fixed", "hebbian", "readout", "probed"])
def test_gradients_at_a_grid_on_large_maps_are_those_of_autograd(
    q_rule: str, precision: str, every_layer: bool
) -> None:
    made = network("large maps", 3, q_rule, every_layer=every_layer, precision=precision)
    features = [site.feedback.weights.shape[0] for stage in made.stages for site in stage.sites]
    assert features == [4 * 7 * 7, 6 * 5 * 5, 8 * 4 * 4][: len(features)]
    refuse_inexact(made.stages, batch("large maps", 0), overlapping=True, stale=False)


def test_no_gradient_passes_between_layers() -> None:
    made = network("mlp", 2, "hebbian", every_layer=True)
    (inputs, _), _ = batch("mlp", 0)
    block = made.blocks[0]
    # Not as it learns: linear layers then keep their weights' gradients from autograd.
    with torch.enable_grad():
        outputs = block.run_parts(inputs, Ticket(0, 0))
    assert len(outputs) == len(block.sites) > 1
    parameters = [list(part.parameters()) for part in block._parts]
    for number, output in enumerate(outputs):
        for other, wanted in enumerate(parameters):
            found = torch.autograd.grad(output.sum(), wanted, retain_graph=True, allow_unused=True)
            assert [gradient is not None for gradient in found] == [other == number] * len(wanted)


def test_probes_reach_the_layers_of_the_head_too() -> None:
    made = network("mlp", 2, "probed", every_layer=True)
    feedback = [site.feedback for stage in (*made.blocks, made.head) for site in stage.sites]
    for part, (inputs, targets) in enumerate(batch("mlp", 0)):
        made.form.run(inputs, targets, Ticket(0, part))
    estimates = [one.pending() for one in feedback]
    assert len(estimates) > 2 and all(estimate is not None and estimate.any() for estimate in estimates)
    made.form.step()
    assert [one.pending() for one in feedback] == [None] * len(feedback)


def test_state_moves_between_cuts() -> None:
    fine = network("mlp", finest("mlp"), "hebbian")
    train(fine, "mlp")
    tensors = {
        name: value for stage in (*fine.blocks, fine.head) for name, value in stage.state().tensors.items()
    }
    coarse = network("mlp", 2, "hebbian", every_layer=True)
    before = {site.boundary: site.feedback.weights.clone() for site in coarse.blocks[0].sites}
    for stage in (*coarse.blocks, coarse.head):
        stage.load(
            tensors, stage.state().scalars | {"updater": {"parameters": {}, **_rest(stage.state().scalars)}}
        )
        for site in stage.sites:
            assert torch.equal(site.feedback.weights, tensors[f"feedback/{site.boundary}/Q"])
    assert all(
        not torch.equal(site.feedback.weights, before[site.boundary]) for site in coarse.blocks[0].sites
    )


class Again(nn.Module):
    """Comes to two of its layers twice."""

    layers = ("first", "act", "shared", "act", "shared", "last")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.shared, self.last = (
            nn.Linear(12, 8),
            nn.Tanh(),
            nn.Linear(8, 8),
            nn.Linear(8, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.act(self.shared(self.act(self.first(x)))))
        return self.last(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("blocks", "every_layer"), [(3, False), (2, True)])
def test_a_layer_that_comes_again_has_feedback_weights_for_each_time(blocks: int, every_layer: bool) -> None:
    def made(seed: int) -> DecoupledNetwork:
        torch.manual_seed(seed)
        cut = ["shared", "last"] if blocks == 3 else ["last"]
        return decouple(
            Again(),
            torch.zeros(2, 12),
            blocks=cut,
            total_steps=STEPS,
            feedback=FeedbackConfig(q_rule="hebbian", every_layer=every_layer),
            training=TrainingConfig(total_steps=STEPS, microbatches=MICROBATCHES, seed=seed),
        )

    one, other = made(0), made(1)
    states = [stage.state() for stage in one.stages]
    kept = [name for state in states for name in state.tensors]
    assert len(set(kept)) == len(kept)
    drawn = {name: value.clone() for state in states for name, value in state.tensors.items()}
    train(one, "mlp")
    states = [stage.state() for stage in one.stages]
    tensors = {name: value.clone() for state in states for name, value in state.tensors.items()}
    feedback = [name for name in tensors if name.startswith("feedback/")]
    assert len(feedback) == sum(len(stage.sites) for stage in one.stages) == (3 if every_layer else 2)
    assert not any(torch.equal(tensors[name], drawn[name]) for name in feedback)
    for stage, state in zip(other.stages, states, strict=True):
        stage.load(tensors, state.scalars)
    found = {name: value for stage in other.stages for name, value in stage.state().tensors.items()}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def _rest(scalars: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in scalars["updater"].items() if key != "parameters"}


@pytest.mark.parametrize("staleness", [1, 2])
def test_weights_may_change_before_the_error_comes(staleness: int) -> None:
    made = network("mlp", 2, "readout", every_layer=True, staleness=staleness)
    (inputs, _), _ = batch("mlp", 0)
    block, error = made.blocks[0], torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0))
    block.forward(inputs, Ticket(0, 0))
    block.receive_error(Ticket(0, 0), error)
    expected = [parameter.grad.clone() for parameter in block.module.parameters()]
    block.updater.optimizer.zero_grad()
    block.forward(inputs, Ticket(0, 1))
    with torch.no_grad():
        block._stash.before_update()
        for parameter in block.module.parameters():
            parameter.add_(1.0)
    block.receive_error(Ticket(0, 1), error)
    found = [parameter.grad for parameter in block.module.parameters()]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
