"""What the micro-batches of a step have accumulated in a block and its next step will use up.

Replicas of a block, each of which has worked on some of a step's micro-batches, add this up among themselves and go on
as one. Nothing here knows how they reach each other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from lowdimfa.encoding import is_dense
from lowdimfa.feedback.rules import QRule
from lowdimfa.stage import Stage


class Slot(NamedTuple):
    """One sum over the micro-batches of a step.

    Attributes
    ----------
    like
        A tensor of the sum's shape and element type, on the block's device.
    read
        Returns the sum, or None where no micro-batch has added anything.
    write
        Puts another value of the same shape in its place.
    """

    like: Tensor
    read: Callable[[], Tensor | None]
    write: Callable[[Tensor], None]


def pending_sums(stage: Stage) -> list[Slot]:
    """Return all that the next step of a block uses up, in the same order in every replica of the block."""
    slots = [_gradient(parameter) for parameter in stage.updater.trained]
    for site in stage.sites:
        slots += _own_sum(site.feedback)
    return slots


def sums_of(rule: QRule) -> list[Slot]:
    """Return what of that is a rule's."""
    return [*([_gradient(rule.weights)] if rule.trained_by_optimizer else []), *_own_sum(rule)]


def _gradient(parameter: nn.Parameter) -> Slot:
    return Slot(parameter, partial(getattr, parameter, "grad"), partial(_set_gradient, parameter))


def _own_sum(rule: QRule) -> list[Slot]:
    has_one = type(rule).pending is not QRule.pending
    return [Slot(rule.weights, rule.pending, rule.set_pending)] if has_one else []


def running_statistics(stage: Stage) -> dict[str, Tensor]:
    """Return a block's dense buffers, such as batch norm's running mean, not as copies; also those of no state dict."""
    return {name: buffer for name, buffer in stage.module.named_plain_buffers() if is_dense(buffer)}


def _set_gradient(parameter: nn.Parameter, value: Tensor) -> None:
    if parameter.grad is None:
        # With the strides of the parameter, in memory of its own: as autograd would have made it.
        parameter.grad = parameter.detach().clone()
    parameter.grad.copy_(value)
