"""``lowdimfa simulate``: what schedules come to on clusters that are not at hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lowdimfa.errors import InputError
from lowdimfa.services.cli.display import aligned
from lowdimfa.services.cli.options import Format, FormatOption, expanded
from lowdimfa.services.cli.troubles import Troubles
from lowdimfa.services.lab.simulation.backpropagation import BACKPROPAGATION
from lowdimfa.services.lab.simulation.calibrate import read_measured
from lowdimfa.services.lab.simulation.fit import apart, resized
from lowdimfa.services.lab.simulation.names import FORMATS, read_name, schedule_name
from lowdimfa.services.lab.simulation.setting import BlockCosts, Outcome, Setting
from lowdimfa.services.lab.simulation.simulate import simulate
from lowdimfa.services.lab.simulation.trouble import Trouble

_DEFAULT = (*BACKPROPAGATION, *(schedule_name(staleness) for staleness in (0, 1, 2)))
_UNITS = ("B", "kB", "MB", "GB", "TB")


class Policy(StrEnum):
    """What becomes of a run that loses a block."""

    rejoin = "rejoin"
    restart = "restart"


Runs = Annotated[
    list[Path] | None,
    typer.Option(
        "--from",
        metavar="RUN_DIR",
        parser=expanded,
        help="Take times, sizes and schedule from a run that was measured; more runs of the same network, with other "
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
LinkMbit = Annotated[float | None, typer.Option(min=1e-6, help="Mbit/s that each block can send. [no limit]")]
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
    typer.Option(
        "--schedule",
        help="A schedule, may be repeated. With "
        f"{', '.join(f'+{form}' for form in list(FORMATS)[1:])} or +x100 behind it, activations and gradients go in that "
        f"format, or in 100 times fewer bytes. [{', '.join(_DEFAULT)}]",
    ),
]
CodingMs = Annotated[
    float | None,
    typer.Option(min=0, help="Coding such a message in one block, and decoding it in the next. [0]"),
]
Uneven = Annotated[
    float | None,
    typer.Option(min=0, help="Blocks take up to so much longer: 0.5 for 1 to 1.5 times, drawn from --seed."),
]
Factors = Annotated[
    list[str] | None,
    typer.Option(
        "--factor", metavar="BLOCK=FACTOR", help="One block takes so many times as long; may be repeated."
    ),
]
Slow = Annotated[
    str | None,
    typer.Option(
        metavar="EVERY:FOR:FACTOR",
        help="Stragglers: 60:5:3 lets each block take 3 times as long for 5 s, every 60 s on average, drawn from --seed.",
    ),
]
Lost = Annotated[
    str | None,
    typer.Option(
        metavar="EVERY:RECOVERY",
        help="Losses: 3600:8 loses each block every hour on average; a process that takes its place is there after 8 s.",
    ),
]
OnFailure = Annotated[
    Policy, typer.Option(help="What this method does then; backpropagation goes back to the last checkpoint.")
]
CheckpointEvery = Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")]
Seconds = Annotated[float, typer.Option(min=0, help="With --slow or --lost: simulated seconds.")]
Seed = Annotated[int, typer.Option(help="For what is drawn.")]


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
    coding_ms: CodingMs = None,
    uneven: Uneven = None,
    factors: Factors = None,
    slow: Slow = None,
    lost: Lost = None,
    on_failure: OnFailure = Policy.rejoin,
    checkpoint_every: CheckpointEvery = 100,
    seconds: Seconds = 600.0,
    seed: Seed = 0,
    form: FormatOption = Format.text,
) -> None:
    """Simulate this method and backpropagation side by side: throughput, idle time, traffic, memory."""
    for schedule in schedules or ():
        read_name(schedule)
    start = (
        _of_runs(runs, blocks, microbatch_size, cores, sent=activation_bytes is not None)
        if runs
        else _made_up(blocks, microbatch_size, forward_ms)
    )
    times = {"forward": forward_ms, "update": update_ms, "step": step_ms, "send": send_ms}
    count, troubles = len(start.blocks), Troubles(seconds, seed)
    given: dict[str, Any] = {
        "blocks": troubles.paced(_with_times(start.blocks, times), uneven or 0.0, factors or ()),
        "microbatches": microbatches,
        "activation_bytes": None if activation_bytes is None else (activation_bytes,) * (count - 1),
        "error_bytes": error_bytes,
        "bandwidth": None if link_mbit is None else 1e6 * link_mbit,
        "latency": None if latency_ms is None else latency_ms / 1e3,
        "cores": cores,
        "window": window,
        "coding": None if coding_ms is None else coding_ms / 1e3,
        "trouble": troubles.of(count, slow, lost, checkpoint_every, on_failure is Policy.rejoin),
    }
    setting = replace(start, **{name: value for name, value in given.items() if value is not None})
    names = schedules or dict.fromkeys([*_DEFAULT, schedule_name(start.staleness, start.activations)])
    outcomes = [simulate(setting, name) for name in names]
    print(_as_json(setting, outcomes) if form is Format.json else _as_text(setting, outcomes))


def _with_times(
    blocks: tuple[BlockCosts, ...], milliseconds: dict[str, float | None]
) -> tuple[BlockCosts, ...]:
    own: dict[str, Any] = {name: each / 1e3 for name, each in milliseconds.items() if each is not None}
    return tuple(replace(block, **own) for block in blocks)


def _made_up(blocks: int | None, size: int | None, forward_ms: float | None) -> Setting:
    count, forward = blocks or 8, 0.010 if forward_ms is None else forward_ms / 1e3
    return Setting(
        blocks=(BlockCosts(forward, 2 * forward),) * count,
        microbatches=16,
        microbatch_size=size or 32,
        activation_bytes=(4096.0,) * (count - 1),
        error_bytes=40.0,
    )


def _of_runs(
    runs: list[Path], blocks: int | None, size: int | None, cores: int | None, *, sent: bool
) -> Setting:
    """Return the setting of a run, or what several tell of other blocks and micro-batches.

    ``sent`` says whether it is given what goes from block to block.
    """
    found, contention = apart([read_measured(run) for run in runs], cores or 1)
    numbers = [sum(one.parameters) for one in found]
    for run, number in zip(runs, numbers, strict=True):
        if number != numbers[0]:
            other = f"a run of another network ({number:,} parameters)"
            raise InputError(f"--from {run}", other, f"one of the network of {runs[0]} ({numbers[0]:,})")
    first = found[0].setting
    if (blocks or 1) > 1 == len(first.blocks) and not sent:
        expected = "one of several, or --activation-bytes to say what goes from block to block"
        raise InputError(f"--from {runs[0]}", "a run of one block, which sends nothing", expected)
    if blocks is not None or size is not None:
        return replace(resized(found, blocks, size), contention=contention)
    if len(runs) > 1:
        expected = "one, or --blocks or --microbatch-size to say what is to be worked out from them"
        raise InputError("--from", f"{len(runs)} runs", expected)
    return replace(first, contention=contention)


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
        "coding": setting.coding,
        "trouble": None if setting.trouble is None else asdict(setting.trouble),
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
            f"{count} {'block' if count == 1 else 'blocks'}, {setting.microbatches} × {setting.microbatch_size:g} "
            f"samples per step; block 0: {1e3 * one.forward:.3g} ms forward, {1e3 * one.update:.3g} ms update, "
            f"{1e3 * one.step:.3g} ms step; links: {limit}, {1e3 * setting.latency:.3g} ms; "
            f"cores: {setting.cores or 'one for each block'}{_troubled(setting.trouble)}",
            "",
            aligned([header, *rows]),
            "",
            "kept: most micro-batches for which a block keeps activations; forward, backward: bytes per sample over all "
            "links",
        ]
    )


def _troubled(trouble: Trouble | None) -> str:
    if trouble is None:
        return ""
    slow, lost = (
        f"{len(all_)} {name}" for name, all_ in (("slowdowns", trouble.slow), ("losses", trouble.lost))
    )
    return f"; {slow}, {lost} in {trouble.seconds:g} s"


def _bytes(number: float) -> str:
    power = 0 if number < 1 else min(int(math.log(number, 1000)), len(_UNITS) - 1)
    return f"{number / 1000**power:.4g} {_UNITS[power]}"
