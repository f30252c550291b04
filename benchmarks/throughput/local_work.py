"""The limit: each block's own work on tensors that are there already, and the machine's rate of matrix products."""

from __future__ import annotations

import time

import torch

from benchmarks.throughput.peers import Answer
from lowdimfa.block import Block
from lowdimfa.build import build_block, build_head
from lowdimfa.feedback.making import broadcast_width
from lowdimfa.head import Head
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.families import peak_bytes
from lowdimfa.tickets import Ticket

TAIL = 1
"""Steps after the measured ones, while other blocks may still be measured."""


class LocalWork:
    """One block with nothing to wait for: forward, update and optimiser step, on the same tensors again and again.

    Parameters
    ----------
    configuration
        ``specification``, and the block's index as ``rank``.
    """

    def __init__(self, configuration: Answer) -> None:
        specification = parse_specification(configuration["specification"], "the benchmark")
        plan = make_run_plan(specification, rehearsed=False)
        network, order = plan.network, plan.order
        index = configuration["rank"]
        own, about = network.blocks[index], (network.shape, network.feedback, network.training)
        is_head = index == len(network.blocks) - 1
        self._stage = build_head(own, *about, plan.dataset.task) if is_head else build_block(own, *about)
        self._microbatches = specification.train.microbatches
        self._next = 0
        shape = network.blocks[index].input_shape
        self._inputs = torch.randn(self._microbatches, order.microbatch_size, *shape)
        draws = [order.indices(Ticket(0, part)) for part in range(self._microbatches)]
        self._targets = [plan.dataset.train.targets(indices) for indices in draws]
        if index == 0:
            self._inputs = torch.stack([plan.dataset.train.inputs(indices) for indices in draws])
        width = broadcast_width(network.shape, network.feedback)
        positions = (network.shape.positions,) * network.shape.position_dims
        self._error = torch.randn(order.microbatch_size, *positions, width) / plan.order.batch_size

    def steps(self, system: str, lead: int, count: int) -> Answer:
        """Run steps; see `benchmarks.throughput.worker.Contestant`."""
        cpu = time.process_time()
        self._run(lead)
        began = time.perf_counter()
        self._run(count)
        seconds = time.perf_counter() - began
        self._run(TAIL)
        return {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu,
            "steps": lead + count + TAIL,
            "forward_bytes": 0,
            "backward_bytes": 0,
            "peak_bytes": peak_bytes(),
        }

    def _run(self, count: int) -> None:
        stage = self._stage
        for _ in range(count):
            for part in range(self._microbatches):
                ticket = Ticket(self._next, part)
                if isinstance(stage, Head):
                    stage.forward(self._inputs[part], self._targets[part], ticket)
                elif isinstance(stage, Block):
                    stage.forward(self._inputs[part], ticket)
                    stage.receive_error(ticket, self._error)
            stage.step()
            self._next += 1

    def evaluate(self, system: str) -> Answer:
        """Learn nothing, so tell nothing."""
        return {"accuracy": None, "loss": None}

    def close(self) -> None:
        """Hold nothing."""


def matmul_rate(rows: int, width: int, seconds: float) -> float:
    """Return the rate of products ``(rows, width) @ (width, width)`` in float32, in GFLOP/s, over some seconds."""
    left, right = torch.randn(rows, width), torch.randn(width, width)
    out = left @ right
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        torch.mm(left, right, out=out)
        count += 1
    return 2e-9 * count * rows * width * width / took
