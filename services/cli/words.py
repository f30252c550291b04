"""The numbers of a run in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lowdimfa.services.monitoring.journal import Event

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Number(NamedTuple):
    """One of the numbers of a run in words; where there is no room for all, those of the highest rank go first."""

    text: str
    rank: int


def fitted(numbers: Sequence[Number], width: int) -> str:
    """Return a line of the numbers that fit into a width, in their order; the most important one is always there."""
    kept = list(numbers)
    while len(kept) > 1 and len(joined(kept)) > width:
        kept.remove(max(kept, key=lambda number: number.rank))
    return joined(kept)[: max(1, width)]


def joined(numbers: Sequence[Number]) -> str:
    """Return a line of the numbers."""
    return "  ".join(number.text for number in numbers)


def numbers_of(event: Event) -> list[Number]:
    """Return what a ``progress`` event says."""
    accuracy, seconds = event["accuracy"], event["eta_seconds"]
    return [
        Number(f"{event['step']:,}/{event['steps']:,}", 0),
        Number(f"epoch {event['epoch']}", 4),
        Number(f"loss {loss(event['loss'])}", 1),
        *_of_language(event),
        *([] if accuracy is None else [Number(f"accuracy {100 * accuracy:5.1f} %", 3)]),
        Number(f"{event['samples_per_second']:,.0f}/s", 5),
        *([] if seconds is None else [Number(f"{clock(seconds)} left", 2)]),
    ]


def _of_language(event: Event) -> list[Number]:
    tokens, bits = event.get("tokens_per_second"), event.get("bits_per_byte")
    if tokens is None:  # no language model
        return []
    return [
        Number(f"perplexity {_perplexity(event['perplexity'])}", 2),
        *([] if bits is None else [Number(f"{bits:.3f} bits/byte", 5)]),
        Number(f"{tokens:,.0f} tokens/s", 6),
    ]


def language(event: Event) -> str:
    """Return what an evaluation says of a language model, after its loss; nothing of any other."""
    bits = event.get("test_bits_per_byte")
    if event.get("test_tokens") is None:
        return ""
    return f", perplexity {_perplexity(event['test_perplexity'])}" + (
        "" if bits is None else f", {bits:.4f} bits per byte"
    )


def measured(event: Event) -> str:
    """Return the metrics of an evaluation, after its other numbers: of one per class the range."""
    said = ""
    for name, value in (event.get("metrics") or {}).items():
        if isinstance(value, list):
            finite_ones = [number for number in value if number is not None] or [math.nan]
            said += f", {name} {min(finite_ones):.4g} to {max(finite_ones):.4g}"
        else:
            said += f", {name} {finite(value):.4g}"
    return said


def _perplexity(value: float | None) -> str:
    """Return a perplexity in words; one that is infinite has come as null, as JSON has no such number."""
    return "inf" if value is None else f"{value:,.2f}" if value < 1e6 else f"{value:.3g}"


def loss(value: float | None) -> str:
    """Return a loss in words."""
    return f"{finite(value):.4f}"


def finite(value: float | None) -> float:
    """Return a number of an event; JSON, by which events travel, has null for one that isn't finite."""
    return math.nan if value is None else value


def clock(seconds: float) -> str:
    """Return a time in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """Return a number of bytes for people, such as ``1.4 MiB``."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} B"
