"""What can be tried of a run to make it faster, without changing what is learned, unless that is allowed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from lowdimfa.balance import Cut, bottleneck, recut
from lowdimfa.errors import InputError
from lowdimfa.services.lab.simulation.calibrate import Measured
from lowdimfa.services.lab.tuning.free import not_free
from lowdimfa.services.lab.tuning.search import Changes
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.spec import Specification, parse_specification

FREE = ("microbatches", "cut", "replicas", "window", "threads", "transport")
"""Names of what is tried unless it is kept."""

AT_A_PRICE = ("staleness", "activations", "every_layer")
"""Names of what is tried only where it is allowed: the weights that are learned are others."""

ALLOWED = (*AT_A_PRICE, "microbatches", "replicas", "window")
"""Names of what can be allowed: some of `FREE` too, which has that price in some runs."""

MOST_MICROBATCHES = 16

_STALENESS = (0, 1, 2)
_ACTIVATIONS = ("fp32", "bf16", "int8", "int4")  # those that a specification may have


@dataclass(frozen=True)
class Space:
    """The settings around a specification.

    Attributes
    ----------
    specification
        The default.
    plan
        Of it, as `RunPlan.describe` has it.
    names
        Of what may be changed: some of `FREE` and `AT_A_PRICE`.
    spare
        Workers for which the cluster has room beside those of the run.
    threads
        Most threads of a block that the machines have cores for.
    cores
        That all blocks share; None where each has its own, or not all are on one machine.
    left_out
        Why something isn't tried, by name.
    """

    specification: Specification
    plan: dict[str, Any]
    names: frozenset[str]
    spare: int = 0
    threads: int = 1
    cores: int | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def around(cls, plan: RunPlan, allowed: Collection[str], kept: Collection[str], **cluster: Any) -> Space:
        """Return the space around a planned run, without what would change what it learns.

        Parameters
        ----------
        plan
            Of the default.
        allowed
            Names of what may be tried though it changes that.
        kept
            Names of what isn't to be tried.
        cluster
            What there is of the cluster; see above.
        """
        left_out = {name: why for name, why in not_free(plan).items() if name not in {*allowed, *kept}}
        names = ({*FREE} | {*allowed}) - {*kept} - left_out.keys()
        return cls(plan.specification, plan.describe(), frozenset(names), left_out=left_out, **cluster)

    def fits(self, changes: Changes) -> bool:
        """Whether a specification with these changes is valid."""
        try:
            return parse_specification(self.specification.model_dump(), "", changes) != self.specification
        except InputError:
            return False

    def main(self, measured: Measured | None) -> list[Changes]:
        """Return combinations of what the simulator can tell apart: micro-batches, staleness, cut and replicas.

        Parameters
        ----------
        measured
            A segment of the default, which shows the costs of its blocks.
        """
        train = self.specification.train
        axes: list[list[dict[str, Any]]] = [
            [{}, *({"train.microbatches": number} for number in self._microbatches())],
            [{}, *({"train.staleness": number} for number in _STALENESS if number != train.staleness)],
            [{}, *({"model.blocks": list(cut.boundaries)} for cut in self._cuts(measured))],
            [{}, *self._replicas(measured)],
        ]
        wanted = ("microbatches", "staleness", "cut", "replicas")
        chosen = [axis if name in self.names else axis[:1] for name, axis in zip(wanted, axes, strict=True)]
        return self._fitting({k: v for part in parts for k, v in part.items()} for parts in product(*chosen))

    def variations(self, best: Changes, measured: Measured | None) -> list[Changes]:
        """Return what differs from a setting in one more thing, of which a measurement alone can tell."""
        specification = parse_specification(self.specification.model_dump(), "", best)
        train, placement = specification.train, specification.placement
        full = train.microbatches * (train.staleness + 1)
        slowest = self._slowest(measured)
        even = max(1, self.threads // specification.model.block_count)
        threads: list[Any] = [*dict.fromkeys((1, even))]
        if even < self.threads:  # and more for the one that the others wait for
            others = dict.fromkeys(range(specification.model.block_count), even)
            threads.append(others | {slowest: min(2 * even, self.threads)})
        options: dict[str, list[dict[str, Any]]] = {
            "window": [
                {"train.window": number}
                for number in (None, full // 2)
                if number != train.window and (number is None or number < train.effective_window)
            ],
            "threads": [
                {"placement.threads_per_block": number}
                for number in threads
                if number != placement.threads_per_block
            ],
            "transport": [{"placement.transport": name} for name in self._transports(specification)],
            "activations": [
                {"train.activations": name} for name in _ACTIVATIONS if name != train.activations
            ],
            "every_layer": [{"feedback.every_layer": not specification.feedback.every_layer}],
        }
        return self._fitting(
            {**best, **change} for name, some in options.items() if name in self.names for change in some
        )

    def _fitting(self, some: Iterable[Changes]) -> list[Changes]:
        found: list[Changes] = []
        for changes in some:
            if changes and changes not in found and self.fits(changes):
                found.append(changes)
        return found

    def _microbatches(self) -> list[int]:
        train, last = self.specification.train, self.plan["last_batch_size"]
        # A readout weighs the micro-batches of a step alike.
        alike = any(block["q_rule"] == "readout" for block in self.plan["blocks"])
        return [
            number
            for number in (2**power for power in range(MOST_MICROBATCHES.bit_length()))
            if train.batch_size % number == 0 and number != train.microbatches
            if not 0 < last < number and not (alike and last % number)
        ]

    def _cuts(self, measured: Measured | None) -> list[Cut]:
        """Return another cut where the program may choose it and the measured costs of the blocks speak for one."""
        if measured is None or not isinstance(self.specification.model.blocks, int):
            return []
        blocks = self.plan["blocks"]
        layers = [dict(zip(block["layers"], block["layer_shares"], strict=True)) for block in blocks]
        present = tuple(block["name"] for block in blocks[1:])
        cut = recut(layers, loads(measured), self.plan["balance"]["starts"])
        return [] if cut.boundaries == present else [cut]

    def _replicas(self, measured: Measured | None) -> list[dict[str, Any]]:
        slowest = self._slowest(measured)
        head, replicas = self.specification.model.block_count - 1, self.specification.replicas
        if not self.spare or slowest == head:
            return []
        wanted = {block: number for block, number in enumerate(replicas[:-1]) if number > 1}
        return [{"placement.replicas": wanted | {slowest: replicas[slowest] + 1}}]

    def _slowest(self, measured: Measured | None) -> int:
        return int(self.plan["balance"]["bottleneck"]) if measured is None else bottleneck(loads(measured))

    def _transports(self, specification: Specification) -> list[str]:
        placement = specification.placement
        known = ["auto", *(["torch"] if self.cores or placement.insecure_activations else ["grpc"])]
        return [name for name in known if name != placement.transport]


def loads(measured: Measured) -> list[float]:
    """Return the seconds of each block for a micro-batch, with its part of the step."""
    setting = measured.setting
    return [block.forward + block.update + block.step / setting.microbatches for block in setting.blocks]
