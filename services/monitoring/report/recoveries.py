"""What was lost on the way, and how the run went on."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from lowdimfa.services.monitoring.journal import Event

ABSENT = "–"


class Recovery(NamedTuple):
    """The event ``recovering``, and what ended it: ``step``, ``time``, ``seconds`` and, if any, ``missed``."""

    began: dict[str, Any]
    ended: dict[str, Any]


def find_recoveries(events: Iterable[Event]) -> list[Recovery]:
    """Return the recoveries among events in their order; one that another loss or a failure overtook has an empty end."""
    found: list[Recovery] = []
    under_way = False
    for event in events:
        match event.get("event"):
            case "recovering":
                found.append(Recovery(event, {}))
                under_way = True
            case "recovered" if found:
                found[-1] = found[-1]._replace(ended=event)
                under_way = False
            case "started" if (
                under_way
            ):  # from a loss before training began, or of the trainer: then more follows
                seconds = event["time"] - found[-1].began["time"]
                found[-1] = found[-1]._replace(ended={**event, "seconds": seconds})
                under_way = False
            case "failed" | "finished":
                under_way = False
    return found


def recovery_cells(recovery: Recovery) -> list[str]:
    """Return the cells of a recovery's row: time, policy, blocks, reason, steps, seconds, missed steps."""
    began, ended = recovery
    missed = [f"block {block}: {steps:,}" for block, steps in ended.get("missed", {}).items() if steps]
    return [
        f"{datetime.fromtimestamp(began['time'], UTC):%Y-%m-%d %H:%M:%S}",
        began["policy"],
        ", ".join(map(str, began["blocks"])) or ABSENT,
        began["reason"],
        f"{began['step']:,} → {format(ended['step'], ',') if ended else ABSENT}",
        f"{ended['seconds']:.1f}" if ended else ABSENT,
        ", ".join(missed) or ABSENT,
    ]
