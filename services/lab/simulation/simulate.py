"""Run a schedule in simulated time until it repeats itself, and count."""

from __future__ import annotations

from dataclasses import replace

from lowdimfa.errors import InputError
from lowdimfa.services.lab.simulation.backpropagation import Order, start_backpropagation
from lowdimfa.services.lab.simulation.decoupled import start_decoupled
from lowdimfa.services.lab.simulation.machine import Machine
from lowdimfa.services.lab.simulation.setting import Outcome, Setting

BACKPROPAGATION: dict[str, Order] = {"gpipe": "gpipe", "1f1b": "1f1b", "zero-bubble": "zero-bubble"}
"""Schedules of backpropagation by name; this method's are ``staleness-<S>``."""

_STALENESS = "staleness-"

_SETTLING = 4_000
"""Forward passes, of all blocks together, that may be spent on letting a run settle."""

_LONGEST, _COUNTED = 40, 10
"""Steps that are enough to settle, and to count."""


def simulate(setting: Setting, schedule: str) -> Outcome:
    """Return what a schedule makes of a setting, once it has settled.

    Parameters
    ----------
    setting
        What to simulate. Its ``staleness`` gives way to that of the schedule's name.
    schedule
        ``gpipe``, ``1f1b``, ``zero-bubble``, or ``staleness-<S>`` for this method with ``train.staleness: S``.

    Raises
    ------
    InputError
        There is no such schedule.
    """
    staleness = staleness_of(schedule)
    machine = Machine(setting if staleness is None else replace(setting, staleness=staleness))
    # A run with staleness repeats itself after as many steps as are under way at once. The steps before have filled the
    # pipeline, and let a block that is a little slower than the others use up what it ran ahead at the start, which
    # takes many steps; as many as can be afforded. Those behind are never waited for, and only there so that what is
    # counted is not the end of a run.
    under_way = 1 + (staleness or 0)
    affordable = _SETTLING // (len(setting.blocks) * setting.microbatches)
    warm_up = max(2 * under_way, min(affordable, _LONGEST))
    counted = under_way * max(2 // under_way, -(-min(affordable, _COUNTED) // under_way), 1)
    steps = warm_up + counted + under_way + 1
    if staleness is None:
        start_backpropagation(machine, steps, BACKPROPAGATION[schedule])
    else:
        start_decoupled(machine, steps)
    machine.run(warm_up)
    began, busy = machine.clock.now, machine.busy()
    machine.run(warm_up + counted)
    seconds = machine.clock.now - began
    bubble = [1 - (after - before) / seconds for before, after in zip(busy, machine.busy(), strict=True)]
    forward, backward = traffic(setting, staleness is not None)
    return Outcome(
        schedule=schedule,
        samples_per_second=counted * setting.samples / seconds,
        step_seconds=seconds / counted,
        bubble=tuple(max(0.0, share) for share in bubble),
        in_flight=tuple(machine.most_in_flight),
        forward_bytes=forward,
        backward_bytes=backward,
    )


def staleness_of(schedule: str) -> int | None:
    """Return the staleness of one of this method's schedules, and None for one of backpropagation.

    Raises
    ------
    InputError
        There is no such schedule.
    """
    number = schedule.removeprefix(_STALENESS)
    if number != schedule and number.isdecimal():
        return int(number)
    if schedule not in BACKPROPAGATION:
        known = ", ".join([*BACKPROPAGATION, f"{_STALENESS}0, {_STALENESS}1 and so on"])
        raise InputError("schedule", repr(schedule), f"one of {known}")
    return None


def schedule_name(staleness: int) -> str:
    """Return the name of this method's schedule with some staleness."""
    return f"{_STALENESS}{staleness}"


def traffic(setting: Setting, broadcast: bool) -> tuple[float, float]:
    """Return the bytes that cross all links together for one sample, forward and backward."""
    forward = sum(setting.activation_bytes)
    return forward, setting.error_bytes * (len(setting.blocks) - 1) if broadcast else forward
