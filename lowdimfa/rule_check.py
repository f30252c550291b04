"""Whether rules of the user's own keep what their base classes promise: tried on drawn errors, before a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor

from lowdimfa.encoding import same, same_bits
from lowdimfa.errors import InputError, in_words
from lowdimfa.feedback.projection import PRule
from lowdimfa.feedback.rules import QRule
from lowdimfa.generators import reproducible, seed_generators
from lowdimfa.head import Head
from lowdimfa.pending import sums_of
from lowdimfa.rules import P_RULES, Q_RULES, Registry
from lowdimfa.stage import Stage

_STEPS = 12
"""As what a rule does in every tenth step, say, has to be seen."""

_MICROBATCHES = 2
_SAMPLES = 3
_CHANGEABLE = (Tensor, numpy.ndarray, list, dict, set)

Rule = TypeVar("Rule", QRule, PRule)


def refuse_forgetful(stage: Stage, restored: Stage) -> None:
    """Refuse rules that don't go on as before from a checkpoint, or that change within a step what they deliver or keep.

    Parameters
    ----------
    stage, restored
        A block, and the same block newly built with its state. Their rules learn here.

    Raises
    ------
    InputError
        A rule breaks a promise, or fails.
    """
    for registry, follow, rule, again in _own_rules(stage, restored):
        _require_alike(registry, follow, rule, again)


def refuse_shared(stage: Stage, fresh: Stage) -> None:
    """Refuse rules that keep something in one place for all blocks and runs, as with a list for a default argument.

    Parameters
    ----------
    stage, fresh
        A block, and the same block newly built.

    Raises
    ------
    InputError
        A rule does.
    """
    for registry, _, rule, other in _own_rules(stage, fresh):
        for name in rule.kept:
            value = getattr(rule, name)
            if value is getattr(other, name) and isinstance(value, _CHANGEABLE):
                raise InputError(
                    registry.key,
                    f"{registry.name_of(type(rule))!r}, of which all objects share one {name!r}",
                    "that each has its own, made in its constructor",
                    "A default argument or a value of the class is the same object everywhere.",
                )


def refuse_drifting(one: Stage, other: Stage, replicas: int) -> None:
    """Refuse rules by which the replicas of a block would not stay alike.

    Parameters
    ----------
    one, other
        The same block newly built, twice: its rules take in different micro-batches here, add up and step.
    replicas
        Of the block.

    Raises
    ------
    InputError
        Something in a rule depends on what one replica has seen of a step, beyond the sums in ``weights.grad`` and
        `QRule.pending`.
    """
    for site, twin in zip(one.sites, other.sites, strict=True):
        rules = site.feedback, twin.feedback
        if Q_RULES.is_built_in(type(site.feedback)):
            continue
        name = Q_RULES.name_of(type(site.feedback))
        found = f"{replicas} of block {one.index}, and {name!r}, "
        with Q_RULES.trying(type(site.feedback), "with replicas"), reproducible(0), torch.no_grad():
            for step in range(_STEPS):
                for replica, rule in enumerate(rules):
                    tapped, error = _drawn(
                        rule.weights, site.tap.position_dims, 2 * step + replica, rule.received
                    )
                    rule.accumulate(tapped, rule.errors(tapped, error).learned)
                if site.feedback.probed:  # one micro-batch of a step is a probe, in one of the replicas
                    site.feedback.accumulate_probe(
                        *_drawn(site.feedback.weights, site.tap.position_dims, -1 - step)
                    )
                _add_up(rules, found)
                for rule in rules:
                    seed_generators(step)
                    rule.step()
                    rule.weights.grad = None
        if not (same_bits(rules[0].weights, rules[1].weights) and same(rules[0].state(), rules[1].state())):
            raise InputError(
                "placement.replicas",
                f"{found}which changes by what it has seen of the step in one replica",
                "1, or a rule whose sums are in weights.grad or pending(), where set_pending() puts the sum over all",
            )


def _add_up(rules: Sequence[QRule], found: str) -> None:
    """Do as replicas do at the end of a step."""
    for slots in zip(*map(sums_of, rules), strict=True):
        values = [value for value in (slot.read() for slot in slots) if value is not None]
        if any(value.shape != slots[0].like.shape or value.dtype != slots[0].like.dtype for value in values):
            like = slots[0].like
            raise InputError(
                "placement.replicas",
                f"{found}whose sum is {values[0].dtype} of shape {tuple(values[0].shape)}",
                f"{like.dtype} of shape {tuple(like.shape)}, as Q",
            )
        if values:
            total = torch.stack(values).sum(0)
            for slot in slots:
                slot.write(total)


def _own_rules(stage: Stage, other: Stage) -> Iterator[tuple[Registry[Any], Callable[..., Any], Any, Any]]:
    """Yield the registry of each rule of the user's own, what follows its course, and the rule in both stages."""
    for site, twin in zip(stage.sites, other.sites, strict=True):
        if not Q_RULES.is_built_in(type(site.feedback)):
            yield Q_RULES, partial(_follow_q, site.tap.position_dims), site.feedback, twin.feedback
    if (
        isinstance(stage, Head)
        and isinstance(other, Head)
        and not P_RULES.is_built_in(type(stage.projection))
    ):
        yield P_RULES, _follow_p, stage.projection, other.projection


def _drawn(
    weights: Tensor, position_dims: int, seed: int, received: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return a tap's value and an error of some samples, of as many numbers as arrive at a rule for ``Q``."""
    generator = torch.Generator().manual_seed(2**20 + seed)
    rows = _SAMPLES, *[2] * position_dims
    widths = len(weights), received or weights.shape[-1]
    value, error = (
        torch.randn(*rows, width, generator=generator, dtype=torch.float32, device="cpu") for width in widths
    )
    return value.to(weights.device), error.to(weights.device)


def _require_alike(
    registry: Registry[Any],
    follow: Callable[[Rule, int], Iterator[tuple[Tensor, Tensor]]],
    trained: Rule,
    restored: Rule,
) -> None:
    name = registry.name_of(type(trained))
    try:
        # One is asked once more than the other what it delivers, which must change nothing.
        with reproducible(0), torch.no_grad():
            courses = [list(follow(rule, asked)) for asked, rule in enumerate((trained, restored), 1)]
    except (Exception, SystemExit) as error:  # a user's rule may fail in any way
        raise InputError(
            registry.key, f"{name!r}, which fails ({in_words(error)})", "a rule that learns"
        ) from error
    if not all(same_bits(before, after) for before, after in courses[0]):
        raise InputError(
            registry.key,
            f"{name!r}, which delivers or keeps something else once it has taken in a micro-batch or a probe",
            "what only changes in step(), as the order of a step's messages must not matter",
            "Let accumulate() add up, and step() apply.",
        )
    if not all(same_bits(one[0], other[0]) for one, other in zip(*courses, strict=True)):
        raise InputError(
            registry.key,
            f"{name!r}, which goes on otherwise from a checkpoint, or where it is asked more often what it delivers",
            "that all it needs beside 'weights' is named in 'kept', and that only accumulate() adds up",
            "What is not restored would be lost whenever the run resumes.",
        )


def _follow_q(position_dims: int, rule: QRule, asked: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what a rule comes to in some steps, as pairs that must be alike."""
    for step in range(_STEPS):
        for microbatch in range(_MICROBATCHES):
            number = _MICROBATCHES * step + microbatch
            tapped, error = _drawn(rule.weights, position_dims, number, rule.received)
            for _ in range(asked):
                seed_generators(0)
                errors = rule.errors(tapped, error)
                before, kept = rule.deliver(errors.delivered), deepcopy(rule.state())
            rule.accumulate(tapped, errors.learned)
            if rule.probed and microbatch == 0:
                seed_generators(0)
                rule.accumulate_probe(*_drawn(rule.weights, position_dims, -1 - step))
            seed_generators(0)
            yield before, rule.deliver(rule.errors(tapped, error).delivered)
            yield torch.tensor(True), torch.tensor(same(kept, rule.state()))
        seed_generators(step)
        rule.step()
        if rule.weights.grad is not None:
            yield rule.weights.grad, rule.weights.grad
            rule.weights.grad = None
        yield rule.weights.clone(), rule.weights.clone()


def _follow_p(rule: PRule, asked: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Do as `_follow_q`."""
    for step in range(_STEPS):
        for microbatch in range(_MICROBATCHES):
            error = _drawn(rule.weights, 0, _MICROBATCHES * step + microbatch)[1]
            for _ in range(asked):
                seed_generators(0)
                before, kept = rule.project(error), deepcopy(rule.state())
            rule.accumulate(error)
            seed_generators(0)
            yield before, rule.project(error)
            yield torch.tensor(True), torch.tensor(same(kept, rule.state()))
        seed_generators(step)
        rule.step()
        yield rule.weights.clone(), rule.weights.clone()
