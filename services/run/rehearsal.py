"""A run's first step on copies, before anything of the run is there: what can't train or can't resume is refused now."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lowdimfa.block import Block
from lowdimfa.encoding import first_difference, same_bits
from lowdimfa.errors import InputError, LowdimfaError, NotFiniteError, finds_no_memory, in_words
from lowdimfa.exactness import refuse_inexact
from lowdimfa.feedback.making import ErrorShape
from lowdimfa.feedback.resolving import error_shape
from lowdimfa.head import Evaluation, Head
from lowdimfa.moving import moved_counts
from lowdimfa.network import DecoupledNetwork
from lowdimfa.optim import Updater
from lowdimfa.partitioning import BlockPlan, copies
from lowdimfa.rule_check import refuse_forgetful, refuse_shared
from lowdimfa.rules import P_RULES, Q_RULES
from lowdimfa.services.run.blame import refusal
from lowdimfa.services.run.profile import Bench
from lowdimfa.services.run.replica_check import replicas_are_alike
from lowdimfa.services.spec import Specification
from lowdimfa.stage import Stage
from lowdimfa.tickets import derive_seed
from lowdimfa.values import everywhere, named, opened

PATIENCE = 1.0
"""Seconds in which schedules are followed towards the run's last step."""

SAMPLES = 16
"""Most of a micro-batch: a run's own batches take long where it is for GPUs and the trainer has none."""

_AT_ONCE = 64
"""Steps of a schedule between looks at the clock."""


FIRST_STEP = "in a first training step"


@dataclass(frozen=True)
class Rehearsal:
    """What checks look at.

    Attributes
    ----------
    specification, bench
        Of the run: its data, threads and device, and how stages are built.
    blocks
        The run's own, as they are before the first step; not to be changed.
    stages
        Copies of these blocks, the head last, that have made one step.
    rebuild
        Calls the model's factory and returns the same blocks anew.
    shape
        Of the broadcast error.
    """

    specification: Specification
    blocks: Sequence[BlockPlan]
    bench: Bench
    stages: Sequence[Stage]
    rebuild: Callable[[], Sequence[BlockPlan]]
    shape: ErrorShape

    def untrained(self, index: int) -> Block | Head:
        """Build one of the blocks once more as it is before the first step."""
        (plan,) = copies_of(self.blocks, slice(index, index + 1), self.rebuild)
        return self.bench.build_one(plan, self.shape, is_head=isinstance(self.stages[index], Head))

    @property
    def counts(self) -> dict[str, list[str]]:
        """Names of attributes by which layers count, as the step has moved them, by layer."""
        pairs = zip(self.blocks, self.stages, strict=True)
        return {
            name: names
            for plan, stage in pairs
            for name, names in moved_counts(plan.layers, stage.module).items()
        }

    def step(self, make: Callable[[], object], when: str = FIRST_STEP) -> bool:
        """Let the stages make their step, and return whether they could.

        Raises
        ------
        InputError
            Names whose code failed.
        """
        try:
            make()
        except NotFiniteError:
            return False
        except LowdimfaError:
            raise
        except (Exception, SystemExit) as error:  # layers, loss and optimiser are the user's
            elsewhere = self.specification.placement.gpus_per_block > 0 and self.bench.device.type == "cpu"
            if elsewhere or finds_no_memory(error):
                return False
            raise refusal(error, self.stages, when) from error
        return True


def rehearse(
    specification: Specification,
    blocks: Sequence[BlockPlan],
    bench: Bench,
    rebuild: Callable[[], Sequence[BlockPlan]],
    smallest: int = SAMPLES,
) -> dict[str, list[str]]:
    """Make one step of every block on copies, and run all `CHECKS`.

    Neither the blocks nor the global random state are changed. What isn't finite, or finds no memory, is left for the
    run itself to meet; so is, where the run is for GPUs and there is none here, what fails on the processor.

    Parameters
    ----------
    specification, blocks
        Of the run.
    bench
        Its training not compiled, which would take minutes.
    rebuild
        See `Rehearsal`.
    smallest
        Samples of the run's smallest micro-batch.

    Returns
    -------
    dict of str to list of str
        By the names of layers, attributes that are numbers or truth values and that the step has moved.

    Raises
    ------
    InputError
        A layer, the loss, an optimiser or a schedule fails, or has a state that can't be kept in a checkpoint.
    """
    size = min(SAMPLES, len(bench.batches[0][1]))
    with bench.computing(derive_seed(specification.train.seed, "rehearsal")):
        if smallest < size:
            _one_step(specification, blocks, bench.with_samples(smallest), rebuild, when_few(smallest))
        rehearsal = _one_step(specification, blocks, bench.with_samples(size), rebuild, FIRST_STEP)
        if rehearsal is None:
            return {}
        counts = rehearsal.counts
        with suppress(NotFiniteError, MemoryError):
            for check in CHECKS:
                check(rehearsal)
    return counts


def _one_step(
    specification: Specification,
    blocks: Sequence[BlockPlan],
    bench: Bench,
    rebuild: Callable[[], Sequence[BlockPlan]],
    when: str,
) -> Rehearsal | None:
    """Make a step on copies; return None where it is for the run itself to meet what comes of it."""
    learning, head = bench.build(copies_of(blocks, slice(None), rebuild))
    shape = error_shape(blocks, bench.feedback)
    rehearsal = Rehearsal(specification, blocks, bench, [*learning, head], rebuild, shape)
    network = DecoupledNetwork(learning, head, bench.feedback)
    return (
        rehearsal if rehearsal.step(lambda: network.train_step(0, bench.batches, trial=True), when) else None
    )


def when_few(samples: int) -> str:
    """Return in words when a micro-batch has so few samples."""
    return f"in a step of {_number_of(samples)}, as data.last_batch: keep leaves for a micro-batch"


def _number_of(samples: int) -> str:
    return f"{samples} sample{'s' if samples > 1 else ''}"


def copies_of(
    blocks: Sequence[BlockPlan], chosen: slice, rebuild: Callable[[], Sequence[BlockPlan]]
) -> list[BlockPlan]:
    """Return some of the blocks with layers of their own, as they are before the first step."""
    try:
        return copies(blocks[chosen])
    except Exception:  # modules may hold what can't be copied, such as a lock, but they can be made again
        return list(rebuild()[chosen])


def schedules_last(rehearsal: Rehearsal) -> None:
    """Refuse a schedule that fails before the run's last step, as far as it can be followed in a short time."""
    total, deadline = rehearsal.bench.training.total_steps, time.monotonic() + PATIENCE
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for updater in _different(rehearsal.stages):
            steps = iter(range(2, total + 1))
            while (some := list(islice(steps, _AT_ONCE))) and time.monotonic() < deadline:
                for step in some:
                    _advance(updater, step, total)


def _different(stages: Sequence[Stage]) -> list[Updater]:
    """Return one of those updaters that have the same schedule over as many groups."""
    found: dict[tuple[int, int], Updater] = {}
    for stage in stages:
        updater = stage.updater
        if updater.optimizer is not None and updater.scheduler is not None:
            found.setdefault((id(updater.config), len(updater.optimizer.param_groups)), updater)
    return list(found.values())


def _advance(updater: Updater, step: int, total: int) -> None:
    try:
        updater.advance()
    except (Exception, SystemExit) as error:  # a user's schedule may fail in any way
        schedule, where = updater.config.scheduler, f"step {step} of {total}"
        assert schedule is not None
        raise InputError(
            f"{updater.config.scheduler_key}.args",
            f"{dict(schedule.args)!r}, with which {schedule.name} fails at {where} ({in_words(error)})",
            "a schedule for all steps of the run",
        ) from error


def states_come_back(rehearsal: Rehearsal) -> None:
    """Refuse what a checkpoint can't hold, or what a newly built block doesn't take from it as it was."""
    for index, stage in enumerate(rehearsal.stages):
        restored = rehearsal.untrained(index)
        refuse_shared(stage, restored)
        try:
            tensors, scalars = stage.state()
            written = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
            restored.load(written, json.loads(json.dumps(scalars, allow_nan=False)))
            back = restored.state()
        except LowdimfaError:
            raise
        except (Exception, SystemExit) as error:  # state_dict, set_extra_state and the like may be the user's
            if finds_no_memory(error):
                raise MemoryError(str(error)) from error
            raise refusal(error, [stage, restored], "when its state is saved and loaded") from error
        names, ours, theirs = {**tensors, **back.tensors}, tensors, back.tensors
        lost = (n for n in names if n not in ours or n not in theirs or not same_bits(ours[n], theirs[n]))
        place = first_difference(scalars, back.scalars) or next(lost, None)
        if place is not None:
            raise InputError(
                _key_of(place, stage),
                f"a state that does not come back from a checkpoint: {place} of block {index}",
                "that loading a state restores all that was saved of it",
                "What is not restored would be lost whenever the run resumes.",
            )
        refuse_forgetful(stage, restored)


def _key_of(place: str, stage: Stage) -> str:
    config = stage.updater.config
    owners = {
        ("scheduler/", "updater/scheduler"): f"{config.scheduler_key}.factory",
        ("optimizer/", "updater"): f"{config.optimizer_key}.factory",
        ("rule/", "rules/", "feedback/"): Q_RULES.key,
        ("projection", "head/P"): P_RULES.key,
    }
    return next((key for starts, key in owners.items() if place.startswith(starts)), "model.factory")


def gradients_are_exact(rehearsal: Rehearsal) -> None:
    """Refuse layers that don't learn in blocks as they do in plain torch."""
    bench, train = rehearsal.bench, rehearsal.specification.train
    if bench.feedback.form != "broadcast":
        return
    batches = list(bench.batches)
    if len(batches) == 1:  # the same samples in another order will do
        inputs, targets = batches[0]
        batches.append((everywhere(inputs, lambda part: part.flip(0)), targets.flip(0)))
    stale = train.staleness > 0
    stages = (rehearsal.untrained(index) for index in range(len(rehearsal.stages)))
    refuse_inexact(stages, batches, overlapping=stale or train.effective_window > 1, stale=stale)


def last_batch_is_evaluated(rehearsal: Rehearsal) -> None:
    """Refuse what fails on the last batch of an evaluation, where it is smaller than those of training."""
    samples = rehearsal.bench.last_evaluated
    inputs, targets = rehearsal.bench.batches[0]
    if samples >= len(targets):
        return
    (inputs, targets), *_ = rehearsal.bench.with_samples(samples).batches

    def evaluate() -> None:
        passed = inputs
        for stage in rehearsal.stages:
            if isinstance(stage, Head):
                stage.evaluate_outputs(passed, targets, Evaluation())
            else:
                passed = stage.evaluate(passed)
                (shape, *_) = (tuple(each.shape) for each in named(opened(passed)[0]).values())
                if shape[:1] != (samples,):  # a network in pieces shows it nowhere else
                    raise ValueError(f"block {stage.index} puts out the shape {shape}")

    rehearsal.step(evaluate, f"in an evaluation's last batch, of {_number_of(samples)}")


CHECKS: list[Callable[[Rehearsal], None]] = [
    schedules_last,
    states_come_back,
    replicas_are_alike,
    gradients_are_exact,
    last_batch_is_evaluated,
]
"""What is looked at after the step, in this order; each raises an `InputError` for what the run can't do."""
