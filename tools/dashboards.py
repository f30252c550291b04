"""Make Grafana's dashboards: ``python -m tools.dashboards [--check]``.

A dashboard is rows of panels, each with its queries; places, identifiers and all that is the same in every panel are
filled in here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tools.dashboard_job import JOB_ROWS
from tools.dashboard_panel import Panel, Rows
from tools.dashboard_service import SERVICE_ROWS

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards"

_SOURCE = {"type": "prometheus", "uid": "prometheus"}
_WIDTH = 24


def dashboards() -> dict[str, dict[str, Any]]:
    """Return every dashboard by the name of its file."""
    job = {
        "name": "job",
        "label": "Job",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": "label_values(lowdimfa_block_applied_steps, job)", "refId": "job"},
        "refresh": 2,
        "sort": 1,
    }
    return {
        "job.json": _dashboard("lowdimfa-job", "Job", JOB_ROWS, [job]),
        "service.json": _dashboard("lowdimfa-service", "Service", SERVICE_ROWS, []),
    }


def _dashboard(uid: str, title: str, rows: Rows, variables: list[dict[str, Any]]) -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for height, row in rows:
        edges = [round(_WIDTH * column / len(row)) for column in range(len(row) + 1)]
        for panel, left, right in zip(row, edges, edges[1:], strict=False):
            place = {"x": left, "y": top, "w": right - left, "h": height}
            panels.append(_panel(len(panels) + 1, panel, place))
        top += height
    return {
        "uid": uid,
        "title": f"lowdimfa: {title}",
        "tags": ["lowdimfa"],
        "schemaVersion": 41,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    low, high = panel.bounds
    defaults: dict[str, Any] = {"unit": panel.unit}
    defaults |= {} if low is None else {"min": low}
    defaults |= {} if high is None else {"max": high}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none"}
        defaults["custom"] = {"stacking": stacking, "fillOpacity": 30 if panel.stacked else 0, "lineWidth": 1}
        options: dict[str, Any] = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "none"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the dashboards, or with ``--check`` return 1 when those on disk differ."""
    parser = argparse.ArgumentParser(prog="dashboards", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args(arguments)
    for name, dashboard in dashboards().items():
        path, text = FOLDER / name, json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"
        if not options.check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path} differs: run python -m tools.dashboards")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
