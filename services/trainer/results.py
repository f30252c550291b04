"""What can be had of a finished run from its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lowdimfa.services.monitoring.journal import Journal
from lowdimfa.services.monitoring.report.reading import by_step
from lowdimfa.services.run.manifest import Manifest
from lowdimfa.services.run.model import trained_model
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import Specification


def load_model(
    specification: Specification, user_code: UserCode, manifest: Manifest, average: bool = False
) -> nn.Module:
    """Return the uncut network with the weights of a checkpoint, or their average, in evaluation mode."""
    user_code.install()
    return trained_model(specification, manifest, average).eval()


def metrics_by_epoch(run_dir: Path) -> list[dict[str, Any]]:
    """Return what each evaluation found, with the training's loss and accuracy as last reported before it."""
    events = list(Journal(run_dir).read("started", "recovered", "progress", "evaluated"))
    reported = by_step(events, "progress")
    rows = []
    for step, found in by_step(events, "evaluated").items():
        before = [one for at, one in reported.items() if at <= step]
        rows.append({**(before[-1] if before else {}), **found, "step": step})
    left_out = ("event", "time", "steps", "eta_seconds")
    return [
        {key: value for key, value in row.items() if key not in left_out and value is not None}
        for row in rows
    ]
