"""Random numbers that a user's layers, losses and modules draw: a function of the run alone, in whatever process."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.generators import reproducible
from lowdimfa.head import Evaluation
from lowdimfa.imports import call_factory
from lowdimfa.network import DecoupledNetwork, decouple


class Noisy(nn.Module):
    """Draws from every generator that there is, in training and in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        scale = random.random() + float(numpy.random.normal())
        return functional.dropout(x, 0.2) * scale + torch.randn_like(x)


def noisy_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A user's loss that draws too."""
    noise = random.random() + float(numpy.random.rand()) + torch.rand(())
    return functional.cross_entropy(outputs * noise, targets)


class Listing(nn.Module):
    """Names its layers, so that they are compared with its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(5, 5), Noisy()), nn.Sequential(nn.Linear(5, 3), Noisy())]
        )

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def trained(before: int) -> tuple[DecoupledNetwork, list[float]]:
    """Return a network after two steps and two evaluations, in a process that did something else before."""
    torch.manual_seed(0)
    model = nn.Sequential(*Listing().layers)
    training = TrainingConfig(total_steps=2, loss=f"{__name__}:noisy_loss")
    network = decouple(
        model,
        torch.zeros(2, 5),
        blocks=2,
        total_steps=2,
        feedback=FeedbackConfig(q_rule="probed", probe_every=1),
        training=training,
    )
    random.seed(before), numpy.random.seed(before), torch.manual_seed(before)
    inputs, targets = torch.ones(6, 5), torch.arange(6) % 3
    losses = [network.train_step(step, [(inputs, targets)]).loss for step in range(2)]
    losses += [network.evaluate([(inputs, targets)] * 2).loss for _ in range(2)]
    return network, losses


def test_layers_and_losses_draw_by_run_block_and_micro_batch() -> None:
    (one, losses), (other, again) = trained(1), trained(2)
    assert losses == again
    assert losses[2] == losses[3] and losses[0] != losses[1]
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_batches_of_an_evaluation_draw_other_numbers() -> None:
    network, _ = trained(1)
    inputs, targets = torch.ones(6, 5), torch.arange(6) % 3
    losses = []
    for batch in (0, 1, 0):
        totals = Evaluation()
        network.head.evaluate_outputs(inputs, targets, totals, batch)
        losses.append(totals.loss)
    assert losses[0] == losses[2] != losses[1]


def test_layers_that_draw_are_all_that_their_model_does() -> None:
    network = decouple(Listing(), torch.zeros(2, 5), blocks=2, total_steps=1)
    assert len(network.blocks) == 1


def test_what_a_module_draws_or_seeds_while_it_is_imported_does_not_depend_on_who_imports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer and the first block import a user's module for its data; another block for its model."""
    (tmp_path / "users_own.py").write_text(
        "import torch\n"
        "constant = torch.randn(3)\n"
        "torch.manual_seed(7)\n"
        "def model():\n    return torch.randn(3)\n"
        "def data():\n    return constant\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for first in (("data", 1), ("model", 2)):
        importlib.invalidate_caches()
        sys.modules.pop("users_own", None)
        torch.manual_seed(len(found))
        with reproducible(first[1]):
            call_factory(f"users_own:{first[0]}", {}, "test")
        with reproducible(2):
            found.append(
                (call_factory("users_own:model", {}, "test"), call_factory("users_own:data", {}, "test"))
            )
    sys.modules.pop("users_own", None)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    with reproducible(2):
        assert torch.equal(found[0][0], torch.randn(3))  # the factory's own seed, not that of its module
