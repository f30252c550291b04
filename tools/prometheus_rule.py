"""Make the rules a Kubernetes object of deploy/prometheus: ``python -m tools.prometheus_rule [--check]``.

Prometheus itself reads ``deploy/prometheus/rules/*.yml``; its operator wants the same groups inside an object.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
OBJECT = DEPLOY / "kubernetes" / "monitoring" / "prometheus-rule.yaml"

_INTRODUCTION = "# Made by `python -m tools.prometheus_rule` from deploy/prometheus/rules: change that.\n"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as people do."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def render() -> str:
    """Return the object with the groups of every file, in the order of the files' names."""
    groups: list[dict[str, Any]] = []
    for path in sorted(RULES.glob("*.yml")):
        groups += yaml.safe_load(path.read_text("utf-8"))["groups"]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "lowdimfa"},
        "spec": {"groups": groups},
    }
    return _INTRODUCTION + yaml.dump(rule, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=118)


def main() -> int:
    """Write the object, or compare it with the rules; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.prometheus_rule", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if the object differs from the rules"
    )
    arguments = parser.parse_args()
    if not arguments.check:
        OBJECT.write_text(render(), encoding="utf-8")
    elif not OBJECT.exists() or OBJECT.read_text("utf-8") != render():
        print(
            f"{OBJECT} differs from the rules. Run 'python -m tools.prometheus_rule'.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
