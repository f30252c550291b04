"""What is given to `DecoupledTrainer` as Python objects, as the sections of a specification."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lowdimfa.config import FactoryConfig, FeedbackConfig
from lowdimfa.data.base import Dataset
from lowdimfa.errors import InputError, in_words
from lowdimfa.losses import without_parameters
from lowdimfa.metrics import is_metric
from lowdimfa.services.spec.given import Given
from lowdimfa.services.spec.learning import metric_names
from lowdimfa.services.spec.section import shortened
from lowdimfa.services.trainer.copying import Copies, is_elsewhere, modules_of, refuse_uncopied

_EVERYWHERE = ("torch", "lowdimfa")
"""Packages that every process has in the same version: what is theirs can be written down."""


@dataclass(frozen=True)
class Itself:
    """Returns what it was given."""

    value: object

    def __call__(self) -> object:
        """Return it."""
        return self.value


def described(
    model: object = None,
    data: object = None,
    blocks: object = None,
    collate: object = None,
    feedback: FeedbackConfig | Mapping[str, Any] | None = None,
    **train: object,
) -> dict[str, Any]:
    """Return the specification of what was given; what is None was not.

    Parameters
    ----------
    model, data, blocks, collate, feedback, train
        As `DecoupledTrainer` takes them; ``train`` are the keys of that section.

    Raises
    ------
    InputError
        Something is no such thing, and no file can say what it is.
    """
    makers = {"optimizer": optimizer_section, "scheduler": scheduler_section, "loss": loss_value}
    makers["metrics"] = metric_sections
    sections: dict[str, Any] = {
        "model": {} if model is None else model_section(model),
        "train": {
            key: makers[key](value) if key in makers else value
            for key, value in train.items()
            if value is not None
        },
    }
    if blocks is not None:
        sections["model"]["blocks"] = list(blocks) if isinstance(blocks, tuple) else blocks
    if data is not None:
        sections["data"] = data_section(data)
    if collate is not None:
        written = _section(collate)["factory"] if callable(collate) else collate
        sections["data"] = sections.get("data", {}) | {"collate": written}
    if feedback is not None:
        sections["feedback"] = feedback_section(feedback)
    return sections


def model_section(model: object) -> dict[str, Any]:
    """Return a model as the keys ``factory`` and ``args``.

    Raises
    ------
    InputError
        It is nothing that is a model or makes one; or its weights can't be copied.
    """
    if modules := modules_of(model):
        refuse_uncopied(modules)
        # Another process may have no such device.
        held = Copies(model)() if any(map(is_elsewhere, modules)) else model
        return {"factory": Given.of(_name(model), Copies(held), whole=True), "args": {}}
    if isinstance(model, str | Mapping) or callable(model):
        return _section(model)
    expected = "an nn.Module, a list of modules, what returns one of these, or an import path"
    raise InputError("model", f"a {type(model).__name__}", expected)


def data_section(data: object) -> dict[str, Any]:
    """Return data as the keys ``factory`` and ``args``; what they may be is for the plan to say."""
    if isinstance(data, tuple | list | Dataset) or not (isinstance(data, str | Mapping) or callable(data)):
        return {"factory": Given.of(_name(data), Itself(data)), "args": {}}
    return _section(data)


def optimizer_section(optimizer: object) -> dict[str, Any]:
    """Return an optimiser as the keys ``factory`` and ``args``.

    Raises
    ------
    InputError
        It is already made, or nothing that makes one.
    """
    if isinstance(optimizer, Optimizer):
        raise _made(
            "optimizer", optimizer, "every block has one of its own, for its own parameters", ", lr=…"
        )
    return _called("optimizer", optimizer)


def scheduler_section(scheduler: object) -> dict[str, Any]:
    """Return a schedule as the keys ``factory`` and ``args``.

    Raises
    ------
    InputError
        As for an optimiser.
    """
    if isinstance(scheduler, LRScheduler):
        raise _made("scheduler", scheduler, "every block has one of its own, for its own optimiser", ", …")
    return _called("scheduler", scheduler)


def loss_value(loss: object) -> object:
    """Return what the key ``loss`` holds.

    Raises
    ------
    InputError
        It is no function of outputs and targets, or has parameters, which nothing would train.
    """
    if isinstance(loss, str):
        return loss
    if inspect.isclass(loss) or not callable(loss):
        found = f"the class {loss.__name__}" if inspect.isclass(loss) else f"a {type(loss).__name__}"
        raise InputError("loss", found, "a name, or a function of outputs and targets")
    if isinstance(loss, nn.Module):
        loss = deepcopy(without_parameters(loss, "loss"))
    return Given.of(_name(loss), loss)


def metric_sections(metrics: object) -> dict[str, Any]:
    """Return metrics by name, each as the keys ``factory`` and ``args``; those of a list are called as they are defined.

    Raises
    ------
    InputError
        One is nothing that measures, or can't be copied; or two have one name.
    """
    if isinstance(metrics, Mapping):
        return {str(name): _metric(f"metrics.{name}", each) for name, each in metrics.items()}
    if not isinstance(metrics, list | tuple):
        found = f"a {type(metrics).__name__}"
        raise InputError("metrics", found, "a mapping from names to metrics, or a list of metrics")
    named: dict[str, Any] = {}
    for index, each in enumerate(metrics):
        name = metric_names([each if isinstance(each, str) else _name(each)])[0]
        if name in named or isinstance(each, Mapping):
            twice = f"a second {name!r}" if name in named else "which has no name"
            expected = "a mapping from names to metrics"
            raise InputError(f"metrics[{index}]", f"{shortened(each)}, {twice}", expected)
        named[name] = _metric(f"metrics[{index}]", each)
    return named


def _metric(where: str, value: Any) -> dict[str, Any]:
    if not is_metric(value):
        bare = isinstance(value, str) and metric_names([value]) == [value]
        if not bare and (isinstance(value, str | Mapping) or callable(value)):
            return _section(value)
        found = repr(value) if bare else f"a {type(value).__name__}"
        expected = "an object with reset, update and compute, a class of such, a function, or an import path"
        raise InputError(where, found, expected)
    try:
        return {"factory": Given.of(_name(value), deepcopy(value)), "args": {}}
    except Exception as error:  # whatever the user's classes raise
        found = f"a {type(value).__name__} that can't be copied ({in_words(error)})"
        raise InputError(where, found, "one that copy.deepcopy can copy, or what makes it") from error


def feedback_section(feedback: FeedbackConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Return feedback as its section, a rule of one's own as the keys ``factory`` and ``args``.

    Raises
    ------
    InputError
        It is neither.
    """
    if isinstance(feedback, Mapping):
        return dict(feedback)
    if not isinstance(feedback, FeedbackConfig):
        raise InputError("feedback", shortened(feedback), "a FeedbackConfig, or a mapping with its keys")
    given = {each.name: getattr(feedback, each.name) for each in fields(feedback)}
    return {key: _rule(value) if isinstance(value, FactoryConfig) else value for key, value in given.items()}


def _rule(value: FactoryConfig) -> dict[str, Any]:
    factory = value.factory
    return {
        "factory": factory if isinstance(factory, str) else _section(factory)["factory"],
        "args": dict(value.args),
    }


def _called(key: str, value: object) -> dict[str, Any]:
    if isinstance(value, str | Mapping) or callable(value):
        return _section(value)
    expected = (
        f"what makes one, such as functools.partial(torch.optim.{_EXAMPLES[key]}, …), or an import path"
    )
    raise InputError(key, f"a {type(value).__name__}", expected)


_EXAMPLES = {"optimizer": "AdamW", "scheduler": "lr_scheduler.OneCycleLR"}


def _made(key: str, value: object, why: str, arguments: str) -> InputError:
    kind, path = type(value).__name__, _import_path(type(value))
    name = f"torch.optim.{'' if key == 'optimizer' else 'lr_scheduler.'}{kind}" if path else kind
    return InputError(
        key,
        f"a {kind} that is already made",
        f"what makes one: {why}",
        f"Give functools.partial({name}{arguments}).",
    )


def _section(value: Any) -> dict[str, Any]:
    """Return the keys ``factory`` and ``args`` of a path, a mapping, or what is called; plain arguments stay readable."""
    if isinstance(value, str):
        return {"factory": value, "args": {}}
    if isinstance(value, Mapping):
        return dict(value)
    factory, args = value, {}
    if isinstance(value, partial) and not value.args and _is_plain(value.keywords):
        factory, args = value.func, dict(value.keywords)
    return {"factory": _import_path(factory) or Given.of(_name(value), factory), "args": args}


def _import_path(factory: Any) -> str:
    """Return the shortest import path of something of torch or of this package; nothing for all else."""
    name, home = getattr(factory, "__qualname__", ""), str(getattr(factory, "__module__", ""))
    parts = home.split(".")
    if parts[0] not in _EVERYWHERE or "." in name:
        return ""
    modules = (".".join(parts[: length + 1]) for length in range(len(parts)))
    found = (module for module in modules if getattr(sys.modules.get(module), name, None) is factory)
    return next((f"{module}.{name}" for module in found), "")


def _is_plain(args: Mapping[str, Any]) -> bool:
    """Return whether arguments are the same once they are written down and read."""
    try:
        return bool(json.loads(json.dumps(args, allow_nan=False)) == args)
    except (TypeError, ValueError):
        return False


def _name(value: Any) -> str:
    if isinstance(value, partial):
        return _name(value.func)
    return (
        str(getattr(value, "__qualname__", type(value).__qualname__)).rpartition("<locals>.")[2].strip("<>")
    )
