"""How evenly a cut shares out the work, and what another cut would come to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lowdimfa.cost import cuts_between

WORTHWHILE = 0.05
"""Share of the bottleneck's cost that another cut has to save before it is worth a word: less is noise."""


def balance(costs: Sequence[float]) -> float:
    """Return the mean over the largest of the blocks' costs: 1 where all are equal, 1/K where one does everything."""
    return sum(costs) / len(costs) / max(costs) if any(costs) else 1.0


def bottleneck(costs: Sequence[float]) -> int:
    """Return the index of the block that costs most, which sets the pace of all."""
    return max(range(len(costs)), key=costs.__getitem__)


@dataclass(frozen=True)
class Cut:
    """Blocks and what each costs.

    Attributes
    ----------
    boundaries
        Names of the layers at which the second and later blocks start, as ``model.blocks`` takes them.
    costs
        Of each block, in the unit in which they were measured.
    """

    boundaries: tuple[str, ...]
    costs: tuple[float, ...]

    @property
    def highest(self) -> float:
        """Cost of the bottleneck."""
        return max(self.costs)

    def saving(self, other: Cut) -> float:
        """Return the part of this cut's bottleneck that another cut would save."""
        return 1 - other.highest / self.highest if self.highest else 0.0


def recut(layers: Sequence[Mapping[str, float]], measured: Sequence[float], starts: Collection[str]) -> Cut:
    """Return the cut of the same layers into as many blocks that is expected to be the most even.

    Parameters
    ----------
    layers
        For each block the names of its layers, in order, with the estimated costs of each, in any unit.
    measured
        What each block was measured to cost. It is shared out among the block's layers as the estimates say: so what
        the estimates leave out, or get wrong for one kind of layer, is made up for.
    starts
        Names of the layers at which a block may start.
    """
    names: list[str] = []
    costs: list[float] = []
    for block, cost in zip(layers, measured, strict=True):
        whole = sum(block.values())
        names += block
        costs += [cost * (share / whole if whole else 1 / len(block)) for share in block.values()]
    allowed = [index for index, name in enumerate(names) if index == 0 or name in starts]
    cuts = cuts_between(costs, allowed, len(layers))
    sums = tuple(sum(costs[start:stop]) for start, stop in pairwise([0, *cuts, len(costs)]))
    return Cut(tuple(names[cut] for cut in cuts), sums)
