"""Functions of a module that hold parts of the model: a copy of the module has the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from types import CellType, FunctionType, MethodType

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def captor(modules: Sequence[nn.Module]) -> str | None:
    """Return the name of the first of some modules, or of those within them, of which a function holds parts of them."""
    parts = {id(part) for module in modules for part in (*module.modules(), *module.parameters())}
    for name, part in chain.from_iterable(module.named_modules() for module in modules):
        hooks = [hook for key in _HOOKS for hook in getattr(part, key, {}).values()]
        attributes = [value for key, value in vars(part).items() if not key.startswith("_")]
        if any(id(held) in parts for held in _held([*hooks, *attributes])):
            return name or type(part).__name__
    return None


def _held(values: list[object]) -> Iterator[object]:
    """Yield what functions among some values hold, which `copy.deepcopy` doesn't copy; it does methods and partials."""
    seen: set[int] = set()
    ahead = [(value, False) for value in values]
    while ahead:
        value, is_shared = ahead.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if is_shared:
            yield value
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
            kept = (
                *(value.__defaults__ or ()),
                *(value.__kwdefaults__ or {}).values(),
                *vars(value).values(),
            )
            ahead += [(held, True) for held in (*cells, *kept)]
        elif isinstance(value, MethodType) and is_shared:
            ahead.append((value.__self__, True))
        elif isinstance(value, partial):
            ahead += [(held, is_shared) for held in (value.func, *value.args, *value.keywords.values())]
        elif isinstance(value, dict):
            ahead += [(held, is_shared) for held in value.values()]
        elif isinstance(value, list | tuple | set):
            ahead += [(held, is_shared) for held in value]


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # of a name that is not set yet
        return False
