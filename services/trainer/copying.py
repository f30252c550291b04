"""Copies of a model that was given as modules, and what stands against making any."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from lowdimfa.captured import captor
from lowdimfa.errors import InputError, in_words
from lowdimfa.layers import named_tensors


@dataclass(frozen=True)
class Copies:
    """Makes copies of a model with its weights, on the processor and without gradients."""

    original: object

    def __call__(self) -> object:
        """Return one.

        Raises
        ------
        InputError
            There can be none.
        """
        try:
            made = _copied(self.original, {})
        except Exception as error:  # whatever the user's modules raise
            found = f"a {type(self.original).__name__} that can't be copied ({in_words(error)})"
            hint = "Give what makes the model instead of the model."
            raise InputError("model.factory", found, "one that copy.deepcopy can copy", hint) from error
        for module in modules_of(made):
            module.zero_grad(set_to_none=True)
            if is_elsewhere(module):
                module.to("cpu")
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Copies:
        return Copies(_copied(self.original, memo))


def _copied(model: object, memo: dict[int, Any]) -> object:
    """Return a copy whose parameters have the attributes that the user gave them, which `copy.deepcopy` leaves out."""
    made = deepcopy(model, memo)
    for module in modules_of(model):
        for _, value in module.named_parameters():
            if (copy := memo.get(id(value))) is not None:  # a module may have copied it in its own way
                vars(copy).update(deepcopy(vars(value), memo))
    copies = [value for module in modules_of(made) for value in module.parameters()]
    own = {id(value) for module in modules_of(model) for value in module.parameters()}
    if any(id(value) in own for value in copies):
        raise TypeError("the copy would have parameters of the original")
    if any(not value.is_leaf for value in copies):
        raise TypeError("the copy's parameters would be no leaves of autograd's graph")
    return made


def modules_of(model: object) -> list[nn.Module]:
    """Return the modules of what may be a model; none if it isn't one."""
    parts = list(model) if isinstance(model, list | tuple) else [model]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return modules if len(modules) == len(parts) else []


def is_elsewhere(module: nn.Module) -> bool:
    """Return whether a module has tensors that are not on the processor."""
    return any(value.device.type != "cpu" for _, value in named_tensors(module))


def refuse_uncopied(modules: list[nn.Module]) -> None:
    """Refuse what a copy would not have.

    Raises
    ------
    InputError
        Tensors share memory without being one, or have none; or a parameter has a hook.
    """
    _refuse_captured(modules)
    tensors: dict[int, tuple[str, Tensor]] = {}
    for index, module in enumerate(modules):
        for name, value in named_tensors(module, str(index) if len(modules) > 1 else ""):
            if value.is_meta:
                raise InputError("model", f"{name!r} on the meta device", "weights, or what makes the model")
            if value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None):
                expected = "hooks on modules alone, as a copy has none of a tensor's"
                raise InputError("model", f"a hook on {name!r}", expected, "Or give what makes the model.")
            tensors.setdefault(id(value), (name, value))
    spans = sorted(_span(name, value) for name, value in tensors.values() if not nn.parameter.is_lazy(value))
    for (_, end, first), (start, _, second) in pairwise(span for span in spans if span[0] < span[1]):
        if start < end:
            raise InputError(
                "model",
                f"{first!r} and {second!r}, which share memory but are two tensors",
                "one parameter under both names, or memory of its own for each",
                "A copy would part them: assign the same nn.Parameter, or give what makes the model.",
            )


def _refuse_captured(modules: list[nn.Module]) -> None:
    """Refuse functions in place of methods, or as hooks, that hold parts of the model: a copy has the same ones."""
    if (name := captor(modules)) is not None:
        raise InputError(
            "model",
            f"a function at {name!r} that holds parts of the model itself",
            "methods of a module, which a copy has of its own",
            "The copies that train would compute with the original's weights: give what makes the model.",
        )


def _span(name: str, value: Tensor) -> tuple[int, int, str]:
    reach = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    first = value.data_ptr()
    return first, first + (reach + 1) * value.element_size() if value.numel() else first, name
