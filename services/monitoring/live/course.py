"""What the events of a job come to: how far it is, its curves, what was lost, what happened last."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from lowdimfa.errors import StoppedError
from lowdimfa.services.monitoring.journal import Event
from lowdimfa.services.monitoring.live.curve import Curve
from lowdimfa.services.monitoring.live.source import Fields
from lowdimfa.services.monitoring.report.recoveries import find_recoveries, recovery_cells

CURVES = (
    *("loss", "accuracy", "perplexity", "samples_per_second", "tokens_per_second"),
    *("test_loss", "test_accuracy", "test_perplexity"),
)
"""Fields of ``progress`` and ``evaluated`` that are drawn."""

NOTES = 100
"""Of what happened last, besides progress, so many are kept."""

LONGEST_NOTE = 2000
"""Characters."""

_TOLD = {
    "started": ("step", "steps", "blocks", "parameters", "error_dim", "engine", "nodes"),
    "progress": (
        *("step", "steps", "epoch", "samples", "loss", "accuracy", "perplexity", "samples_per_second"),
        *("tokens_per_second", "eta_seconds"),
    ),
    "evaluated": ("test_loss", "test_accuracy", "test_perplexity", "test_bits_per_byte"),
    "recovered": ("step",),
    "finished": ("seconds", "test_loss", "test_accuracy", "test_perplexity"),
}
_STATES = {"started": "running", "recovered": "running", "recovering": "running", "finished": "finished"}
_GOES_ON = ("started", "recovered")


class Course:
    """Follows a job's events; not for several threads at a time.

    Attributes
    ----------
    position
        After the last event that was taken in, as the source counts it.
    told
        What the events say of the job: fields of `Fields`, and numbers of progress, evaluation and result.
    curves
        By field.
    """

    def __init__(self) -> None:
        self.position = 0
        self.told: Fields = {"state": "starting", "step": 0, "steps": 0}
        self.curves = {name: Curve() for name in CURVES}
        self._evaluated = 0
        self._notes: deque[list[str]] = deque(maxlen=NOTES)
        self._turns: deque[Event] = deque(maxlen=10 * NOTES)

    def take(self, events: list[Event], position: int) -> None:
        """Take in the events up to a position; nothing in them is believed to be as it should."""
        for event in events:
            try:
                self._take(event)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                self._notes.append(
                    [clock(None), "warning", f"an event that can't be shown: {type(error).__name__}"]
                )
        self.position = position

    def _take(self, event: Event) -> None:
        kind, when = event["event"], event.get("time")
        for name in _TOLD.get(kind, ()):
            if name in event:  # None takes the place of an earlier number: it is none any more
                self.told[name] = event[name]
        if kind in ("progress", "evaluated"):
            for name in self.curves.keys() & event.keys():
                self.curves[name].add(event["step"], event[name])
        if kind == "evaluated":
            self._evaluated = event["step"]
        if kind in _GOES_ON:
            for curve in self.curves.values():
                curve.cut(event["step"])
            if self._evaluated > event["step"]:  # of a course that was given up
                for name in _TOLD["evaluated"]:
                    self.told.pop(name, None)
        if kind in (*_STATES, "failed"):
            self._turn(kind, event)
        if kind not in ("progress", "alignment"):
            words = str(kind)[:LONGEST_NOTE].replace("_", " ")
            self._notes.append([clock(when), words, shortened(sentence(event))])

    def _turn(self, kind: str, event: Event) -> None:
        """Note that a run began, lost something, went on or ended."""
        stopped = kind == "failed" and event.get("code") == StoppedError.code
        self.told["state"] = _STATES.get(kind) or ("stopped" if stopped else "failed")
        self.told["error"] = event if kind == "failed" else None
        self.told["recovering"] = str(event.get("reason")) if kind == "recovering" else ""
        self.told["ended"] = event.get("time") if kind in ("finished", "failed") else None
        if kind == "started":
            self.told["started"] = event.get("time")
        if kind == "finished":
            self.told["step"] = event.get("steps")
        self._turns.append(event | {"time": float(event["time"])})

    def recoveries(self) -> list[list[str]]:
        """Return the cells of the table of recoveries, the newest first."""
        cells = []
        for recovery in reversed(find_recoveries(self._turns)):
            try:
                cells.append([shortened(str(cell)) for cell in recovery_cells(recovery)])
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
                continue  # no event that a run wrote
        return cells

    def marks(self) -> list[int]:
        """Return the steps from which the run went on after a loss."""
        steps = (recovery.ended.get("step") for recovery in find_recoveries(self._turns))
        return sorted({step for step in steps if isinstance(step, int)})

    def notes(self) -> list[list[str]]:
        """Return what happened last, the newest first: when, what kind of event, in words."""
        return list(reversed(self._notes))


def shortened(text: str) -> str:
    """Return a text that a page may show a hundred of."""
    return text if len(text) <= LONGEST_NOTE else f"{text[:LONGEST_NOTE]}…"


def clock(unix: Any) -> str:
    """Return a time for people, in UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(float(unix)))
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


def sentence(event: Event) -> str:
    """Say in a few words what an event says."""
    match event["event"]:
        case "started":
            return f"{event['blocks']} blocks, from step {event['step']:,} of {event['steps']:,}"
        case "evaluated":
            forms = {"loss": ".4g", "accuracy": ".2%", "perplexity": ",.4g"}
            numbers = [(name, event.get(f"test_{name}"), form) for name, form in forms.items()]
            return f"step {event['step']:,}: " + ", ".join(
                f"{name} {value:{form}}" for name, value, form in numbers if value is not None
            )
        case "checkpoint":
            return f"step {event['step']:,}, in {event['seconds']:.2f} s"
        case "checkpoint_failed":
            return f"step {event['step']:,}: {event['message']}"
        case "recovering":
            return str(event["reason"])
        case "recovered":
            return f"goes on from step {event['step']:,} after {event['seconds']:.1f} s"
        case "state":
            return f"{event['state']}{': ' if event.get('detail') else ''}{event.get('detail') or ''}"
        case "finished":
            return f"{event['steps']:,} steps in {event['seconds']:,.1f} s"
    return str(event.get("message", ""))
