"""What layers move by themselves in training: named when a run starts, refused with replicas, or averaged by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from specifications import specification
from test_replicas import SGD, assert_alike, states
from thread_fleet import thread_fleet
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa import sparse
from lowdimfa.errors import InputError
from lowdimfa.services.run import in_turn, large
from lowdimfa.services.run.notes import notes
from lowdimfa.services.run.plan import RunPlan, make_run_plan
from lowdimfa.services.spec import parse_specification

WIDTH = 24


class Begun(nn.Module):
    """Begins with the mean of its first batch in training."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("done", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.done:
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
                self.done.fill_(True)
        return x + self.shift


class Made(nn.Module):
    """Makes a buffer of no state dict in its first forward in training."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not hasattr(self, "mean"):
            self.register_buffer("mean", x.detach().mean(0), persistent=False)
        return x


class Grown(nn.Module):
    """Gives a buffer of no state dict as many entries as there are samples."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("latest", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.latest = x.detach()[:, 0].clone()
        return x


class Masked(nn.Module):
    """Keeps in a buffer which units of the last micro-batch were above zero."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positive", torch.zeros(WIDTH, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.positive = (x.detach() > 0).all(0)
        return x


class Dropped(nn.Module):
    """Has a buffer until it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = None
        return x


class Counting(nn.Module):
    """Counts its forwards in training in an attribute, on which what it computes depends; and notes what it saw last."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.samples, self.latest = 0, 0, torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.samples, self.latest = len(x), x
        return x * 0.9995**self.calls


class Noting(nn.Module):
    """Keeps what it saw last, behind batch norm, which counts calls in a buffer; has a sparse one, and makes masks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.samples, self.latest = 0, torch.zeros(0)
        self.register_buffer("graph", torch.eye(WIDTH).to_sparse(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.ones(WIDTH), persistent=False)
            self.register_buffer("narrow", torch.ones(WIDTH, dtype=torch.int16), persistent=False)
        self.samples, self.latest = len(x), self.norm(x) * self.mask * self.narrow
        return self.latest


class Averaging(nn.Module):
    """Has a running mean in a tensor that is no buffer, which nothing is computed from yet."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x


class Initialised(nn.Module):
    """Has the mean of its first batch in an attribute."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not hasattr(self, "mean"):
            self.mean = x.detach().mean(0)
        return x


class Used(nn.Module):
    """Counts in a buffer of integers how often each unit is the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("used", torch.zeros(WIDTH, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.used += torch.bincount(x.detach().argmax(1), minlength=WIDTH)
        return x


class Statistics(nn.Module):
    """Batch norm whose statistics are in no state dict, or there as a copy under a name of the module's own."""

    def __init__(self, saved: bool) -> None:
        super().__init__()
        self.saved = saved
        self.register_buffer("mean", torch.zeros(WIDTH), persistent=False)
        self.register_buffer("var", torch.ones(WIDTH), persistent=False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.saved:
            destination[f"{prefix}both"] = torch.stack([self.mean, self.var])

    def _load_from_state_dict(self, state: Any, prefix: str, *others: Any) -> None:
        if self.saved:
            self.mean, self.var = state[f"{prefix}both"].clone()

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.mean, self.var, training=self.training)


def made_of(kind: str, **given: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, WIDTH),
        nn.Linear(WIDTH, WIDTH),
        globals()[kind](**given),
        nn.Linear(WIDTH, WIDTH),
        nn.Linear(WIDTH, 10),
    )


def of(kind: str, replicas: int = 2, **given: Any) -> dict[str, Any]:
    plain = specification(train={"microbatches": 4} | SGD, placement={"replicas": {1: replicas}})
    args = {"kind": kind} | given
    return plain | {"model": {"factory": f"{__name__}:made_of", "args": args, "blocks": ["2", "5"]}}


def planned(plain: dict[str, Any], whole: bool = True) -> RunPlan:
    return make_run_plan(parse_specification(plain, "test"), whole=whole)


@pytest.fixture(params=["whole", "in turn"])
def whole(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a process holds the network; else every network is taken for a large one."""
    if request.param == "in turn":
        monkeypatch.setattr(large, "LARGE", 0)
        monkeypatch.setattr(sparse, "SMALLEST", 64)
        monkeypatch.setattr(in_turn, "PIECE", 0)
    return bool(request.param == "whole")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("Begun", "2 of block 1, whose layer '3' changes its parameter 'shift' in its forward"),
        ("Made", "whose layer '3' makes its buffer 'mean' of what it sees"),
        (
            "Counting",
            "whose layer '3' keeps in its attribute 'calls' more than of its last forward in training",
        ),
        ("Averaging", "whose layer '3' keeps in its attribute 'mean' more than of its last forward"),
        ("Initialised", "whose layer '3' keeps in its attribute 'mean' more than of its last forward"),
        ("Used", "whose layer '3' moves its buffer 'used' of whole numbers by what it sees"),
    ],
)
def test_what_moves_in_training_and_replicas_do_not_share_is_refused(
    kind: str, words: str, whole: bool
) -> None:
    with pytest.raises(InputError) as caught:
        planned(of(kind), whole)
    assert str(caught.value).startswith("placement.replicas: "), caught.value
    assert words in str(caught.value)
    assert planned(of(kind, replicas=1), whole).network.blocks


@pytest.mark.parametrize("kind", ["Noting", "Grown", "Masked"])
def test_what_was_last_seen_and_counts_that_are_alike_everywhere_are_no_reason(
    kind: str, whole: bool, tmp_path: Path
) -> None:
    assert planned(of(kind), whole).network.blocks
    with thread_fleet(of(kind), tmp_path) as fleet:
        fleet.run(0, 1)
        assert_alike(states(fleet))


def test_a_count_that_moves_in_training_alone_is_named_at_the_start(whole: bool) -> None:
    told = [note for note in notes(planned(of("Counting", replicas=1), whole)) if "no checkpoint has" in note]
    assert [note.partition(", which")[0] for note in told] == ["3: its forward changes calls, samples"]


@pytest.mark.parametrize("saved", [False, True])
def test_statistics_that_no_state_dict_has_are_averaged_too(saved: bool, tmp_path: Path) -> None:
    plain = of("Statistics", saved=saved)
    assert planned(plain).network.blocks
    with thread_fleet(plain, tmp_path) as fleet:
        fleet.run(0, 3)
        assert_alike(states(fleet))
        buffers = [
            dict(worker.stage.module.named_plain_buffers())
            for worker in fleet.workers
            if worker.job.index == 1
        ]
    assert len(buffers) == 2 and buffers[0].keys() == {"3.mean", "3.var"}
    assert all(torch.equal(value, buffers[1][name]) for name, value in buffers[0].items())
    assert buffers[0]["3.mean"].abs().sum() > 0
