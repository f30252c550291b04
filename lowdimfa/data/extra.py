"""Packages that not everybody has, each of an extra: imported when they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lowdimfa.errors import InputError


def package(name: str, key: str = "", extra: str = "hf") -> Any:
    """Import a package of an extra; ``key`` is what of a specification needs it.

    Raises
    ------
    InputError
        It isn't installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            key or name.partition(".")[0],
            f"a package that can't be imported, {name} ({error})",
            "that it is installed",
            f"Install it with: pip install 'lowdimfa[{extra}]'",
        ) from error
