"""Which of a run's checkpoints is the best: noted in each of them, so that a resumed run knows it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from lowdimfa.errors import InputError
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.manifest import Manifest
from lowdimfa.services.spec.schema import BestSection


class Best(NamedTuple):
    """Step and value of the best checkpoint."""

    step: int
    value: float


class KeepBest:
    """Follows which checkpoint of a run's present course is the best one.

    Parameters
    ----------
    wanted
        Section of the specification; None where none is kept.
    """

    def __init__(self, wanted: BestSection | None) -> None:
        self._wanted = wanted
        self._values: dict[int, float] = {}
        self._best: Best | None = None

    def go_on(self, step: int, there: Collection[int], meta: Mapping[str, Any] | None = None) -> None:
        """Go on from a step, with the checkpoints that are there; ``meta`` has the notes of another part of the run."""
        known = (meta or {}).get("best") or {}
        if self._wanted is not None and known.get("by") == self._wanted.meaning:
            self._values[known["step"]] = known["value"]
        self._values = {at: value for at, value in self._values.items() if at <= step and at in there}
        self._best = None
        for at in sorted(self._values):
            self._best = self._better(at, self._values[at])

    def improves(self, evaluated: Mapping[str, Any], step: int) -> bool:
        """Return whether a checkpoint of this step would be the best one."""
        return self._with(evaluated, step) != self._best

    def saved(self, evaluated: Mapping[str, Any], step: int) -> None:
        """Take in that there is a checkpoint of this step."""
        if (value := self._value(evaluated, step)) is not None:
            self._values[step] = value
        self._best = self._with(evaluated, step)

    def notes(self, evaluated: Mapping[str, Any], step: int) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Return what a checkpoint of this step notes of the best one, and which one is to be kept."""
        best = self._with(evaluated, step)
        if self._wanted is None or best is None:
            return {}, ()
        return {"best": best._asdict() | {"by": self._wanted.meaning}}, (best.step,)

    def _with(self, evaluated: Mapping[str, Any], step: int) -> Best | None:
        """Return the best one if there were one of this step."""
        value = self._value(evaluated, step)
        return self._best if value is None else self._better(step, value)

    def _value(self, evaluated: Mapping[str, Any], step: int) -> float | None:
        if self._wanted is None or evaluated.get("step") != step:
            return None
        value = {**evaluated, **evaluated.get("metrics", {})}.get(self._wanted.metric)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def _better(self, step: int, value: float) -> Best:
        """Return the better one of the best so far and another; a tie goes to the earlier one."""
        assert self._wanted is not None, "without a metric nothing has a value"
        sign = 1 if self._wanted.less_is_better else -1
        better = self._best is None or sign * value < sign * self._best.value
        return Best(step, value) if self._best is None or better else self._best


def load_best(store: CheckpointStore) -> Manifest:
    """Return the best checkpoint, as the newest one says.

    Raises
    ------
    InputError
        There is none, or it is damaged.
    """
    newest = store.load(None)
    step = (newest.meta.get("best") or {}).get("step")
    if step is None:
        found = f"a checkpoint that says of none which is the best ({newest.path})"
        hint = "Without --best the newest checkpoint is taken."
        raise InputError("--best", found, "a run with run.keep_best", hint)
    return store.load(step)
