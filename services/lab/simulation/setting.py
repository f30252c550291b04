"""What is simulated, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lowdimfa.errors import InputError
from lowdimfa.services.lab.simulation.trouble import Trouble

LEAST_WORK = 1e-6
"""Seconds that a micro-batch takes a block at least: simulated time has nanoseconds, and must go on."""


@dataclass(frozen=True)
class BlockCosts:
    """What one block computes, in seconds on a core or GPU of its own.

    Attributes
    ----------
    forward
        Forward pass of one micro-batch.
    update
        Gradients of one micro-batch: from the broadcast error in this method, from the gradient at the output in
        backpropagation. Either is taken to cost the same.
    step
        Optimiser step.
    send
        Handing one message to the network.
    learns
        Whether the block has anything to learn. Otherwise this method makes no updates in it and sends it no errors.
    """

    forward: float
    update: float
    step: float = 0.0
    send: float = 0.0
    learns: bool = True


def core_seconds(
    costs: Iterable[BlockCosts], replicas: Sequence[int], microbatches: int, threads: Callable[[int], int]
) -> float:
    """Return what a micro-batch takes of all cores together, with the replicas of blocks, which are not simulated.

    Parameters
    ----------
    costs
        Of the blocks, each in one replica.
    replicas, microbatches
        Of the blocks, and of a step.
    threads
        Tells how many cores a block computes with.
    """
    return sum(
        threads(block) * (own.forward + own.update + number * own.step / microbatches)
        for block, (own, number) in enumerate(zip(costs, replicas, strict=True))
    )


@dataclass(frozen=True)
class Setting:
    """Blocks, micro-batches, network and policy.

    Attributes
    ----------
    blocks
        Costs of every block in order; the last is the head, whose forward pass includes its own update.
    microbatches, microbatch_size
        Micro-batches of a step, and samples of one, on average.
    activation_bytes
        Per sample, at every boundary between two blocks; backpropagation sends as many back.
    error_bytes
        Per sample, of the broadcast error.
    bandwidth
        Bits per second that each block can send, infinite for free links.
    latency
        Seconds from the end of a message's sending to its arrival.
    staleness, window
        Policy of the method, as in a specification; no window means that the staleness alone limits what is in flight.
    activations
        Format in which a run that was measured sent them, as a schedule's name has it. It changes no size above: what
        is simulated that name says.
    cores
        Processor cores that all blocks share, or None where each block has its own.
    contention
        What computing on all of those cores at once costs each of them; see `clock.Cores`.
    coding
        Seconds in which a block codes one compressed message, and in which the next decodes it.
    trouble
        What goes wrong, on cores of the blocks' own.
    """

    blocks: tuple[BlockCosts, ...]
    microbatches: int
    microbatch_size: float
    activation_bytes: tuple[float, ...]
    error_bytes: float
    bandwidth: float = math.inf
    latency: float = 0.0
    staleness: int = 0
    window: int | None = None
    activations: str = "fp32"
    cores: int | None = None
    contention: float = 0.0
    coding: float = 0.0
    trouble: Trouble | None = None

    def __post_init__(self) -> None:
        _require("blocks", len(self.blocks), len(self.blocks) >= 1, "at least 1 block")
        for name in ("microbatches", "microbatch_size"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _require("staleness", self.staleness, self.staleness >= 0, "an integer of at least 0")
        _require("bandwidth", self.bandwidth, self.bandwidth > 0, "more than 0 bits per second")
        _require("latency", self.latency, 0 <= self.latency < math.inf, "0 seconds or more")
        _require("cores", self.cores, self.cores is None or self.cores >= 1, "an integer of at least 1")
        _require("window", self.window, self.window is None or self.window >= 1, "an integer of at least 1")
        _require("contention", self.contention, 0 <= self.contention < math.inf, "0 or more")
        _require("coding", self.coding, 0 <= self.coding < math.inf, "0 seconds or more")
        boundaries = len(self.activation_bytes)
        _require(
            "activation_bytes", boundaries, boundaries == len(self.blocks) - 1, "one number for each boundary"
        )
        sizes = (*self.activation_bytes, self.error_bytes)
        _require("message sizes", min(sizes), all(0 <= size < math.inf for size in sizes), "0 bytes or more")
        for index, block in enumerate(self.blocks):
            times = (block.forward, block.update, block.step, block.send)
            valid = all(0 <= time < math.inf for time in times) and block.forward + block.update >= LEAST_WORK
            expected = (
                f"finite times, and {1e3 * LEAST_WORK:g} ms or more for forward pass and update together"
            )
            _require(f"times of block {index}", block, valid, expected)
        if self.trouble is not None:
            _require(
                "cores", self.cores, self.cores is None, "none that are shared where something goes wrong"
            )
            self.trouble.check(len(self.blocks))

    @property
    def samples(self) -> float:
        """Samples of a step."""
        return self.microbatches * self.microbatch_size

    @property
    def in_flight(self) -> int:
        """Most micro-batches that a block may have forwarded and not yet updated."""
        return self.window or self.microbatches * (self.staleness + 1)

    @property
    def subscribers(self) -> list[int]:
        """Indexes of the blocks to which the head sends errors."""
        return [index for index, block in enumerate(self.blocks[:-1]) if block.learns]


@dataclass(frozen=True)
class Outcome:
    """What a schedule makes of a setting, in the steady state.

    Attributes
    ----------
    schedule
        Its name.
    samples_per_second
        Throughput.
    step_seconds
        Time per optimiser step, infinite if trouble left none.
    bubble
        Share of the time in which each block does nothing.
    in_flight
        Most micro-batches of which each block kept what their gradients need, at the same time.
    forward_bytes, backward_bytes
        Activations, and gradients or broadcast errors, that cross all links together for one sample.
    """

    schedule: str
    samples_per_second: float
    step_seconds: float
    bubble: tuple[float, ...]
    in_flight: tuple[int, ...]
    forward_bytes: float
    backward_bytes: float

    def describe(self) -> dict[str, Any]:
        """Return the outcome as plain data, with the extremes over the blocks."""
        return {
            "schedule": self.schedule,
            "samples_per_second": self.samples_per_second,
            "step_seconds": self.step_seconds if math.isfinite(self.step_seconds) else None,
            "bubble_mean": sum(self.bubble) / len(self.bubble),
            "bubble_max": max(self.bubble),
            "bubble": list(self.bubble),
            "in_flight_max": max(self.in_flight),
            "forward_bytes_per_sample": self.forward_bytes,
            "backward_bytes_per_sample": self.backward_bytes,
        }


def _require(name: str, found: object, valid: bool, expected: str) -> None:
    if not valid:
        raise InputError(name, str(found), expected)
