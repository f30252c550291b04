"""A model's own forward is compared with its layers on the run's own samples, where most differences show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.errors import InputError
from lowdimfa.partitioning import partition
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.objects import described


class Scaled(nn.Module):
    """Scales pixels before its layers."""

    layers = ("first", "act", "second")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)

    def between(self, x: Tensor) -> Tensor:
        return x / 255

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(self.between(x))))  # type: ignore[no-any-return]


class Normalised(Scaled):
    def between(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=-1)


class Flipped(Scaled):
    def between(self, x: Tensor) -> Tensor:
        return x.flip(-1)


class Residual(nn.Module):
    """Has an activation between its layers, and no bias before batch normalisation: of zeros it makes zeros."""

    layers = ("conv", "norm", "pool", "flat", "head")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.pool, self.flat, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(self.pool(functional.relu(self.norm(self.conv(x))))))  # type: ignore[no-any-return]


class Flat(nn.Module):
    """Normalises one number of each sample: of one sample again and again nothing is left."""

    layers = ("first", "norm", "head")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.norm(self.first(x))))  # type: ignore[no-any-return]


class Whole(Residual):
    layers = ("conv", "norm", "act", "pool", "flat", "head")

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()


class Shifted(nn.Module):
    """Sees each token's predecessor."""

    layers = ("embedding", "flat", "head")

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.flat, self.head = nn.Embedding(5, 4), nn.Flatten(), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(self.embedding(x.roll(1, -1))))  # type: ignore[no-any-return]


def data(inputs: Tensor) -> tuple[Tensor, ...]:
    targets = torch.arange(len(inputs)) % 3
    return inputs[:12], targets[:12], inputs[12:], targets[12:]


def trainer(model: nn.Module, inputs: Tensor, place: Path) -> DecoupledTrainer:
    return DecoupledTrainer(
        model=model, data=data(inputs), blocks=2, batch_size=4, steps=1, engine="local", run_dir=place / "run"
    )


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (Scaled, torch.rand(16, 8) * 255),
        (Normalised, torch.randn(16, 8)),
        (Flipped, torch.randn(16, 8)),
        (Residual, torch.randn(16, 1, 6, 6)),
        (Flat, torch.randn(16, 8)),
        (Shifted, torch.randint(5, (16, 8))),
    ],
)
def test_what_a_forward_does_beside_its_layers_is_noticed(
    kind: type[nn.Module], inputs: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=f"a {kind.__name__} whose layers, run in order, don't compute its forward"
    ):
        trainer(kind(), inputs, tmp_path).fit()
    assert not (tmp_path / "run").exists()


def test_layers_that_are_all_of_it_train(tmp_path: Path) -> None:
    assert trainer(Whole(), torch.randn(16, 1, 6, 6), tmp_path).fit().metrics["steps"] == 1


class Following(nn.Module):
    """Takes from what it is given the means of all that it has been given, in a new buffer or a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.scale = nn.Parameter(torch.ones(8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + x.detach().mean(0)
            with torch.no_grad():
                self.scale.add_(x.detach().abs().mean(0))
        return (x - self.mean) / self.scale


class Followed(Scaled):
    layers = ("follow", "first", "act", "second")

    def __init__(self) -> None:
        super().__init__()
        self.follow = Following()

    def between(self, x: Tensor) -> Tensor:
        return self.follow(x)  # type: ignore[no-any-return]


def test_what_a_forward_moves_is_as_before_whatever_its_means() -> None:
    model = Followed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mean = model.follow.mean
    partition(model, 2, torch.randn(4, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.follow.mean is mean


def test_a_loss_that_adds_up_over_samples_is_refused(tmp_path: Path) -> None:
    """Its gradient would be divided by the number of micro-batches, which may be chosen by the runtime."""
    options = {"batch_size": 4, "blocks": 2, "steps": 1, "engine": "local", "run_dir": tmp_path / "run"}
    layers = [nn.Linear(8, 6), nn.Linear(6, 3)]
    for loss in (nn.CrossEntropyLoss(reduction="sum"), lambda y, t: functional.cross_entropy(y, t) * len(t)):
        with pytest.raises(InputError, match="a loss that adds up over the samples"):
            DecoupledTrainer(model=layers, data=data(torch.randn(16, 8)), loss=loss, **options).fit()  # type: ignore[arg-type]
    DecoupledTrainer(model=layers, data=data(torch.randn(16, 8)), loss=nn.CrossEntropyLoss(), **options).fit()  # type: ignore[arg-type]


def test_evaluation_batches_are_smaller_where_outputs_are_large(tmp_path: Path) -> None:
    """256 sequences of a language model with a vocabulary of 50,000 would be more logits than memory."""
    inputs, targets = torch.randn(300, 2), torch.arange(300) % 3
    within = nn.Sequential(nn.Linear(2, 2**20), nn.Linear(2**20, 1))
    for layers, size in (
        ([nn.Linear(2, 1), nn.Linear(1, 3)], 256),
        ([nn.Linear(2, 1), nn.Linear(1, 2**20)], 64),
        ([nn.Linear(2, 1), nn.Linear(1, 2**23)], 16),
        ([within, nn.Linear(1, 3)], 64),
    ):
        given = described(
            model=layers, data=(inputs, targets, inputs, targets), blocks=2, batch_size=16, steps=1
        )
        plan = make_run_plan(parse_specification(given, ""), rehearsed=False)
        assert plan.order.evaluation_size == size
        assert len(plan.reader._evaluation[0]) == size
