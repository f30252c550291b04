"""Samples per second at a limit of memory per process: this runtime, 1F1B, and 1F1B with recomputation.

``python -m benchmarks.memory_limit`` trains a vision transformer with every system and every size of micro-batches, each
time in fresh processes, and reads the kernel's own peak (``VmHWM``) of each. More samples at a time are faster and take
more memory: for a limit the table has the fastest size that stays within, for each system. With recomputation
(``torch.utils.checkpoint``) a stage keeps only its input and runs its forward pass again before its backward pass. All
systems must come to the same loss in the first step, 1F1B with and without recomputation in the last one too.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import Schedule1F1B
from torch.utils.checkpoint import checkpoint

from benchmarks.memory import Peaks
from benchmarks.reporting import environment, markdown_table, write_result
from lowdimfa.losses import make_loss
from lowdimfa.partitioning import partition
from lowdimfa.services.run.model import build_model
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import parse_specification
from lowdimfa.tickets import Ticket

MICROBATCHES, LEAD = 4, 2
PIPELINES = {"1F1B": False, "1F1B, recomputation": True}
"""By name: whether stages compute activations again."""

OURS: dict[str, dict[str, int]] = {
    "staleness 0": {"staleness": 0},
    "staleness 1": {"staleness": 1},
    "staleness 1, window 2": {"staleness": 1, "window": 2},
}
"""By name: settings of `train`."""

_VIT = {
    "image_size": 32,
    "patch_size": 4,
    "in_channels": 3,
    "width": 192,
    "depth": 8,
    "heads": 3,
    "classes": 10,
}


def images(samples: int) -> tuple[Tensor, ...]:
    """Return random images and classes to train and test on."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 3, 32, 32, generator=generator)
    targets = torch.randint(10, (samples,), generator=generator)
    return inputs, targets, inputs[:8], targets[:8]


def specification(size: int, blocks: int, steps: int, train: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run with micro-batches of so many samples."""
    batch = MICROBATCHES * size
    return {
        "model": {"factory": "lowdimfa.models:vit", "args": _VIT, "blocks": blocks},
        "data": {"factory": "benchmarks.memory_limit:images", "args": {"samples": 2 * batch}},
        "train": {
            "steps": steps,
            "batch_size": batch,
            "microbatches": MICROBATCHES,
            "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 1e-3}},
            "log_every": 1,
            **train,
        },
        "placement": {"threads_per_block": 1},
        "run": {"tensorboard": False, "evaluate_every_epochs": 0, "metrics": "off"},
    }


class Recomputed(nn.Module):
    """A stage that keeps its input alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        """Run the layers, again in the backward pass."""
        output: Tensor = checkpoint(self.module, inputs, use_reentrant=False)  # type: ignore[no-untyped-call]
        return output


def run_stage(given: Mapping[str, Any]) -> dict[str, Any]:
    """Train one stage of a pipeline in this process, and return seconds, the peak of memory and losses."""
    torch.set_num_threads(1)
    rank, plain = given["rank"], given["specification"]
    spec = parse_specification(plain, "the benchmark")
    plan, blocks, steps = make_run_plan(spec), spec.model.blocks, plain["train"]["steps"]
    model = build_model(spec).train()
    own: nn.Module = partition(model, blocks, plan.example.batch(), spec.model.balance)[rank].build()
    del model
    dist.init_process_group("gloo", init_method=f"tcp://{given['meet']}", rank=rank, world_size=blocks)
    stage = PipelineStage(Recomputed(own) if given["recompute"] else own, rank, blocks, torch.device("cpu"))
    schedule = Schedule1F1B(stage, MICROBATCHES, loss_fn=make_loss(spec.train.loss, plan.dataset.task))
    optimizer = torch.optim.AdamW(own.parameters(), **plain["train"]["optimizer"]["args"])
    first, last, losses, began = rank == 0, rank == blocks - 1, [], 0.0
    for step in range(steps):
        if step == LEAD:
            began = time.perf_counter()
        indices = torch.cat([plan.order.indices(Ticket(step, part)) for part in range(MICROBATCHES)])
        found: list[Tensor] = []
        options = {"target": plan.dataset.train.targets(indices), "losses": found} if last else {}
        schedule.step(*((plan.dataset.train.inputs(indices),) if first else ()), **options)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses += [torch.stack(found).mean().item()] if last else []
    seconds = time.perf_counter() - began
    dist.destroy_process_group()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return {"seconds": seconds, "peak": int(peak.split()[1]) << 10, "losses": losses}


def measure_pipeline(size: int, blocks: int, steps: int, recompute: bool) -> dict[str, Any]:
    """Run a pipeline in processes of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = f"127.0.0.1:{free.getsockname()[1]}"
    given = {"specification": specification(size, blocks, steps, {}), "meet": meet, "recompute": recompute}
    command = [sys.executable, "-m", "benchmarks.memory_limit", "--stage"]
    environment_ = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [*command, json.dumps(given | {"rank": rank})], stdout=subprocess.PIPE, env=environment_
        )
        for rank in range(blocks)
    ]
    try:
        answers = [json.loads(process.communicate(timeout=600)[0].splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return {
        "seconds": max(answer["seconds"] for answer in answers),
        "peaks": [answer["peak"] for answer in answers],
        "losses": answers[-1]["losses"],
    }


def measure_ours(
    size: int, blocks: int, steps: int, train: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Run this runtime, a process for each block."""
    from lowdimfa.services.monitoring.report.reading import CATEGORIES, read_run
    from lowdimfa.services.trainer.api import DecoupledTrainer

    peaks, losses = Peaks(), {}

    def on_event(event: Mapping[str, Any]) -> None:
        if event["event"] == "started":
            peaks.follow(**event["pids"])
        if event["event"] == "progress":
            losses[event["step"]] = event["loss"]

    try:
        DecoupledTrainer(specification(size, blocks, steps, train), run_dir=folder, on_event=on_event).fit()
    finally:
        found = peaks.close()
    kind, ends = CATEGORIES.index("step"), []
    for spans in read_run(folder).spans.values():
        chosen = spans[spans.category == kind]
        ends.append([float(chosen.end[chosen.step == step].max()) for step in (LEAD - 1, steps - 1)])
    return {
        "seconds": max(end for _, end in ends) - max(begin for begin, _ in ends),
        "peaks": [found[f"block {index}"] for index in range(blocks)],
        "losses": [losses[step] for step in sorted(losses)],
    }


def measure(sizes: Sequence[int], blocks: int, steps: int) -> dict[str, Any]:
    """Measure every system at every size."""
    root = str(Path(__file__).parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    rows = []
    for size in sizes:
        for name in (*PIPELINES, *OURS):
            if name in PIPELINES:
                found = measure_pipeline(size, blocks, steps, PIPELINES[name])
            else:
                with tempfile.TemporaryDirectory() as folder:
                    found = measure_ours(size, blocks, steps, OURS[name], Path(folder) / "run")
            rate = (steps - LEAD) * MICROBATCHES * size / found["seconds"]
            rows.append({"system": name, "size": size, "samples_per_second": rate, **found})
            print(
                f"{name}, {size}: {rate:,.1f} samples/s, {max(found['peaks']) >> 20} MiB",
                file=sys.stderr,
                flush=True,
            )
    sizes_ = ",".join(map(str, sizes))
    return {
        "benchmark": "memory_limit",
        "command": f"python -m benchmarks.memory_limit --sizes {sizes_} --blocks {blocks} --steps {steps} --write",
        "configuration": specification(sizes[-1], blocks, steps, {}),
        "environment": environment(),
        "rows": rows,
    }


def wrong(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what says that systems don't compute the same."""
    first = {(row["size"], row["system"]): row["losses"][0] for row in rows}
    last = {(row["size"], row["system"]): row["losses"][-1] for row in rows if row["system"] in PIPELINES}
    return [
        f"{system}, {size}: loss {loss:.6f}, 1F1B's {losses[size, '1F1B']:.6f}"
        for losses in (first, last)
        for (size, system), loss in losses.items()
        if abs(loss - losses[size, "1F1B"]) > 1e-3
    ]


def table(result: Mapping[str, Any], limits: Sequence[int]) -> str:
    """Return the fastest size of each system within each limit, in MiB."""
    names = (*PIPELINES, *OURS)
    lines = []
    for limit in limits:
        line = [f"{limit:,}"]
        for name in names:
            fit = [
                row for row in result["rows"] if row["system"] == name and max(row["peaks"]) <= limit << 20
            ]
            best = max(fit, key=lambda row: row["samples_per_second"], default=None)
            line.append(f"{best['samples_per_second']:,.0f} ({best['size']})" if best else "none fits")
        lines.append(line)
    return markdown_table(("MiB per process", *names), lines)


def main() -> None:
    """Measure as the command line says; exit with 1 if systems don't compute the same."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_limit", description=__doc__)
    parser.add_argument(
        "--sizes", default="8,16,32,64,128", help="samples of a micro-batch (default %(default)s)"
    )
    parser.add_argument("--limits", default="400,600,800,1200,1600", help="MiB (default %(default)s)")
    parser.add_argument("--blocks", type=int, default=2, help="blocks (default %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=12, help=f"the first {LEAD} don't count (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="end with the result as one line of JSON")
    parser.add_argument("--write", action="store_true", help="store the result")
    parser.add_argument("--stage", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage is not None:
        print(json.dumps(run_stage(arguments.stage)))
        return
    result = measure([int(size) for size in arguments.sizes.split(",")], arguments.blocks, arguments.steps)
    print(table(result, [int(limit) for limit in arguments.limits.split(",")]))
    if arguments.write:
        write_result("memory_limit", result)
    if arguments.json:
        print(json.dumps(result))
    if faults := wrong(result["rows"]):
        sys.exit("; ".join(faults))


if __name__ == "__main__":
    main()
