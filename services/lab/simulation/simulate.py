"""Run a schedule in simulated time until it repeats itself, and count."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from lowdimfa.services.lab.simulation.backpropagation import start_backpropagation
from lowdimfa.services.lab.simulation.decoupled import start_decoupled
from lowdimfa.services.lab.simulation.losses import Losses, Worker
from lowdimfa.services.lab.simulation.machine import Machine
from lowdimfa.services.lab.simulation.names import ScheduleName, read_name
from lowdimfa.services.lab.simulation.setting import Outcome, Setting

_SETTLING = 4_000
"""Forward passes, of all blocks together, that may be spent on letting a run settle."""

_LONGEST, _COUNTED = 40, 10
"""Steps that are enough to settle, and to count."""

_ENDLESS = 1 << 60


def simulate(setting: Setting, schedule: str) -> Outcome:
    """Return what a schedule makes of a setting, once it has settled; with trouble, from the start to the end of it.

    Parameters
    ----------
    setting
        What to simulate. Its ``staleness`` gives way to that of the schedule's name.
    schedule
        ``gpipe``, ``1f1b``, ``zero-bubble``, ``2bw``, ``2bw-wide``, or ``staleness-<S>`` for this method with
        ``train.staleness: S``. Each may end in ``+bf16``, ``+int8``, ``+int4``, or ``+x<N>`` for activations and
        gradients of N times fewer bytes.

    Raises
    ------
    InputError
        There is no such schedule.
    """
    name = read_name(schedule)
    machine = Machine(compressed(setting, name))
    steps, seconds, busy = (_settled if setting.trouble is None else _troubled)(machine, name)
    forward, backward = traffic(machine.setting, name.staleness is not None)
    return Outcome(
        schedule=schedule,
        samples_per_second=steps * setting.samples / seconds,
        step_seconds=seconds / steps if steps else math.inf,
        bubble=tuple(max(0.0, 1 - one / seconds) for one in busy),
        in_flight=tuple(machine.most_in_flight),
        forward_bytes=forward,
        backward_bytes=backward,
    )


def compressed(setting: Setting, name: ScheduleName) -> Setting:
    """Return a setting with what a schedule's name says of staleness and formats."""
    return replace(
        setting,
        staleness=setting.staleness if name.staleness is None else name.staleness,
        activation_bytes=tuple(size / name.fewer for size in setting.activation_bytes),
        coding=setting.coding if name.fewer > 1 else 0.0,
    )


def start(machine: Machine, name: ScheduleName, steps: int, first_step: int = 0) -> Sequence[Worker]:
    """Start a run from a step to before another, and return its blocks or stages."""
    if name.staleness is None:
        return start_backpropagation(machine, steps, name.base, first_step)
    return start_decoupled(machine, steps, first_step)


def traffic(setting: Setting, broadcast: bool) -> tuple[float, float]:
    """Return the bytes that cross all links together for one sample, forward and backward."""
    forward = sum(setting.activation_bytes)
    return forward, setting.error_bytes * len(setting.subscribers) if broadcast else forward


def _settled(machine: Machine, name: ScheduleName) -> tuple[int, float, list[float]]:
    """Return steps, seconds, and how long each block was busy meanwhile, in the steady state.

    A run with staleness repeats itself after as many steps as are under way at once. The steps before have filled the
    pipeline, and let a block that is a little slower than the others use up what it ran ahead at the start, which
    takes many steps; as many as can be afforded. Those behind are never waited for, and only there so that what is
    counted is not the end of a run.
    """
    setting, under_way = machine.setting, name.under_way
    affordable = _SETTLING // (len(setting.blocks) * setting.microbatches)
    warm_up = max(2 * under_way, min(affordable, _LONGEST))
    counted = under_way * max(2 // under_way, -(-min(affordable, _COUNTED) // under_way), 1)
    start(machine, name, warm_up + counted + under_way + 1)
    machine.run(warm_up)
    began, before = machine.clock.now, machine.busy()
    machine.run(warm_up + counted)
    busy = [after - earlier for earlier, after in zip(before, machine.busy(), strict=True)]
    return counted, machine.clock.now - began, busy


def _troubled(machine: Machine, name: ScheduleName) -> tuple[int, float, list[float]]:
    """Return the same of the whole time that is looked at; steps that a loss has undone are not counted."""
    trouble = machine.setting.trouble
    assert trouble is not None
    begin: Callable[[int], Sequence[Worker]] = lambda step: start(machine, name, _ENDLESS, step)  # noqa: E731
    Losses(machine, trouble, begin)
    over: list[bool] = []
    machine.clock.at(trouble.seconds, over.append, True)
    machine.clock.run(lambda: bool(over))
    return len(machine.step_times), trouble.seconds, machine.busy()
