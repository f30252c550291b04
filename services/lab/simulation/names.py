"""Schedules by name: ``1f1b``, ``staleness-1``, ``2bw+int8`` and so on."""

from __future__ import annotations

from dataclasses import dataclass

from lowdimfa.errors import InputError
from lowdimfa.services.lab.simulation.backpropagation import BACKPROPAGATION

_STALENESS = "staleness-"

FORMATS = {"fp32": 1.0, "bf16": 2.0, "int8": 4.0, "int4": 8.0}
"""How many times fewer bytes than float32 activations and gradients take; scales of blocks of numbers are left out."""


@dataclass(frozen=True)
class ScheduleName:
    """What a name says.

    Attributes
    ----------
    base
        The name without a format.
    staleness
        Of this method's schedules, None for one of backpropagation.
    fewer
        How many times fewer bytes activations, and in backpropagation gradients, take than float32.
    """

    base: str
    staleness: int | None
    fewer: float

    @property
    def under_way(self) -> int:
        """Steps that are under way at once."""
        if self.staleness is not None:
            return 1 + self.staleness
        return 2 if self.base.startswith("2bw") else 1


def read_name(name: str) -> ScheduleName:
    """Return what a schedule's name says.

    Raises
    ------
    InputError
        There is no such schedule or format.
    """
    base, plus, form = name.partition("+")
    number = base.removeprefix(_STALENESS)
    staleness = int(number) if number != base and number.isdecimal() else None
    if staleness is None and base not in BACKPROPAGATION:
        known = ", ".join([*BACKPROPAGATION, f"{_STALENESS}0, {_STALENESS}1 and so on"])
        raise InputError("schedule", repr(name), f"one of {known}")
    return ScheduleName(base, staleness, _fewer(name, form) if plus else 1.0)


def schedule_name(staleness: int, form: str = "fp32") -> str:
    """Return the name of this method's schedule with some staleness."""
    return f"{_STALENESS}{staleness}" + ("" if form == "fp32" else f"+{form}")


def _fewer(name: str, form: str) -> float:
    if form in FORMATS:
        return FORMATS[form]
    if form.startswith("x"):
        try:
            if (fewer := float(form[1:])) >= 1:
                return fewer
        except ValueError:
            pass
    known = ", ".join(f"+{one}" for one in FORMATS)
    raise InputError("schedule", repr(name), f"a format among {known}, or +x100 for 100 times fewer bytes")
