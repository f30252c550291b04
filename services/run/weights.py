"""What a network begins with beside what its factory made: weights of a file, and parameters that stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from lowdimfa.errors import InputError


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters of a model whose names fit a pattern.

    Parameters
    ----------
    model
        As the factory made it; its lazy layers may not have their weights yet.
    patterns
        Of names in the plain model, as shells have them: ``*`` is any number of characters, dots among them.

    Raises
    ------
    InputError
        A pattern fits no parameter.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        fitting = [parameter for name, parameter in named if fnmatchcase(name, pattern)]
        if not fitting:
            raise unused("model.frozen", pattern, [name for name, _ in named])
        for parameter in fitting:
            parameter.requires_grad = False


def unused(key: str, pattern: str, names: Sequence[str]) -> InputError:
    """Return what to raise for a pattern that fits none of the names."""
    some = ", ".join(map(repr, names[:3])) or "none at all"
    return InputError(
        key,
        f"the pattern {pattern!r}, which fits none of the model's names",
        f"patterns of names in the plain model, such as {some}",
    )
