"""``lowdimfa simulate``: what schedules come to on clusters that are not at hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lowdimfa.errors import InputError
from lowdimfa.services.cli.display import aligned
from lowdimfa.services.cli.options import Format, FormatOption
from lowdimfa.services.lab.simulation.calibrate import read_measured
from lowdimfa.services.lab.simulation.fit import apart, resized
from lowdimfa.services.lab.simulation.setting import BlockCosts, Outcome, Setting
from lowdimfa.services.lab.simulation.simulate import BACKPROPAGATION, schedule_name, simulate, staleness_of

_DEFAULT = (*BACKPROPAGATION, *(schedule_name(staleness) for staleness in (0, 1, 2)))
_UNITS = ("B", "kB", "MB", "GB", "TB")


Runs = Annotated[
    list[Path] | None,
    typer.Option(
        "--from",
        metavar="RUN_DIR",
        help="Take times, sizes and policy from a run that was measured; more runs of the same network, with other "
        "micro-batches or blocks, tell what depends on them. The other options replace what was measured.",
    ),
]
Count = Annotated[int | None, typer.Option(min=1, help="Blocks, all alike. [8]")]
Microbatches = Annotated[int | None, typer.Option(min=1, help="Micro-batches of a step. [16]")]
MicrobatchSize = Annotated[int | None, typer.Option(min=1, help="Samples of a micro-batch. [32]")]
ForwardMs = Annotated[
    float | None, typer.Option(min=0, help="Forward pass of a micro-batch in one block. [10]")
]
UpdateMs = Annotated[
    float | None, typer.Option(min=0, help="Its update or backward pass. [twice --forward-ms]")
]
StepMs = Annotated[float | None, typer.Option(min=0, help="Optimiser step of a block. [0]")]
SendMs = Annotated[float | None, typer.Option(min=0, help="What handing over one message takes a block. [0]")]
ActivationBytes = Annotated[
    float | None, typer.Option(min=0, help="Bytes between two blocks per sample. [4096]")
]
ErrorBytes = Annotated[
    float | None, typer.Option(min=0, help="Bytes of the broadcast error per sample. [40]")
]
LinkMbit = Annotated[float | None, typer.Option(min=0, help="Mbit/s that each block can send. [no limit]")]
LatencyMs = Annotated[float | None, typer.Option(min=0, help="From the end of sending to arrival. [0]")]
Cores = Annotated[
    int | None,
    typer.Option(
        min=1, help="Cores that all blocks share, as those of a run in --from did. [one for each block]"
    ),
]
Window = Annotated[
    int | None, typer.Option(min=1, help="Micro-batches in flight. [as many as the staleness allows]")
]
Schedules = Annotated[
    list[str] | None,
    typer.Option("--schedule", help=f"A schedule, may be repeated. [{', '.join(_DEFAULT)}]"),
]


def simulate_command(
    runs: Runs = None,
    blocks: Count = None,
    microbatches: Microbatches = None,
    microbatch_size: MicrobatchSize = None,
    forward_ms: ForwardMs = None,
    update_ms: UpdateMs = None,
    step_ms: StepMs = None,
    send_ms: SendMs = None,
    activation_bytes: ActivationBytes = None,
    error_bytes: ErrorBytes = None,
    link_mbit: LinkMbit = None,
    latency_ms: LatencyMs = None,
    cores: Cores = None,
    window: Window = None,
    schedules: Schedules = None,
    form: FormatOption = Format.text,
) -> None:
    """Simulate this method and backpropagation side by side: throughput, idle time, traffic, memory."""
    for schedule in schedules or ():
        staleness_of(schedule)
    start = (
        _of_runs(runs, blocks, microbatch_size, cores)
        if runs
        else _made_up(blocks, microbatch_size, forward_ms)
    )
    times = {"forward": forward_ms, "update": update_ms, "step": step_ms, "send": send_ms}
    own = {name: milliseconds / 1e3 for name, milliseconds in times.items() if milliseconds is not None}
    given: dict[str, Any] = {
        "blocks": tuple(replace(block, **own) for block in start.blocks),
        "microbatches": microbatches,
        "activation_bytes": None
        if activation_bytes is None
        else (activation_bytes,) * (len(start.blocks) - 1),
        "error_bytes": error_bytes,
        "bandwidth": None if link_mbit is None else 1e6 * link_mbit,
        "latency": None if latency_ms is None else latency_ms / 1e3,
        "cores": cores,
        "window": window,
    }
    setting = replace(start, **{name: value for name, value in given.items() if value is not None})
    names = schedules or dict.fromkeys([*_DEFAULT, schedule_name(start.staleness)])
    outcomes = [simulate(setting, name) for name in names]
    print(_as_json(setting, outcomes) if form is Format.json else _as_text(setting, outcomes))


def _made_up(blocks: int | None, size: int | None, forward_ms: float | None) -> Setting:
    count, forward = blocks or 8, 0.010 if forward_ms is None else forward_ms / 1e3
    return Setting(
        blocks=(BlockCosts(forward, 2 * forward),) * count,
        microbatches=16,
        microbatch_size=size or 32,
        activation_bytes=(4096.0,) * (count - 1),
        error_bytes=40.0,
    )


def _of_runs(runs: list[Path], blocks: int | None, size: int | None, cores: int | None) -> Setting:
    """Return the setting of a run, or what several tell of other blocks and micro-batches."""
    found, contention = apart([read_measured(run) for run in runs], cores or 1)
    if blocks is not None or size is not None:
        return replace(resized(found, blocks, size), contention=contention)
    if len(runs) > 1:
        expected = "one, or --blocks or --microbatch-size to say what is to be worked out from them"
        raise InputError("--from", f"{len(runs)} runs", expected)
    return replace(found[0].setting, contention=contention)


def _as_json(setting: Setting, outcomes: list[Outcome]) -> str:
    described = {
        "blocks": [vars(block) for block in setting.blocks],
        "microbatches": setting.microbatches,
        "microbatch_size": setting.microbatch_size,
        "activation_bytes": list(setting.activation_bytes),
        "error_bytes": setting.error_bytes,
        "bandwidth": setting.bandwidth if math.isfinite(setting.bandwidth) else None,
        "latency": setting.latency,
        "window": setting.window,
        "cores": setting.cores,
        "contention": setting.contention,
    }
    event = {"event": "simulated", "setting": described, "schedules": [one.describe() for one in outcomes]}
    return json.dumps(event)


def _as_text(setting: Setting, outcomes: list[Outcome]) -> str:
    limit = "no limit" if math.isinf(setting.bandwidth) else f"{setting.bandwidth / 1e6:,g} Mbit/s"
    one, count = setting.blocks[0], len(setting.blocks)
    header = ("schedule", "samples/s", "ms per step", "idle: mean", "most", "kept", "forward", "backward")
    rows = []
    for outcome in outcomes:
        found = outcome.describe()
        rows.append(
            (
                outcome.schedule,
                f"{outcome.samples_per_second:,.1f}",
                f"{1e3 * outcome.step_seconds:,.2f}",
                f"{found['bubble_mean']:.1%}",
                f"{found['bubble_max']:.1%}",
                str(found["in_flight_max"]),
                _bytes(outcome.forward_bytes),
                _bytes(outcome.backward_bytes),
            )
        )
    return "\n".join(
        [
            f"{count} {'block' if count == 1 else 'blocks'}, {setting.microbatches} × {setting.microbatch_size} samples "
            f"per step; block 0: {1e3 * one.forward:.3g} ms forward, {1e3 * one.update:.3g} ms update, "
            f"{1e3 * one.step:.3g} ms step; links: {limit}, {1e3 * setting.latency:.3g} ms; "
            f"cores: {setting.cores or 'one for each block'}",
            "",
            aligned([header, *rows]),
            "",
            "kept: most micro-batches for which a block keeps activations; forward, backward: bytes per sample over all "
            "links",
        ]
    )


def _bytes(number: float) -> str:
    power = 0 if number < 1 else min(int(math.log(number, 1000)), len(_UNITS) - 1)
    return f"{number / 1000**power:.4g} {_UNITS[power]}"
