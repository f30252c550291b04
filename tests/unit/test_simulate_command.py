"""``lowdimfa simulate``: numbers from options and from runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lowdimfa.errors import InputError
from lowdimfa.services.cli.app import app
from lowdimfa.services.lab.simulation.calibrate import read_measured
from lowdimfa.services.lab.simulation.fit import fit_costs
from lowdimfa.services.monitoring.timeline import TimelineWriter
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import load_specification

SPECIFICATION = """\
model: {{factory: "lowdimfa.models:mlp", args: {{in_features: 64, width: 32, depth: 4, classes: 10}}, blocks: 2}}
data: {{factory: "lowdimfa.data:digits"}}
train: {{steps: 20, batch_size: 32, microbatches: {microbatches}, staleness: 0, activations: {activations}}}
placement: {{replicas: {replicas}}}
"""
FORWARD, UPDATE, HEAD, STEP, SEND, LATENCY = 0.002, 0.004, 0.007, 0.001, 0.0002, 0.0005


def simulated(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["simulate", *arguments, "--format", "json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def made_run(
    folder: Path,
    microbatches: int = 2,
    scale: float = 1.0,
    steps: int = 20,
    replicas: int = 1,
    activations: str = "fp32",
    frozen: bool = False,
    last_batch: int = 0,
) -> Path:
    """Write a run of two blocks, each busy with one micro-batch at a time, as a block's timeline would show it."""
    folder.mkdir()
    given = {"microbatches": microbatches, "replicas": replicas, "activations": activations}
    (folder / "spec.yaml").write_text(SPECIFICATION.format(**given))
    blocks = [
        {"index": index, "cost_share": 0.5, "parameters": 1000, "frozen_parameters": 1000 * first}
        | {
            "sent_bytes_per_sample": 128 // (1 if activations == "fp32" else 4),
            "output_bytes_per_sample": 128,
        }
        for index, first in enumerate((frozen, False))
    ]
    plan = {"broadcast_bytes_per_sample": 36, "steps_per_epoch": 2, "last_batch_size": last_batch}
    (folder / "plan.json").write_text(json.dumps({"blocks": blocks, **plan}))
    body, head = (TimelineWriter(folder / "timeline" / f"block-{index}.jsonl") for index in range(2))
    now = head_free = 1000.0
    for step in range(steps):
        for microbatch in range(microbatches):
            sent = now + scale * FORWARD + SEND
            body.record("forward", step, microbatch, now, now + scale * FORWARD)
            began = sent + LATENCY
            published = began + scale * HEAD + SEND
            # A frozen block waits in its sending until the next block takes something.
            body.record("send", step, microbatch, now + scale * FORWARD, published if frozen else sent)
            head.record("wait", step, 0, head_free, began, "activation")
            head.record("forward", step, microbatch, began, began + scale * HEAD)
            head.record("publish", step, microbatch, began + scale * HEAD, published)
            if frozen:
                head_free = now = published
                continue
            body.record("wait", step, 0, sent, published, "error")
            head_free, now = published, published + scale * UPDATE
            body.record("update", step, microbatch, published, now)
        body.record("step", step, 0, now, now + STEP)
        head.record("step", step, 0, head_free, head_free + STEP)
        head_free += STEP
        now += STEP
    body.close()
    head.close()
    return folder


def test_all_schedules_side_by_side() -> None:
    result = CliRunner().invoke(app, ["simulate", "--blocks", "4", "--microbatches", "8"])
    assert result.exit_code == 0
    for schedule in ("gpipe", "1f1b", "zero-bubble", "staleness-0", "staleness-1", "staleness-2"):
        assert f"\n{schedule} " in result.output
    assert "330.00" in result.output  # 1F1B: (8 + 4 - 1) of 10 and 20 ms


def test_options_reach_the_simulation() -> None:
    found = simulated(
        *("--blocks", "3", "--microbatches", "1", "--microbatch-size", "10", "--forward-ms", "5"),
        *("--step-ms", "2", "--link-mbit", "1", "--activation-bytes", "100", "--latency-ms", "3"),
        *("--schedule", "1f1b", "--window", "1"),
    )
    [outcome] = found["schedules"]
    message = 0.003 + 8 * 1000 / 1e6
    assert outcome["step_seconds"] == pytest.approx(3 * 0.015 + 0.002 + 4 * message)
    assert outcome["backward_bytes_per_sample"] == 200
    assert found["setting"]["bandwidth"] == 1e6 and found["setting"]["window"] == 1


def test_uneven_blocks_formats_and_losses_reach_the_simulation() -> None:
    base = ("--blocks", "3", "--microbatches", "1", "--coding-ms", "1", "--factor", "2=4")
    even, uneven = (simulated(*base, "--schedule", "1f1b+int8", *more) for more in ((), ("--uneven", "0.5")))
    assert even["schedules"][0]["step_seconds"] == pytest.approx((1 + 1 + 4) * 0.030 + 4 * 2 * 0.001)
    assert even["schedules"][0]["backward_bytes_per_sample"] == 2 * 1024
    times = [block["forward"] for block in uneven["setting"]["blocks"]]
    assert times[2] == 0.040 and all(0.010 < one < 0.015 for one in times[:2])
    given = ("--lost", "20:3", "--slow", "9:2:3", "--seconds", "30", "--on-failure", "restart")
    found = simulated(*base, *given, "--schedule", "staleness-1")["setting"]["trouble"]
    assert (
        found["lost"] and found["slow"][0]["factor"] == 3 and found["recovery"] == 3 and not found["rejoin"]
    )


def test_a_run_is_measured(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    setting = read_measured(run).setting
    body, head = setting.blocks
    assert body.forward == pytest.approx(FORWARD, rel=1e-3) and body.update == pytest.approx(UPDATE, rel=1e-3)
    assert body.step == pytest.approx(STEP, rel=1e-3) and body.send == pytest.approx(SEND, rel=1e-2)
    assert head.forward == pytest.approx(HEAD / 3, rel=1e-3) and head.update == pytest.approx(
        2 * HEAD / 3, rel=1e-3
    )
    assert setting.latency == pytest.approx(LATENCY, rel=1e-2)
    assert (setting.microbatches, setting.microbatch_size, setting.staleness) == (2, 16, 0)
    assert setting.activation_bytes == (128.0,) and setting.error_bytes == 36.0


def test_a_run_whose_last_batches_are_smaller_has_no_more_samples_than_it_had(tmp_path: Path) -> None:
    """Every second batch has 8 samples in place of 32: 20 on average."""
    whole, kept = (made_run(tmp_path / str(last), last_batch=last) for last in (0, 8))
    rates = [
        simulated("--from", str(run), "--schedule", "staleness-0")["schedules"][0]["samples_per_second"]
        for run in (whole, kept)
    ]
    assert rates[1] == pytest.approx(20 / 32 * rates[0])


def test_a_run_with_one_microbatch_is_simulated_as_it_was(tmp_path: Path) -> None:
    """Nothing overlaps with one micro-batch, here and there; but here the error has a latency, too."""
    run = made_run(tmp_path / "run", microbatches=1)
    [outcome] = simulated("--from", str(run), "--schedule", "staleness-0")["schedules"]
    seconds = FORWARD + SEND + LATENCY + HEAD + SEND + UPDATE + STEP
    assert outcome["samples_per_second"] == pytest.approx(32 / seconds, rel=0.05)


@pytest.mark.parametrize(("activations", "name"), [("int8", "int8"), ("{rank: 8}", "x4")])
def test_sizes_are_those_of_float32_whatever_the_run_has_sent(
    activations: str, name: str, tmp_path: Path
) -> None:
    """Names of schedules say in how many fewer bytes; the run's own row has its own format."""
    found = simulated("--from", str(made_run(tmp_path / "run", activations=activations)))
    sizes = {one["schedule"]: one["forward_bytes_per_sample"] for one in found["schedules"]}
    assert sizes.pop(f"staleness-0+{name}") == 32
    assert set(sizes.values()) == {128}


def test_a_run_of_objects_is_measured_like_any(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    expected = read_measured(run).setting
    text = (run / "spec.yaml").read_text()
    (run / "spec.yaml").write_text(text.replace('"lowdimfa.models:mlp"', '"<object Sequential>"'))
    assert read_measured(run).setting == expected


def test_a_run_with_a_frozen_block_is_simulated_as_one(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a", frozen=True), made_run(tmp_path / "b", 1, scale=1.6, frozen=True)]
    setting = read_measured(runs[0]).setting
    frozen, head = setting.blocks
    assert (frozen.learns, frozen.update, head.learns) == (False, 0.0, True)
    assert head.forward == pytest.approx(HEAD / 3, rel=1e-3)
    [outcome] = simulated("--from", str(runs[0]), "--schedule", "staleness-0")["schedules"]
    assert outcome["step_seconds"] == pytest.approx(2 * (HEAD + SEND) + STEP, rel=0.02)
    assert outcome["in_flight_max"] == 0 and outcome["backward_bytes_per_sample"] == 0
    options = [option for run in runs for option in ("--from", str(run))]
    blocks = simulated(*options, "--microbatch-size", "64")["setting"]["blocks"]
    assert blocks[0]["forward"] == pytest.approx(2.8 * FORWARD, rel=1e-2)
    assert blocks[0]["update"] == blocks[0]["step"] == 0
    assert blocks[1]["forward"] + blocks[1]["update"] == pytest.approx(2.8 * HEAD, rel=1e-2)
    blocks = simulated("--from", str(runs[0]), "--blocks", "4")["setting"]["blocks"]
    assert [block["learns"] for block in blocks] == [False, False, True, True]


@pytest.mark.parametrize("activations", ["fp32", "int8"])
def test_a_plan_has_what_is_read_of_it(activations: str, tmp_path: Path) -> None:
    text = SPECIFICATION.format(microbatches=2, replicas=1, activations=activations)
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    plan = make_run_plan(load_specification(path), rehearsed=False)
    first, head = plan.describe()["blocks"]
    assert (first["output_bytes_per_sample"], head["output_bytes_per_sample"]) == (4 * 32, 0)
    assert (first["sent_bytes_per_sample"] < 4 * 32) == (activations == "int8")
    assert first["frozen_parameters"] == 0 < first["parameters"]
    tiny = [replace(block, layer_shares=(3e-7,)) for block in plan.network.blocks]
    assert [block["cost_share"] for block in replace(plan.network, blocks=tiny).describe(1, 1)["blocks"]] == [
        3e-7,
        3e-7,
    ]


def test_a_block_without_cost_is_refused(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    plan = json.loads((run / "plan.json").read_text())
    plan["blocks"][0]["cost_share"] = 0.0
    (run / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match="block 0: found no part of the network's cost"):
        fit_costs([read_measured(run)])


def test_runs_with_other_microbatches_tell_what_depends_on_them(tmp_path: Path) -> None:
    """16 samples take 1.0 and 32 samples 1.6 of the times: 0.4 are fixed, and 64 samples take 2.8."""
    runs = [made_run(tmp_path / "a"), made_run(tmp_path / "b", microbatches=1, scale=1.6)]
    costs = fit_costs([read_measured(run) for run in runs]).blocks((0.5, 0.5), (1000, 1000), 64)
    assert costs[0].forward == pytest.approx(2.8 * FORWARD, rel=1e-2)
    assert costs[0].update == pytest.approx(2.8 * UPDATE, rel=1e-2)
    assert costs[1].forward + costs[1].update == pytest.approx(2.8 * HEAD, rel=1e-2)
    quarter = fit_costs([read_measured(run) for run in runs]).blocks((0.25, 0.75), (1000, 1000), 64)
    assert quarter[0].forward == pytest.approx(
        1.4 * FORWARD, rel=1e-2
    )  # half of the layers, half of what is fixed
    options = [option for run in runs for option in ("--from", str(run))]
    found = simulated(*options, "--microbatch-size", "64")
    assert found["setting"]["blocks"][0]["forward"] == pytest.approx(2.8 * FORWARD, rel=1e-2)


def test_a_run_is_spread_over_more_blocks(tmp_path: Path) -> None:
    found = simulated("--from", str(made_run(tmp_path / "run")), "--blocks", "8")
    blocks = found["setting"]["blocks"]
    assert len(blocks) == 8 and len(found["setting"]["activation_bytes"]) == 7
    assert blocks[0]["forward"] == pytest.approx(FORWARD / 4, rel=1e-2)
    assert {outcome["schedule"] for outcome in found["schedules"]} >= {"1f1b", "staleness-0", "staleness-2"}


def test_runs_that_do_not_say_what_is_asked_for_are_refused(tmp_path: Path) -> None:
    one, other, alone = (made_run(tmp_path / name) for name in ("one", "other", "alone"))
    for run, change in ((other, lambda block: block | {"parameters": 2000}), (alone, lambda block: block)):
        plan = json.loads((run / "plan.json").read_text())
        plan["blocks"] = [change(block) for block in plan["blocks"]][-1 if run is alone else 0 :]
        (run / "plan.json").write_text(json.dumps(plan))
    spec = (alone / "spec.yaml").read_text()
    (alone / "spec.yaml").write_text(spec.replace("blocks: 2", "blocks: 1"))

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["simulate", *arguments, "--blocks", "4"])
        assert isinstance(result.exception, InputError)
        return result.exception.message

    assert "a run of another network (4,000 parameters)" in said("--from", str(one), "--from", str(other))
    assert "--activation-bytes to say what goes" in said("--from", str(alone))
    found = simulated("--from", str(alone), "--blocks", "4", "--activation-bytes", "64")
    assert found["schedules"][0]["forward_bytes_per_sample"] == 3 * 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "dualpipe"], "1f1b"),
        (["--link-mbit", "0"], "--link-mbit"),
        (["--forward-ms", "1e-7"], "0.001 ms or more"),
        (["--forward-ms", "1e-7", "--update-ms", "0", "--lost", "60:5"], "0.001 ms or more"),
        (["--blocks", "0"], "--blocks"),
        (["--slow", "60:5"], "EVERY:FOR:FACTOR"),
        (["--lost", "soon:8"], "EVERY:RECOVERY"),
        (["--factor", "8=2"], "a block from 0 to 7"),
        (["--lost", "3600:8", "--seconds", "inf"], "--seconds: found inf"),
        (["--slow", "1e-6:1e-6:2", "--seconds", "1e6"], "--slow: found one in 2e-06 s for 1e+06 s"),
        (["--from", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_ends_with_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lowdimfa.services.cli.app import run

    monkeypatch.setattr("sys.argv", ["lowdimfa", "simulate", *arguments])
    assert run() == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [({"replicas": 2}, "placement.replicas"), ({"steps": 0}, "no timeline of block 0")],
)
def test_runs_that_tell_nothing_are_refused(tmp_path: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_measured(made_run(tmp_path / "run", **change))
