"""Packages that load a name when it is first used, so that a command that trains nothing doesn't wait for torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def on_demand(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and ``__dir__`` of a package.

    Parameters
    ----------
    package
        Its ``__name__``.
    names
        Of each of its modules, the names that the package offers, with blanks between them.
    """
    modules = {name: module for module, own in names.items() for name in own.split()}

    def getattr_(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    def dir_() -> list[str]:
        return sorted({*vars(import_module(package)), *modules})

    return getattr_, dir_
