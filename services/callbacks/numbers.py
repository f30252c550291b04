"""The numbers that events have, by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lowdimfa.callback import Callback, Event
from lowdimfa.errors import InputError
from lowdimfa.services.run.language import Language
from lowdimfa.services.spec.section import TEST_NUMBERS, nearest

if TYPE_CHECKING:
    from lowdimfa.services.run.plan import RunPlan

PROGRESS = {
    "loss": "train/loss",
    "accuracy": "train/accuracy",
    "perplexity": "train/perplexity",
    "bits_per_byte": "train/bits_per_byte",
    "samples_per_second": "train/samples_per_second",
    "tokens_per_second": "train/tokens_per_second",
}
EVALUATED = {field: field.replace("_", "/", 1) for field in TEST_NUMBERS}
"""By field of an event, the name under which trackers have it."""


def has_number(event: Event, metric: str) -> bool:
    """Whether an ``evaluated`` event has a number of this name, finite or not."""
    return metric in _known(event)


def _known(event: Event) -> dict[str, Any]:
    own: dict[str, Any] = event.get("metrics", {})
    return {key: event[key] for key in TEST_NUMBERS if key in event} | own


def number_in(event: Event, metric: str) -> float | None:
    """Return a number of an ``evaluated`` event: one of its fields, or of its ``metrics``; None if it isn't finite.

    Raises
    ------
    InputError
        There is none of this name, or it isn't one number.
    """
    known = _known(event)
    value = known.get(metric)
    if isinstance(value, int | float) or (value is None and metric in known):
        return float(value) if value is not None and math.isfinite(value) else None
    there = [key for key, each in known.items() if isinstance(each, int | float)]
    found = f"{metric!r}, which " + (f"is {value!r}" if metric in known else "the evaluation doesn't have")
    raise InputError("metric", found, f"one of {', '.join(there)}")


def require_watched(plan: RunPlan, callbacks: Sequence[Callback]) -> None:
    """Refuse what watches a number that the run's evaluations won't have: callbacks, and ``run.keep_best``.

    Raises
    ------
    InputError
        There is none of this name, or it is one for each class.
    """
    best, there = plan.specification.run.keep_best, [*plan.numbers, *Language.of(plan).numbers]
    watched = [("run.keep_best.metric", best.metric)] if best is not None else []
    for callback in callbacks:
        watched += [(f"the callback {type(callback).__qualname__}", name) for name in callback.watches]
    for where, name in watched:
        if name not in there:
            each = name in plan.specification.train.named_metrics
            found = "which has one number per class" if each else "which this run's evaluations don't have"
            expected = f"one number: {', '.join(there)}"
            raise InputError(where, f"{name!r}, {found}", expected, nearest(name, there))
    for callback in callbacks:
        own = [name for name in callback.watches if name not in TEST_NUMBERS]
        if own and getattr(callback, "mode", None) == "auto":
            where, expected = (
                f"the callback {type(callback).__qualname__}",
                "'min' or 'max', whichever is better",
            )
            raise InputError(where, f"the mode 'auto' for the metric {own[0]!r}", expected)


def scalars(event: Event) -> Iterator[tuple[str, float]]:
    """Yield name and value of all numbers that an event has for a tracker; what isn't finite is left out."""
    names = {"progress": PROGRESS, "evaluated": EVALUATED}.get(event["event"], {})
    found: list[tuple[str, Any]] = [(name, event.get(key)) for key, name in names.items()]
    for name, value in event.get("metrics", {}).items():
        found += _each(f"test/{name}", value)
    if event["event"] == "alignment":
        found = [
            (f"alignment/block_{entry['block']}_angle_degrees", entry["angle_degrees"])
            for entry in event["blocks"]
        ]
    for name, value in found:
        if value is not None and math.isfinite(value):
            yield name, float(value)


def _each(name: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, list):
        return [(name, value)]
    return [(f"{name}/{index}", each) for index, each in enumerate(value)]


def flattened(mapping: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Return a specification as text by dotted key; a list is one value."""
    found: dict[str, str] = {}
    for key, value in mapping.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            found |= flattened(value, f"{name}.")
        else:
            found[name] = str(value)
    return found
