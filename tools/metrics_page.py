"""Write ``docs/metrics.md`` from the table: ``python -m tools.metrics_page [--check]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lowdimfa.services.monitoring.metrics_table import METRICS, Metric

PATH = Path(__file__).parents[1] / "docs" / "metrics.md"

_INTRODUCTION = """\
<!-- Written by `python -m tools.metrics_page`; edit that, and services/monitoring/metrics_table.py, instead. -->

# Metrics

Every process of a job serves `/metrics` on a port of its own. `<storage>/targets/<run>.json` lists them in the
format of Prometheus' file-based service discovery, with the labels `job`, `role` (`block`, `head` or `trainer`) and, of
blocks, `block` and `replica`.

The coordinator serves three pages on its HTTP port, 9464 by default (`lowdimfa serve --http-port`):

| Page | What it has |
| --- | --- |
| `/metrics` | The coordinator's own metrics, with those of its process (`process_*`). |
| `/targets` | The processes of all active jobs, in the format of Prometheus' HTTP service discovery. |
| `/healthz` | 200 while it is well, 503 and the reason when not. |

`deploy/prometheus/prometheus.yml` scrapes the first and finds all jobs by the second;
`deploy/prometheus/local.yml` finds the runs of `lowdimfa train` by their files as well. The rules, alerts and
Grafana dashboards beside them use the metrics below; [operations](operations.md#alerts) says what to do when an
alert fires.

Names read `lowdimfa_<subsystem>_<name>_<unit>`; a counter ends in `_total`, and what is 1 or 0 has no unit.
Counters start at zero; losses, accuracies, progress and checkpoints appear when they have a value.

## Language models

A run whose task is `tokens` and whose loss is the built-in cross-entropy has three numbers more: in the progress line,
the [events](command-line.md#events), the metrics below, TensorBoard and the report.

- Perplexity: exp of the mean loss, in nats, over the targets that count (not those of `train.ignore_index`): of training
  in the last `train.log_every` steps, of an evaluation in all of it. What no floating-point number holds is `inf` in text
  and for Prometheus, and `null` in events.
- Bits per byte (bpb): that mean in bits, divided by the bytes of text that a target stands for, and so comparable between
  tokenizers; only where the [data](data.md#bytes-of-text) tells them.
- Tokens per second: targets of training that count, in the time of their steps. Samples per second stay beside it.
"""

_SECTIONS = {
    "block": "Served by every block",
    "trainer": "Served by the trainer",
    "coordinator": "Served by the coordinator",
}


def render() -> str:
    """Return the page."""
    parts = [_INTRODUCTION]
    for process, title in _SECTIONS.items():
        rows = [_row(metric) for metric in METRICS if metric.process == process]
        head = f"## {title}\n\n| Name | Type | Labels | Meaning |\n| --- | --- | --- | --- |"
        parts.append("\n".join([head, *rows]) + "\n")
    return "\n".join(parts)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |"


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or with ``--check`` return 1 when the page on disk differs."""
    parser = argparse.ArgumentParser(prog="metrics_page", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args(arguments)
    if not options.check:
        PATH.write_text(render(), encoding="utf-8")
    elif not PATH.is_file() or PATH.read_text(encoding="utf-8") != render():
        print(f"{PATH} differs from the table of metrics: run python -m tools.metrics_page")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
