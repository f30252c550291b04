"""Build some layers of a network with the same bits as in a whole build, without memory for the others.

The factory is called as for a whole build. Large tensors that aren't of these layers lose their memory as soon as an
operation is done with them, and what would only change their values is left out; so the peak is what is kept and the
largest other tensor. A first call, in which nothing is kept and everything is drawn (`outline`), finds which tensors
each layer comes from, by whatever copies, and from which states of the random generator its numbers are drawn. A later
one (`Share.build`) draws only what is kept. Where values that are not there would be looked at, both refuse.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowdimfa.building import Building, Draw
from lowdimfa.emptied import Emptied, UnfitError, address, forget, tensors_of
from lowdimfa.layers import Layer, list_layers

SMALLEST = 1 << 16
"""Bytes of the smallest tensor that loses its memory; smaller ones are always there."""


@dataclass(frozen=True)
class Share:
    """How to build some layers alone: plain data, the same in every process.

    Attributes
    ----------
    layers
        Their names.
    kept
        Numbers of the tensors that keep their memory, in the order in which the factory makes those of a size.
    drawn
        Numbers of the random operations whose numbers are wanted.
    states
        Of the generator before those of them that don't follow another one.
    made, draws
        Tensors and random operations in all.
    smallest
        See `SMALLEST`.
    """

    layers: tuple[str, ...]
    kept: frozenset[int]
    drawn: frozenset[int]
    states: dict[int, Tensor]
    made: int
    draws: int
    smallest: int

    def build(self, make: Callable[[], nn.Module]) -> list[Layer]:
        """Return the layers, with the values of a whole build.

        Parameters
        ----------
        make
            Calls the factory, with the same seeds as `outline` did.

        Raises
        ------
        UnfitError
            The factory did something else than in the outline.
        """
        building = Building(self.smallest, self.kept, self.drawn, self.states)
        with building.active():
            model = make()
        if (building.made, building.draws) != (self.made, self.draws):
            raise UnfitError("a factory that builds something else each time")
        chosen = {layer.name: layer for layer in list_layers(model)}
        own = [chosen[name] for name in self.layers if name in chosen]
        absent = [
            tensor for layer in own for tensor in tensors_of(layer.module) if building.is_absent(tensor)
        ]
        if absent or len(own) < len(self.layers):
            raise UnfitError("a factory that builds its layers otherwise each time")
        _forget_absent(model, building)
        return own


class Outline:
    """A network of which everything is known but the values of its large tensors.

    Attributes
    ----------
    model
        The whole, with little memory.
    layers
        Of the model.
    nbytes
        Of its parameters and buffers, were they all there.
    """

    def __init__(self, model: nn.Module, building: Building, smallest: int) -> None:
        self.model, self.layers = model, list_layers(model)
        self._building, self._smallest = building, smallest
        tensors = {id(t): t for layer in self.layers for t in tensors_of(layer.module)}
        if any(is_lazy(tensor) for tensor in tensors.values()):
            raise UnfitError("layers that draw their weights when they first see a batch")
        self.nbytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        self._needs = {layer.name: self._needed(layer.module) for layer in self.layers}
        held = {address(tensor) for tensor in tensors.values() if building.is_known(tensor)}
        if building.alive() - held:
            gc.collect()  # of what the factory has dropped; the rest is what somebody holds
        if building.alive() - held:
            raise UnfitError("large tensors that no layer holds")

    def running(self) -> Emptied:
        """Return a mode under which the model runs, on made-up weights, with memory for what one operation needs."""
        return Emptied(self._building.slots)

    def share(self, names: Sequence[str]) -> Share:
        """Return how to build some of the layers alone."""
        kept = frozenset[int]().union(*(self._needs[name] for name in names))
        building, course = self._building, self._building.course
        drawn = frozenset(number for number, draw in enumerate(course) if draw.is_wanted(kept))
        states = {number: course[number].state for number in drawn if _begins(number, course, drawn)}
        return Share(tuple(names), kept, drawn, states, building.made, building.draws, self._smallest)

    def _needed(self, module: nn.Module) -> frozenset[int]:
        return frozenset[int]().union(*(self._building.sources(tensor) for tensor in tensors_of(module)))

    def close(self) -> None:
        """Let the model hold shapes alone, on the meta device; it runs no more."""
        _forget_absent(self.model, self._building)


def outline(make: Callable[[], nn.Module], smallest: int | None = None) -> Outline:
    """Call a factory with memory for one large tensor at a time.

    Raises
    ------
    UnfitError
        The factory looks at values of large tensors, or makes lazy layers, or keeps tensors outside of layers.
    """
    smallest = SMALLEST if smallest is None else smallest
    building = Building(smallest)
    try:
        with building.active():
            model = make()
    except Exception as error:
        if building.unfit is not None:  # the user's own code may have caught it, and failed later
            raise UnfitError(building.unfit) from error
        raise
    if building.unfit is not None:
        raise UnfitError(building.unfit)
    return Outline(model, building, smallest)


def _begins(number: int, course: Sequence[Draw], drawn: Container[int]) -> bool:
    """Whether the generator has to be set before a draw."""
    return not course[number].continues or number - 1 not in drawn


def _forget_absent(model: nn.Module, building: Building) -> None:
    for tensor in {id(tensor): tensor for tensor in tensors_of(model)}.values():
        if building.slot_of(tensor) is not None and building.is_absent(tensor):
            forget(tensor)
