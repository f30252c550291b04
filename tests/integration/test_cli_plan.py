"""`lowdimfa plan`: what it says of a run, in both formats, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lowdimfa import measure
from lowdimfa.errors import InputError
from lowdimfa.measure import StageTime
from lowdimfa.services.cli.app import app
from lowdimfa.services.cli.words import size

SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 16, "width": 24, "depth": 4, "classes": 5},
        "blocks": 2,
    },
    "data": {
        "factory": "lowdimfa.data:teacher",
        "args": {"in_features": 16, "outputs": 5, "samples": 64, "test_samples": 8},
    },
    "train": {"steps": 4, "batch_size": 32, "microbatches": 4},
}


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPECIFICATION))
    return path


def run(spec: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["plan", str(spec), *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def forecast(spec: Path, *settings: str) -> dict[str, Any]:
    options = [part for setting in settings for part in ("--set", setting)]
    found: dict[str, Any] = json.loads(run(spec, "--format", "json", *options))
    return found


def test_the_forecast_has_time_memory_and_traffic_of_every_block(spec: Path) -> None:
    found = forecast(spec)
    first, head = found["blocks"]
    assert first["layers"] + head["layers"] == ["0", "1", "2", "3"]
    for block in (first, head):
        pieces = block["forward_milliseconds"] + block["update_milliseconds"] + block["step_milliseconds"] / 4
        assert block["milliseconds_per_microbatch"] == pytest.approx(pieces)
        assert 0 < block["busy"] <= 1
        memory = dict(block["memory"])
        assert memory.pop("total") == sum(memory.values())
    assert (first["in_flight"], head["in_flight"]) == (4, 1)
    assert first["sent_bytes_per_microbatch"] == 8 * 24 * 4
    assert head["sent_bytes_per_microbatch"] == 0
    assert head["update_milliseconds"] == 0
    assert found["broadcast_bytes_per_sample"] == 4 * 5
    loads = [block["milliseconds_per_microbatch"] for block in found["blocks"]]
    assert loads[found["bottleneck"]] == max(loads)
    assert found["balance"] == pytest.approx(sum(loads) / 2 / max(loads))
    assert [path.name for path in spec.parent.iterdir()] == ["spec.yaml"]


def test_the_bottleneck_sets_the_pace_unless_a_step_has_to_end_first(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = [StageTime(1e-3, 1e-3, 1e-3), StageTime(2e-3, 0.0, 1e-3)]  # where one is slower it never waits
    monkeypatch.setattr(measure._Run, "times", lambda measured, microbatches: alike)
    ahead = forecast(spec, "train.staleness=1")
    slowest = max(block["milliseconds_per_microbatch"] for block in ahead["blocks"])
    assert ahead["samples_per_second"] == pytest.approx(8 / (slowest / 1e3), rel=0.02)
    in_turn = forecast(spec)
    slowest = max(block["milliseconds_per_microbatch"] for block in in_turn["blocks"])
    assert in_turn["samples_per_second"] < 0.999 * 8 / (slowest / 1e3)
    assert ahead["blocks"][0]["memory"]["stale_weights"] == ahead["blocks"][0]["memory"]["weights"]
    assert ahead["blocks"][0]["in_flight"] == 8


def test_settings_change_what_is_sent(spec: Path) -> None:
    coarse = forecast(spec, "train.activations=bf16", "feedback.q_rule=probed", "feedback.probe_every=2")
    probed = 1 + 1 / (2 * 4)  # one micro-batch in eight carries twice as much
    assert coarse["blocks"][0]["sent_bytes_per_microbatch"] == math.floor(8 * 24 * 2 * probed)
    assert coarse["broadcast_bytes_per_sample"] == 4 * 5 * probed


def test_a_block_with_nothing_to_learn_waits_for_nobody_and_keeps_nothing(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = [StageTime(1e-3, 0.0, 0.0), StageTime(4e-3, 0.0, 1e-3)]
    monkeypatch.setattr(measure._Run, "times", lambda measured, microbatches: frozen)
    found = forecast(
        spec, 'model.blocks=["2"]', 'model.frozen=["0.*", "1.*"]', "placement.threads_per_block=1"
    )
    first, head = found["blocks"]
    assert (first["in_flight"], first["memory"]["activations"], head["in_flight"]) == (0, 0, 1)
    assert first["memory"]["total"] == first["memory"]["weights"]
    assert found["samples_per_second"] == pytest.approx(32 / 17e-3, rel=1e-3)  # the head never waits


def test_replicas_share_a_blocks_micro_batches(spec: Path) -> None:
    found = forecast(spec, "placement.replicas={0: 2}")
    first = found["blocks"][0]
    assert (first["replicas"], first["in_flight"]) == (2, 2)
    work = (first["forward_milliseconds"] + first["update_milliseconds"]) / 2 + first["step_milliseconds"] / 4
    assert first["milliseconds_per_microbatch"] == pytest.approx(work)


def test_an_uneven_cut_gets_a_better_one(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = [
        StageTime(1e-3, 1e-3, 1e-3),
        StageTime(12e-3, 0.0, 1e-3),
    ]  # the head has three of the four layers
    monkeypatch.setattr(measure._Run, "times", lambda measured, microbatches: uneven)
    width = "model.args.width=512"  # so that the hidden layers cost most
    cut = 'model.blocks=["1"]'
    better = forecast(spec, width, cut)["better_cut"]
    assert better["blocks"] in (["2"], ["3"]) and not better["moves_per_block"]
    word = "train.per_block would then be of other layers"
    assert word not in run(spec, "--set", width, "--set", cut)
    own = "train.per_block={0: {optimizer: {args: {lr: 0.5}}}}"
    assert word in run(spec, "--set", width, "--set", cut, "--set", own)


def test_people_get_tables(spec: Path) -> None:
    text = run(spec)
    for shown in ("block", "0 … 1", "activations", "bottleneck: block", "samples/s", "20.0 bytes per sample"):
        assert shown in text


def test_a_cut_by_time_is_made_of_measured_blocks(spec: Path) -> None:
    found = forecast(spec, "model.balance=time", "model.blocks=3")
    assert [len(block["layers"]) > 0 for block in found["blocks"]] == [True] * 3


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("model.blocks=9", "from 1 to 4"),
        ("train.microbatches=3", "divisor"),
        ("feedback.form=local", "broadcast"),
    ],
)
def test_what_cannot_run_is_refused_as_bad_input(spec: Path, setting: str, word: str) -> None:
    with pytest.raises(InputError, match=word) as refused:
        run(spec, "--set", setting)
    assert refused.value.exit_code == 2


def test_sizes_have_the_largest_unit_that_fits() -> None:
    assert [size(count) for count in (0, 1023, 1024, 1.5 * 1024**2, 2048 * 1024**4)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 MiB",
        "2048.0 TiB",
    ]
