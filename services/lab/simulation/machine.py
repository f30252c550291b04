"""What the simulated schedules share: clock, cores, links, and the account of what every block did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lowdimfa.services.lab.simulation.clock import Clock, Cores
from lowdimfa.services.lab.simulation.setting import Setting
from lowdimfa.services.lab.simulation.trouble import Pace


class Uplink:
    """What a block sends through: one message after the other, each as long as its bytes take.

    Attributes
    ----------
    carried
        Bytes so far.
    free_at
        When the last message will have been sent.
    """

    def __init__(self, clock: Clock, bandwidth: float, latency: float) -> None:
        self.carried = 0.0
        self.free_at = 0.0
        self._clock = clock
        self._bandwidth = bandwidth
        self._latency = latency

    def send(self, size: float, deliver: Callable[..., None], *arguments: Any) -> None:
        """Queue a message of ``size`` bytes and call a function when it has arrived."""
        self.free_at = max(self.free_at, self._clock.now) + 8 * size / self._bandwidth
        self.carried += size
        self._clock.at(self.free_at + self._latency, deliver, *arguments)


class Machine:
    """The simulated cluster: every block with its core and its uplink, and what is known of them so far.

    Attributes
    ----------
    uplinks
        Of the blocks, in order.
    steps
        That each block has applied.
    step_times
        When every block had applied so many steps, from 1 on.
    in_flight
        Micro-batches of which a block keeps what their gradients need.
    most_in_flight
        The most there were of these.
    """

    def __init__(self, setting: Setting) -> None:
        blocks = len(setting.blocks)
        self.setting = setting
        self.clock = Clock()
        self.uplinks = [Uplink(self.clock, setting.bandwidth, setting.latency) for _ in range(blocks)]
        self.step_times: list[float] = []
        self.in_flight = [0] * blocks
        self.most_in_flight = [0] * blocks
        self._cores = Cores(self.clock, setting.cores, setting.contention)
        self._busy = [0.0] * blocks
        self._since: list[float | None] = [None] * blocks
        self.steps = [0] * blocks
        self._behind = blocks  # blocks that have not applied the next step
        self._stops = [0] * blocks  # what was begun before the last of them never ends
        self._paces: dict[int, Pace] = {}
        if setting.trouble is not None:
            slow = setting.trouble.slow
            self._paces = {
                block: Pace([one for one in slow if one.block == block])
                for block in {one.block for one in slow}
            }

    def compute(self, block: int, seconds: float, then: Callable[..., None], *arguments: Any) -> None:
        """Have a block compute for so many seconds, and then call a function."""
        now = self._since[block] = self.clock.now
        if block in self._paces:
            seconds = self._paces[block].seconds(now, seconds)
        self._cores.run(seconds, self._computed, block, self._stops[block], then, arguments)

    def stop(self, block: int) -> None:
        """Have a block drop what it computes: the function to be called is not."""
        self._busy[block] = self.busy()[block]
        self._since[block] = None
        self._stops[block] += 1

    def go_back(self, step: int) -> None:
        """Let every block have applied so many steps, keep no micro-batch, and have nothing to send."""
        blocks = len(self.steps)
        self.steps = [step] * blocks
        del self.step_times[step:]
        self.step_times += [self.clock.now] * (step - len(self.step_times))
        self._behind = blocks
        self.in_flight = [0] * blocks
        for uplink in self.uplinks:
            uplink.free_at = self.clock.now

    def send(self, block: int, coding: float, then: Callable[..., None], *arguments: Any) -> None:
        """Have a block code a message, which may take no time, hand it to the network, and then call a function."""
        if seconds := self.setting.blocks[block].send + coding:
            self.compute(block, seconds, then, *arguments)
        else:
            then(*arguments)

    def stepped(self, block: int) -> None:
        """Note that a block has applied a step."""
        self.steps[block] += 1
        if self.steps[block] == len(self.step_times) + 1:
            self._behind -= 1
            while not self._behind:
                self.step_times.append(self.clock.now)
                self._behind = sum(steps <= len(self.step_times) for steps in self.steps)

    def keeps(self, block: int, change: int) -> None:
        """Note that a block keeps one micro-batch more, or one less."""
        self.in_flight[block] += change
        self.most_in_flight[block] = max(self.most_in_flight[block], self.in_flight[block])

    def run(self, steps: int) -> None:
        """Let time pass until every block has applied so many steps."""
        self.clock.run(lambda: len(self.step_times) >= steps)

    def busy(self) -> list[float]:
        """Return the seconds that each block has computed so far."""
        return [
            busy + (0.0 if since is None else self.clock.now - since)
            for busy, since in zip(self._busy, self._since, strict=True)
        ]

    def _computed(
        self, block: int, stops: int, then: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        if stops != self._stops[block]:
            return
        since = self._since[block]
        assert since is not None, "a block computes one thing at a time"
        self._busy[block] += self.clock.now - since
        self._since[block] = None
        then(*arguments)
