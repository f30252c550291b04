"""What a finished run leaves, and what can be had of its directory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lowdimfa.services.monitoring.journal import Journal
from lowdimfa.services.monitoring.report.reading import by_step
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.manifest import Manifest
from lowdimfa.services.run.mirror import fetch
from lowdimfa.services.run.model import trained_model
from lowdimfa.services.run.storage import Place
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import Specification
from lowdimfa.services.trainer.request import RunRequest


@dataclass(frozen=True)
class Result:
    """What a finished run leaves.

    Attributes
    ----------
    metrics
        The fields of the ``finished`` event: losses, accuracy, speed, traffic.
    checkpoint
        Directory of the last checkpoint, or its address.
    path
        Directory of the run, or its address.
    """

    metrics: dict[str, Any]
    checkpoint: Place
    path: Place
    _request: RunRequest = field(repr=False, compare=False)

    def model(self, *, average: bool = False) -> nn.Module:
        """Return the trained network uncut: plain PyTorch, on the processor, in evaluation mode, a new one each time.

        Parameters
        ----------
        average
            Whether with the moving average of ``train.average``, which is what evaluations are of, for weights.

        Raises
        ------
        InputError
            The run has no average.
        """
        manifest = CheckpointStore(self.path).load(self.metrics["steps"])
        return _loaded(self._request.parsed(), self._request.user_code, manifest, average)

    @property
    def metrics_by_epoch(self) -> list[dict[str, Any]]:
        """One row for each evaluation: epoch, step, what it found, and what training last reported before it.

        `pandas.DataFrame` makes a table of them.
        """
        return _by_epoch(fetch(self.path))


def _loaded(
    specification: Specification, user_code: UserCode, manifest: Manifest, average: bool = False
) -> nn.Module:
    """Return the uncut network with the weights of a checkpoint, or their average, in evaluation mode."""
    user_code.install(
        with_others=False
    )  # what this process has imported is what was trained, whatever the files say now
    return trained_model(specification, manifest, average).eval()


def _by_epoch(run_dir: Path) -> list[dict[str, Any]]:
    """Return what each evaluation found, with the training's loss and accuracy as last reported before it."""
    every = int(json.loads((run_dir / "plan.json").read_text())["steps_per_epoch"])
    events = list(Journal(run_dir).read("started", "recovered", "progress", "evaluated"))
    reported = by_step(events, "progress")
    rows = []
    for step, found in by_step(events, "evaluated").items():
        before = [one for at, one in reported.items() if at <= step]
        epoch = max(1, -(-step // every))  # of the evaluation; training may have told last in an earlier one
        rows.append({**(before[-1] if before else {}), **found, "step": step, "epoch": epoch})
    left_out = ("event", "time", "steps", "eta_seconds")
    return [
        {key: value for key, value in row.items() if key not in left_out and value is not None}
        for row in rows
    ]
