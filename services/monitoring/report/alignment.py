"""How well the blocks' updates follow the true gradient."""

from __future__ import annotations

import math

from matplotlib.ticker import PercentFormatter

from lowdimfa.services.monitoring.report.reading import Record
from lowdimfa.services.monitoring.report.style import INK, Picture, new_figure, ordered_colours, quiet


def draw_alignment(record: Record) -> Picture | None:
    """Draw cosines and explained error energy over the steps; return nothing where none was recorded."""
    events = record.by_step("alignment")
    if not events:
        return None
    blocks = sorted({entry["block"] for event in events.values() for entry in event["blocks"]})
    figure = new_figure(3.9)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])

    for block, colour in zip(blocks, ordered_colours(len(blocks)), strict=True):
        cosines = {
            step: math.nan if entry["cosine"] is None else entry["cosine"]
            for step, event in events.items()
            for entry in event["blocks"]
            if entry["block"] == block
        }
        points = (list(cosines), list(cosines.values()))
        left.plot(*points, ".-", color=colour, linewidth=1.5, markersize=4, label=f"block {block}")
    left.axhline(0, color="#bbbbbb", linewidth=0.8)
    left.set_ylim(min(-0.05, left.get_ylim()[0]), 1.05)
    left.legend(
        frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(blocks) // 13
    )
    quiet(left, "Update against the true gradient", "step", "cosine of the angle")

    steps, energy = record.series("alignment", "explained_error_energy")
    right.plot(steps, energy, ".-", color=INK, linewidth=1.5, markersize=4)
    right.set_ylim(0, 1.05)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    quiet(right, "Error energy in the broadcast", "step", "share of the whole error")
    last = events[max(events)]
    cosines = {entry["block"]: entry["cosine"] for entry in last["blocks"]}
    return Picture(figure, _caption(cosines, last.get("explained_error_energy")))


def _caption(cosines: dict[int, float | None], energy: float | None) -> str:
    share = "an unknown part" if energy is None or not math.isfinite(energy) else f"{energy:.1%}"
    carried = f"the projected error carried {share} of the whole error's energy."
    finite = {
        block: cosine for block, cosine in cosines.items() if cosine is not None and math.isfinite(cosine)
    }
    if not finite:
        return f"At the last measurement no cosine was a finite number; {carried}"
    low = min(finite, key=finite.__getitem__)
    high = max(finite, key=finite.__getitem__)
    return (
        f"At the last measurement the cosine lay between {finite[low]:.2f} (block {low}) and "
        f"{finite[high]:.2f} (block {high}), where 1 is the true gradient's direction and 0 a right angle; {carried}"
    )
