"""Local SGD with an outer step, in the form of DiLoCo: processes meet once in many steps."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.throughput.data_parallel import Replicated, ring_bytes
from benchmarks.throughput.peers import Answer

OUTER_RATE, OUTER_MOMENTUM = 0.7, 0.9
"""Those of Douillard et al. 2023 (arXiv:2311.08105)."""


class DiLoCo(Replicated):
    """Every process trains the whole network on its part of each batch, and forgets nothing of its own optimiser.

    After ``H`` steps from the shared weights ``θ``, to ``θ_i`` in process ``i``, all take the same step by SGD with
    Nesterov's momentum along ``θ − mean(θ_i)``, and go on from there (Douillard et al. 2023). Running statistics are
    averaged with the weights.

    Parameters
    ----------
    configuration
        Has ``H`` as ``inner_steps``.
    """

    def __init__(self, configuration: Answer) -> None:
        super().__init__(configuration)
        self._every = configuration["inner_steps"]
        self._shared = [nn.Parameter(value.detach().clone()) for value in self._parameters]
        self._outer = torch.optim.SGD(self._shared, OUTER_RATE, OUTER_MOMENTUM, nesterov=True)

    def steps(self, system: str, lead: int, count: int) -> Answer:
        """Run steps; see `benchmarks.throughput.worker.Contestant`. They end with an outer one, and all are timed."""
        run = -(-(lead + count) // self._every) * self._every
        answer = super().steps(system, 0, run)
        return answer | {"seconds": answer["seconds"] * count / run}

    def step(self, number: int) -> float:
        """Run one inner step, and after the last of them the outer one; return the loss of this process's samples."""
        loss = self.learned(number, self._model)
        if (number + 1) % self._every == 0:
            self._meet()
        return loss

    @torch.no_grad()
    def _meet(self) -> None:
        statistics = [value for value in self._model.buffers() if value.is_floating_point()]
        moved = [start - here for start, here in zip(self._shared, self._parameters, strict=True)]
        summed = torch.cat([value.flatten() for value in (*moved, *statistics)])
        dist.all_reduce(summed)
        summed /= self._world
        self.sent["backward"] += ring_bytes(self._world, summed.numel())
        means = iter(summed.split([value.numel() for value in (*moved, *statistics)]))
        for value in self._shared:
            value.grad = next(means).view_as(value)
        for value in statistics:
            value.copy_(next(means).view_as(value))
        self._outer.step()
        for here, start in zip(self._parameters, self._shared, strict=True):
            here.copy_(start)
