"""The pictures of `benchmarks.scaling`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.scaling_map import CONTESTS

COLOURS = {
    "gpipe": "#9a9a9a",
    "1f1b": "#555555",
    "zero-bubble": "#111111",
    "staleness-0": "#f2a65a",
    "staleness-1": "#d1495b",
    "staleness-4": "#8f2d56",
    "staleness-16": "#3d348b",
}
NAMES = {"gpipe": "GPipe", "1f1b": "1F1B", "zero-bubble": "zero-bubble (ZB-H1)"}
SHOWN_BLOCKS = (8, 64, 1024)
DOUBLINGS = 2
"""Of a ratio, where the map's colours end."""


def draw(result: Mapping[str, Any], folder: Path) -> None:
    """Draw throughput and idle time over blocks and links, and traffic over blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = result["rows"]
    fastest = max(row["megabits"] for row in rows)
    _save(_over_blocks(result, rows, fastest), folder / "scaling-blocks.png")
    _save(_over_links(result, rows), folder / "scaling-links.png")
    _save(_traffic(rows, fastest), folder / "scaling-traffic.png")


def draw_map(result: Mapping[str, Any], folder: Path) -> None:
    """Draw who is how much faster, over bandwidth and latency, for every number of blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = result["rows"]
    blocks, megabits, latencies = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("blocks", "megabits", "latency_ms")
    )
    figure, every = plt.subplots(
        len(CONTESTS),
        len(blocks),
        figsize=(2.5 * len(blocks) + 1.4, 2.35 * len(CONTESTS)),
        sharex=True,
        sharey=True,
    )
    colours = matplotlib.colormaps["PuOr_r"]
    scale = matplotlib.colors.TwoSlopeNorm(0, -DOUBLINGS, DOUBLINGS)
    for line, (key, contest) in zip(every, CONTESTS.items(), strict=True):
        for axes, number in zip(line, blocks, strict=True):
            own = {
                (row["latency_ms"], row["megabits"]): row["ours"] / max(row["rivals"].values())
                for row in rows
                if (row["contest"], row["blocks"]) == (key, number)
            }
            grid = [[own[latency, each] for each in megabits] for latency in latencies]
            shown = axes.imshow(
                [[math.log2(one) for one in part] for part in grid], colours, scale, aspect="auto"
            )
            _ratios(axes, grid)
            axes.set_xticks(range(len(megabits)), [_link(each) for each in megabits])
            axes.set_yticks(range(len(latencies)), [f"{each:g}" for each in latencies])
        line[0].set_ylabel("latency, ms")
        line[-1].text(
            1.04, 0.5, textwrap.fill(contest.title, 22), transform=line[-1].transAxes, va="center", fontsize=9
        )
    for top, bottom, number in zip(every[0], every[-1], blocks, strict=True):
        top.set_title(f"{number:,} blocks", fontsize=10)
        bottom.set_xlabel("bandwidth, bit/s")
    figure.tight_layout(rect=(0, 0.08, 0.99, 1))
    bar = figure.colorbar(shown, cax=figure.add_axes((0.25, 0.055, 0.5, 0.014)), orientation="horizontal")
    ticks = [2.0**power for power in range(-DOUBLINGS, DOUBLINGS + 1)]
    bar.set_ticks([math.log2(tick) for tick in ticks], labels=[f"{tick:g}" for tick in ticks])
    bar.set_label("samples per second here, over the fastest rival's (above 1: here is faster)")
    figure.savefig(folder / "scaling-map.png", dpi=100)
    plt.close(figure)


def _ratios(axes: Axes, grid: list[list[float]]) -> None:
    for row, part in enumerate(grid):
        for column, ratio in enumerate(part):
            dark = abs(math.log2(ratio)) > 0.6 * DOUBLINGS
            text = f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "black"
            )


def _link(megabits: float) -> str:
    return f"{megabits:g} M" if megabits < 1000 else f"{megabits / 1000:g} G"


def _over_blocks(result: Mapping[str, Any], rows: list[dict[str, Any]], megabits: float) -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    for name in COLOURS:
        own = [row for row in rows if row["schedule"] == name and row["megabits"] == megabits]
        blocks = [row["blocks"] for row in own]
        _line(left, name, blocks, [row["samples_per_second"] for row in own])
        _line(right, name, blocks, [100 * row["bubble_mean"] for row in own])
    left.axhline(result["limit_samples_per_second"], color="#2a9d8f", linestyle=":", label="never idle")
    left.set(xscale="log", yscale="log", xlabel="blocks", ylabel="samples per second")
    right.set(xscale="log", xlabel="blocks", ylabel="idle time of a block, %", ylim=(-2, 102))
    left.legend(fontsize=8)
    for axes in (left, right):
        _block_ticks(axes, sorted({row["blocks"] for row in rows}))
    figure.suptitle(f"Links of {megabits / 1000:g} Gbit/s")
    return figure


def _over_links(result: Mapping[str, Any], rows: list[dict[str, Any]]) -> Any:
    figure, every = plt.subplots(1, len(SHOWN_BLOCKS), figsize=(13, 4.4), sharey=True)
    for axes, blocks in zip(every, SHOWN_BLOCKS, strict=True):
        for name in COLOURS:
            own = [row for row in rows if row["schedule"] == name and row["blocks"] == blocks]
            if len(own) > 1:
                bits = [1e6 * row["megabits"] for row in own]
                _line(axes, name, bits, [row["samples_per_second"] for row in own])
        axes.axhline(result["limit_samples_per_second"], color="#2a9d8f", linestyle=":", label="never idle")
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="bandwidth of a block's link, bit/s",
            title=f"{blocks:,} blocks",
        )
        axes.set_xticks([25e6, 1e8, 1e9, 1e10, 1e11], ["25 M", "100 M", "1 G", "10 G", "100 G"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    every[0].set_ylabel("samples per second")
    every[0].legend(fontsize=8)
    return figure


def _traffic(rows: list[dict[str, Any]], megabits: float) -> Any:
    figure, axes = plt.subplots(figsize=(6, 4.2))
    shown = {"1f1b": "backpropagation: gradients", "staleness-1": "here: broadcast errors"}
    own = [row for row in rows if row["megabits"] == megabits]
    forward = [row for row in own if row["schedule"] == "1f1b"]
    blocks = [row["blocks"] for row in forward]
    axes.plot(
        blocks,
        [row["forward_bytes_per_sample"] for row in forward],
        "--",
        zorder=5,
        color="#2a9d8f",
        label="activations, forward (both)",
    )
    for name, label in shown.items():
        sizes = [row["backward_bytes_per_sample"] for row in own if row["schedule"] == name]
        axes.plot(blocks, sizes, "o-", color=COLOURS[name], label=label, alpha=0.8)
    axes.set(xscale="log", yscale="log", xlabel="blocks", ylabel="bytes per sample over all links")
    _block_ticks(axes, blocks)
    axes.legend(fontsize=8)
    return figure


def _line(axes: Axes, name: str, x: list[float], y: list[float]) -> None:
    style = "o-" if name.startswith("staleness") else "s--"
    label = NAMES.get(name, name.replace("-", " "))
    # Where lines coincide, the thick ones show behind the thin ones.
    width = 1.4 + max(0, list(COLOURS).index(name) - 3)
    axes.plot(
        x, y, style, color=COLOURS[name], label=label, markersize=4, linewidth=width, zorder=4 - width / 10
    )


def _block_ticks(axes: Axes, blocks: list[int]) -> None:
    axes.set_xticks(blocks, [f"{number:,}" for number in blocks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
