"""Whether factories that come with torch and this project take the arguments that a specification has for them.

Nothing is run and no module imported for that: signatures are read of what is in memory once this module is. Factories
of the user's own are for the cluster to try.
"""

from __future__ import annotations

import collections.abc
import functools
import importlib.util
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

# The modules whose factories specifications name.
import lowdimfa.data.images
import lowdimfa.data.synthetic
import lowdimfa.data.tabular
import lowdimfa.data.text
import lowdimfa.models  # noqa: F401
from lowdimfa.callback import Callback
from lowdimfa.optim import FOLLOWS_A_LOSS
from lowdimfa.services.spec.expectations import Path, listed
from lowdimfa.services.spec.given import Given
from lowdimfa.services.spec.learning import BlockOptimizer
from lowdimfa.services.spec.refusals import MOST_NAMED, Refusal, shown
from lowdimfa.services.spec.schema import Specification
from lowdimfa.services.spec.section import nearest, shortened

ROOTS = ("lowdimfa", "torch")
"""Packages whose factories are checked."""

_UNWRITABLE = "something that only Python can make"
_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
_WORDS: dict[object, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    None: "null",
    type(None): "null",
}
_NAMES: dict[str, Any] = vars(collections.abc) | vars(typing)
"""What annotations may name beyond their module: some import these for type checkers only."""


class _Use(NamedTuple):
    """A factory in a specification; ``given`` are the arguments that it gets by position."""

    path: Path
    factory: str | Given
    args: Mapping[str, Any]
    given: int = 0


def argument_refusals(specification: Specification) -> tuple[list[Refusal], bool]:
    """Return what is known to be wrong with factories and their arguments, and whether there is more than that."""
    train = specification.train
    uses = [_Use(("model",), *_of(specification.model)), _Use(("data",), *_of(specification.data))]
    sections: list[tuple[Path, Any]] = [(("train",), train)]
    sections += [(("train", "per_block", index), own) for index, own in train.per_block.items()]
    for path, section in sections:
        own = (
            section.optimizer.beside(train.optimizer)
            if isinstance(section.optimizer, BlockOptimizer)
            else None
        )
        for key, found in (("optimizer", own or section.optimizer), ("scheduler", section.scheduler)):
            if found is not None:
                uses.append(_Use((*path, key), *_of(found), given=1))
    uses += [
        _Use(("run", "callbacks", index), *_of(each))
        for index, each in enumerate(specification.run.callbacks)
    ]
    found = [refusal for use in uses for refusal in _refusals(use)] + list(_of_loss(train.loss))
    return found[:MOST_NAMED], len(found) > MOST_NAMED


def _of(section: Any) -> tuple[str | Given, Mapping[str, Any]]:
    return section.factory, section.args


def _refusals(use: _Use) -> Iterator[Refusal]:
    where = (*use.path, "factory")
    factory = _found(use.factory, where)
    if isinstance(factory, Refusal):
        yield factory
    elif factory is not None:
        kind = next((_KINDS[part] for part in map(str, use.path) if part in _KINDS), None)
        unfit = kind(factory) if kind and inspect.isclass(factory) else None
        if unfit is not None:
            yield Refusal(where, *unfit)
        else:
            yield from _of_arguments(use, factory)


def _of_arguments(use: _Use, factory: Callable[..., Any]) -> Iterator[Refusal]:
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (ValueError, TypeError):  # it has none that can be read
        return
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    names = [name for name, parameter in parameters.items() if parameter.kind not in _VARIADIC][use.given :]
    for name, value in use.args.items():
        path = (*use.path, "args", name)
        if name in names:
            annotation = _annotation(factory, parameters[name])
            if value != parameters[name].default and not _fits(value, annotation):
                yield Refusal(path, shown(value), _words(annotation), _own_factory(annotation))
        elif not takes_all:
            known = f"one of {', '.join(names)}" if names else "no arguments"
            yield Refusal(path, f"an argument that {use.factory} doesn't take", known, nearest(name, names))
    for name in names:
        if name not in use.args and parameters[name].default is inspect.Parameter.empty:
            annotation = _annotation(factory, parameters[name])
            expected = f"{_words(annotation)}, which {use.factory} needs"
            yield Refusal((*use.path, "args", name), "nothing", expected, _own_factory(annotation))


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _found(name: str | Given, where: Path) -> Callable[..., Any] | Refusal | None:
    """Return what an import path names, or why it can't be had; None if that is for the cluster to find out."""
    if isinstance(name, Given):
        return None
    module_name, colon, attribute = name.partition(":")
    if not colon:
        module_name, _, attribute = name.rpartition(".")
    if module_name.partition(".")[0] not in ROOTS:
        return None
    module = sys.modules.get(module_name)
    if module is None:
        parent = module_name.rpartition(".")[0]
        if parent not in sys.modules or _exists(module_name):
            return None
        return Refusal(where, f"{shortened(name)}, but there is no such module", f"a module of {parent}")
    target = getattr(module, attribute, None)
    if callable(target):
        return target  # type: ignore[no-any-return]
    public = [
        each for each in getattr(module, "__all__", dir(module)) if callable(getattr(module, each, None))
    ]
    reason = "has no such name" if target is None else "has it as a value that can't be called"
    return Refusal(
        where, f"{shortened(name)}, but {module_name} {reason}", "a factory", nearest(attribute, public)
    )


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what should hold it is no package
        return False


def _of_loss(name: str | Given) -> Iterator[Refusal]:
    where = ("train", "loss")
    loss = _found(name, where) if isinstance(name, str) and set(".:") & set(name) else None
    if isinstance(loss, Refusal):
        yield loss
    elif inspect.isclass(loss):
        yield Refusal(where, f"the class {name}", "a function of outputs and targets, such as mse")


def _optimizer(factory: type) -> tuple[str, str] | None:
    return (
        None
        if issubclass(factory, Optimizer)
        else (f"{factory.__name__}, which is no optimiser", "an optimiser")
    )


def _scheduler(factory: type) -> tuple[str, str] | None:
    if issubclass(factory, ReduceLROnPlateau):
        return FOLLOWS_A_LOSS
    return (
        None
        if issubclass(factory, LRScheduler)
        else (f"{factory.__name__}, which is no schedule", "a schedule")
    )


def _callback(factory: type) -> tuple[str, str] | None:
    return (
        None
        if issubclass(factory, Callback)
        else (f"{factory.__name__}, which is no callback", "a class derived from lowdimfa.Callback")
    )


_KINDS: dict[str, Callable[[type], tuple[str, str] | None]] = {
    "optimizer": _optimizer,
    "scheduler": _scheduler,
    "callbacks": _callback,
}


def _annotation(factory: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return the type of a parameter; `Any` where there is none, or it can't be told."""
    found = parameter.annotation
    if isinstance(found, str):
        home = sys.modules.get(getattr(factory, "__module__", ""))
        try:
            found = eval(found, _NAMES | vars(home) if home else _NAMES)
        except Exception:
            return Any
    return Any if found is inspect.Parameter.empty else found


def _fits(value: Any, annotation: Any) -> bool:
    """Return whether a plain value may stand where a type is wanted; in doubt it may."""
    try:
        adapter = _adapter(annotation)
    except Exception:  # a type that means nothing to pydantic, or can't be looked up
        return True
    try:
        adapter.validate_json(json.dumps(value))  # so that lists are tuples and sequences too
    except ValidationError:
        return False
    return True


@functools.cache  # they are those of built-in factories: few
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=_STRICT)


def _words(annotation: Any) -> str:
    """Say what a type takes, as far as a specification can hold it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    if annotation is Any or annotation is object:
        return "a value"
    if origin is Literal:
        return listed([repr(value) for value in arguments], "or")
    if origin in (Union, types.UnionType):
        said = dict.fromkeys(_words(each) for each in arguments)
        return " or ".join(word for word in said if word != _UNWRITABLE) or _UNWRITABLE
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        inner = {_words(each) for each in arguments if each is not ...}
        if _UNWRITABLE in inner:
            return _UNWRITABLE
        length = f" of {len(arguments)}" if origin is tuple and ... not in arguments else ""
        return f"a list{length}"
    return "a mapping" if origin is dict or annotation is dict else _UNWRITABLE


def _own_factory(annotation: Any) -> str:
    return "Name a factory of your own that makes it." if _words(annotation) == _UNWRITABLE else ""
