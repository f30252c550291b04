"""Faults that a run brings upon itself: for tests, and for drills that show an operator what recovery does."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lowdimfa.services.spec.section import Section, refusal

FaultKind = Literal["crash", "hang", "slow", "drop", "duplicate", "reorder", "corrupt", "nan", "disk_full"]

WIRE_KINDS: frozenset[FaultKind] = frozenset({"drop", "duplicate", "reorder", "corrupt"})
"""Faults of a message on its way, here at the end that receives it."""

TIMED_KINDS: frozenset[FaultKind] = frozenset({"hang", "slow"})
"""Faults that last."""


class Fault(Section):
    """One fault. It happens once, also when the step is run again after a recovery."""

    kind: FaultKind = Field(
        description="`crash`: the block's process is killed before the step's first forward. `hang`: its computation "
        "stands still there, and holds Python's lock. `slow`: that forward takes `seconds` longer. `drop`, "
        "`duplicate`, `reorder`, `corrupt`: what happens to the first message of the step that the block receives, an "
        "error (the head: an activation). `nan`: the forward's output is not a number. `disk_full`: the block's "
        "first checkpoint from that step on finds no room."
    )
    block: int = Field(ge=0, description="Index of the block.")
    replica: int = Field(
        0, ge=0, description="Which of the block's `placement.replicas` it befalls, counted from 0."
    )
    step: int = Field(ge=0, description="Optimiser step at which it happens, counted from 0.")
    seconds: float = Field(0.0, ge=0, description="How long `hang` and `slow` last.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind in TIMED_KINDS and not self.seconds:
            raise refusal(("seconds",), f"0 with kind {self.kind!r}", "a number above 0")
        if self.kind not in TIMED_KINDS and self.seconds:
            raise refusal(("seconds",), f"{self.seconds:g} with kind {self.kind!r}", "0, as it does not last")
        return self


class DrillSection(Section):
    """Faults to inject, of which `lowdimfa drill` draws a random schedule. Leave it out of real work."""

    faults: list[Fault] = Field(
        [],
        description="What happens, where and when.",
        json_schema_extra={"expected": "a list of faults, each with keys kind, block and step"},
    )
