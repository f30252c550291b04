"""The comparison of networks in blocks: verdicts from the numbers, runs at a size of seconds, and what is never seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.claims.cache import RunCache
from benchmarks.claims.claim import Claim, RunSettings
from benchmarks.claims.page import page
from benchmarks.claims.settings import Update
from benchmarks.claims.storing import Places
from benchmarks.claims.training import Trained
from benchmarks.gap import __main__ as long_grids
from benchmarks.gap import blocks, closing, dimension, finetuning, grids, residual, taps, trials
from benchmarks.gap.grids import GRIDS
from benchmarks.gap.long import ROWS
from benchmarks.gap.networks import ACCURACY, BITS, CONTEXT, NETWORKS, TEXT, Network
from benchmarks.gap.rules import BACKPROP, FIXED, FROZEN, HEBBIAN, LOCAL, READOUT, Rule, by_muon
from benchmarks.gap.sweeps import Sweep
from benchmarks.gap.trials import BlockTrial, in_blocks, runs_of, train
from benchmarks.throughput.networks import images
from lowdimfa.config import TrainingConfig
from lowdimfa.data import Task
from lowdimfa.data.base import EVALUATION_SAMPLES
from lowdimfa.errors import NotFiniteError
from lowdimfa.feedback.resolving import error_shape, resolve_feedback
from lowdimfa.head import Evaluation
from lowdimfa.kinds import HIDDEN, kinds_of
from lowdimfa.models import mlp
from lowdimfa.network import DecoupledNetwork
from lowdimfa.partitioning import partition

pytestmark = pytest.mark.slow

TINY = Network("tiny", mlp, (32, 16, 5, 10), "teacher", 128, 2, 32, (Update(1e-3), Update(3e-3)), target=1.0)
IN_POINTS = [network for network in NETWORKS.values() if network.score != BITS]


def result(means: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return the part of a result that verdicts and pictures are made from."""
    return {
        "runs": [],
        "summary": {
            network: {
                rule: {"rate": 1e-3, "weight_decay": 0.01, "scores": [mean, mean]}
                for rule, mean in rules.items()
            }
            for network, rules in means.items()
        },
    }


def gaps(readout: float, local: float, fixed: float) -> dict[str, Any]:
    """Return a result with gaps in targets, the same on every network."""
    found = {}
    for network in NETWORKS.values():
        unit = network.target * (3.0 if network.score == BITS else -1.0)
        reference = 3.0 if network.score == BITS else 90.0
        by_rule = {READOUT: readout, LOCAL: local, FIXED: fixed, FROZEN: fixed}
        means = {rule.label: reference + gap * unit for rule, gap in by_rule.items()}
        found[network.label] = {BACKPROP.label: reference} | means
    return result(found)


@pytest.mark.parametrize(
    ("readout", "local", "fixed", "verdict", "says"),
    [
        (0.9, 2.0, 3.0, "reached", "within its target on 5 of 5 networks"),
        (-1.0, -0.5, 3.0, "reached", "ahead of greedy local loss by more than 2 standard errors on 5 of 5"),
        (0.9, 0.5, 3.0, "partly", "standard errors on 0 of 5, not on the MLP 4×512"),
        (1.1, 2.0, 3.0, "not reached", "within its target on 0 of 5 networks, not on the MLP 4×512"),
    ],
)
def test_the_gap_is_reached_within_all_targets_and_ahead_of_all_controls(
    readout: float, local: float, fixed: float, verdict: str, says: str
) -> None:
    found, reason = closing.judge(gaps(readout, local, fixed))
    assert found == verdict
    assert says in reason


def test_controls_that_scatter_or_are_not_there_are_not_beaten() -> None:
    found = gaps(0.9, 2.0, 3.0)
    network = NETWORKS["mlp"]
    summary = found["summary"][network.label]
    mean = summary[LOCAL.label]["scores"][0]
    summary[LOCAL.label]["scores"] = [mean - 1.0, mean + 1.0]
    assert closing.judge(found)[0] == "partly"
    row = next(line for line in closing.network_table(found, network).splitlines() if LOCAL.label in line)
    assert row.split("|")[2].strip().startswith("**")
    del summary[LOCAL.label]
    assert "greedy local loss by more than 2 standard errors on 4 of 5" in closing.judge(found)[1]


def test_rates_that_are_the_last_of_those_tried_are_told() -> None:
    found = gaps(0.9, 2.0, 3.0)
    network = NETWORKS["mlp"]
    assert "The best rate" not in closing.judge(found)[1]
    tried = {LOCAL: (1e-3, 2e-3), FIXED: (5e-4, 1e-3), FROZEN: (5e-4, 1e-3, 2e-3)}
    found["runs"] = [
        {"setting": network.label, "method": rule.label, "rate": rate}
        for rule, rates in tried.items()
        for rate in rates
    ]
    assert closing.judge(found)[1].endswith("lowest or highest of those tried in 2 of 25.")
    lines = closing.network_table(found, network).splitlines()
    rates = [
        next(line for line in lines if f"| {rule.label} " in line).split("|")[4].strip() for rule in tried
    ]
    assert rates == ["0.001 (lowest)", "0.001 (highest)", "0.001"]


def test_a_grid_goes_on_beyond_its_ends_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []

    def trained(network: Network, rule: Rule, update: Update, seed: int, device: torch.device) -> Trained:
        made.append(update.rate)
        best = {READOUT: 1.0, LOCAL: 7e-3, FIXED: 1e-9}[rule]
        return Trained(torch.nn.Sequential(), lambda split: -abs(math.log(update.rate / best)))

    monkeypatch.setattr(trials, "train", trained)
    network = replace(TINY, grid=(Update(1e-3), Update(2e-3), Update(4e-3)))
    chosen = {rule: runs_of(network, rule, RunSettings(seeds=1)) for rule in (READOUT, LOCAL, FIXED)}
    tested = {rule: [run.rate for run in runs if run.test is not None] for rule, runs in chosen.items()}
    assert tested == {READOUT: [16e-3], LOCAL: [8e-3], FIXED: [2.5e-4]}
    assert [sorted(run.rate for run in runs) for runs in chosen.values()] == [
        [1e-3, 2e-3, 4e-3, 8e-3, 16e-3],
        [1e-3, 2e-3, 4e-3, 8e-3, 16e-3],
        [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3],
    ]
    assert len(made) == 15
    assert replace(TINY, grid=(Update(1e-3),)).beyond(Update(1e-3), [Update(1e-3)]) is None


def test_one_open_gap_is_named() -> None:
    found = gaps(0.5, 2.0, 3.0)
    network = NETWORKS["cifar"]
    found["summary"][network.label][READOUT.label]["scores"] = [80.0, 80.0]
    verdict, reason = closing.judge(found)
    assert verdict == "partly"
    assert "on 4 of 5 networks, not on the CNN on CIFAR-10;" in reason
    row = next(line for line in closing.tables(found).splitlines() if line.startswith(f"| {network.label} "))
    assert [cell.strip() for cell in row.split("|")[3:8]] == [
        "90.00 ± 0.00",
        "80.00 ± 0.00",
        "10.00",
        "1.00",
        "no",
    ]


def test_the_gap_of_text_is_a_share_of_its_bits() -> None:
    network = NETWORKS["char"]
    found = gaps(0.5, 2.0, 3.0)
    row = next(line for line in closing.tables(found).splitlines() if line.startswith(f"| {network.label} "))
    assert [cell.strip() for cell in row.split("|")[3:7]] == [
        "3.000 ± 0.000",
        "3.045 ± 0.000",
        "1.5 %",
        "3.0 %",
    ]
    assert network.score_of(Evaluation(loss_sum=2 * 0.6931471805599453, samples=2)) == pytest.approx(1.0)


def swept(sweep: Sweep, losses: Mapping[int, float]) -> dict[str, Any]:
    """Return a result in which every line loses so many points at each value."""
    means = {rule.label: 90.0 for rule in sweep.levels}
    means |= {line[point].label: 90.0 - loss for _, line in sweep.lines for point, loss in losses.items()}
    return result({network.label: means for network in sweep.networks})


@pytest.mark.parametrize(
    ("claim", "sweep", "losses", "verdict"),
    [
        (blocks.CLAIM, blocks.SWEEP, {2: -0.5, 4: 0.2, 8: 0.4}, "reached"),
        (blocks.CLAIM, blocks.SWEEP, {2: 0.0, 4: 0.2, 8: 1.1}, "not reached"),
        (dimension.CLAIM, dimension.SWEEP, {1: 20.0, 2: 5.0, 5: 0.5, 10: 0.6}, "reproduced"),
        (dimension.CLAIM, dimension.SWEEP, {1: 0.5, 2: 0.5, 5: 0.5, 10: 0.5}, "not reproduced"),
        (dimension.CLAIM, dimension.SWEEP, {1: 20.0, 2: 5.0, 5: 0.5, 10: 4.0}, "not reproduced"),
    ],
)
def test_a_sweep_is_judged_by_what_its_default_loses(
    claim: Claim, sweep: Sweep, losses: dict[int, float], verdict: str
) -> None:
    found = swept(sweep, losses)
    assert claim.judge(found)[0] == verdict
    table = claim.tables(found)
    assert all(f"{90 - loss:.2f} ± 0.00" in table for loss in losses.values())
    assert len(claim.draw(found).axes) == len(sweep.networks)


def test_blocks_that_scatter_can_not_be_told() -> None:
    found = swept(blocks.SWEEP, {2: 0.0, 4: 0.2, 8: 1.5})
    assert blocks.judge(found)[0] == "not reached"
    network, line = blocks.SWEEP.networks[0], dict(blocks.SWEEP.lines)[READOUT.label]
    for each in (network, blocks.SWEEP.networks[1]):
        found["summary"][each.label][line[8].label]["scores"] = [87.0, 90.0]
    verdict, reason = blocks.judge(found)
    assert verdict == "partly"
    assert f"{network.label}: 0.20 ± 0.00 with 4, 1.50 ± 3.00 with 8" in reason


def test_the_rate_is_chosen_in_validation_and_the_test_split_seen_only_with_it() -> None:
    runs = runs_of(TINY, replace(READOUT, blocks=2), RunSettings(seeds=2))
    tried, further = runs[:-1], runs[-1:]
    best = max(tried, key=lambda run: run.validation)
    assert [run.test is not None for run in tried] == [run is best for run in tried]
    assert [(run.rate, run.seed) for run in further] == [(best.rate, 1)]
    assert all(run.test is not None for run in further)


def test_for_text_the_fewest_bits_are_best() -> None:
    runs = runs_of(replace(TINY, score=BITS), replace(READOUT, blocks=2), RunSettings(seeds=1))
    assert min(runs, key=lambda run: run.validation).test is not None


@pytest.mark.parametrize("rule", [BACKPROP, READOUT, HEBBIAN, FIXED, LOCAL, FROZEN, by_muon(READOUT)])
def test_a_run_repeats_and_is_found_again(rule: Rule) -> None:
    settings = RunSettings()
    rule = replace(rule, blocks=3)
    first = BlockTrial(TINY, rule, Update(1e-3), 0, settings).tested()
    again = BlockTrial(TINY, rule, Update(1e-3), 0, RunSettings()).tested()
    assert (again.validation, again.test) == (first.validation, first.test)
    found = BlockTrial(TINY, rule, Update(1e-3), 0, settings)
    assert found.tested() == first
    assert "trained" not in vars(found)


@pytest.mark.parametrize("sweep", [blocks.SWEEP, dimension.SWEEP])
def test_a_sweep_runs_every_rule_at_every_value(sweep: Sweep) -> None:
    small = replace(sweep, networks=(replace(TINY, arguments=(32, 8, 8, 10), grid=TINY.grid[:1]),))
    found = small.run(RunSettings(seeds=1))
    assert len(found["runs"]) == len(sweep.levels) + len(sweep.lines) * len(sweep.points)
    assert "tiny" in small.tables(found)


def test_gaps_are_to_backpropagation_by_the_same_optimiser() -> None:
    network = NETWORKS["mlp"]
    means = {BACKPROP: 90.0, READOUT: 89.0, by_muon(BACKPROP): 95.0, by_muon(READOUT): 92.0, FROZEN: 80.0}
    found = result({network.label: {rule.label: mean for rule, mean in means.items()}})
    rows = [
        [cell.strip() for cell in line.split("|")[1:4]]
        for line in closing.network_table(found, network).splitlines()
    ]
    assert [row[2] for row in rows[-5:]] == ["", "1.00", "", "3.00", "10.00"]


def test_the_frozen_control_changes_no_block_and_muon_is_what_it_says() -> None:
    assert (
        BlockTrial(TINY, FROZEN, Update(1e-3), 0, RunSettings()).about["method"]["feedback"]["form"]
        == "frozen"
    )
    one, other = (
        BlockTrial(TINY, rule, Update(1e-2), 0, RunSettings()).tested()
        for rule in (READOUT, by_muon(READOUT))
    )
    assert one.validation != other.validation
    dataset = TINY.dataset().limited(32)
    blocks = in_blocks(TINY.network(), dataset, by_muon(READOUT), Update(1e-3), 4, 0)
    assert {type(stage.updater.optimizer).__name__ for stage in blocks.stages} == {"Muon"}


@pytest.mark.parametrize("score", [ACCURACY, BITS])
def test_a_rate_at_which_a_run_diverges_is_the_worst_and_ends_nothing(
    score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = replace(TINY, score=score, grid=(Update(1e-3), Update(4e-3)))
    monkeypatch.setattr("benchmarks.gap.networks.BEYOND", 0)

    def trained(network: Network, rule: Rule, update: Update, *others: Any) -> Trained:
        if update.rate == 4e-3:
            raise NotFiniteError("block 0, step 1: the loss is not finite")
        return train(network, rule, update, *others)

    monkeypatch.setattr(trials, "train", trained)
    runs = runs_of(network, READOUT, RunSettings(seeds=1, cache=RunCache()))
    assert [run.test is None for run in runs] == [False, True]
    assert runs[1].validation == network.worst


def test_scores_take_samples_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that packs a batch is not to be judged by samples alone, and small forwards are slow."""
    sizes: list[int] = []
    run = BlockTrial(TINY, READOUT, Update(1e-3), 0, RunSettings()).trained
    split = TINY.dataset().test
    evaluate = DecoupledNetwork.evaluate

    def watched(network: DecoupledNetwork, batches: Any) -> Evaluation:
        batches = list(batches)
        sizes.extend(len(targets) for _, targets in batches)
        return evaluate(network, batches)

    monkeypatch.setattr(DecoupledNetwork, "evaluate", watched)
    run.score(split)
    assert sum(sizes) == len(split)
    assert max(sizes) == min(EVALUATION_SAMPLES, len(split)) > 1


def tiny(monkeypatch: pytest.MonkeyPatch, network: Network = TINY) -> None:
    """Let the long grids be of a tiny network."""
    gap = replace(GRIDS["gap"], networks={"mlp": network})
    for module in (long_grids, grids):
        monkeypatch.setattr(module, "GRIDS", {"gap": gap})


def test_a_long_grid_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny(monkeypatch)
    monkeypatch.setattr("benchmarks.gap.networks.BEYOND", 0)
    places = Places(tmp_path / "results", tmp_path / "docs", tmp_path / "runs.jsonl")
    made: list[str] = []
    limits = [5, 1000]

    def counted(network: Network, rule: Rule, *others: Any) -> Trained:
        if len(made) == limits[0]:
            raise KeyboardInterrupt
        made.append(f"{rule.label} {others[0]}")
        return train(network, rule, *others)

    monkeypatch.setattr(trials, "train", counted)
    while limits:
        with suppress(KeyboardInterrupt):
            assert long_grids.main(["gap", "--rows", "mlp", "--seeds", "1"], places) == 0
        limits.pop(0)
    grid = [f"{rule.label} {update}" for rule in closing.RULES for update in TINY.grid]
    # The best of each rule is trained again where an earlier call had only validated it.
    assert set(made) == set(grid)
    assert len(made) <= len(grid) + 1
    assert (places.results / "long-gap-mlp.json").exists()
    assert "backpropagation, Muon" in capsys.readouterr().out
    section = page(places).split("### long-gap-mlp")[1]
    assert TINY.label in section
    assert "`python -m benchmarks.gap gap --rows mlp --seeds 1`" in section


def test_a_try_of_a_long_grid_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, replace(TINY, samples=2 * TINY.samples))
    places = Places(tmp_path / "results", tmp_path / "docs", tmp_path / "runs.jsonl")
    short = ["gap", "--rows", "mlp", "--seeds", "1", "--rules", "backprop*", "--work", "0.5"]
    assert long_grids.main(short, places) == 0
    assert not places.results.exists()


@pytest.mark.parametrize(
    ("name", "patterns", "labels"),
    [
        ("formats", ["rank 8", "rank 16"], ["fp32", "rank 16", "rank 8"]),
        (
            "layers",
            ["*at every layer, Muon", "*every layer"],
            [
                "backpropagation",
                "error at every layer",
                "backpropagation, Muon",
                "error at every layer, Muon",
            ],
        ),
    ],
)
def test_grids_at_one_rate_have_a_score_of_the_rules_that_were_asked_for_with_each_seed(
    name: str, patterns: list[str], labels: list[str]
) -> None:
    grid = GRIDS[name]
    found = grid.run("mlp", TINY, patterns, RunSettings(seeds=2, cache=RunCache()))
    entries = found["summary"][TINY.label]
    assert list(entries) == labels
    assert [(entry["rate"], len(entry["scores"])) for entry in entries.values()] == [(3e-3, 2)] * len(labels)
    table = grid.table("mlp", TINY, found)
    assert all(f"| {label} " in table for label in entries)


def test_a_gap_beyond_the_target_of_its_rule_is_in_bold() -> None:
    near, far = (replace(READOUT, label=label, target=1.0) for label in ("near", "far"))
    means = {BACKPROP.label: 90.0, "near": 89.5, "far": 88.0, LOCAL.label: 80.0}
    table = closing.network_table(
        result({NETWORKS["mlp"].label: means}), NETWORKS["mlp"], (BACKPROP, near, far, LOCAL)
    )
    gaps = {
        line.split("|")[1].strip(): line.split("|")[3].strip() for line in table.splitlines() if "|" in line
    }
    assert (gaps["near"], gaps["far"], gaps[LOCAL.label]) == ("0.50", "**2.00**", "10.00")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rows", "mlp,tree"],
        ["width"],
        ["--work", "2"],
        ["--seeds", "0"],
        ["gap", "--rows", "mlp", "--rules", "x*"],
    ],
)
def test_long_grids_refuse_what_they_do_not_have(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert long_grids.main(arguments) == 2
    assert "benchmarks.gap: " in capsys.readouterr().err


@pytest.mark.parametrize("name", list(ROWS))
def test_every_long_row_is_ten_times_the_work_of_a_usual_one(name: str) -> None:
    long, usual = ROWS[name], NETWORKS[name]
    assert long.samples * long.epochs >= 9.9 * usual.samples * usual.epochs
    assert len(long.network()) >= 4


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_network_has_four_blocks_to_give_and_a_target(name: str) -> None:
    network = NETWORKS[name]
    assert len(network.network()) >= 4
    assert 0 < network.target < torch.inf
    assert network.configuration()["data"] in ("Fashion-MNIST", "CIFAR-10", TEXT)


@pytest.mark.parametrize("row", residual.ROWS)
def test_every_rule_of_a_residual_row_can_be_built_on_its_network(row: str) -> None:
    network, rules = residual.ROWS[row]
    labels = [rule.label for rule in rules]
    assert len(set(labels)) == len(labels)
    example = (
        torch.zeros(2, 3, 32, 32)
        if network.data == "CIFAR-10"
        else torch.zeros(2, CONTEXT, dtype=torch.int64)
    )
    task: Task = "classification" if network.score == ACCURACY else "tokens"
    # Its weights take half an hour to make.
    model = (finetuning.FROM_SCRATCH if row == "finetune" else network).network()
    kinds = kinds_of(model)
    beside_muon = {
        (kinds[name], name.rpartition(".")[2]) for name, one in model.named_parameters() if one.dim() > 1
    } - {(kind, "weight") for kind in HIDDEN}
    assert beside_muon <= {("embedding", "weight"), ("output", "weight"), ("other", "positions")}
    for rule in rules[: len(rules) // 2]:  # the rest is the same with Muon
        plans = partition(model, rule.blocks, example)
        shape = error_shape(plans, rule.feedback)
        assert resolve_feedback(rule.feedback, shape, TrainingConfig(1), task)
        if row == "lm" and rule.feedback.source == "head_input":
            learning = [[layer.name for layer in plan.layers] for plan in plans]
            assert len({len(names) for names in learning[1:-1]}) == 1
            assert shape.task_dim == residual.WIDTH


@pytest.mark.parametrize("name", list(taps.CASES))
def test_every_way_to_tap_large_maps_trains_as_its_label_says(name: str) -> None:
    network, rules = taps.CASES[name]
    assert len({rule.label for rule in rules}) == len(rules)
    channels, size = network.arguments[0], network.arguments[3]
    dataset = images(channels, size, samples=8, test_samples=8)
    for rule in rules:
        blocks = in_blocks(network.network(), dataset, rule, taps.UPDATE, 1, 0)
        found = [site.tap.name for stage in blocks.stages for site in stage.sites]
        assert rule is rules[0] or all(tap == rule.feedback.tap for tap in found)
        assert len(found) == (6 if rule.feedback.every_layer else 3)
        batch = torch.arange(8)
        blocks.train_step(0, [(dataset.train.inputs(batch), dataset.train.targets(batch))])


def test_taps_are_refused_by_name_and_made_by_as_many_processes_as_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert taps.main(["--networks", "taps-mlp"]) == 2
    assert "--networks: found 'taps-mlp'" in capsys.readouterr().err
    asked: list[int] = []

    def noted(networks: Any, tasks: Any, settings: RunSettings) -> list[Any]:
        asked.append(settings.processes)
        return trials.made_on(networks, tasks, replace(settings, processes=1))

    monkeypatch.setattr(taps, "made_on", noted)
    monkeypatch.setattr(taps, "CASES", {"taps-tiny": (TINY, [BACKPROP, READOUT])})
    assert taps.main(["--seeds", "2", "--processes", "3", "--runs", str(tmp_path / "runs.jsonl")]) == 0
    assert asked == [3] and READOUT.label in capsys.readouterr().out
