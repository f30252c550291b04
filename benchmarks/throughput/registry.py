"""What is compared with this runtime: a row for each, with the class that does it and what it is allowed to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FORMATS = ("bf16", "int8")
"""In which activations, and a pipeline's gradients, may travel: a name ends in ``+bf16`` or ``+int8``."""

ZERO_BUBBLE = ("interleaved-zero-bubble", "zero-bubble-h1", "zbv-zero-bubble")
DELAYED = ("2bw", "2bw-whole", "2bw-nesterov")
"""Pipelines with gradients that don't wait, either."""

LIMIT = "limit"

_PIPELINE = "pipelines:Pipeline"
_NO_DELAY, _ONE_STEP = "none", "one step: gradients of W(t−1) are applied to W(t)"
_BOTH_WAYS = "activations, and gradients of them back"


@dataclass(frozen=True)
class Rival:
    """A way to train, as a row of the registry.

    Attributes
    ----------
    what
        In one line.
    made_by
        Module of this package, and the class in it that a worker makes.
    sends, delay, loses
        What it is allowed: what travels between processes, how old gradients may be, what compression may lose.
    options
        For the class.
    packs
        Whether its tensors may travel in one of `FORMATS`.
    replicates
        Whether each process has the whole network: on one machine they are no more than its processor cores.
    number
        Letter and name of an option that its name may end in: ``r`` and ``factors`` for ``powersgd-r8``.
    """

    what: str
    made_by: str
    sends: str = _BOTH_WAYS
    delay: str = _NO_DELAY
    loses: str = "nothing; with +bf16 or +int8 the precision of both"
    options: Mapping[str, Any] = field(default_factory=dict)
    packs: bool = True
    replicates: bool = False
    number: tuple[str, str] | None = None


def _schedule(what: str, schedule: str, per_rank: int = 1, layout: str = "loop", **options: Any) -> Rival:
    shape = {"schedule": schedule, "per_rank": per_rank, "layout": layout}
    return Rival(what, _PIPELINE, options=shape | options)


RIVALS: dict[str, Rival] = {
    "single": Rival(
        "backpropagation in one process: single-2 with 2 threads, single-2x4 in 4 micro-batches; with -recompute each "
        "layer keeps its input alone, and runs again before its backward",
        "peers:Single",
        sends="nothing",
        loses="nothing",
        packs=False,
    ),
    "gpipe": _schedule("all forwards, all backwards, then the step", "ScheduleGPipe"),
    "1f1b": _schedule("one forward, one backward, in turn", "Schedule1F1B"),
    "1f1b-recompute": _schedule(
        "the same, but a stage keeps its inputs alone, and runs again before its backward",
        "Schedule1F1B",
        recompute=True,
    ),
    "interleaved-1f1b": _schedule("the same, two stages per process", "ScheduleInterleaved1F1B", 2),
    "interleaved-zero-bubble": _schedule(
        "gradients of weights fill the gaps, two stages per process", "ScheduleInterleavedZeroBubble", 2
    ),
    "zero-bubble-h1": _schedule(
        "the same with one stage per process, which is ZB-H1", "ScheduleInterleavedZeroBubble"
    ),
    "zbv-zero-bubble": _schedule("the same with stages there and back", "ScheduleZBVZeroBubble", 2, "v"),
    "2bw": Rival(
        "PipeDream-2BW: 1F1B that never waits for a step, with two versions of the weights",
        "two_buffered:TwoBuffered",
        delay=_ONE_STEP,
    ),
    "2bw-whole": Rival(
        "the same without micro-batches, which 2 stages can do with two versions; more stages need as many, less one",
        "two_buffered:TwoBuffered",
        delay=_ONE_STEP,
    ),
    "2bw-nesterov": Rival(
        "the first with Nesterov's look-ahead against the delay (NAdam, momentum 0.99)",
        "two_buffered:LookingAhead",
        delay=_ONE_STEP,
    ),
    "ddp": Rival(
        "DistributedDataParallel: the whole network in each process, a part of the batch each",
        "data_parallel:DataParallel",
        sends="gradients of all weights",
        loses="nothing",
        packs=False,
        replicates=True,
    ),
    "powersgd": Rival(
        "the same with PowerSGD: gradients as two factors, of rank 4 (powersgd-r8 for another)",
        "data_parallel:PowerSGD",
        sends="factors of the gradients of all weights",
        loses="what the rank leaves out, which comes later by error feedback",
        options={"factors": 4},
        packs=False,
        replicates=True,
        number=("r", "factors"),
    ),
    "diloco": Rival(
        "local SGD with an outer Nesterov step after 50 of AdamW (diloco-h100 for another number)",
        "diloco:DiLoCo",
        sends="differences of all weights, once per outer step",
        delay="weights of others are up to 50 steps old",
        loses="nothing",
        options={"inner_steps": 50},
        packs=False,
        replicates=True,
        number=("h", "inner_steps"),
    ),
    LIMIT: Rival(
        "each block's own work on tensors that are there already, all blocks at once: trains nothing",
        "local_work:LocalWork",
        sends="nothing",
        loses="nothing",
        packs=False,
    ),
}


def without_parts(name: str) -> tuple[str, int | None]:
    """Return the name of a pipeline, and of its format, without the micro-batches that it says, and those: ``1f1bx8``."""
    found = re.fullmatch(r"(?!single-)(.+?)x([1-9]\d*)(\+.+)?", name)
    return (name, None) if found is None else (found[1] + (found[3] or ""), int(found[2]))


def configuration(name: str) -> dict[str, Any]:
    """Return what a worker needs to know of a system: the class, its options and the format of its tensors.

    Raises
    ------
    ValueError
        There is no such system.
    """
    plain, parts = without_parts(name)
    base, plus, travel = plain.partition("+")
    rival, options = _with_options(base)
    if parts and not rival.packs:
        raise ValueError(name)
    if plus and (travel not in FORMATS or not rival.packs):
        raise ValueError(name)
    return {"class": rival.made_by, "format": travel or "fp32", **rival.options, **options}


def rival_of(name: str) -> Rival:
    """Return the row of a system's name; see `configuration`."""
    return _with_options(without_parts(name)[0].partition("+")[0])[0]


def _with_options(name: str) -> tuple[Rival, dict[str, Any]]:
    if name in RIVALS and name != "single":
        return RIVALS[name], {}
    if single := re.fullmatch(r"single-(\d+)(?:x(\d+))?(-recompute)?", name):
        options = {"threads": int(single[1]), "parts": int(single[2] or 1)}
        return RIVALS["single"], options | ({"recompute": True} if single[3] else {})
    base, _, number = name.rpartition("-")
    rival = RIVALS.get(base)
    if rival is None or rival.number is None or not re.fullmatch(rf"{rival.number[0]}[1-9]\d*", number):
        raise ValueError(name)
    return rival, {rival.number[1]: int(number[1:])}


def stages_of(rank: int, world: int, per_rank: int, layout: str) -> list[int]:
    """Return which stages a process has: in turn (``loop``), or there and back (``v``)."""
    if layout == "v":
        return [rank, 2 * world - 1 - rank]
    return [rank + world * turn for turn in range(per_rank)]


def table() -> str:
    """Return what each system is and what it is allowed, for ``--help``."""
    lines = [
        "lowdimfa-s0, lowdimfa-s1, lowdimfa-s2: this runtime with staleness 0, 1 and 2",
        "    sends activations, and back the broadcast error alone; delay: the staleness, in steps; loses what",
        "    the error's dimensions leave out; with +bf16 or +int8 the precision of activations",
        "pipelines in another number of micro-batches: 1f1bx8, zero-bubble-h1x2+int8",
    ]
    for name, rival in RIVALS.items():
        lines += [
            f"{name}: {rival.what}",
            f"    sends {rival.sends}; delay: {rival.delay}; loses {rival.loses}",
        ]
    return "\n".join(lines)
