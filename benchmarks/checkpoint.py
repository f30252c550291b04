"""How long training stands for a checkpoint, beside a plain copy of the same state in the same processes.

``python -m benchmarks.checkpoint`` trains a fully connected network of 100 million parameters with AdamW on the digits,
in 2 blocks, each an actor on a Ray of this machine. After each checkpoint, once it is complete, both blocks clone all
tensors of their state at once; the slower of them counts. Then it does so with `run.background_checkpoints: false`, where
training stands until the files are written. Medians over the checkpoints of one run, without the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.reporting import environment, markdown_table, offer_output, put_out
from benchmarks.throughput.process import ROOT
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.monitoring.journal import Event, Journal
from lowdimfa.services.run.checkpoint import Attempt
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.callbacks import Callbacks
from lowdimfa.services.trainer.cluster import start_ray
from lowdimfa.services.trainer.engine import OnSteps
from lowdimfa.services.trainer.loop import TrainingLoop
from lowdimfa.services.trainer.ray_engine import RayEngine
from lowdimfa.services.trainer.ray_writing import RayWriting
from lowdimfa.services.trainer.run_dir import opened
from lowdimfa.services.trainer.stopping import StopRequest
from lowdimfa.services.trainer.watch import TrainerWatch

BLOCKS = 2
GOAL = 1.3
"""Times the plain copy."""


def specification(width: int, checkpoints: int, every: int, background: bool) -> dict[str, Any]:
    """Return what is trained: 5 layers of ``width`` squared weights are nearly all of it."""
    return {
        "model": {
            "factory": "lowdimfa.models:mlp",
            "args": {"in_features": 64, "width": width, "depth": 7, "classes": 10},
            "blocks": BLOCKS,
        },
        "data": {"factory": "lowdimfa.data:digits"},
        "train": {"batch_size": 16, "steps": every * (checkpoints + 1) + 1},
        "run": {
            "checkpoint_every": every,
            "background_checkpoints": background,
            "evaluate_every_epochs": 0,
            "keep": 1,
        },
    }


def plain_copy(worker: BlockWorker) -> tuple[float, int]:
    """Clone all tensors of a block's state; return seconds and bytes."""
    tensors = list(worker.stage.state().tensors.values())
    began = time.perf_counter()
    copies = [tensor.detach().clone() for tensor in tensors]
    return time.perf_counter() - began, sum(copy.nbytes for copy in copies)


class Measured(RayEngine):
    """Has the blocks copy their states before training goes on after a complete checkpoint."""

    writing: RayWriting | None = None

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.copies: list[float] = []
        self.bytes = 0

    def save(self, attempt: Attempt, step: int, copy: bool) -> RayWriting:
        """Remember what is written."""
        self.writing = super().save(attempt, step, copy)
        return self.writing

    def run_steps(self, first_step: int, last_step: int, on_steps: OnSteps, stop: StopRequest) -> int:
        """Run steps, after a copy if a checkpoint was made."""
        if (writing := self.writing) is not None:
            while writing.missing():
                time.sleep(0.05)
            found = self._require().compute_by_block("copy", plain_copy)
            self.copies.append(max(seconds for seconds, _ in found))
            self.bytes = sum(size for _, size in found)
            self.writing = None
        return super().run_steps(first_step, last_step, on_steps, stop)


def measure(folder: Path, width: int, checkpoints: int, every: int, background: bool) -> dict[str, Any]:
    """Train once; return seconds of each checkpoint."""
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if event["event"] == "checkpoint":
            print(f"{folder.name}: {json.dumps(event)}", file=sys.stderr, flush=True)

    made = parse_specification(specification(width, checkpoints, every, background), "the benchmark")
    plan, watch, stop = make_run_plan(made), TrainerWatch("checkpoint"), StopRequest()
    folder.mkdir()
    engine = Measured(plan, folder, UserCode(str(ROOT)), watch)
    try:
        with opened(Journal(folder, note)) as journal:
            told = Callbacks([], made, folder, stop.finish)
            TrainingLoop(plan, engine, folder, journal, watch, told, stop).run(None)
    finally:
        engine.close()
        watch.close()
    saved = [event for event in events if event["event"] == "checkpoint"][: len(engine.copies)]
    pauses = [event["pause_seconds"] for event in saved][1:]
    return {
        "parameters": sum(block.parameters for block in plan.network.blocks),
        "bytes": engine.bytes,
        "pause_seconds": pauses,
        "copy_seconds": engine.copies[1:],
        "complete_seconds": [event["seconds"] for event in saved][1:],
        "ratios": [pause / copy for pause, copy in zip(pauses, engine.copies[1:], strict=True)],
    }


def table(result: Mapping[str, Any]) -> str:
    """Return a result as a table."""
    rows = [
        (
            name.replace("_", " "),
            f"{statistics.median(run['pause_seconds']):.2f}",
            f"{statistics.median(run['copy_seconds']):.2f}",
            f"{statistics.median(run['ratios']):.2f} ({min(run['ratios']):.2f} to {max(run['ratios']):.2f})",
            f"{statistics.median(run['complete_seconds']):.2f}",
        )
        for name, run in result["runs"].items()
    ]
    header = ("checkpoints", "training stands, s", "plain copy, s", "ratio", "complete after, s")
    run = result["runs"]["in_the_background"]
    goal = f"{run['parameters']:,} parameters, a state of {run['bytes'] / 1e9:.2f} GB; goal: {GOAL}"
    return f"{markdown_table(header, rows)}\n\n{goal}"


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--width", type=int, default=4480, help="of the layers (default %(default)s)")
    parser.add_argument(
        "--checkpoints",
        type=int,
        default=7,
        help="in the background (default %(default)s); half as many are waited for",
    )
    parser.add_argument("--every", type=int, default=2, help="steps between them (default %(default)s)")
    offer_output(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    own = {"width": arguments.width, "checkpoints": arguments.checkpoints, "every": arguments.every}
    waited = own | {"checkpoints": max(2, arguments.checkpoints // 2)}
    disconnect = start_ray(None, blocks=BLOCKS)
    try:
        with tempfile.TemporaryDirectory() as place:
            runs = {
                "in_the_background": measure(Path(place) / "background", background=True, **own),
                "waited_for": measure(Path(place) / "waited", background=False, **waited),
            }
    finally:
        disconnect()
    settings = " ".join(f"--{name} {value}" for name, value in own.items())
    command = f"python -m benchmarks.checkpoint {settings} --write"
    result = {"benchmark": "checkpoint", "command": command, "configuration": own}
    result |= {"environment": environment(), "runs": runs}
    put_out(result, table(result), arguments)


if __name__ == "__main__":
    main()
