"""The parameters of a converted model: what is learned feedback, and groups of them for an optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any, cast

from torch import Tensor, nn

from lowdimfa.chain.finding import CONVERTED
from lowdimfa.errors import InputError


def feedback_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the learned feedback weights of a converted model, each once: for an optimiser that has only the others."""
    converted = [module for module in model.modules() if isinstance(module, CONVERTED)]
    forward = {id(own) for module in converted for own in module.parameters(recurse=False)}
    parameters = (
        parameter
        for module in converted
        for parameter in cast(nn.Module, module.feedback).parameters()
        if parameter.requires_grad and id(parameter) not in forward  # a rule may hold its layer's weight
    )
    yield from {id(parameter): parameter for parameter in parameters}.values()


def parameter_groups(
    model: nn.Module, *, lr: float, feedback_lr: float, feedback_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return the parameters of a converted model in two groups for an optimiser: learned feedback in one of its own.

    The authors train the feedback of the rule ``normative`` with 1e-2 to 1.5e-2 where the weights have 3e-4 to 5e-4,
    without decay, and that of ``local`` with the rate and the decay of the weights (arXiv:2502.20580, version 4, and the
    configurations that its authors published), as Kolen and Pollack's rule needs it too: those need no second group.
    Other settings, such as the weights' decay, are the optimiser's.

    Parameters
    ----------
    model
        As `convert` returned it.
    lr, feedback_lr
        Learning rates of the weights, and of ``Q`` and ``P``.
    feedback_decay
        Weight decay of ``Q`` and ``P``.

    Returns
    -------
    The group of the weights, and that of the feedback if any is learned.

    Raises
    ------
    InputError
        The model isn't converted, or a rate or decay isn't a number of its range.
    """
    for name, value in (("lr", lr), ("feedback_lr", feedback_lr)):
        if not _is_number(value) or not 0 < value < math.inf:
            raise InputError(f"parameter_groups: {name}", repr(value), "a number above 0")
    if not _is_number(feedback_decay) or not 0 <= feedback_decay < math.inf:
        raise InputError("parameter_groups: feedback_decay", repr(feedback_decay), "0 or a number above it")
    if not any(isinstance(module, CONVERTED) for module in model.modules()):
        raise InputError("parameter_groups: model", "no converted layer", "a model that convert() returned")
    feedback = list(feedback_parameters(model))
    own = {id(parameter) for parameter in feedback}
    others = [parameter for parameter in model.parameters() if id(parameter) not in own]
    groups: list[dict[str, Any]] = [{"params": others, "lr": lr}]
    if feedback:
        groups.append({"params": feedback, "lr": feedback_lr, "weight_decay": feedback_decay})
    return groups


def _is_number(value: object) -> bool:
    return isinstance(value, Real | Tensor) and not isinstance(value, bool)
