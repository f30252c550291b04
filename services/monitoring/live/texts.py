"""The words and numbers of the live page: formatted here alone, so that the browser only places them."""

from __future__ import annotations

import time
from typing import Any

from lowdimfa.services.monitoring.live.block_times import BlockTime
from lowdimfa.services.monitoring.live.course import clock, shortened
from lowdimfa.services.monitoring.live.curve import is_number
from lowdimfa.services.monitoring.live.source import Fields

ABSENT = "–"


def shown(job: Fields) -> dict[str, str]:
    """Return what the page shows of a job, by the name of its place."""
    unit, speed = (
        ("tokens/s", job.get("tokens_per_second"))
        if job.get("tokens_per_second") is not None
        else ("samples/s", job.get("samples_per_second"))
    )
    going = job.get("state") == "running"
    return {
        "name": shortened(str(job.get("name") or job["id"])),
        "owner": str(job.get("owner") or ABSENT),
        "state": str(job["state"]),
        "detail": shortened(_detail(job)),
        "steps": _steps(job),
        "loss": _number(job.get("loss"), ".4g"),
        "accuracy": _number(job.get("accuracy"), ".1%"),
        "perplexity": _number(job.get("perplexity"), ",.4g"),
        "test_loss": _number(job.get("test_loss"), ".4g"),
        "test_accuracy": _number(job.get("test_accuracy"), ".2%"),
        "test_perplexity": _number(job.get("test_perplexity"), ",.4g"),
        "speed": _number(speed if going else None, ",.0f", f" {unit}"),
        "left": _duration(job.get("eta_seconds")) if going else ABSENT,
        "created": _date(job.get("created")),
        "took": _took(job),
        "attempt": str(job.get("attempt") or ABSENT),
        "parameters": _number(job.get("parameters"), ",d"),
        "blocks": _number(job.get("blocks"), "d"),
    }


def done(job: Fields) -> float | None:
    """Return how much of a job is done, from 0 to 1; None before it is known."""
    steps, step = job.get("steps"), job.get("step")
    if not is_number(step) or not is_number(steps) or steps < 1:
        return None
    return min(1.0, max(0.0, step / steps))


def block_row(block: BlockTime) -> dict[str, Any]:
    """Return what the page shows of a block's time."""
    waits = [part for part in block.parts if part.name.startswith("wait")]
    largest = max(waits, key=lambda part: part.share, default=None)
    words = f"{block.busy:.0%} busy"
    if largest is not None and largest.share >= 0.005:
        cause = largest.name.removeprefix("wait: ")
        words += f", {sum(part.share for part in waits):.0%} waiting, most for {_AWAITED.get(cause, cause)}"
    return {
        "name": block.name,
        "text": words,
        "parts": [[part.name, round(part.share, 4)] for part in block.parts],
    }


_AWAITED = {
    "activation": "activations",
    "error": "errors",
    "staleness": "its staleness bound",
    "window": "room in its window",
    "replica": "its replicas",
    "data": "data to be read",
}


def _detail(job: Fields) -> str:
    error, detail = job.get("error"), str(job.get("detail") or "")
    if isinstance(error, dict) and error.get("message"):
        return str(error["message"])
    if job["state"] != "running":
        return detail
    return (
        f"recovering: {job['recovering']}" if job.get("recovering") else ""
    )  # its steps have a place of their own


def _steps(job: Fields) -> str:
    part = done(job)
    return ABSENT if part is None else f"{int(job['step']):,} of {int(job['steps']):,} steps ({part:.0%})"


def _number(value: Any, form: str, unit: str = "") -> str:
    if not is_number(value):
        return ABSENT
    return f"{int(value) if form.endswith('d') else value:{form}}{unit}"


def _date(unix: Any) -> str:
    return f"{text[:16]} UTC" if (text := clock(unix)) else ABSENT


def _took(job: Fields) -> str:
    """Return how long a job has run, or ran."""
    started, ended = job.get("started"), job.get("ended")
    if not is_number(started):
        return ABSENT
    return _duration((ended if is_number(ended) else time.time()) - started)


def _duration(seconds: Any) -> str:
    text = _number(seconds, "d")
    if text == ABSENT:
        return ABSENT
    whole = max(0, int(text))
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
    )
