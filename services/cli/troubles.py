"""Uneven blocks, stragglers and losses as options of ``lowdimfa simulate`` write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowdimfa.errors import InputError
from lowdimfa.services.lab.simulation.setting import BlockCosts
from lowdimfa.services.lab.simulation.trouble import Trouble, draw_losses, draw_slowdowns, uneven

MOST_TROUBLES = 100_000
"""Slowdowns or losses of a block: each is simulated."""


@dataclass(frozen=True)
class Troubles:
    """Draws what options ask for.

    Attributes
    ----------
    seconds
        Simulated time in which something goes wrong.
    seed
        Of all draws.
    """

    seconds: float
    seed: int

    def paced(
        self, blocks: tuple[BlockCosts, ...], spread: float, given: Sequence[str]
    ) -> tuple[BlockCosts, ...]:
        """Return blocks of which each takes its number of times as long.

        Parameters
        ----------
        blocks
            As they would be on devices alike.
        spread
            Of what is drawn; see `uneven`.
        given
            Factors of single blocks, each ``BLOCK=FACTOR``, in place of what is drawn.

        Raises
        ------
        InputError
            One can't be read, or there is no such block.
        """
        factors = list(uneven(len(blocks), spread, self.seed))
        for text in given:
            block, _, factor = text.partition("=")
            [number] = _numbers("--factor", factor, "BLOCK=FACTOR, such as 3=2.5", 1)
            if not block.isdecimal() or int(block) >= len(blocks):
                raise InputError("--factor", repr(text), f"a block from 0 to {len(blocks) - 1}, as in 0=2.5")
            factors[int(block)] = number
        return tuple(
            replace(one, forward=one.forward * times, update=one.update * times, step=one.step * times)
            for one, times in zip(blocks, factors, strict=True)
        )

    def of(
        self, blocks: int, slow: str | None, lost: str | None, checkpoint_every: int, rejoin: bool
    ) -> Trouble | None:
        """Return what goes wrong, or None if nothing is to; it raises as `paced` does."""
        if slow is None and lost is None:
            return None
        if not 0 < self.seconds < math.inf:
            raise InputError("--seconds", f"{self.seconds:g}", "a number above 0")
        found = Trouble(self.seconds, checkpoint_every=checkpoint_every, rejoin=rejoin)
        if slow is not None:
            every, lasting, factor = _numbers("--slow", slow, "EVERY:FOR:FACTOR, such as 60:5:3", 3)
            self._require_few("--slow", every + lasting)
            drawn = draw_slowdowns(blocks, self.seconds, every, lasting, factor, self.seed)
            found = replace(found, slow=drawn)
        if lost is not None:
            every, recovery = _numbers("--lost", lost, "EVERY:RECOVERY, such as 3600:8", 2)
            self._require_few("--lost", every)
            losses = draw_losses(blocks, self.seconds, every, self.seed)
            found = replace(found, lost=losses, recovery=recovery)
        return found

    def _require_few(self, option: str, every: float) -> None:
        if self.seconds / every > MOST_TROUBLES:
            found = f"one in {every:g} s for {self.seconds:g} s (--seconds)"
            raise InputError(option, found, f"at most {MOST_TROUBLES:,} for each block")


def _numbers(option: str, text: str, expected: str, count: int) -> list[float]:
    try:
        found = [float(part) for part in text.split(":")]
    except ValueError:
        found = []
    if len(found) != count or not all(0 < number < math.inf for number in found):
        raise InputError(option, repr(text), f"{expected}, all more than 0")
    return found
