"""Resolve the import paths by which a specification names models, data, losses, optimisers and schedulers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from lowdimfa.errors import InputError
from lowdimfa.tickets import derive_seed, reproducible


def resolve(path: str, where: str) -> Callable[..., Any]:
    """Import the callable that ``package.module:name`` or ``package.module.name`` names.

    Parameters
    ----------
    path
        Import path of a callable, for example ``lowdimfa.models:mlp`` or ``torch.optim.AdamW``.
    where
        The key that holds the path, for the message.

    Raises
    ------
    InputError
        The path has no module part, the module can't be imported, or the name is missing or can't be called.
    """
    module_name, colon, name = path.partition(":")
    if not colon:
        module_name, _, name = path.rpartition(".")
    if not module_name or not name:
        raise InputError(where, repr(path), "an import path such as 'package.module:factory'")
    try:
        # What a module draws, or seeds, while it is imported must not depend on which factory of it is the first.
        with reproducible(derive_seed(0, "import", module_name)):
            module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way while it is imported
        raise InputError(
            where,
            f"{path!r}, whose module fails to import ({type(error).__name__}: {error})",
            "a module beside the specification, on PYTHONPATH, or installed",
        ) from error
    target = getattr(module, name, None)
    if not callable(target):
        reason = "has no such name" if target is None else "is not callable"
        raise InputError(where, f"{path!r}, but {module_name!r} {reason} ({name!r})", "a callable factory")
    return target  # type: ignore[no-any-return]


def call_factory(path: str, args: dict[str, Any], where: str) -> Any:
    """Import and call a factory; whatever it raises becomes an `InputError` that names the key.

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
    except Exception as error:  # a user's factory may fail in any way
        raise InputError(
            where,
            f"{path!r}, which fails with arguments {args!r} ({type(error).__name__}: {error})",
            "a factory that accepts these arguments",
        ) from error
