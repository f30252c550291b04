"""Between a block and its checkpoint: what is saved, and what a block takes from a checkpoint of any cut."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch

from lowdimfa.average import PREFIX
from lowdimfa.config import FactoryConfig
from lowdimfa.data.fingerprint import differing
from lowdimfa.encoding import State, references
from lowdimfa.errors import InputError
from lowdimfa.head import Head
from lowdimfa.layers import Layer
from lowdimfa.rules import Q_RULES, TAPS, Registry
from lowdimfa.services.run.checkpoint import Attempt, BlockState, Manifest, write_block
from lowdimfa.services.run.checkpoint_files import file_in
from lowdimfa.services.run.described import described
from lowdimfa.services.run.manifest import MANIFEST_FILE, MODEL_PREFIX, extra_state
from lowdimfa.services.run.model import configuration_of, require_configuration
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.stage import Stage

_UNFIT = (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError)


Unwanted = Callable[[], bool]
"""Whether nobody wants any more what is being written."""

Write = Callable[[Unwanted], dict[str, Any]]
"""Writes a block's file, and returns its entry for the manifest."""


def copied(state: State) -> State:
    """Return a copy of a state in the host's memory, which nothing that training does changes.

    Tensors that share memory no longer do, and each is contiguous.
    """
    tensors = {
        name: torch.empty(value.shape, dtype=value.dtype, device="cpu").copy_(value.detach())
        for name, value in state.tensors.items()
    }
    return State(tensors, deepcopy(state.scalars))


def saving(stage: Stage, attempt: Attempt, step: int, copy: bool) -> Write:
    """Return what writes a block's whole state after a step, in any thread.

    Parameters
    ----------
    stage, step
        The block, and how many optimiser steps it has applied.
    attempt
        Of which checkpoint the file is one.
    copy
        Whether it writes a copy that is made here. Otherwise the block has to stay as it is meanwhile.
    """
    state = stage.state()
    if copy:
        state = copied(state)
    elif stage.device.type == "cuda":
        torch.cuda.synchronize(stage.device)  # another thread's stream waits for none of this one's work
    # By where they lie: a layer may have other names in its state than its parameters have, and leave some out.
    own = {value.data_ptr() for value in stage.module.parameters()}
    learned = [name for name, value in stage.module.plain_state_dict().items() if value.data_ptr() in own]
    block = BlockState(stage.index, list(stage.module.layer_names), *state)
    return partial(_write, stage, attempt, step, learned, block)


def _write(
    stage: Stage, attempt: Attempt, step: int, learned: Sequence[str], state: BlockState, unwanted: Unwanted
) -> dict[str, Any]:
    """Write a block's file.

    Raises
    ------
    NotFiniteError
        Its weights aren't finite: they must not take the place of the last good checkpoint.
    ResourceError
        See `write_block`.
    """
    for name in learned:
        stage.require_finite(state.tensors[f"{MODEL_PREFIX}{name}"].detach(), f"parameter {name}", step)
    return write_block(attempt, state, unwanted)


def load_stage(stage: Stage, manifest: Manifest) -> None:
    """Give a block its part of a checkpoint, whatever the boundaries were when it was written.

    Weights and optimiser state go by parameter name, a parameter group's settings by the names of those in it. Feedback
    weights go by the name of the block's last layer: at a boundary that the checkpoint did not have they stay as drawn.
    The schedule is that of every block that had some of these layers.

    Raises
    ------
    InputError
        The blocks that had these layers don't agree on a schedule or on settings; or the manifest's plain data isn't
        what a block's state has: it was verified in form only.
    """
    try:
        _load_stage(stage, manifest)
    except _UNFIT as error:
        raise InputError(
            str(file_in(manifest.path, MANIFEST_FILE)),
            f"a state that block {stage.index} can't take ({type(error).__name__}: {error})"[:500],
            "the state that a run wrote",
            "Resume from another checkpoint with --resume-step.",
        ) from error


def _load_stage(stage: Stage, manifest: Manifest) -> None:
    layers = set(stage.module.layer_names)
    entries = [entry for entry in manifest.entries if layers & set(entry.layers)]
    if not layers <= {layer for entry in entries for layer in entry.layers}:
        raise LookupError("layers that no block of the checkpoint has")
    scalars = [entry.scalars for entry in entries]
    names = {f"model/{name}" for name in stage.module.plain_state_dict()}
    names |= {"head/P"} if isinstance(stage, Head) else set()
    names |= {f"{PREFIX}{name}" for name in stage.updater.parameters}
    names |= {f"feedback/{site.boundary}/Q" for site in stage.sites}
    for state in scalars:
        names |= set(references(_of_interest(state, stage.updater.parameters)))
    stage.load(manifest.tensors(names.__contains__), *scalars)


def _of_interest(state: Mapping[str, Any], parameters: Container[str]) -> list[Any]:
    """Return a block's plain data but for what its optimiser keeps of other parameters than these."""
    updater = dict(state["updater"])
    kept = updater.pop("parameters", {})
    return [
        *(value for key, value in state.items() if key != "updater"),
        *updater.values(),
        *(data for name, data in kept.items() if name in parameters),
    ]


def resume_meta(plan: RunPlan) -> dict[str, Any]:
    """Return what a resumed run must agree on with the run that wrote a checkpoint."""
    specification, update = plan.specification, plan.network.training.update
    return {
        "data_order": {
            "samples": len(plan.dataset.train),
            "batch_size": specification.train.batch_size,
            "seed": specification.train.seed,
        },
        "last_batch": specification.data.last_batch,
        "data": plan.fingerprint,
        "configuration": configuration_of(_layers(plan)),
        "described": described(plan.dataset),
        "feedback": {
            "form": specification.feedback.form,
            "source": plan.network.feedback.source,
            "error_dim": plan.network.shape.error_dim,
            "q_rule": _plain(Q_RULES, plan.network.feedback.q_rule),
            "q_start": plan.network.feedback.q_start,
            "tap": _plain(TAPS, plan.network.feedback.tap),
        },
        "optimizer": update.optimizer.name,
        "scheduler": update.scheduler and update.scheduler.name,
        "total_steps": plan.network.training.total_steps,
    }


def _layers(plan: RunPlan) -> list[Layer]:
    return [layer for block in plan.network.blocks for layer in block.layers]


def _plain(registry: Registry[Any], rule: str | FactoryConfig) -> Any:
    """Return the same for all ways of writing the same."""
    name = rule if rule == "auto" else registry.name_of(registry.find(rule))
    args = {} if isinstance(rule, str) else dict(rule.args)
    return {"factory": name, "args": args} if args else name


def require_resumable(plan: RunPlan, manifest: Manifest) -> None:
    """Refuse a checkpoint that the specification can't continue.

    Raises
    ------
    InputError
        Names the first thing that differs, with both values.
    """
    manifest.require_same_model(
        {
            name: tuple(value.shape)
            for block in plan.network.blocks
            for name, value in block.build().plain_state_dict().items()
        }
    )
    keys = {
        "data_order": "train",
        "last_batch": "data.last_batch",
        "feedback": "feedback",
        "optimizer": "train.optimizer.factory",
        "scheduler": "train.scheduler.factory",
    }
    now, then = resume_meta(plan), manifest.meta
    for name, where in keys.items():
        _require_equal(where, now[name], then.get(name))
    require_configuration(_layers(plan), manifest)
    # Evaluations have no fingerprint: they may be of other data.
    if now["data"] and (unlike := differing(now["data"], then.get("data", now["data"]))):
        raise InputError(
            "data.factory",
            f"other training or test samples, or in another order ({unlike[0]})",
            f"those with which the checkpoint was written ({unlike[1]})",
            "A new run can begin with these weights: lowdimfa export, then model.weights.",
        )
    training, steps = plan.network.training, "train.steps (or epochs)"
    updates = [training.update_of(block.index) for block in plan.network.blocks]
    if any(
        update.scheduler is not None for update in updates
    ):  # it has planned its course over the whole run
        _require_equal(steps, now["total_steps"], then.get("total_steps"))
    if manifest.step > training.total_steps:
        raise InputError(
            steps,
            f"{training.total_steps} in a run that is resumed at step {manifest.step}",
            f"{manifest.step} or more",
            "Or resume from an earlier checkpoint with --resume-step.",
        )
    _require_same_extra_state(plan, manifest)


def _require_same_extra_state(plan: RunPlan, manifest: Manifest) -> None:
    """Refuse a checkpoint with extra state that nothing in the model takes; what it lacks a block misses itself."""
    taken = {name for block in plan.network.blocks for name in block.build().plain_state().extra}
    if left := sorted(extra_state(manifest).keys() - taken):
        raise InputError(
            str(manifest.path),
            f"extra state of {', '.join(left)}, which the model doesn't have",
            "a checkpoint of this model",
            "Resume with the model that wrote it, or start a new run.",
        )


def _require_equal(where: str, now: Any, then: Any) -> None:
    if now == then:
        return
    if isinstance(now, dict) and isinstance(then, dict):
        for key, value in now.items():
            _require_equal(f"{where}.{key}", value, then.get(key))
    raise InputError(
        where, f"{now!r} in a run that is resumed", f"{then!r}, as when its checkpoint was written"
    )


def boundaries_of(entries: Sequence[Any]) -> list[str]:
    """Return the names of the layers at which the second and later blocks of a checkpoint start."""
    return [entry.layers[0] for entry in sorted(entries, key=lambda entry: entry.block)[1:]]
