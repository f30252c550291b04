"""Resolve the import paths by which a specification names models, data, losses, optimisers, schedulers and rules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from lowdimfa.config import path_of
from lowdimfa.errors import InputError, in_words
from lowdimfa.generators import reproducible
from lowdimfa.tickets import derive_seed

_ONCE = ("lowdimfa", "torch")
"""Packages of which a process has one alone, whatever the folders of modules say."""


def resolve(path: str | Callable[..., Any], where: str) -> Callable[..., Any]:
    """Import the callable that ``package.module:name`` or ``package.module.name`` names.

    Parameters
    ----------
    path
        Import path of a callable, for example ``lowdimfa.models:mlp`` or ``torch.optim.AdamW``; or the callable itself.
    where
        The key that holds the path, for the message.

    Raises
    ------
    InputError
        The path has no module part, the module can't be imported, or the name is missing or can't be called.
    """
    if not isinstance(path, str):
        return path
    module_name, colon, name = path.partition(":")
    if not colon:
        module_name, _, name = path.rpartition(".")
    if not module_name or not name:
        raise InputError(where, repr(path), "an import path such as 'package.module:factory'")
    try:
        # What a module draws, or seeds, while it is imported must not depend on which factory of it is the first.
        seed = derive_seed(0, "import", module_name)
        there = module_name in sys.modules
        with nullcontext() if there else reproducible(seed):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way while it is imported
        missing = getattr(error, "name", None) or module_name
        absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{missing}.")
        raise InputError(
            where,
            f"{path!r}, whose module fails to import ({in_words(error)})",
            "a module beside the specification, on PYTHONPATH, or installed"
            if absent
            else "a module that can be imported",
            clash_of(missing),
        ) from error
    if there and _is_another(module_name):
        expected = "one that is alone of its name, or a process of its own"
        raise InputError(
            where, f"{path!r}, whose module was imported from elsewhere", expected, clash_of(module_name)
        )
    target = getattr(module, name, None)
    if not callable(target):
        reason = "has no such name" if target is None else "is not callable"
        raise InputError(
            where,
            f"{path!r}, but {module_name!r} {reason} ({name!r})",
            "a callable factory",
            clash_of(module_name),
        )
    return target  # type: ignore[no-any-return]


def _is_another(module_name: str) -> bool:
    """Whether another file, with other text, would be imported now than that of the module that is there."""
    top, *inner = module_name.split(".")
    loaded = getattr(sys.modules.get(module_name), "__file__", None)
    found = PathFinder.find_spec(top) if loaded and top not in _ONCE else None
    if loaded is None or found is None:
        return False
    if inner:
        bases = [Path(place).joinpath(*inner) for place in found.submodule_search_locations or ()]
        files = [file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py")]
    else:
        files = [] if found.origin is None else [Path(found.origin)]
    first = next((file for file in files if file.is_file()), None)
    if first is None:
        return False
    try:  # a copy of the same folder, or the same one by another path, is no other
        return not first.samefile(loaded) and first.read_bytes() != Path(loaded).read_bytes()
    except OSError:
        return False


def call_factory(path: str | Callable[..., Any], args: dict[str, Any], where: str) -> Any:
    """Import and call a factory, or call it; whatever it raises becomes an `InputError` that names the key.

    Raises
    ------
    InputError
        The factory can't be imported, or it fails with the given arguments.
    """
    factory = resolve(path, where)
    try:
        return factory(**args)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a user's factory may fail in any way
        ended, name = isinstance(error, SystemExit), path if isinstance(path, str) else path_of(path)
        raise InputError(
            where,
            f"{name!r}, which {'ends the program' if ended else 'fails'} with arguments {args!r} ({in_words(error)})",
            "a factory that returns what it makes" if ended else "a factory that accepts these arguments",
        ) from error


def clash_of(module: str) -> str:
    """Say why a module can't be imported though its file is there: another one of its package's name is loaded.

    Parameters
    ----------
    module
        Full name of a module that can't be imported, or that lacks what is wanted of it.
    """
    name, *inner = module.split(".")
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if not loaded:
        return ""
    for entry in map(Path, sys.path):
        wanted = entry.joinpath(name, *inner)
        if Path(loaded).resolve() in {
            (entry / f"{name}.py").resolve(),
            (entry / name / "__init__.py").resolve(),
        }:
            continue
        if found := next(
            (file for file in (wanted.with_suffix(".py"), wanted / "__init__.py") if file.is_file()), None
        ):
            return f"{found} can't be imported, since {name!r} is the name of another module, {loaded}: rename yours."
    return ""
