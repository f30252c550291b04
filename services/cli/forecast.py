"""What a run will come to on machines like this one, from blocks that are measured before it starts."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

from lowdimfa.balance import WORTHWHILE, Cut, balance, bottleneck, recut
from lowdimfa.measure import StageTime
from lowdimfa.memory import StageMemory
from lowdimfa.services.lab.simulation.names import schedule_name
from lowdimfa.services.lab.simulation.setting import BlockCosts, Outcome, Setting, core_seconds
from lowdimfa.services.lab.simulation.simulate import simulate
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.profile import make_bench


def forecast(plan: RunPlan) -> dict[str, Any]:
    """Measure the blocks of a run and return what is to be expected of it, as plain data.

    Times are in milliseconds, memory and traffic in bytes. The plan's own blocks stay as they are.
    """
    network, specification = plan.network, plan.specification
    train, replicas = specification.train, specification.replicas
    bench = make_bench(specification, network.feedback, network.training, plan.reader)
    times, memory = bench.times(network.blocks), bench.memory(network.blocks)
    setting = _setting(plan, times)
    cores = len(os.sched_getaffinity(0)) if bench.device.type == "cpu" else None
    blocks = len(network.blocks)
    threads = sum(map(specification.placement.threads_of, range(blocks)))
    here = setting if cores is None else replace(setting, cores=max(1, cores * blocks // threads))
    schedule = schedule_name(train.staleness)
    alone, crowded = simulate(setting, schedule), simulate(here, schedule).samples_per_second
    if cores is not None:
        costs = [BlockCosts(own.forward, own.update, own.step) for own in times]
        work = core_seconds(costs, replicas, train.microbatches, specification.placement.threads_of)
        crowded = min(crowded, cores * setting.microbatch_size / work)
    loads = [
        1e3 * _load(own, train.microbatches, number) for own, number in zip(times, replicas, strict=True)
    ]
    described = plan.describe()["blocks"]
    return {
        "blocks": [
            _describe(plan, described[i], times[i], memory[i], loads[i], replicas[i], alone)
            for i in range(len(described))
        ],
        "bottleneck": bottleneck(loads),
        "balance": balance(loads),
        "better_cut": _better(plan, loads) if max(replicas) == 1 else None,
        "samples_per_second": alone.samples_per_second,
        "samples_per_second_here": crowded,
        "cores": cores,
        "device": str(bench.device),
        "threads_per_block": specification.placement.threads_per_block,
        "batch_size": train.batch_size,
        "microbatches": train.microbatches,
        "staleness": train.staleness,
        "window": train.effective_window,
        "broadcast_bytes_per_sample": network.error_bytes,
    }


def _load(times: StageTime, microbatches: int, replicas: int) -> float:
    """Return the seconds in which a block with all its replicas gets done with a micro-batch."""
    return (times.forward + times.update) / replicas + times.step / microbatches


def _setting(plan: RunPlan, times: list[StageTime]) -> Setting:
    """Return what to simulate: measured work, and a network that takes no time."""
    train, network = plan.specification.train, plan.network
    size = plan.order.microbatch_size
    return Setting(
        blocks=tuple(
            BlockCosts(own.forward / number, own.update / number, own.step, learns=block.learns)
            for own, number, block in zip(times, plan.specification.replicas, network.blocks, strict=True)
        ),
        microbatches=train.microbatches,
        microbatch_size=size,
        activation_bytes=tuple(network.sent_bytes(block.index, size) / size for block in network.blocks[:-1]),
        error_bytes=network.error_bytes,
        staleness=train.staleness,
        window=train.effective_window,
    )


def _describe(
    plan: RunPlan,
    described: dict[str, Any],
    times: StageTime,
    memory: StageMemory,
    load: float,
    replicas: int,
    outcome: Outcome,
) -> dict[str, Any]:
    index, train = described["index"], plan.specification.train
    head = index == len(plan.network.blocks) - 1
    most = min(train.effective_window, train.microbatches * (train.staleness + 1))
    learns = plan.network.blocks[index].learns
    in_flight = 1 if head else math.ceil(most / replicas) if learns else 0
    run = plan.specification.run
    copied = run.background_checkpoints and (run.checkpoint_every or run.keep_best is not None)
    checkpoint = memory.state if copied else 0
    kept = {key: described[key] for key in ("index", "name", "layers", "parameters")}
    return kept | {
        "replicas": replicas,
        "forward_milliseconds": 1e3 * times.forward,
        "update_milliseconds": 1e3 * times.update,
        "step_milliseconds": 1e3 * times.step,
        "milliseconds_per_microbatch": load,
        "busy": 1 - outcome.bubble[index],
        "memory": {
            "weights": memory.weights,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "feedback": memory.feedback,
            "stale_weights": memory.stale,
            "activations": in_flight * memory.kept,
            "checkpoint": checkpoint,
            "total": memory.total(in_flight) + checkpoint,
        },
        "in_flight": in_flight,
        "sent_bytes_per_microbatch": round(plan.network.sent_bytes(index, plan.order.microbatch_size)),
    }


def _better(plan: RunPlan, milliseconds: list[float]) -> dict[str, Any] | None:
    """Return another cut of the same layers if it is expected to be worth it."""
    blocks = plan.network.blocks
    layers = [
        {layer.name: share for layer, share in zip(block.layers, block.layer_shares, strict=True)}
        for block in blocks
    ]
    present = Cut(tuple(plan.network.boundaries), tuple(milliseconds))
    better = recut(layers, milliseconds, plan.describe()["balance"]["starts"])
    if present.saving(better) < WORTHWHILE:
        return None
    return {
        "blocks": list(better.boundaries),
        "milliseconds_per_microbatch": better.highest,
        "moves_per_block": bool(plan.specification.train.per_block),
    }
