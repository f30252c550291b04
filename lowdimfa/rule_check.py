"""Whether rules of the user's own keep what their base classes promise: tried on drawn errors, before a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor

from lowdimfa.encoding import same, same_bits
from lowdimfa.errors import InputError, in_words
from lowdimfa.feedback.projection import PRule
from lowdimfa.feedback.rules import QRule
from lowdimfa.generators import reproducible, seed_generators
from lowdimfa.head import Head
from lowdimfa.rules import P_RULES, Q_RULES, Registry
from lowdimfa.stage import Stage

_STEPS = _MICROBATCHES = 2
_SAMPLES = 3

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
    for site, again in zip(stage.sites, restored.sites, strict=True):
        if _is_own(Q_RULES, site.feedback):
            rows = _SAMPLES, *[2] * site.tap.position_dims
            _require_alike(Q_RULES, _follow_q, site.feedback, again.feedback, rows)
    if isinstance(stage, Head) and isinstance(restored, Head) and _is_own(P_RULES, stage.projection):
        _require_alike(P_RULES, _follow_p, stage.projection, restored.projection, (_SAMPLES,))


def refuse_drifting(stage: Stage, drawn: Stage, replicas: int) -> None:
    """Refuse rules by which the replicas of a block would not stay alike: of what they add up only some is summed.

    Parameters
    ----------
    stage, drawn
        A block that has made a step, and the same block before.
    replicas
        Of the block.

    Raises
    ------
    InputError
        A rule has changed ``Q`` by what is neither in ``weights.grad`` nor in `QRule.pending`.
    """
    for site, new in zip(stage.sites, drawn.sites, strict=True):
        rule = site.feedback
        summed = rule.trained_by_optimizer or type(rule).pending is not QRule.pending
        if not summed and not same_bits(rule.weights, new.feedback.weights):
            raise InputError(
                "placement.replicas",
                f"{replicas} of block {stage.index}, and {Q_RULES.name_of(type(rule))!r}, which changes Q by what it "
                "has seen of the step in one replica",
                "1, or a rule whose sums are in weights.grad or pending()",
            )


def _is_own(registry: Registry[Any], rule: object) -> bool:
    return registry.name_of(type(rule)) not in registry.built_in


def _require_alike(
    registry: Registry[Any],
    follow: Callable[[Rule, tuple[int, ...]], Iterator[tuple[Tensor, Tensor]]],
    trained: Rule,
    restored: Rule,
    rows: tuple[int, ...],
) -> None:
    name = registry.name_of(type(trained))
    try:
        with reproducible(0), torch.no_grad():
            courses = [list(follow(rule, rows)) for rule in (trained, restored)]
    except (Exception, SystemExit) as error:  # a user's rule may fail in any way
        raise InputError(
            registry.key, f"{name!r}, which fails ({in_words(error)})", "a rule that learns"
        ) from error
    if not all(same_bits(before, after) for before, after in courses[0]):
        raise InputError(
            registry.key,
            f"{name!r}, which delivers or keeps something else once it has taken in a micro-batch",
            "what only changes in step(), as the order of a step's messages must not matter",
            "Let accumulate() add up, and step() apply.",
        )
    if not all(same_bits(one[0], other[0]) for one, other in zip(*courses, strict=True)):
        raise InputError(
            registry.key,
            f"{name!r}, which goes on otherwise from a checkpoint",
            "that all it needs beside 'weights' is named in 'kept'",
            "What is not restored would be lost whenever the run resumes.",
        )


def _follow_q(rule: QRule, rows: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what a rule comes to in some steps, as pairs that must be alike."""
    features, error_dim = rule.weights.shape
    for step in range(_STEPS):
        for microbatch in range(_MICROBATCHES):
            generator = torch.Generator().manual_seed(_MICROBATCHES * step + microbatch)
            tapped, error = (
                torch.randn(*rows, width, generator=generator).to(rule.weights.device)
                for width in (features, error_dim)
            )
            seed_generators(0)
            errors = rule.errors(tapped, error)
            before, kept = rule.deliver(errors.delivered), deepcopy(rule.state())
            rule.accumulate(tapped, errors.learned)
            seed_generators(0)
            yield before, rule.deliver(rule.errors(tapped, error).delivered)
            yield torch.tensor(True), torch.tensor(same(kept, rule.state()))
        if rule.weights.grad is not None:
            yield rule.weights.grad, rule.weights.grad
            rule.weights.grad = None
        seed_generators(step)
        rule.step()
        yield rule.weights.clone(), rule.weights.clone()


def _follow_p(rule: PRule, rows: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Do as `_follow_q`."""
    for step in range(_STEPS):
        for microbatch in range(_MICROBATCHES):
            generator = torch.Generator().manual_seed(_MICROBATCHES * step + microbatch)
            error = torch.randn(*rows, rule.weights.shape[1], generator=generator).to(rule.weights.device)
            seed_generators(0)
            before, kept = rule.project(error), deepcopy(rule.state())
            rule.accumulate(error)
            seed_generators(0)
            yield before, rule.project(error)
            yield torch.tensor(True), torch.tensor(same(kept, rule.state()))
        seed_generators(step)
        rule.step()
        yield rule.weights.clone(), rule.weights.clone()
