"""Ends a run when a number of its evaluations gets no better."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from lowdimfa.callback import Callback, Event, Run
from lowdimfa.services.callbacks.numbers import has_number, number_in
from lowdimfa.services.monitoring.journal import Journal
from lowdimfa.services.spec.section import less_is_better

Mode = Literal["auto", "min", "max"]


class EarlyStopping(Callback):
    """Stops a run after ``patience`` evaluations in a row that are no better than the best one before.

    What it knows is in the run's log, so a resumed run goes on counting where it was.

    Parameters
    ----------
    metric
        A number of the ``evaluated`` event, such as ``test_loss``, or the name of one in ``train.metrics``.
    patience
        Evaluations without improvement that end the run, at least 1.
    mode
        Whether less or more is better. ``auto`` is ``max`` for ``test_accuracy`` and ``min`` for losses and perplexities;
        metrics of your own need one of the others.
    min_delta
        By how much a value has to be better to count as an improvement.

    Raises
    ------
    ValueError
        ``patience`` is below 1, ``min_delta`` below 0, or ``mode`` doesn't say.
    """

    def __init__(
        self, metric: str = "test_loss", patience: int = 3, mode: Mode = "auto", min_delta: float = 0.0
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience is {patience}, but is at least 1")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta is {min_delta}, but is at least 0")
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode is {mode!r}, but is 'auto', 'min' or 'max'")
        self._metric, self._patience, self._delta = metric, patience, min_delta
        self._sign = 1 if mode == "min" or (mode == "auto" and less_is_better(metric)) else -1
        self._values: dict[int, float] = {}
        self.watches, self.mode = (metric,), mode

    def started(self, event: Event, run: Run) -> None:
        """Take up what was evaluated before the step at which the run goes on."""
        self._values = {}
        for each in course(run.path, event["step"]):
            if has_number(each, self._metric):  # those of before it was measured don't count
                self._take(each)
        self._judge(run)

    def recovered(self, event: Event, run: Run) -> None:
        """Forget what was evaluated after the step."""
        self._values = {step: value for step, value in self._values.items() if step <= event["step"]}

    def evaluated(self, event: Event, run: Run) -> None:
        """Judge the evaluation.

        Raises
        ------
        InputError
            It has no such number.
        """
        self._take(event)
        self._judge(run)

    def _take(self, event: Event) -> None:
        value = number_in(event, self._metric)
        self._values[event["step"]] = self._sign * math.inf if value is None else value  # no better than any

    def _judge(self, run: Run) -> None:
        best, since = math.inf, 0
        for value in (self._sign * self._values[step] for step in sorted(self._values)):
            better = value < best - self._delta
            best, since = (value, 0) if better else (best, since + 1)
        if since >= self._patience:
            run.stop(f"{self._metric} is no better after {since} evaluations than {self._sign * best:.6g}")


def course(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the evaluations up to a step that are in a run's log, those of courses that were given up left out."""
    found: dict[int, dict[str, Any]] = {}
    for event in Journal(path).read("started", "recovered", "evaluated"):
        if event["event"] == "evaluated":
            found[event["step"]] = event
        else:
            found = {at: each for at, each in found.items() if at <= event["step"]}
    return [found[at] for at in sorted(found) if at <= step]
