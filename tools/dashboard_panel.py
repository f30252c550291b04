"""One panel of a Grafana dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes
    ----------
    title, description
        What people read.
    queries
        Expressions and the legends of their series.
    unit
        Grafana's name of it.
    kind
        A curve over time, or the latest number.
    stacked
        Whether curves are areas on top of each other.
    bounds
        Of the axis; None leaves it to Grafana.
    """

    title: str
    description: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    stacked: bool = False
    bounds: tuple[float | None, float | None] = (None, None)


Rows = list[tuple[int, list[Panel]]]
"""A dashboard's rows, from the top: the height of each, and its panels from the left."""
