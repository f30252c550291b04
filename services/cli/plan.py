"""``lowdimfa plan``: what a run will take, before it starts."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from lowdimfa.errors import InputError, StoppedError
from lowdimfa.services.cli.display import aligned
from lowdimfa.services.cli.options import Format, FormatOption, OverridesOption, SpecArgument, expanded
from lowdimfa.services.cli.words import size

Tune = Annotated[
    bool, typer.Option("--tune", help="Try settings on the cluster, and write the fastest specification.")
]
Minutes = Annotated[float | None, typer.Option(min=0, help="Time that --tune may take. [5]")]
Allow = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…",
        help="What --tune may try though other weights are learned: some of staleness,activations,every_layer; "
        "microbatches, replicas and window where they do that.",
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…",
        help="What --tune is to leave as it is: some of microbatches,cut,replicas,window,threads,transport.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        parser=expanded,
        help="Where --tune writes; nothing is written over. [SPEC with .tuned in its name]",
    ),
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster for --tune; without it a local one is started.")
]


def plan(
    spec: SpecArgument,
    overrides: OverridesOption = None,
    tune: Tune = False,
    minutes: Minutes = None,
    allow: Allow = None,
    keep: Keep = None,
    output: Output = None,
    address: Address = None,
    form: FormatOption = Format.text,
) -> None:
    """Measure the blocks that SPEC makes on this machine, and predict their balance, memory and throughput.

    Nothing is written and no cluster is needed, but for --tune, which trains short segments with other settings and
    writes the specification that was fastest.
    """
    if tune:
        from lowdimfa.services.cli.tune import tune_command, tuned_text

        arguments = overrides or [], address, 5.0 if minutes is None else minutes, allow, keep, output
        with redirect_stdout(sys.stderr):
            tuned = tune_command(spec, *arguments)
        print(json.dumps(tuned) if form is Format.json else tuned_text(tuned, spec))
        if tuned["stopped"]:
            raise StoppedError("stopped: nothing was chosen")
        return
    alone = {"--minutes": minutes, "--allow": allow, "--keep": keep, "--output": output, "--address": address}
    if given := [name for name, value in alone.items() if value is not None]:
        raise InputError(given[0], "a plan without --tune", "that option with --tune alone")
    from lowdimfa.services.cli.forecast import forecast
    from lowdimfa.services.trainer.api import DecoupledTrainer

    with redirect_stdout(sys.stderr):  # what the user's own code prints is no result
        found = forecast(DecoupledTrainer(spec, overrides=overrides or []).plan(whole=True))
    print(json.dumps({"event": "forecast"} | found) if form is Format.json else _text(found))


def _text(found: dict[str, Any]) -> str:
    parts = "micro-batch" if found["microbatches"] == 1 else "micro-batches"
    samples = found["batch_size"] // found["microbatches"]
    slowest = found["blocks"][found["bottleneck"]]
    lines = [
        aligned([("block", "layers", "parameters", *_TIMES), *map(_time_row, found["blocks"])]),
        f"milliseconds for a micro-batch of {samples} samples (step: for a whole step of {found['microbatches']} "
        f"{parts}), {_threads(found['threads_per_block'])} on {found['device']}",
        "",
        aligned([("block", *_MEMORY, "in flight", "sends"), *map(_memory_row, found["blocks"])]),
        f"activations of window {found['window']}; checkpoint: the copy while one is written; sends: per micro-batch",
        "",
        f"bottleneck: block {slowest['index']}, {slowest['milliseconds_per_microbatch']:.2f} ms per micro-batch; "
        f"balance {found['balance']:.2f} (1: all blocks take the same)",
    ]
    if (better := found["better_cut"]) is not None:
        names = ",".join(f'"{name}"' for name in better["blocks"])
        setting = shlex.quote(f"model.blocks=[{names}]")
        word = "; train.per_block would then be of other layers" if better["moves_per_block"] else ""
        lines.append(
            f"a better cut: --set {setting}, about {better['milliseconds_per_microbatch']:.2f} ms{word}"
        )
    lines.append(
        f"predicted: {found['samples_per_second']:,.0f} samples/s with staleness {found['staleness']} and a core or GPU "
        "for each block"
    )
    if found["cores"] is not None:
        cores = "1 core" if found["cores"] == 1 else f"{found['cores']} cores"
        lines.append(
            f"           {found['samples_per_second_here']:,.0f} samples/s on the {cores} of this machine"
        )
    lines.append(f"broadcast: {found['broadcast_bytes_per_sample']:,.1f} bytes per sample to each block")
    return "\n".join(lines)


def _threads(wanted: int | dict[int, int]) -> str:
    if isinstance(wanted, dict):
        said = ", ".join(f"block {block} {number}" for block, number in sorted(wanted.items()))
        return f"threads: {said}, others 1,"
    return "1 thread per block" if wanted == 1 else f"{wanted} threads per block"


_TIMES = ("forward", "update", "step", "in all", "busy")
_MEMORY = ("weights", "gradients", "optimiser", "feedback", "activations", "checkpoint", "in all")


def _time_row(block: dict[str, Any]) -> tuple[str, ...]:
    layers = block["layers"]
    times = [f"{block[f'{piece}_milliseconds']:.2f}" for piece in ("forward", "update", "step")]
    copies = "" if block["replicas"] == 1 else f" ×{block['replicas']}"
    return (
        f"{block['index']}{copies}",
        layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]}",
        f"{block['parameters']:,}",
        *times,
        f"{block['milliseconds_per_microbatch']:.2f}",
        f"{block['busy']:.0%}",
    )


def _memory_row(block: dict[str, Any]) -> tuple[str, ...]:
    memory = block["memory"]
    weights = memory["weights"] + memory["stale_weights"]
    sizes = (
        weights,
        *(
            memory[key]
            for key in ("gradients", "optimizer", "feedback", "activations", "checkpoint", "total")
        ),
    )
    sent = size(block["sent_bytes_per_microbatch"]) if block["sent_bytes_per_microbatch"] else "-"
    return str(block["index"]), *map(size, sizes), str(block["in_flight"]), sent
