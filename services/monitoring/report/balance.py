"""How evenly the blocks share the work: what was predicted, what came of it, and whether another cut would be better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowdimfa.balance import WORTHWHILE, Cut, balance, bottleneck, recut
from lowdimfa.services.monitoring.report.reading import BUSY, CATEGORIES, Record, Spans

_FORWARD = CATEGORIES.index("forward")


@dataclass(frozen=True)
class Row:
    """One block's part of the work.

    Attributes
    ----------
    block
        Its index.
    predicted, achieved
        Its share of the work of all blocks; of a block with replicas that of one of them.
    predicted_milliseconds
        Of work per micro-batch, where the cut was made by measured time.
    milliseconds
        Of work per micro-batch, in the step of median work.
    busy_seconds
        In all that was recorded.
    """

    block: int
    predicted: float
    achieved: float
    predicted_milliseconds: float | None
    milliseconds: float
    busy_seconds: float

    def cells(self) -> list[str]:
        """Return what the page shows of it."""
        predicted = self.predicted_milliseconds
        return [
            str(self.block),
            f"{self.predicted:.1%}",
            f"{self.achieved:.1%}",
            "–" if predicted is None else f"{predicted:,.2f}",
            f"{self.milliseconds:,.2f}",
            f"{self.busy_seconds:,.1f}",
        ]


@dataclass(frozen=True)
class Balance:
    """The rows of the table and what there is to say of them."""

    rows: list[Row]
    summary: str
    hint: str


def measure_balance(record: Record) -> Balance | None:
    """Compare predicted and achieved shares of the work; None where plan or timeline don't tell them for all blocks."""
    blocks: list[dict[str, Any]] = record.plan.get("blocks", [])
    spans = record.lasting_spans()
    if not blocks or any(block["index"] not in spans for block in blocks):
        return None
    taken = [milliseconds_per_microbatch(spans[block["index"]]) for block in blocks]
    if not all(taken):
        return None
    # Each replica does its part of the micro-batches, so that a block's share of the time is as much smaller.
    replicas = record.plan.get("replicas", [1] * len(blocks))
    predicted = [block["cost_share"] / number for block, number in zip(blocks, replicas, strict=True)]
    achieved = [own / number for own, number in zip(taken, replicas, strict=True)]
    rows = [
        Row(
            block["index"],
            predicted[i] / sum(predicted),
            achieved[i] / sum(achieved),
            block.get("milliseconds"),
            taken[i],
            busy_seconds(spans[block["index"]]),
        )
        for i, block in enumerate(blocks)
    ]
    hint = _hint(record.plan, taken) if set(replicas) == {1} else ""
    return Balance(rows, _summary(record.plan, rows), hint)


def milliseconds_per_microbatch(spans: Spans) -> float:
    """Return what a block computes for one micro-batch, in the step of median work; 0 if it forwarded none."""
    work = spans[np.isin(spans.category, BUSY)]
    forwards = np.bincount(work.step[work.category == _FORWARD], minlength=1)
    if not forwards.any():
        return 0.0
    seconds = np.bincount(work.step, work.end - work.start, minlength=len(forwards))[: len(forwards)]
    return float(1e3 * np.median(seconds[forwards > 0] / forwards[forwards > 0]))


def busy_seconds(spans: Spans) -> float:
    """Return the seconds that a block computed."""
    work = spans[np.isin(spans.category, BUSY)]
    return float((work.end - work.start).sum())


def _summary(plan: dict[str, Any], rows: list[Row]) -> str:
    predicted, achieved = ([getattr(row, key) for row in rows] for key in ("predicted", "achieved"))
    by = "measured before the run" if plan.get("balance", {}).get("by") == "time" else "counted operations"
    return (
        f"Balance is the mean over the largest share: 1 where all blocks do the same. {balance(predicted):.2f} was "
        f"predicted ({by}; bottleneck block {rows[bottleneck(predicted)].block}), {balance(achieved):.2f} came of it "
        f"(bottleneck block {rows[bottleneck(achieved)].block})."
    )


def _hint(plan: dict[str, Any], milliseconds: list[float]) -> str:
    """Say whether another cut of the same layers would be better, as far as the plan has what layers cost."""
    blocks = plan["blocks"]
    if len(blocks) == 1 or not all("layer_shares" in block for block in blocks) or "balance" not in plan:
        return ""
    layers = [dict(zip(block["layers"], block["layer_shares"], strict=True)) for block in blocks]
    present = Cut(tuple(block["name"] for block in blocks[1:]), tuple(milliseconds))
    better = recut(layers, milliseconds, plan["balance"]["starts"])
    saving = present.saving(better)
    if saving < WORTHWHILE:
        cuts = f"No other cut into {len(blocks)} blocks"
        return f"{cuts} is expected to save as much as {WORTHWHILE:.0%} of the bottleneck's work."
    names = ", ".join(f'"{name}"' for name in better.boundaries)
    return (
        f"Another cut is expected to be better: with model.blocks: [{names}] the bottleneck would take about "
        f"{better.highest:,.2f} ms per micro-batch in place of {present.highest:,.2f} ({saving:.0%} less)."
    )
