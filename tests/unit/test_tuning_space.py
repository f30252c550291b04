"""What is tried of a run, what is expected of it, and what comes of that on machines that are played."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from lowdimfa.build import build_stages
from lowdimfa.errors import InputError, StoppedError
from lowdimfa.network import DecoupledNetwork
from lowdimfa.services.lab.simulation.calibrate import Measured
from lowdimfa.services.lab.simulation.setting import BlockCosts, Setting
from lowdimfa.services.lab.simulation.simulate import simulate
from lowdimfa.services.lab.tuning import segments
from lowdimfa.services.lab.tuning.predict import Predictor
from lowdimfa.services.lab.tuning.search import Changes, Search, Segment
from lowdimfa.services.lab.tuning.space import AT_A_PRICE, Space
from lowdimfa.services.lab.tuning.tune import Tuned, tune
from lowdimfa.services.run.plan import RunPlan, make_run_plan
from lowdimfa.services.run.training import use_own_threads
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.stopping import StopRequest
from lowdimfa.trainer import InProcessTrainer


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 4))


def untracked() -> nn.Module:
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return nn.Sequential(nn.Linear(6, 8), norm, nn.Linear(8, 8), nn.Linear(8, 4))


def spectral() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 8)), nn.Linear(8, 8), nn.Linear(8, 4))


def parametrized() -> nn.Module:
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(nn.Linear(6, 8), norm(nn.Linear(8, 8)), norm(nn.Linear(8, 4)))


class Centred(nn.Module):
    """A norm by hand, whose mean is a parameter that no optimiser moves."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.data.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean


def by_hand() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Centred(), nn.Linear(8, 8), nn.Linear(8, 4))


class Apart(nn.Module):
    """Takes the mean over the samples away, and keeps nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def mixing() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Apart(), nn.Linear(8, 8), nn.Linear(8, 4))


class Locked(nn.Linear):
    """Can't be copied, so that nothing can be tried on it."""

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise TypeError("locked")


def locked() -> nn.Module:
    return nn.Sequential(Locked(6, 8), nn.Linear(8, 8), nn.Linear(8, 4))


@cache
def plan(**settings: Any) -> RunPlan:
    plain = {
        "model": {
            "factory": "lowdimfa.models:mlp",
            "args": {"in_features": 6, "width": 16, "depth": 5, "classes": 4},
            "blocks": 2,
        },
        "data": {
            "factory": "lowdimfa.data:teacher",
            "args": {"in_features": 6, "outputs": 4, "samples": 96, "test_samples": 8},
        },
        "train": {"steps": 6, "batch_size": 24, "microbatches": 2},
    }
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    return make_run_plan(parse_specification(plain, "the test", overrides), rehearsed=False)


def changed(**settings: Any) -> RunPlan:
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    specification = parse_specification(plan().specification.model_dump(), "the test", overrides)
    return make_run_plan(specification, rehearsed=False)


class Counting(nn.Linear):
    """Changes a state while it trains that replicas can't average."""

    seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += self.training
        return super().forward(x)

    def get_extra_state(self) -> int:
        return self.seen

    def set_extra_state(self, state: int) -> None:
        self.seen = state


def counting() -> nn.Module:
    return nn.Sequential(Counting(6, 8), nn.Linear(8, 8), nn.Linear(8, 4))


def measured(*seconds: tuple[float, float], microbatches: int = 2, fixed: float = 0.0) -> Measured:
    """Return a segment whose blocks took so long, forward and update, for a sample, and more for a micro-batch."""
    size = 24 // microbatches
    blocks = tuple(BlockCosts(*(size * one + fixed for one in own), step=1e-5) for own in seconds)
    setting = Setting(blocks, microbatches, size, (64.0,) * (len(blocks) - 1), 16.0)
    return Measured(setting, (1 / len(blocks),) * len(blocks), (100.0,) * len(blocks), {})


SAMPLES_100 = {"data__args": {"in_features": 6, "outputs": 4, "samples": 100, "test_samples": 8}}
EVEN = measured((1e-3, 2e-3), (3e-3, 1e-9))


def keys(some: list[Changes]) -> set[str]:
    return {key for changes in some for key in changes}


def test_without_leave_only_what_keeps_the_mathematics_is_tried() -> None:
    space = Space.around(plan(), (), (), spare=1, threads=4, cores=4)
    uneven = measured((4e-3, 4e-3), (1e-3, 1e-9))
    assert keys(space.main(uneven)) == {"train.microbatches", "model.blocks", "placement.replicas"}
    assert keys(space.variations({}, uneven)) == {
        "train.window",
        "placement.threads_per_block",
        "placement.transport",
    }
    every = Space.around(plan(), AT_A_PRICE, ("window", "cut"), threads=1)
    assert keys(every.main(uneven)) == {"train.microbatches", "train.staleness"}
    assert keys(every.variations({}, uneven)) == {
        "placement.transport",
        "train.activations",
        "feedback.every_layer",
    }


def test_what_is_tried_without_leave_learns_the_same() -> None:
    space = Space.around(plan(), (), ("cut", "replicas", "transport"), threads=4, cores=4)
    some = [*space.main(EVEN), *space.variations({"train.microbatches": 4}, EVEN)]
    assert len(some) >= 6
    expected = learned({})
    for changes in some:
        found = learned(changes)
        assert all(torch.allclose(found[name], expected[name], 1e-4, 1e-6) for name in expected), changes


def learned(changes: Changes) -> dict[str, Any]:
    own = plan()
    specification = parse_specification(own.specification.model_dump(), "the test", changes)
    own = make_run_plan(specification, rehearsed=False)
    network = own.network
    blocks, head = build_stages(network.blocks, network.feedback, network.training, own.dataset.task)
    use_own_threads([*blocks, head], specification.placement)
    trained = DecoupledNetwork(blocks, head, network.feedback)
    InProcessTrainer(trained, own.dataset, own.order).run(0, 6)
    return trained.state_dict()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"model__factory": f"{__name__}:normed", "model__args": {}}, "statistics from each micro-batch"),
        ({"model__factory": f"{__name__}:untracked", "model__args": {}}, "statistics from each micro-batch"),
        ({"model__factory": f"{__name__}:spectral", "model__args": {}}, "changes 0.weight_u"),
        ({"model__factory": f"{__name__}:parametrized", "model__args": {}}, "changes 1.parametrizations"),
        ({"model__factory": f"{__name__}:by_hand", "model__args": {}}, "changes 1.mean"),
        ({"model__factory": f"{__name__}:mixing", "model__args": {}}, "mixes the samples of a micro-batch"),
        ({"model__factory": f"{__name__}:locked", "model__args": {}}, "can't be seen here (InputError)"),
        ({"train__ignore_index": 3}, "how many of its targets count"),
        (
            {"train__batch_size": 40, "train__microbatches": 8, "data__last_batch": "keep"} | SAMPLES_100,
            "a readout weighs micro-batches alike",
        ),
        ({"train__loss": "torch.nn.functional:cross_entropy"}, "a loss of one's own"),
        ({"feedback__q_rule": "probed"}, "probed"),
        ({"train__activations": {"rank": 4}}, "a low rank"),
    ],
)
def test_micro_batches_stay_where_they_are_not_free(settings: dict[str, Any], why: str) -> None:
    own = changed(**settings)
    space = Space.around(own, (), ())
    assert why in space.left_out["microbatches"]
    assert "train.microbatches" not in keys(space.main(EVEN))
    allowed = Space.around(own, ("microbatches",), ())
    assert "microbatches" not in allowed.left_out
    assert "train.microbatches" in keys(allowed.main(EVEN))


def test_errors_of_the_hidden_state_leave_micro_batches_free() -> None:
    own = changed(feedback__source="head_input", feedback__q_start="identity")
    assert own.network.feedback.q_rule == "auto"  # to be what each block needs
    assert "microbatches" not in Space.around(own, (), ()).left_out


def test_under_a_readout_a_smaller_last_batch_is_shared_out_evenly() -> None:
    kept = {"train__batch_size": 40, "data__last_batch": "keep"} | SAMPLES_100
    of_readout, of_hebbian = (
        {
            one.get("train.microbatches")
            for one in Space.around(changed(**kept, **own), (), ("cut",)).main(None)
        }
        for own in ({}, {"feedback__q_rule": "hebbian"})
    )
    assert of_readout == {1, 4} and of_hebbian == {1, 4, 8}


@pytest.mark.parametrize(
    ("staleness", "allowed", "tried"), [(0, (), True), (1, (), False), (1, ("window",), True)]
)
def test_with_staleness_the_window_changes_what_is_learned(
    staleness: int, allowed: tuple[str, ...], tried: bool
) -> None:
    space = Space.around(changed(train__staleness=staleness), allowed, ())
    assert ("train.window" in keys(space.variations({}, EVEN))) == tried
    assert ("window" in space.left_out) != tried


def test_a_cut_that_the_user_named_stays_and_replicas_need_room() -> None:
    uneven = measured((4e-3, 4e-3), (1e-3, 1e-9))
    named = make_run_plan(
        parse_specification(plan().specification.model_dump(), "the test", {"model.blocks": ["3"]}),
        rehearsed=False,
    )
    assert keys(Space.around(named, (), ()).main(uneven)) == {"train.microbatches"}
    assert {"placement.replicas": {0: 2}} in Space.around(named, (), (), spare=1).main(uneven)
    head_is_slower = measured((1e-3, 1e-3), (9e-3, 1e-9))
    assert "placement.replicas" not in keys(Space.around(named, (), (), spare=1).main(head_is_slower))


def predictor(*found: Measured) -> Predictor:
    return Predictor(plan().specification, plan().describe(), found, None)


def test_the_simulator_knows_micro_batches_staleness_cuts_and_replicas() -> None:
    """Where a micro-batch costs something of its own, whole batches are faster; where not, small ones are at first."""
    costly = predictor(
        measured((1e-4, 1e-4), (2e-4, 1e-9), fixed=0.1),
        measured((1e-4, 1e-4), (2e-4, 1e-9), microbatches=8, fixed=0.1),
    )
    rates = [costly.rate({"train.microbatches": number, "train.staleness": 1}) or 0 for number in (1, 2, 8)]
    assert rates == sorted(rates, reverse=True)
    cheap = predictor(EVEN)
    rates = [cheap.rate({"train.microbatches": number}) or 0 for number in (1, 2, 4, 8)]
    assert rates == sorted(rates)
    assert (cheap.rate({"train.staleness": 1}) or 0) > (cheap.rate({}) or 0)
    uneven = measured((4e-3, 4e-3), (1e-3, 1e-9))
    (cut,) = Space.around(plan(), (), ("microbatches",)).main(uneven)
    assert (predictor(uneven).rate(cut) or 0) > (predictor(uneven).rate({}) or 0)
    replicated = {"placement.replicas": {0: 2}}
    assert (predictor(uneven).rate(replicated) or 0) > (predictor(uneven).rate({}) or 0)


@pytest.mark.parametrize("forward", [1e-3, 5e-3])
def test_the_simulator_knows_blocks_that_learn_nothing(forward: float) -> None:
    """What it was told comes back."""
    found = measured((forward, 0.0), (1e-3, 2e-3))
    frozen, head = found.setting.blocks
    setting = replace(found.setting, blocks=(replace(frozen, step=0.0, learns=False), head))
    own = predictor(replace(found, setting=setting))
    assert own.rate({}) == pytest.approx(simulate(setting, "staleness-0").samples_per_second, rel=1e-6)
    assert own.rate({"train.staleness": 1}) == pytest.approx(1 / max(forward, 3e-3), rel=0.01)


def test_a_setting_with_which_no_run_begins_is_refused_by_a_rehearsal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segments, "_SegmentActor", Mock())
    own = changed(model__factory=f"{__name__}:counting", model__args={})
    found = segments.Segments(own.specification, own.network.boundaries, Path(), Mock(), 1.0, StopRequest())
    found.rehearse({"train.microbatches": 4})
    with pytest.raises(InputError, match="extra state is not averaged between replicas"):
        found.rehearse({"placement.replicas": {0: 2}})


class Cluster:
    """Is as fast as the settings say."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.now, self.found, self._left = 0.0, [EVEN], stop_after

    def measure(self, changes: Changes) -> Segment:
        self._left -= 1
        if self._left < 0:
            raise StoppedError("stopped")
        self.now += 4.0
        found = parse_specification(plan().specification.model_dump(), "", changes)
        rate = 100.0 * (1.5 if found.train.microbatches == 8 else 1.0)
        rate *= 1.2 if found.placement.transport == "torch" else 1.0
        return Segment(rate * (0.5 if found.train.window else 1.0))

    def tuned(self, seconds: float = 400.0) -> Tuned:
        space = Space.around(plan(), (), (), threads=4, cores=4)
        search = Search(self.measure, lambda: self.now, seconds)
        return tune(search, space, self.found, lambda part: part * seconds)


def test_what_is_best_alone_is_found_together() -> None:
    cluster = Cluster()
    tuned = cluster.tuned()
    assert tuned.chosen.changes == {"train.microbatches": 8, "placement.transport": "torch"}
    assert tuned.verdict.ratio == pytest.approx(1.8) and cluster.now <= 400
    found = tuned.describe()
    assert found["settings"][0]["changes"] == tuned.chosen.changes
    assert {} in [row["changes"] for row in found["settings"]]
    rates = [row["of_default"] for row in found["settings"]]
    assert rates == sorted(rates, reverse=True)
    assert found["settings"][0]["predicted"] > 0


def test_without_time_the_default_stays() -> None:
    tuned = Cluster().tuned(20.0)
    assert (tuned.chosen.changes, tuned.stopped) == ({}, False)
    assert tuned.untried > 0


def test_a_stop_leaves_what_was_measured() -> None:
    tuned = Cluster(stop_after=5).tuned()
    assert tuned.stopped and tuned.chosen.changes == {}
    assert sum(len(one.segments) for one in tuned.tried) == 5


def test_without_anything_that_the_simulator_can_learn_the_search_goes_on() -> None:
    cluster = Cluster()
    cluster.found = []
    assert cluster.tuned().chosen.changes["train.microbatches"] == 8
