"""What the simulator expects of settings, from segments of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lowdimfa.balance import recut
from lowdimfa.errors import InputError
from lowdimfa.services.lab.simulation.calibrate import Measured
from lowdimfa.services.lab.simulation.fit import apart, fit_costs, recut_learns
from lowdimfa.services.lab.simulation.names import schedule_name
from lowdimfa.services.lab.simulation.setting import core_seconds
from lowdimfa.services.lab.simulation.simulate import simulate
from lowdimfa.services.lab.tuning.search import Changes
from lowdimfa.services.lab.tuning.space import loads
from lowdimfa.services.spec import Specification, parse_specification


class Predictor:
    """Foretells rates of settings of one network.

    Threads, carriers and forms of activations are left out: a setting is taken to be as fast as without them.

    Parameters
    ----------
    specification
        The default.
    plan
        Of it, as `RunPlan.describe` has it.
    measured
        Segments, that of the default first; the more their micro-batches differ, the better.
    cores
        That all blocks share, on one machine; None where each has its own.
    """

    def __init__(
        self,
        specification: Specification,
        plan: dict[str, Any],
        measured: Sequence[Measured],
        cores: int | None,
    ) -> None:
        self._plain, self._plan = specification.model_dump(), plan
        alone, contention = apart(measured, cores or 1)
        # What was measured, in place of counted operations.
        alone = [replace(one, shares=_parts(_work(one))) for one in alone]
        self._costs, self._alone = fit_costs(alone), alone[0]
        self._setting = replace(alone[0].setting, cores=cores, contention=contention)

    def rate(self, changes: Changes) -> float | None:
        """Return samples per second; None of a setting that the simulator has no times for."""
        specification = parse_specification(self._plain, "", changes)
        train = specification.train
        shares = self._shares(specification)
        present = [block.learns for block in self._alone.setting.blocks]
        learns = recut_learns(present, self._alone.shares, shares)
        size = train.batch_size // train.microbatches
        costs = self._costs.blocks(shares, self._alone.parameters, size, learns)
        blocks = tuple(
            replace(own, forward=own.forward / number, update=own.update / number)
            for own, number in zip(costs, specification.replicas, strict=True)
        )
        try:
            setting = replace(
                self._setting,
                blocks=blocks,
                microbatches=train.microbatches,
                microbatch_size=size,
                staleness=train.staleness,
                window=train.effective_window,
            )
            rate = simulate(setting, schedule_name(train.staleness)).samples_per_second
        except InputError:  # times that are none, of a segment too short to have them
            return None
        if setting.cores is None:
            return rate
        work = core_seconds(costs, specification.replicas, train.microbatches, lambda block: 1)
        return min(rate, setting.cores * size / work)

    def _shares(self, specification: Specification) -> tuple[float, ...]:
        """Return the blocks' shares of the cost: those that were measured, or of another cut what was expected."""
        wanted = specification.model.blocks
        blocks = self._plan["blocks"]
        if isinstance(wanted, int) or wanted == [block["name"] for block in blocks[1:]]:
            return self._alone.shares
        layers = [dict(zip(block["layers"], block["layer_shares"], strict=True)) for block in blocks]
        cut = recut(layers, self._alone.shares, wanted)
        return _parts(cut.costs)


def _work(measured: Measured) -> list[float]:
    """Return the blocks' loads, of those that learn nothing as if they did, since the costs are shared out by them."""
    blocks = measured.setting.blocks
    head = blocks[-1]  # its work is divided as the others' is
    times = head.update / head.forward if head.forward else 0.0
    return [
        load if block.learns or block is head else load + times * block.forward
        for block, load in zip(blocks, loads(measured), strict=True)
    ]


def _parts(costs: Sequence[float]) -> tuple[float, ...]:
    return tuple(cost / sum(costs) for cost in costs)
