"""Between a block and its checkpoint: what is saved, and what a block takes from a checkpoint of any cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowdimfa.errors import InputError
from lowdimfa.stage import Stage
from services.run.checkpoint import BlockState, Manifest
from services.run.manifest import MANIFEST_FILE
from services.run.plan import RunPlan

_UNFIT = (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError)


def stage_state(stage: Stage, step: int) -> BlockState:
    """Return a block's whole state after a step.

    Raises
    ------
    NotFiniteError
        Its weights aren't finite: they must not take the place of the last good checkpoint.
    """
    for name, parameter in stage.module.named_plain_parameters():
        stage.require_finite(parameter.detach(), f"parameter {name}", step)
    return BlockState(stage.index, list(stage.module.layer_names), stage.tensors(), stage.scalars())


def load_stage(stage: Stage, manifest: Manifest) -> None:
    """Give a block its part of a checkpoint, whatever the boundaries were when it was written.

    Weights and optimiser state go by parameter name. Feedback weights go by the name of the block's last layer: at a
    boundary that the checkpoint did not have they stay as drawn. Schedule and optimiser settings come from the block
    that had the first of these layers.

    Raises
    ------
    InputError
        The manifest's plain data isn't what a block's state has: it was verified in form only.
    """
    try:
        _load_stage(stage, manifest)
    except _UNFIT as error:
        raise InputError(
            str(manifest.path / MANIFEST_FILE),
            f"a state that block {stage.index} can't take ({type(error).__name__}: {error})"[:500],
            "the state that a run wrote",
            "Resume from another checkpoint with --resume-step.",
        ) from error


def _load_stage(stage: Stage, manifest: Manifest) -> None:
    layers = stage.module.layer_names
    names = {name for name, _ in stage.module.named_plain_parameters()}
    names |= {name for name, _ in stage.module.named_plain_buffers()}
    boundaries = {site.boundary for site in stage.sites}
    wanted = manifest.tensors(lambda key: _belongs(key, names, boundaries))
    origin = next(entry for entry in manifest.entries if layers[0] in entry.layers)
    scalars = dict(origin.scalars)
    scalars["updater"] = dict(scalars["updater"]) | {"numbers": _merged_numbers(manifest)}
    stage.load(wanted, scalars)


def _belongs(key: str, names: set[str], boundaries: set[str]) -> bool:
    kind, _, rest = key.partition("/")
    if kind == "optimizer":
        name = rest.rpartition("/")[0]
        return name in names or name.removesuffix(".Q") in boundaries
    return key == "head/P" or rest in names or (kind == "feedback" and rest.removesuffix("/Q") in boundaries)


def _merged_numbers(manifest: Manifest) -> dict[str, Any]:
    return {
        name: values
        for entry in manifest.entries
        for name, values in entry.scalars["updater"]["numbers"].items()
    }


def resume_meta(plan: RunPlan) -> dict[str, Any]:
    """Return what a resumed run must agree on with the run that wrote a checkpoint."""
    specification = plan.specification
    return {
        "data_order": {
            "samples": len(plan.dataset.train),
            "batch_size": specification.train.batch_size,
            "seed": specification.train.seed,
        },
        "feedback": {
            "form": specification.feedback.form,
            "error_dim": plan.network.shape.error_dim,
            "q_rule": plan.network.feedback.q_rule,
            "tap": specification.feedback.tap,
        },
        "optimizer": specification.train.optimizer.factory,
        "scheduler": None if specification.train.scheduler is None else specification.train.scheduler.factory,
        "total_steps": plan.network.training.total_steps,
    }


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
        "feedback": "feedback",
        "optimizer": "train.optimizer.factory",
        "scheduler": "train.scheduler.factory",
    }
    now, then = resume_meta(plan), manifest.meta
    for name, where in keys.items():
        _require_equal(where, now[name], then.get(name))
    if now["scheduler"] is not None:  # it has planned its course over the whole run
        _require_equal("train.steps (or epochs)", now["total_steps"], then.get("total_steps"))


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
