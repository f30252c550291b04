"""Resolve the import paths by which a specification names models, data, losses, optimisers, schedulers and rules."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from lowdimfa.config import path_of
from lowdimfa.errors import InputError, in_words
from lowdimfa.generators import reproducible
from lowdimfa.tickets import derive_seed

_ONCE = ("lowdimfa", "torch")
"""Packages of which a process has one alone, whatever the folders of modules say."""

_OF_THE_PROGRAM = ("__main__", "__mp_main__", "conftest")
"""What no other process imports by these names: the program itself, and pytest's, of which several share one."""

_ALONE = "one that is alone of its name, or a process of its own"

_folders: set[str] = set()
"""The user's own, from which this process imports."""

_imported: dict[str, tuple[ModuleSpec, str]] = {}
"""What the user's modules were when they were first seen: a reload gives a module another `ModuleSpec`."""


def import_from(folder: Path, with_others: bool = True) -> None:
    """Let this process import from a folder of the user's own first.

    Parameters
    ----------
    folder
        Goes to the front of ``sys.path``.
    with_others
        Whether other processes will import from it too, and must get the same.

    Raises
    ------
    InputError
        A module of it was imported before its file was changed, or has the name of another folder's that was imported.
    """
    own = str(folder)
    path = [own, *(entry for entry in sys.path if entry != own)]
    for name, spec, file in _users_modules():
        if _is_another(name, path):
            found = f"a module {name!r}, and another of that name was imported from elsewhere"
            raise InputError(own, found, _ALONE, f"The other is {file}.")
        known, text = _imported.get(name, (None, ""))
        now = _text_of(file) if known is spec and _is_below(str(file), own) else ""
        if with_others and now and text and now != text and not _is_reloaded():
            raise InputError(
                str(file),
                "another text than when it was imported here",
                "the same: other processes of the run would import the new text, and this one has the old",
                f"Restart the program, or reload {name!r} with importlib and then what imports from it.",
            )
    sys.path[:] = path
    _folders.add(own)
    _remember()


def _is_reloaded() -> bool:
    """Whether a notebook keeps modules as their files are (``%autoreload``): what it patches stays the same module."""
    try:
        shell = sys.modules["IPython"].get_ipython()
        return bool(shell.magics_manager.registry["AutoreloadMagics"]._reloader.enabled)
    except (KeyError, AttributeError):
        return False


def _remember() -> None:
    """Note the texts of the user's modules that are new: nothing tells later what they were when they were imported."""
    for name, spec, file in _users_modules():
        known, _ = _imported.get(name, (None, ""))
        if known is not spec:
            _imported[name] = spec, _text_of(file)


def _users_modules() -> Iterator[tuple[str, ModuleSpec, Path]]:
    """Yield the modules that are loaded from the user's folders, but what is installed below one of them."""
    for name, module in list(sys.modules.items()) if _folders else ():
        # Not by `getattr`, at which some modules import others.
        spec = getattr(module, "__dict__", {}).get("__spec__")
        if not isinstance(spec, ModuleSpec) or not spec.has_location:
            continue
        if name.partition(".")[0] in _ONCE or name.rpartition(".")[2] in _OF_THE_PROGRAM:
            continue
        file = spec.origin or ""
        if any(_is_below(file, folder) for folder in _folders):
            yield name, spec, Path(file)


def _is_below(file: str, folder: str) -> bool:
    """Whether a folder has a module's file; no ``import`` from it leads to ``.venv`` or ``python3.11/site-packages``."""
    # The first sorts most out, at once.
    if not (file.startswith(folder) and Path(file).is_relative_to(folder)):
        return False
    return file.endswith(".py") and all(map(str.isidentifier, Path(file[:-3]).relative_to(folder).parts))


def _text_of(file: Path) -> str:
    """Return what tells texts apart; nothing of a file that isn't there any more."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


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
    there = module_name in sys.modules
    try:
        # What a module draws, or seeds, while it is imported must not depend on which factory of it is the first.
        seed = derive_seed(0, "import", module_name)
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
    finally:
        if not there:
            _remember()
    if there and _is_another(module_name, sys.path):
        raise InputError(
            where, f"{path!r}, whose module was imported from elsewhere", _ALONE, clash_of(module_name)
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


def _is_another(module_name: str, path: list[str]) -> bool:
    """Whether another file, with other text, would be imported from a path than that of the module that is there."""
    top, *inner = module_name.split(".")
    loaded = getattr(sys.modules.get(module_name), "__file__", None)
    found = PathFinder.find_spec(top, path) if loaded and top not in _ONCE else None
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
    spec, text = _imported.get(module_name, (None, ""))
    if spec is None or spec is not getattr(sys.modules[module_name], "__spec__", None):
        text = _text_of(Path(loaded))
    try:  # a copy of the same folder, or the same one by another path, is no other
        return not first.samefile(loaded) and "" != text != _text_of(first)
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
    finally:
        _remember()  # a factory may import, too


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
