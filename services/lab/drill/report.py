"""What a drill tells: a table for each round, then what all of them came to."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowdimfa.services.lab.drill.growth import Growth
    from lowdimfa.services.lab.drill.judge import Fate
    from lowdimfa.services.lab.drill.plan import Schedule
    from lowdimfa.services.lab.drill.round import Round

HEADER = ("fault", "block", "step", "happened", "noticed after", "recovery", "verdict")


def round_rows(entry: Round) -> list[tuple[str, ...]]:
    """Return the table of a round's faults, with its header."""
    return [HEADER, *(_row(fate) for fate in entry.fates)]


def _row(fate: Fate) -> tuple[str, ...]:
    return (
        fate.kind,
        "-" if fate.block is None else str(fate.block),
        f"{fate.step:,}",
        "no" if fate.happened is None else "yes",
        _seconds(fate.noticed_seconds),
        _seconds(fate.outage_seconds),
        fate.verdict,
    )


def round_lines(entry: Round) -> list[str]:
    """Say below its table what a round came to."""
    lines = [f"round {entry.number}: {_recoveries(entry.recoveries, entry.beyond)}; {entry.run_dir}"]
    if entry.comparison is not None:
        lines.append(
            f"result: {entry.comparison.words}: {'holds' if entry.comparison.holds else 'does not hold'}"
        )
    seen = f"processes: at most {entry.processes} at a time"
    lines.append(seen + (f"; {entry.unwatched} on other machines are not watched" if entry.unwatched else ""))
    lines += [_grown(grown) for grown in entry.growths]
    return lines + [f"not passed: {trouble}" for trouble in entry.troubles]


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Return what a drill came to."""
    fates = [fate for entry in rounds for fate in entry.fates]
    times = [outage.seconds for entry in rounds for outage in entry.outages if outage.seconds is not None]
    return {
        "rounds": len(rounds),
        "faults": len(fates),
        "happened": sum(fate.happened is not None for fate in fates),
        "recoveries": sum(entry.recoveries for entry in rounds),
        "unexplained_recoveries": sum(entry.beyond for entry in rounds),
        "recovery_seconds_median": median(times) if times else None,
        "recovery_seconds_longest": max(times, default=None),
        "result_holds": all(entry.comparison is not None and entry.comparison.holds for entry in rounds),
        "leaks": [leak for entry in rounds for leak in entry.leaks],
        "passed": not any(entry.troubles for entry in rounds),
    }


def summary_rows(rounds: Sequence[Round]) -> list[tuple[str, str]]:
    """Return the same for people."""
    told = summary(rounds)
    times = ""
    if told["recovery_seconds_median"] is not None:
        median_, longest = (_seconds(told[f"recovery_seconds_{name}"]) for name in ("median", "longest"))
        times = f", median {median_}, longest {longest}"
    return [
        ("rounds", f"{told['rounds']}"),
        ("faults", f"{told['happened']} of {told['faults']} happened"),
        ("recovered", _recoveries(told["recoveries"], told["unexplained_recoveries"]) + times),
        ("result holds", "yes" if told["result_holds"] else "no"),
        ("leaks", "; ".join(told["leaks"]) or "none"),
        ("passed", "yes" if told["passed"] else "no"),
    ]


def planned_event(number: int, schedule: Schedule) -> dict[str, Any]:
    """Return the event before a round."""
    faults = [fault.model_dump() for fault in schedule.faults]
    return {
        "event": "round",
        "round": number,
        "faults": faults,
        "trainer_steps": list(schedule.trainer_steps),
    }


def round_event(entry: Round) -> dict[str, Any]:
    """Return the event after a round."""
    return {
        "event": "round_ended",
        "round": entry.number,
        "run_dir": str(entry.run_dir),
        "seconds": entry.seconds,
        "faults": [vars(fate) for fate in entry.fates],
        "recoveries": entry.recoveries,
        "unexplained_recoveries": entry.beyond,
        "outages": [vars(outage) | {"seconds": outage.seconds} for outage in entry.outages],
        "result": None if entry.comparison is None else vars(entry.comparison),
        "processes": entry.processes,
        "unwatched_processes": entry.unwatched,
        "growth": [vars(grown) for grown in entry.growths],
        "leaks": entry.leaks,
        "troubles": entry.troubles,
    }


def _grown(grown: Growth) -> str:
    (early, late), mib = grown.memory, 2**20
    return (
        f"{grown.role} (process {grown.pid}) over {grown.recoveries} recoveries: threads "
        f"{grown.threads[0]:g} → {grown.threads[1]:g}, descriptors {grown.descriptors[0]:g} → "
        f"{grown.descriptors[1]:g}, memory {early / mib:.0f} → {late / mib:.0f} MiB"
    )


def _recoveries(recoveries: int, beyond: int) -> str:
    if not recoveries:
        return "no recovery"
    count = "1 recovery" if recoveries == 1 else f"{recoveries} recoveries"
    return (
        f"{count}, {beyond} of them without a fault of their own" if beyond else f"{count}, each by a fault"
    )


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
