"""The mode under which a factory builds some layers of a network: which tensors keep memory, and what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import init
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from lowdimfa.emptied import Emptied, Slot, address, empty, is_plain, tensors_in, weakly

_SHAPE_ALONE = (
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "rand_like",
    "randn_like",
    "randint_like",
)
_OVERWRITES = (
    "normal_",
    "uniform_",
    "fill_",
    "zero_",
    "copy_",
    "random_",
    "exponential_",
    "log_normal_",
    "cauchy_",
)
_COPIES = ("clone", "_to_copy")
_MOVES = ("set_", "resize_", "resize_as_", "_resize_output_")


@dataclass(frozen=True)
class Draw:
    """A random operation.

    Attributes
    ----------
    numbers
        The large tensors that it fills, or None if it makes something else, which is always wanted.
    state
        Of the generator before it.
    continues
        Whether that is how the operation before it left the same generator.
    """

    numbers: frozenset[int] | None
    state: Tensor
    continues: bool

    def is_wanted(self, kept: frozenset[int]) -> bool:
        """Whether what it draws is in one of these tensors, or in a small one."""
        return self.numbers is None or bool(self.numbers & kept)


class Building(Emptied):  # type: ignore[no-untyped-call]
    """Numbers the large tensors that a factory makes, follows what depends on them, and keeps some.

    Parameters
    ----------
    smallest
        Bytes of a large tensor.
    kept
        The numbers of those that keep their memory.
    drawn
        The numbers of the random operations that are done; None does all and notes them in ``course``.
    states
        Of the generator before some of them.

    Attributes
    ----------
    made, draws
        How many large tensors and random operations there were.
    course
        The random operations.
    """

    def __init__(
        self,
        smallest: int,
        kept: frozenset[int] = frozenset(),
        drawn: Collection[int] | None = None,
        states: Mapping[int, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.made = self.draws = 0
        self.course: list[Draw] = []
        self._smallest, self._kept, self._drawn, self._states = smallest, kept, drawn, states or {}
        self._sources: dict[int, tuple[StorageWeakRef, frozenset[int]]] = {}
        self._left: tuple[torch.Generator, Tensor] | None = None

    def sources(self, tensor: Tensor) -> frozenset[int]:
        """Return the numbers of the large tensors on whose values a tensor's depend, itself one of them."""
        found = self._sources.get(address(tensor)) if is_plain(tensor) else None
        return frozenset() if found is None else found[1]

    def is_known(self, tensor: Tensor) -> bool:
        """Whether a tensor is large, or depends on one that is."""
        return is_plain(tensor) and address(tensor) in self._sources

    def is_absent(self, tensor: Tensor) -> bool:
        """Whether a tensor's values aren't those of a whole build."""
        return not self.sources(tensor) <= self._kept

    def alive(self) -> set[int]:
        """Return the addresses of what is known and still held by somebody."""
        return {place for place, (storage, _) in self._sources.items() if not storage.expired()}  # type: ignore[no-untyped-call]

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do an operation, or do as if."""
        call = _Call(func, args, kwargs)
        absent = [tensor for tensor in call.given if self.is_absent(tensor)]
        if call.is_draw:
            return self._draw(call, absent)
        if absent and call.in_place and all(self._is_empty(tensor) for tensor in call.written):
            return self._left_out(call)
        return self._run(call, absent)

    def _is_empty(self, tensor: Tensor) -> bool:
        slot = self.slot_of(tensor)
        return slot is not None and slot.number not in self._kept

    def _left_out(self, call: _Call) -> Any:
        """Do as if an operation had changed values that aren't there."""
        self._depend(call, ())
        return call.written[0] if call.returns else None

    def _run(self, call: _Call, absent: list[Tensor]) -> Any:
        before = {address(tensor) for tensor in call.given}
        looked_at = bool(absent) and not (call.is_view or call.moves or call.is_draw)
        with self.filled(call.given, made_up=looked_at and call.name not in _COPIES):
            try:
                result = call.func(*call.args, **call.kwargs)
            except Exception as error:
                if absent:
                    raise self.refuse(f"{call.name} ({error})") from error
                raise
        outputs = tensors_in(result)
        if looked_at and (call.is_dynamic or (call.returns and not outputs)):
            raise self.refuse(f"{call.name} of values that are not there")
        self._depend(call, {address(t): t for t in outputs if address(t) not in before}.values())
        return result

    def _depend(self, call: _Call, new: Iterable[Tensor]) -> None:
        """Note on what new and changed tensors depend, and take the memory of those that aren't kept."""
        whole = self._overwrites(call)
        read = [tensor for tensor in call.given if not (whole and tensor is call.written[0])]
        sources = frozenset[int]().union(*map(self.sources, read))
        for tensor in call.written:
            slot = self.slot_of(tensor)
            kept = frozenset[int]() if whole else self.sources(tensor)
            self._note(tensor, sources | kept | (frozenset() if slot is None else {slot.number}))
        if call.name in _SHAPE_ALONE or call.name.startswith("new_"):
            sources = frozenset()
        for tensor in new:
            storage = tensor.untyped_storage()
            if storage.nbytes() < self._smallest or not (tensor.is_floating_point() or tensor.is_complex()):
                self._note(tensor, sources)
                continue
            slot = Slot(self.made, storage.nbytes(), weakly(storage))
            self.made += 1
            self.slots[address(tensor)] = slot
            self._note(tensor, sources | {slot.number})
            if slot.number not in self._kept:
                empty(slot, storage)

    def _note(self, tensor: Tensor, sources: frozenset[int]) -> None:
        if sources:
            self._sources[address(tensor)] = weakly(tensor.untyped_storage()), sources
        else:
            self._sources.pop(address(tensor), None)

    def _overwrites(self, call: _Call) -> bool:
        """Whether a whole storage gets values that don't depend on those it had."""
        if call.name not in _OVERWRITES or not call.written:
            return False
        tensor = call.written[0]
        slot = self.slot_of(tensor)
        nbytes = tensor.untyped_storage().nbytes() if slot is None else slot.nbytes
        return tensor.is_contiguous() and tensor.nbytes == nbytes

    def _draw(self, call: _Call, absent: list[Tensor]) -> Any:
        filled = call.written[:1]
        looked_at = [tensor for tensor in absent if not any(tensor is target for target in filled)]
        if looked_at and call.name not in _SHAPE_ALONE:
            raise self.refuse(f"{call.name} by values that are not there")
        if not self._begin(call.generator) and filled:
            return self._left_out(call)
        made, state = self.made, call.generator.get_state()
        result = self._run(call, absent)
        slots = [self.slot_of(tensor) for tensor in filled]
        numbers = {slot.number for slot in slots if slot is not None} | set(range(made, self.made))
        self._drew(call.generator, state, frozenset(numbers) if numbers else None)
        return result

    def _begin(self, generator: torch.Generator) -> bool:
        """Count a draw, bring the generator to where it is in a whole build, and return whether the draw is wanted."""
        number = self.draws
        self.draws += 1
        if number in self._states:
            generator.set_state(self._states[number])
        return self._drawn is None or number in self._drawn

    def _drew(self, generator: torch.Generator, state: Tensor, numbers: frozenset[int] | None) -> None:
        if self._drawn is not None:
            return
        continues = (
            self._left is not None and self._left[0] is generator and torch.equal(self._left[1], state)
        )
        self.course.append(Draw(numbers, state, continues))
        self._left = generator, generator.get_state()

    def at_once(self, initialise: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a function that fills a tensor, made one draw however often it draws and looks at what it drew."""

        def initialised(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            with self.at_work():
                slot = self.slot_of(tensor) if self.is_active() and is_plain(tensor) else None
            if slot is None or tensor.nbytes < slot.nbytes or not tensor.is_contiguous():
                return initialise(tensor, *args, **kwargs)
            generator = kwargs.get("generator") or torch.default_generator
            with self.at_work(), _disable_current_modes():
                if self._begin(generator):
                    state = generator.get_state()
                    with self.filled([tensor], made_up=False):
                        initialise(tensor, *args, **kwargs)
                    self._drew(generator, state, frozenset([slot.number]))
                self._note(tensor, frozenset([slot.number]))
            return tensor

        return initialised

    def is_active(self) -> bool:
        """Whether this thread is within the mode."""
        return self in _get_current_dispatch_mode_stack()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Enter the mode; drawing by rejection, which looks at values, becomes one draw."""
        whole = init._no_grad_trunc_normal_
        with mock.patch.object(init, "_no_grad_trunc_normal_", self.at_once(whole)), super().active():
            yield


def is_rebuilding() -> bool:
    """Whether this thread builds some layers of a network whose factory has already run as a whole, for the outline."""
    modes = _get_current_dispatch_mode_stack()
    return any(isinstance(mode, Building) and mode._drawn is not None for mode in modes)


class _Call:
    """One operation: what it takes and what it changes."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name = func._schema.name.split("::")[-1]
        self.given = tensors_in(args, kwargs)
        parameters, tags = func._schema.arguments, func.tags
        values = {parameter.name: value for parameter, value in zip(parameters, args, strict=False)} | kwargs
        changed = [p.name for p in parameters if p.alias_info is not None and p.alias_info.is_write]
        self.written = tensors_in([values.get(name) for name in changed])
        self.returns = len(func._schema.returns)
        self.is_draw = torch.Tag.nondeterministic_seeded in tags
        self.is_dynamic = bool({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(tags))
        self.is_view = func.is_view
        self.moves = self.name in _MOVES or torch.Tag.inplace_view in tags
        # Such as mul_ and _foreach_mul_: one thing is changed, and returned or not.
        self.in_place = (
            self.name.endswith("_") and len(changed) == 1 and bool(self.written) and not self.moves
        )
        given = values.get("generator")
        self.generator = given if isinstance(given, torch.Generator) else torch.default_generator
