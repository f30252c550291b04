"""Memory of each process that trains a Llama which none of them could hold, and how long the run takes to start.

``python -m benchmarks.memory --json`` trains some steps in 4 blocks. Each process that calls the model's factory limits
its own private memory (``RLIMIT_DATA``): the trainer and every block must stay within. Then one process is given the same
limit and the whole network, which must fail if what it has to hold is more. The peaks are the kernel's own (``VmHWM``).
Needs the extra ``hf``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.reporting import environment, markdown_table, offer_output, put_out
from lowdimfa.errors import LowdimfaError
from lowdimfa.models import hugging_face
from lowdimfa.services.trainer.families import peak_bytes

SIZES: dict[str, dict[str, int]] = {
    "400M": {
        "vocab_size": 8192,
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
    "60M": {
        "vocab_size": 2048,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
}
CONTEXT, STEPS, BLOCKS, BATCH, ERROR_DIM = 64, 5, 4, 2, 64
FACTOR, MARGIN = 1.25, 600 << 20
"""A process may take so many times what its block needs, and so many bytes for Python, torch and Ray."""

STATE = {"adamw": 4, "sgd": 3}
"""Values per parameter: itself, its gradient, and what the optimiser keeps."""

_OPTIMIZERS = {
    "adamw": {"factory": "torch.optim.AdamW", "args": {"lr": 1e-4}},
    "sgd": {"factory": "torch.optim.SGD", "args": {"lr": 1e-3, "momentum": 0.9}},
}


_MEASURES = "LOWDIMFA_BENCHMARK_MEASURES"
"""Environment variable with the process that starts the run, and Ray with it, for which there is no limit."""


def llama(size: str, limit: int) -> nn.Module:
    """Return a Llama with random weights, in a process that from now on has no more private memory than the limit."""
    if os.environ.get(_MEASURES) != str(os.getpid()):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    own = {"max_position_embeddings": CONTEXT, "attention_dropout": 0.0, "tie_word_embeddings": False}
    return hugging_face({"model_type": "llama", **SIZES[size], **own})


def tokens(size: str) -> tuple[Tensor, ...]:
    """Return random tokens, and the next ones."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(
        SIZES[size]["vocab_size"], (STEPS * BATCH + BATCH, CONTEXT + 1), generator=generator
    )
    train, test = drawn[:-BATCH], drawn[-BATCH:]
    return train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:]


def specification(size: str, optimizer: str, limit: int) -> dict[str, Any]:
    """Return the run."""
    return {
        "model": {
            "factory": "benchmarks.memory:llama",
            "args": {"size": size, "limit": limit},
            "blocks": BLOCKS,
        },
        "data": {"factory": "benchmarks.memory:tokens", "args": {"size": size}},
        "feedback": {"source": "head_input", "error_dim": ERROR_DIM},
        "train": {
            "steps": STEPS,
            "batch_size": BATCH,
            "microbatches": 1,
            "optimizer": _OPTIMIZERS[optimizer],
            "log_every": 1,
        },
        "run": {"tensorboard": False, "timeline": False, "evaluate_every_epochs": 0, "metrics": "off"},
    }


class Peaks:
    """Reads the peaks of some processes until they end."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self._pids: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def follow(self, trainer: int, blocks: list[int]) -> None:
        """Begin with these processes."""
        self._pids = {"trainer": trainer} | {f"block {index}": pid for index, pid in enumerate(blocks)}

    def _follow(self) -> None:
        while not self._stop.wait(0.1):
            for name, pid in self._pids.items():
                with suppress(OSError):
                    if peak := peak_bytes(pid):  # one that has ended says none
                        self.found[name] = peak

    def close(self) -> dict[str, int]:
        """Return the peaks in bytes."""
        self._stop.set()
        self._thread.join()
        return self.found


def train(size: str, optimizer: str, limit: int, run_dir: Path) -> dict[str, Any]:
    """Train in actors and return what each process took."""
    from lowdimfa.services.trainer.api import DecoupledTrainer
    from lowdimfa.services.trainer.run_dir import read_plan

    peaks, began, started = Peaks(), time.monotonic(), 0.0

    def on_event(event: Mapping[str, Any]) -> None:
        nonlocal started
        print(json.dumps(event), file=sys.stderr, flush=True)
        if event["event"] == "started":
            started = time.monotonic() - began
            peaks.follow(**event["pids"])

    trainer = DecoupledTrainer(specification(size, optimizer, limit), run_dir=run_dir, on_event=on_event)
    finished = trainer.fit().metrics
    found, plan = peaks.close(), read_plan(run_dir)
    blocks = [
        {
            "block": block["index"],
            "parameters": block["parameters"],
            "needed": 4 * STATE[optimizer] * block["parameters"],
            "peak": found[f"block {block['index']}"],
        }
        for block in plan["blocks"]
    ]
    for block in blocks:
        block["allowed"] = round(FACTOR * block["needed"]) + MARGIN
    return {
        "start_seconds": started,
        "seconds": finished["seconds"],
        "trainer_peak": found["trainer"],
        "blocks": blocks,
        "parameters": plan["parameters"],
        "state": 4 * STATE[optimizer] * plan["parameters"],
    }


def alone(size: str, optimizer: str, limit: int, run_dir: Path) -> str:
    """Run all blocks in one process under the same limit; return how it ended."""
    code = (
        "import sys, json\n"
        "from lowdimfa.services.trainer.api import DecoupledTrainer\n"
        "DecoupledTrainer(json.loads(sys.argv[1]), engine='local', run_dir=sys.argv[2]).fit()\n"
    )
    given = json.dumps(specification(size, optimizer, limit))
    ended = subprocess.run([sys.executable, "-c", code, given, str(run_dir)], capture_output=True, text=True)
    last = ([line for line in ended.stderr.splitlines() if line.strip()] or [""])[-1]
    return "finished" if ended.returncode == 0 else f"exit code {ended.returncode}: {last[:200]}"


def measure(size: str, optimizer: str, limit: int | None) -> dict[str, Any]:
    """Return everything."""
    root = str(Path(__file__).parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ[_MEASURES] = str(os.getpid())
    config = SIZES[size]
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    share = width * (2 * width + 2 * width * 4 // 12 + 3 * config["intermediate_size"]) * layers // BLOCKS
    share += config["vocab_size"] * width
    limit = limit or round(FACTOR * 4 * STATE[optimizer] * share) + 2 * MARGIN
    with tempfile.TemporaryDirectory() as folder:
        found = train(size, optimizer, limit, Path(folder) / "run")
        one = alone(size, optimizer, limit, Path(folder) / "alone")
    return {
        "benchmark": "memory",
        "command": f"python -m benchmarks.memory --size {size} --optimizer {optimizer}",
        "configuration": {
            **config,
            "context": CONTEXT,
            "batch": BATCH,
            "steps": STEPS,
            "optimizer": optimizer,
            "limit": limit,
        },
        "environment": environment(),
        "in_one_process": one,
        **found,
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the peaks as Markdown."""
    rows = [
        (
            f"block {block['block']}",
            f"{block['parameters'] / 1e6:,.1f}",
            *(f"{block[key] / 2**20:,.0f}" for key in ("needed", "peak", "allowed")),
        )
        for block in result["blocks"]
    ]
    rows.append(("trainer", "0", "", f"{result['trainer_peak'] / 2**20:,.0f}", ""))
    head = ("process", "million parameters", "needed MiB", "peak MiB", "allowed MiB")
    return (
        f"{markdown_table(head, rows)}\n\n"
        f"{result['parameters'] / 1e6:,.1f} million parameters; with gradients and the optimiser's state "
        f"{result['state'] / 2**20:,.0f} MiB; "
        f"each process limited to {result['configuration']['limit'] / 2**20:,.0f} MiB; "
        f"started after {result['start_seconds']:.0f} s, {STEPS} steps in {result['seconds']:.0f} s; "
        f"in one process: {result['in_one_process']}"
    )


def main() -> None:
    """Measure as the command line says; exit with 1 if a process took more than it may, or one alone was enough."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="400M")
    parser.add_argument("--optimizer", choices=STATE, default="sgd")
    parser.add_argument("--limit", type=int, help="bytes of private memory of each process")
    offer_output(parser)
    arguments = parser.parse_args()
    try:
        result = measure(arguments.size, arguments.optimizer, arguments.limit)
    except LowdimfaError as error:
        sys.exit(str(error))
    put_out(result, table(result), arguments)
    enough = result["state"] <= result["configuration"]["limit"]  # as for a small size
    finished = result["in_one_process"] == "finished"
    if (finished and not enough) or any(block["peak"] > block["allowed"] for block in result["blocks"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
