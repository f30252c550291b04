"""Whose code it is that failed in a rehearsal."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from lowdimfa.errors import InputError, in_words
from lowdimfa.head import Head
from lowdimfa.rules import P_RULES, Q_RULES, TAPS
from lowdimfa.stage import Stage


def refusal(error: BaseException, stages: Sequence[Stage], when: str) -> InputError:
    """Return what says whose code failed, by the objects whose methods the error came through."""
    owners: dict[tuple[int, str | None], tuple[str, str]] = {}
    for stage in stages:
        updater, config = stage.updater, stage.updater.config
        optimizer = f"{config.optimizer_key}.factory", f"the optimiser of block {stage.index}"
        scheduler = f"{config.scheduler_key}.factory", f"the schedule of block {stage.index}"
        owners[id(updater), "apply"], owners[id(updater), "advance"] = optimizer, scheduler
        owners[id(updater.optimizer), None], owners[id(updater.scheduler), None] = optimizer, scheduler
        if isinstance(stage, Head):
            owners[id(stage), "output_error"] = "train.loss", "a loss"
            owners[id(stage.projection), None] = P_RULES.key, "the rule for P"
        for site in stage.sites:
            owners[id(site.feedback), None] = Q_RULES.key, f"the rule for Q of block {stage.index}"
            owners[id(site.tap), None] = TAPS.key, f"the tap of block {stage.index}"
        for name, layer in stage.module.named_layers():
            owners[id(layer), None] = "model.factory", f"layer {name!r} of block {stage.index}"
    owners.pop((id(None), None), None)
    key, what = "model.factory", "layers or a loss"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        runs = frame.f_locals.get("self")
        found = owners.get((id(runs), None)) or owners.get((id(runs), frame.f_code.co_name))
        if found is not None:
            key, what = found
            break
    return InputError(
        key,
        f"{what} failing {when} ({in_words(error)})",
        "one that works on the run's errors"
        if key.startswith("feedback.")
        else "what trains in plain PyTorch",
    )
