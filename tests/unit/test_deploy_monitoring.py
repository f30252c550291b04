"""What Prometheus and Grafana are given fits what the processes report, and the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowdimfa.services.monitoring.metrics_table import METRICS
from tools import dashboards

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules"
FOREIGN = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for path in sorted(RULES.glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def names() -> set[str]:
    found = {metric.name for metric in METRICS} | FOREIGN
    for metric in METRICS:
        if metric.type == "histogram":
            found |= {metric.name + suffix for suffix in ("_bucket", "_count", "_sum")}
    return found | {rule["record"] for rule in rules() if "record" in rule}


def used(expression: str) -> set[str]:
    """Return the metrics that an expression names."""
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\b(?:lowdimfa|process)[_:][\w:]+|\bup\b", bare))


OF_TARGETS = {"job", "role", "block", "replica"}
"""Labels that a process's place in the list of targets gives to all that Prometheus scrapes of it."""


def labels_of(name: str) -> set[str]:
    """Return the labels of a metric, or of what a rule records."""
    for rule in rules():
        if rule.get("record") == name:
            return left(rule["expr"])
    for metric in METRICS:
        if name.removesuffix("_bucket") == metric.name:
            return set(metric.labels) | ({"le"} if name.endswith("_bucket") else set())
    return OF_TARGETS if name == "up" else set()


def left(expression: str) -> set[str]:
    """Return the labels by which the series that an expression results in may differ."""
    there = set().union(*map(labels_of, used(expression)))
    there -= set(re.findall(r'(\w+)="', expression))  # one value of it
    whole = re.match(
        r"(?:histogram_quantile\([\d.]+, )?(?:sum|avg|min|max)(?: by \((.*?)\))? ?\(", expression
    )
    if whole is None:
        return there
    return set(re.findall(r"\w+", whole[1] or "")) - ({"le"} if "quantile" in whole[0] else set())


def queries() -> list[tuple[str, str]]:
    """Return the expressions of all panels, with their legends."""
    return [
        (target["expr"], target["legendFormat"])
        for dashboard in dashboards.dashboards().values()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


@pytest.mark.parametrize(
    "expression", [*(rule["expr"] for rule in rules()), *(query for query, _ in queries())]
)
def test_what_is_grouped_by_are_labels_of_what_is_grouped(expression: str) -> None:
    there = set().union(*map(labels_of, used(expression)))
    grouped = re.findall(r"\b(?:by|on|without|ignoring) ?\((.*?)\)", expression)
    assert set(re.findall(r"\w+", " ".join(grouped))) <= there


@pytest.mark.parametrize(("expression", "legend"), queries())
def test_a_legend_tells_all_series_of_a_panel_apart(expression: str, legend: str) -> None:
    assert set(re.findall(r"{{(\w+)}}", legend)) == left(expression)


@pytest.mark.parametrize(
    "rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: rule["alert"]
)
def test_the_summary_of_an_alert_names_the_replica_that_it_is_about(rule: dict[str, Any]) -> None:
    named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    there = left(rule["expr"])
    if "subscriber" in there:
        there.remove("replica")  # the head's, which counts for the others
    replicas = {label for label in there if label.endswith("replica")} if "job" in there else set()
    assert replicas <= named


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule.get("record"))
def test_a_rule_uses_metrics_that_exist(rule: dict[str, Any]) -> None:
    assert used(rule["expr"]) and used(rule["expr"]) <= names()


def test_every_alert_says_what_to_do_and_where_to_read_more() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    sections = {line.lstrip("# ").strip().lower() for line in operations.splitlines() if line.startswith("#")}
    for rule in rules():
        if "alert" in rule:
            anchor = rule["alert"].lower()
            assert rule["annotations"]["runbook"] == f"docs/operations.md#{anchor}"
            assert anchor in sections, f"docs/operations.md has no section {rule['alert']}"
            assert rule["annotations"]["summary"] and len(rule["annotations"]["description"]) > 40
            assert rule["labels"]["severity"] in ("critical", "warning")


@pytest.mark.parametrize(("name", "dashboard"), dashboards.dashboards().items())
def test_a_dashboard_is_whole(name: str, dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"] and panel["description"], panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells
        for target in panel["targets"]:
            assert used(target["expr"]) and used(target["expr"]) <= names(), target["expr"]
            assert target["datasource"]["uid"] == "prometheus"
    width = max(x for x, _ in taken) + 1
    assert len(taken) == width * (max(y for _, y in taken) + 1), "there are gaps"


def test_what_is_recorded_is_used() -> None:
    wanted = [rule["expr"] for rule in rules() if "alert" in rule] + [query for query, _ in queries()]
    assert {rule["record"] for rule in rules() if "record" in rule} <= set().union(*map(used, wanted))


def test_every_metric_of_a_job_is_seen_somewhere() -> None:
    expressions = [query for query, _ in queries()] + [rule["expr"] for rule in rules()]
    shown = set().union(*map(used, expressions))
    counted_only = {
        "lowdimfa_broadcast_error_messages_total",
        "lowdimfa_broadcast_payload_bytes_total",
        "lowdimfa_trainer_completed_epochs",
        "lowdimfa_trainer_job_failures_total",
        "lowdimfa_coordinator_call_duration_seconds",
        "lowdimfa_coordinator_cluster_last_seen_timestamp_seconds",
        "lowdimfa_block_applied_steps",
    }
    assert {metric.name for metric in METRICS} - shown <= counted_only


def test_the_dashboards_on_disk_are_those_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dashboards.main(["--check"]) == 0
    monkeypatch.setattr(dashboards, "FOLDER", tmp_path)
    assert dashboards.main(["--check"]) == 1
    assert dashboards.main([]) == 0
    assert dashboards.main(["--check"]) == 0
