"""Run a model on an example, and leave it as it was: what a forward moves by itself is put back."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowdimfa.calling import FACTORY_KEY
from lowdimfa.encoding import overlaps_itself, same_bits
from lowdimfa.errors import InputError, in_words
from lowdimfa.generators import unchanged_generators

MOST_COPIED = 128 << 20
"""Bytes of frozen parameters that are put back after a forward; of more it isn't looked whether one has moved them."""

_OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes that every module has."""

COUNTS = (int, float, bool)
"""Attributes of these types may count calls."""


@contextmanager
def unchanged(
    model: nn.Module, device: torch.device, training: bool
) -> Iterator[Mapping[nn.Module, list[str]]]:
    """Enter one mode without gradients, then put back all that is the model's own, and the random state.

    That is the modules' modes, parameters, buffers, extra state and attributes. A forward may set a parameter by the
    first batch that it sees, or count calls: these are the batches and the calls of the training alone.

    Yields
    ------
    At the end it has, by module, the names of what was moved and is in no buffer: parameters, and attributes that are
    numbers or truth values, as a count on which what is computed may depend.

    Raises
    ------
    InputError
        A module has an extra state that can't be saved.
    """
    moved: dict[nn.Module, list[str]] = {}
    with torch.no_grad(), ExitStack() as after:
        # What is noted last is put back first: an extra state finds what it was taken of.
        for module in model.modules():
            after.callback(partial(setattr, module, "training", module.training))
            if _restores(module):
                after.callback(module.set_extra_state, _extra_state(module))
        for module, name, parameter in _parameters(model):
            note = moved.setdefault(module, []).append
            after.callback(_put_back, parameter, parameter.detach().clone(), partial(note, name))
        for module in model.modules():
            buffers = [buffer for buffer in module.buffers(recurse=False) if not is_lazy(buffer)]
            # What is noted first is put back last: the buffer in which an expanded one lies is then as it was.
            for buffer in sorted(buffers, key=overlaps_itself, reverse=True):
                after.callback(_put_back_buffer, buffer, buffer.clone())
            # A lazy one is made another class by its first forward, for good.
            if not any(map(is_lazy, module.parameters(recurse=False))):
                _keep_attributes(module, after, moved)
        with unchanged_generators(device):
            was_training = model.training
            model.train(training)
            try:
                yield moved
            finally:  # layers that change their weights with their mode change them back
                model.train(was_training)


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield the parameters to be put back, each once with a module that has it: learned ones, and frozen ones if few."""
    # Under `lowdimfa.emptied` values are made up anew for each operation, and copies would take the memory saved.
    # This thread's: torch's own flag is one for all, and threads that plan at once leave it set.
    if torch._C._len_torch_dispatch_stack():
        return
    found = {
        id(one): (module, name, one)
        for module in model.modules()
        for name, one in module.named_parameters(recurse=False)
        if not (is_lazy(one) or one.is_meta) and one.layout is torch.strided
    }
    # Of a large pretrained network copies could be more than memory, and nothing moves all of it.
    few = sum(one.nbytes for *_, one in found.values() if not one.requires_grad) <= MOST_COPIED
    yield from (each for each in found.values() if each[2].requires_grad or few)


def _put_back(parameter: nn.Parameter, value: Tensor, note: Callable[[], None]) -> None:
    if not same_bits(parameter, value):  # else nothing is written: it may lie in a file
        parameter.data.copy_(value)
        note()


def _put_back_buffer(buffer: Tensor, value: Tensor) -> None:
    if buffer.shape != value.shape:
        buffer.data = value
    elif not _is_plain(buffer) or buffer.is_quantized:  # of which nobody can tell whether it has moved
        if not overlaps_itself(buffer):
            buffer.copy_(value)
    elif not same_bits(buffer, value):  # else nothing is written: its elements may share memory
        overwrite(buffer, value)


def overwrite(tensor: Tensor, value: Tensor) -> None:
    """Give a tensor other values of its shape, behind autograd's back; in other memory where it can't be written to."""
    if overlaps_itself(tensor):
        tensor.data = value.clone()
    else:
        tensor.data.copy_(value)


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes that not every module has."""
    return {name: value for name, value in vars(module).items() if name not in _OF_MODULES}


def _keep_attributes(module: nn.Module, after: ExitStack, moved: dict[nn.Module, list[str]]) -> None:
    """Have a module's attributes put back, and its tables of parameters and buffers, with what is in them."""
    kept = own_attributes(module)
    # Among the tables that every module has: its children and its hooks, of which one may remove itself.
    tables = [
        value for name, value in vars(module).items() if name in _OF_MODULES and isinstance(value, dict)
    ]
    for value in (*tables, *kept.values()):
        if isinstance(value, list | dict | set | deque):
            after.callback(_refill, value, copy(value))
        elif isinstance(value, Tensor) and _is_plain(value):
            after.callback(_put_back_tensor, value, value.detach().clone())
        elif isinstance(value, numpy.ndarray):
            after.callback(_put_back_array, value, value.copy())
        elif isinstance(value, torch.Generator):
            after.callback(value.set_state, value.get_state())
    after.callback(_put_back_attributes, module, kept, moved)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not (
        tensor.is_meta or tensor.requires_grad or torch._C._len_torch_dispatch_stack()
    )


def _put_back_tensor(tensor: Tensor, value: Tensor) -> None:
    if tensor.shape != value.shape or not same_bits(tensor, value):
        tensor.data = value


def _put_back_array(array: numpy.ndarray[Any, Any], value: numpy.ndarray[Any, Any]) -> None:
    if array.shape == value.shape:
        array[...] = value


def _put_back_attributes(module: nn.Module, kept: dict[str, Any], moved: dict[nn.Module, list[str]]) -> None:
    own = vars(module)
    counts = {name: value for name, value in kept.items() if type(value) in COUNTS}
    if names := [
        name for name, value in counts.items() if type(own.get(name)) in COUNTS and own[name] != value
    ]:
        moved.setdefault(module, []).extend(names)
    for name in [name for name in own if name not in _OF_MODULES and name not in kept]:
        del own[name]
    own |= kept


def _refill(container: Any, content: Any) -> None:
    """Let a container have this content again."""
    pairs = [each.items() if isinstance(each, dict) else each for each in (container, content)]
    # By identity: tensors have no truth to compare them by.
    if len(container) == len(content) and all(map(_are_same, *pairs)):
        return
    container.clear()
    fill: Callable[[Any], None] = (
        container.extend if isinstance(container, list | deque) else container.update
    )
    fill(content)


def _are_same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):  # an entry of a table
        return all(map(operator.is_, one, other))
    return one is other


def _extra_state(module: nn.Module) -> Any:
    try:
        return deepcopy(module.get_extra_state())
    except (Exception, SystemExit) as error:  # the user's own
        found = f"a {type(module).__name__} whose get_extra_state fails ({in_words(error)})"
        raise InputError(FACTORY_KEY, found, "a state that can be saved") from error


def _restores(module: nn.Module) -> bool:
    """Whether a module has extra state, and takes it back."""
    kind = type(module)
    return (
        kind.get_extra_state is not nn.Module.get_extra_state
        and kind.set_extra_state is not nn.Module.set_extra_state
    )
