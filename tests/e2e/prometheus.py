"""Ask a Prometheus server, and read what the dashboards ask it."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WINDOW = "1m"
"""Stands for Grafana's own variables of time."""


class Prometheus:
    """A server's HTTP interface.

    Parameters
    ----------
    address
        ``host:port``.
    """

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v1"

    def series(self, expression: str) -> list[dict[str, str]]:
        """Return the labels of every series that an expression gives now."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{self._url}/query?{query}", timeout=20) as answer:
                result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        return [dict(found["metric"]) for found in result]

    def targets(self) -> list[str]:
        """Return the page of every target, once for each time that it is scraped."""
        with urllib.request.urlopen(f"{self._url}/targets?state=active", timeout=20) as answer:
            return [target["scrapeUrl"] for target in json.load(answer)["data"]["activeTargets"]]


_OF_TEXT = re.compile("perplexity|bpb|tokens_per|test_metric_value")


def dashboard_expressions(folder: Path, **variables: str) -> dict[str, str]:
    """Return the expressions of every dashboard, by dashboard and panel, with the variables filled in.

    Those of language models are left out: the jobs here have no text.
    """
    values = variables | dict.fromkeys(("__rate_interval", "__interval", "__range"), WINDOW)

    def filled(expression: str) -> str:
        return re.sub(r"\$\{?(\w+)(?::\w+)?\}?", lambda found: values[found[1]], expression)

    expressions = {}
    for path in sorted(folder.glob("*.json")):
        for panel in _panels(json.loads(path.read_text("utf-8"))):
            for number, target in enumerate(panel.get("targets", [])):
                place = f"{path.name}: {panel.get('title')} [{number}]"
                expressions[place] = filled(target["expr"])
    assert expressions
    return {place: query for place, query in expressions.items() if not _OF_TEXT.search(query)}


def _panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give all panels, those in rows too."""
    for panel in dashboard.get("panels", []):
        yield panel
        yield from _panels(panel)
