"""The figure of claim C1: what becomes of the singular modes over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

Course = Mapping[str, Any]
GREY = "0.35"
CLOSED_FORM: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.2, "alpha": 0.8}
DESCENT: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3.2, "markerfacecolor": "white"}
FREE: dict[str, Any] = {"linestyle": (0, (1, 1.2)), "linewidth": 1.3}
LEAST_SHORTFALL = 3e-4


def draw(result: Mapping[str, Any]) -> Figure:
    """Draw the first seed: strengths of the modes for ``r < d``, their distance from the teacher for ``r = d``."""
    first = {(entry["teacher"], entry["variant"]): entry for entry in result["runs"] if entry["seed"] == 0}
    figure = Figure(figsize=(10, 10), layout="constrained")
    rows: Any = figure.subfigures(4, 1, height_ratios=(1, 1, 1, 0.2))
    paper, errors, equal, legend = rows
    _strengths(
        paper,
        f"{_setting(result, 'r < d')}: the paper's rules, one constant decay",
        [
            (title, first["r < d", variant])
            for title, variant in (
                ("P and Q fixed", "fixed"),
                ("Q learns, P fixed", "Q only"),
                ("Q and P learn, targets drive P", "Q and P, by targets"),
            )
        ],
    )
    _strengths(
        errors,
        f"{_setting(result, 'r < d')}: errors drive P; and, on the right, the closed form in time",
        [
            ("Q and P learn, the paper's decay", first["r < d", "Q and P, by errors"]),
            ("the same, W₁ kept, decay annealed", first["r < d", "Q and P, by errors, W1 kept"]),
            ("Q learns, P fixed, aligned start", first["r < d", "Q only, aligned start"]),
        ],
    )
    _shortfalls(equal, f"{_setting(result, 'r = d')}: what is missing of each mode", first)
    _legend(legend)
    return figure


def _setting(result: Mapping[str, Any], name: str) -> str:
    configuration = result["configuration"][name]
    rank = len(configuration["singular_values"])
    return f"r = {configuration['error_dim']}, d = {rank}, m = {configuration['outputs']}"


def _strengths(row: SubFigure, heading: str, panels: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    axes = _panels(row, heading, [title for title, _ in panels], "strength of the mode, aᵢ / sᵢ")
    for axis, (_, entry) in zip(axes, panels, strict=True):
        closed = entry.get("closed_form")
        colours = _colours(len(entry["descent"]["final_modes"]))
        for number, colour in enumerate(colours):
            if closed is None:
                axis.plot(entry["flow"]["times"], _mode(entry["flow"], number), color=colour, linewidth=1.5)
                for end in (entry["stationary_modes"] or [])[number : number + 1]:
                    axis.axhline(end, color=colour, **CLOSED_FORM)
            else:
                axis.plot(closed["times"], _mode(closed, number), color=colour, **CLOSED_FORM)
            axis.plot(
                entry["descent"]["times"][::2],
                _mode(entry["descent"], number)[::2],
                markeredgecolor=colour,
                **DESCENT,
            )
        axis.axhline(1, color="0.85", linewidth=0.8, zorder=0)
        axis.set_ylim(-0.12, 1.25)


def _shortfalls(row: SubFigure, heading: str, first: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    titles = {
        "fixed": "P and Q fixed",
        "Q only": "Q learns, P fixed",
        "Q and P, by targets": "Q and P learn, targets drive P",
    }
    axes = _panels(row, heading, list(titles.values()), "missing of the mode, |1 − aᵢ / sᵢ|")
    for axis, variant in zip(axes, titles, strict=True):
        entry, free = first["r = d", variant], first["r = d", f"{variant}, no decay"]["flow"]
        for number, colour in enumerate(_colours(len(entry["stationary_modes"]))):
            axis.plot(free["times"], _missing(free, number), color=colour, **FREE)
            axis.plot(entry["flow"]["times"], _missing(entry["flow"], number), color=colour, linewidth=1.5)
            axis.axhline(1 - entry["stationary_modes"][number], color=colour, **CLOSED_FORM)
            axis.plot(
                entry["descent"]["times"][::2],
                _missing(entry["descent"], number)[::2],
                markeredgecolor=colour,
                **DESCENT,
            )
        axis.axhline(0.01, color="0.85", linewidth=0.8, zorder=0)
        axis.set(yscale="log", ylim=(LEAST_SHORTFALL, 1.5))
        axis.set_yticks([1, 0.1, 0.01, 0.001], ["100 %", "10 %", "1 %", "0.1 %"])
        axis.set_xlabel("time", fontsize=9)


def _panels(row: SubFigure, heading: str, titles: Sequence[str], label: str) -> list[Axes]:
    """Return the panels of one row, with titles and a common time axis."""
    row.suptitle(heading, fontsize=11, fontweight="bold")
    axes = list(row.subplots(1, len(titles), sharey=True))
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set(xscale="log", xlim=(0.45, 1300))
        axis.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
        axis.tick_params(labelsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(label, fontsize=9)
    return axes


def _legend(row: SubFigure) -> None:
    handles = [
        Line2D([], [], color=GREY, linewidth=1.5, label="integrated flow"),
        Line2D([], [], color=GREY, label="closed form", **CLOSED_FORM),
        Line2D([], [], markeredgecolor=GREY, label="stochastic gradient descent", **DESCENT),
        Line2D([], [], color=GREY, label="flow without decay", **FREE),
    ]
    handles += [
        Line2D([], [], color=_colours(3)[place], linewidth=4, label=f"{name} mode")
        for name, place in (("strongest", 0), ("weakest", -1))
    ]
    row.legend(handles=handles, loc="center", ncols=3, fontsize=9.5, frameon=False)


def _colours(count: int) -> list[tuple[float, float, float, float]]:
    """Return one colour per mode, dark for the strongest."""
    ramp = colormaps["plasma"]
    return [ramp(0.85 * number / max(count - 1, 1)) for number in range(count)]


def _mode(course: Course, number: int) -> list[float]:
    return [row[number] for row in course["modes"]]


def _missing(course: Course, number: int) -> list[float]:
    return [abs(1 - mode) for mode in _mode(course, number)]
