"""From a few runs of a network to the costs of its other cuts and micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np

from lowdimfa.errors import InputError
from lowdimfa.services.lab.simulation.calibrate import Measured
from lowdimfa.services.lab.simulation.contention import estimate_contention
from lowdimfa.services.lab.simulation.setting import BlockCosts, Setting


@dataclass(frozen=True)
class Line:
    """Seconds as ``fixed + per_unit * units``."""

    fixed: float
    per_unit: float

    def at(self, units: float) -> float:
        """Return the seconds that so many units take."""
        return self.fixed + self.per_unit * units


@dataclass(frozen=True)
class Costs:
    """What work on a network takes, for any cut and any size of micro-batches.

    What a micro-batch takes however small it is (weights that are read, kernels that are launched) belongs to the
    layers: a block has its share of that as of the rest.

    Attributes
    ----------
    forward, update, head
        Of the whole network, over the samples of a micro-batch; a block takes its share of the network's cost.
        ``head`` is the last block's forward pass with its own update.
    step
        Over a block's parameters.
    send
        Of one message.
    """

    forward: Line
    update: Line
    head: Line
    step: Line
    send: float

    def blocks(
        self,
        shares: Sequence[float],
        parameters: Sequence[float],
        samples: float,
        learns: Sequence[bool] | None = None,
    ) -> tuple[BlockCosts, ...]:
        """Return the costs of the blocks of a cut, all of which learn unless it is said which ones do."""
        found, last = [], len(shares) - 1
        for index, (share, weights) in enumerate(zip(shares, parameters, strict=True)):
            learning = learns is None or learns[index]
            forward, update = share * self.forward.at(samples), share * self.update.at(samples)
            if index == last:
                ratio = share * self.head.at(samples) / (forward + update)
                forward, update = forward * ratio, update * ratio
            elif not learning:
                update = 0.0
            step = self.step.at(weights) if learning else 0.0
            found.append(BlockCosts(forward, update, step, self.send, learning))
        return tuple(found)


def apart(runs: Sequence[Measured], cores: int) -> tuple[list[Measured], float]:
    """Return runs as if no block had slowed another one down, and the contention by which they did.

    Where more blocks than cores took turns, nothing is known of that: such runs stay as they are.

    Parameters
    ----------
    runs
        All on machines alike.
    cores
        That the blocks of each shared.
    """
    known = [1 < len(run.spans) <= cores for run in runs]
    found = [estimate_contention(run.spans, cores) for run, one in zip(runs, known, strict=True) if one]
    contention = float(np.median(found)) if found else 0.0
    alone = [run.alone(contention, cores) if one else run for run, one in zip(runs, known, strict=True)]
    return alone, contention


def fit_costs(runs: Sequence[Measured]) -> Costs:
    """Return the costs that runs of one network show; what one run can't tell is taken to be in proportion.

    Raises
    ------
    InputError
        A block has no part of the network's cost.
    """
    points: dict[str, list[tuple[float, float]]] = {"forward": [], "update": [], "head": [], "step": []}
    for run in runs:
        size, last = run.setting.microbatch_size, len(run.shares) - 1
        updating = run.setting.subscribers or [last]
        for index, block in enumerate(run.setting.blocks):
            share = run.shares[index]
            if share <= 0:
                expected = "some, of which to tell what other blocks take"
                raise InputError(f"block {index}", "no part of the network's cost", expected)
            if block.learns:
                points["step"].append((run.parameters[index], block.step))
            if index == last:
                points["head"].append((size, (block.forward + block.update) / share))
            if index < last or not last:
                points["forward"].append((size, block.forward / share))
            if index in updating:
                points["update"].append((size, block.update / share))
    sends = [block.send for run in runs for block in run.setting.blocks]
    lines = {name: _fit(found) for name, found in points.items()}
    return Costs(lines["forward"], lines["update"], lines["head"], lines["step"], float(np.mean(sends)))


def recut_learns(learns: Sequence[bool], shares: Sequence[float], others: Sequence[float]) -> list[bool]:
    """Return which blocks of another cut learn: those that have some of a block that does, by shares of the cost."""
    least = 1e-6
    cuts, other_cuts = ([0.0, *accumulate(some)] for some in (shares, others))
    learning = [cut for cut, own in zip(pairwise(cuts), learns, strict=True) if own]
    return [
        any(min(stop, end) - max(start, begin) > least for begin, end in learning)
        for start, stop in pairwise(other_cuts)
    ]


def _fit(points: Sequence[tuple[float, float]]) -> Line:
    """Return the line through some points that misses each by the least share of it; no part of it is negative."""
    units, seconds = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    if seconds.min() <= 0:
        return Line(float(seconds.mean()), 0.0)
    design = np.stack([np.ones_like(units), units], axis=1) / seconds[:, None]
    if units.max() > 1.2 * units.min():
        (fixed, slope), *_ = np.linalg.lstsq(design, np.ones_like(units), rcond=None)
        if fixed >= 0 and slope >= 0:
            return Line(float(fixed), float(slope))
    column = design[:, 1]
    return Line(0.0, float(column.sum() / (column**2).sum()))


def resized(runs: Sequence[Measured], blocks: int | None, samples: int | None) -> Setting:
    """Return the setting of the first run with another number of blocks, all alike, or other micro-batches.

    Parameters
    ----------
    runs
        All of one network; the more they differ, the more they tell of what depends on the difference.
    blocks, samples
        Blocks, and samples of a micro-batch; None leaves them as they are in the first run.
    """
    first = runs[0].setting
    shares, parameters, sizes = runs[0].shares, runs[0].parameters, first.activation_bytes
    learns = [block.learns for block in first.blocks]
    if blocks is not None:
        even = (1 / blocks,) * blocks
        learns, shares, parameters = (
            recut_learns(learns, shares, even),
            even,
            (sum(parameters) / blocks,) * blocks,
        )
        sizes = (sum(sizes) / max(1, len(sizes)),) * (blocks - 1)
    size = samples or first.microbatch_size
    costs = fit_costs(runs).blocks(shares, parameters, size, learns)
    return replace(first, blocks=costs, microbatch_size=size, activation_bytes=sizes)
