"""Read what a run took, so that it can be simulated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowdimfa.errors import InputError
from lowdimfa.services.lab.simulation.contention import company, slowdown
from lowdimfa.services.lab.simulation.setting import BlockCosts, Setting
from lowdimfa.services.monitoring.report.reading import CATEGORIES, Spans, read_run
from lowdimfa.services.spec import load_specification

WARM_UP = 0.3
"""Share of a run's steps that are left out: memory is taken, caches fill, connections open."""

_FORWARD, _UPDATE, _STEP, _PROBE, _SEND, _PUBLISH = (
    CATEGORIES.index(name) for name in ("forward", "update", "step", "probe", "send", "publish")
)


@dataclass(frozen=True)
class Measured:
    """A run as a setting, with what each block holds of the network.

    Attributes
    ----------
    setting
        Of the run, with its own times.
    shares
        Of the network's cost, by block.
    parameters
        Weights, by block.
    spans
        The timelines of its blocks, in the order of time, without the first steps.
    """

    setting: Setting
    shares: tuple[float, ...]
    parameters: tuple[float, ...]
    spans: dict[int, Spans] = field(repr=False)

    def alone(self, contention: float, cores: int) -> Measured:
        """Return the run as it would have been if no block had slowed another down.

        Parameters
        ----------
        contention
            What computing on all cores at once costs each of them; see `lowdimfa.services.lab.simulation.contention`.
        cores
            That all blocks shared.
        """
        beside = company(self.spans, cores)
        last = len(self.spans) - 1
        blocks = []
        for index, costs in enumerate(self.setting.blocks):
            slower = partial(_slower, self.spans[index], slowdown(contention, beside[index]))
            forward = slower(_FORWARD)
            update = forward if index == last else slower(_UPDATE, _PROBE)
            blocks.append(
                replace(
                    costs,
                    forward=costs.forward / forward,
                    update=costs.update / update,
                    step=costs.step / slower(_STEP),
                )
            )
        return replace(self, setting=replace(self.setting, blocks=tuple(blocks)))


def read_measured(run_dir: Path) -> Measured:
    """Read a run's plan, specification and timeline.

    A piece of work takes from its begin to the begin of what the block does next, so that what lies between the two is
    counted. The head's forward pass includes its own update: it is divided in the proportion of the other blocks'.

    Raises
    ------
    InputError
        The directory isn't that of a run with a timeline, or the run was too short or had replicas of blocks.
    """
    record = read_run(run_dir)
    if not record.plan or not record.specification:
        raise InputError(str(run_dir), "a run without spec.yaml or plan.json", "the directory of a run")
    specification = load_specification(run_dir / "spec.yaml", kept=True)
    if max(specification.replicas) > 1:
        found = f"a run with {max(specification.replicas)} replicas of a block"
        raise InputError(str(run_dir), found, "one worker for each block", "Set placement.replicas to 1.")
    blocks = record.plan["blocks"]
    if not all("output_bytes_per_sample" in block for block in blocks):
        found = "blocks without output_bytes_per_sample"
        raise InputError(str(run_dir / "plan.json"), found, "a run of this version")
    spans = {index: _settled(own) for index, own in record.lasting_spans().items()}
    missing = [index for index in range(len(blocks)) if index not in spans or not len(spans[index].step)]
    if missing:
        raise InputError(
            str(run_dir),
            f"no timeline of block {missing[0]} after the first {WARM_UP:.0%} of its steps",
            "a run with run.timeline that was long enough to measure",
        )
    learns = [block["frozen_parameters"] < block["parameters"] for block in blocks]
    costs = _block_costs([spans[index] for index in range(len(blocks))], learns)
    train = specification.train
    setting = Setting(
        blocks=costs,
        microbatches=train.microbatches,
        microbatch_size=_samples(record.plan, train.batch_size, spans[0].step) / train.microbatches,
        activation_bytes=tuple(float(block["output_bytes_per_sample"]) for block in blocks[:-1]),
        error_bytes=float(record.plan["broadcast_bytes_per_sample"]),
        latency=_latency(spans),
        staleness=train.staleness,
        window=train.window,
        activations=_form(train.activations, blocks[:-1]),
    )
    return Measured(
        setting,
        tuple(block["cost_share"] for block in blocks),
        tuple(block["parameters"] for block in blocks),
        {index: spans[index] for index in range(len(blocks))},
    )


def _samples(plan: dict[str, Any], whole: int, steps: NDArray[np.int64]) -> float:
    """Return the samples of a step on average over some steps: an epoch's last may have fewer."""
    known, fewer = np.unique(steps), int(plan["last_batch_size"])
    last = (known + 1) % int(plan["steps_per_epoch"]) == 0
    return whole + float(last.mean()) * (fewer - whole) if fewer else float(whole)


def _form(given: object, blocks: Sequence[dict[str, Any]]) -> str:
    """Return the format of a run's activations as a schedule's name has it; else in how many fewer bytes than float32."""
    whole, sent = (sum(block[f"{key}_bytes_per_sample"] for block in blocks) for key in ("output", "sent"))
    if isinstance(given, str) and (given != "fp32" or whole == sent):
        return given
    return f"x{max(1.0, whole / sent):.4g}" if sent else "fp32"


def _slower(spans: Spans, times: NDArray[np.float64], *kinds: int) -> float:
    """Return how many times as long some kinds of work took, each piece being so many times as slow as it might."""
    chosen = np.isin(spans.category, kinds)
    seconds = (spans.end - spans.start)[chosen]
    return float(seconds.sum() / (seconds / times[chosen]).sum()) if seconds.sum() > 0 else 1.0


def _settled(spans: Spans) -> Spans:
    """Return the spans of the later steps, in the order of time."""
    first = math.ceil(spans.step.min() + WARM_UP * (spans.step.max() + 1 - spans.step.min()))
    kept: NDArray[np.bool_] = spans.step >= first
    settled = spans[kept]
    order = np.argsort(settled.start, kind="stable")
    return Spans(
        settled.category[order],
        settled.step[order],
        settled.microbatch[order],
        settled.start[order],
        settled.end[order],
    )


def _block_costs(spans: Sequence[Spans], learns: Sequence[bool]) -> tuple[BlockCosts, ...]:
    *body, head = map(_costs, spans, learns)
    learning = [block for block in body if block.learns]
    forward, update = (sum(getattr(block, name) for block in learning) for name in ("forward", "update"))
    share = forward / (forward + update) if learning else 1 / 3
    whole = head.forward
    # What learns nothing waits for the next block to take what it sends, and its spans of sending have that in them.
    send = fmean(block.send for block in (*learning, head))
    body = [block if block.learns else replace(block, send=send) for block in body]
    return (*body, replace(head, forward=share * whole, update=(1 - share) * whole))


def _costs(spans: Spans, learns: bool) -> BlockCosts:
    """Return what a block's pieces of work take on average."""
    until = np.append(spans.start[1:], spans.end[-1])
    seconds = np.maximum(spans.end, until) - spans.start
    # After an evaluation or a checkpoint the next span is far away: what is long beyond all others is none of the work.
    seconds = np.where(until - spans.end > 0.05, spans.end - spans.start, seconds)

    def total(*kinds: int) -> float:
        return float(seconds[np.isin(spans.category, kinds)].sum())

    forwards = max(1, int((spans.category == _FORWARD).sum()))
    updates = max(1, int((spans.category == _UPDATE).sum()))
    steps = max(1, int((spans.category == _STEP).sum()))
    return BlockCosts(
        forward=total(_FORWARD) / forwards,
        update=total(_UPDATE, _PROBE) / updates,
        step=total(_STEP) / steps,
        send=total(_SEND, _PUBLISH) / forwards,
        learns=learns,
    )


def _latency(spans: dict[int, Spans]) -> float:
    """Return the time from the handing over of an activation to its use in a block that waited for it, in seconds."""
    wait = CATEGORIES.index("wait: activation")
    found: list[float] = []
    for index in range(1, len(spans)):
        before, own = spans[index - 1], spans[index]
        sent = {
            (before.step[i], before.microbatch[i]): before.end[i]
            for i in np.flatnonzero(before.category == _SEND)
        }
        for i in np.flatnonzero((own.category[1:] == _FORWARD) & (own.category[:-1] == wait)) + 1:
            if (began := sent.get((own.step[i], own.microbatch[i]))) is not None:
                found.append(float(own.start[i] - began))
    return max(0.0, float(np.median(found))) if found else 0.0
