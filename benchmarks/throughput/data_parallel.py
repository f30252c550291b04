"""DistributedDataParallel over Gloo, plain and with PowerSGD: the network in every process, and a part of each batch."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from benchmarks.throughput.peers import Answer, Peer, join_group

WHOLE_STEPS = 2
"""Steps before PowerSGD's first: DistributedDataParallel settles its buckets after the first one."""


def ring_bytes(world: int, values: int) -> int:
    """Return what each process sends in an all-reduce of so many float32 by a ring: two rounds of its share."""
    return 2 * (world - 1) * 4 * values // world


class Replicated(Peer):
    """Each process has the whole network, and learns from its part of each batch."""

    def __init__(self, configuration: Answer) -> None:
        super().__init__(configuration)
        join_group(configuration)
        self._rank, self._world = configuration["rank"], configuration["world"]
        self._model = self.model()
        self._parameters = [value for value in self._model.parameters() if value.requires_grad]
        self._optimizer = self.optimizer(self._parameters)

    def learned(self, number: int, model: nn.Module) -> float:
        """Run one optimiser step through the network, or what wraps it; return the loss of this process's samples."""
        indices = self.batch(number).chunk(self._world)[self._rank]
        loss = self.loss(model(self.data.inputs(indices)), self.data.targets(indices))
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def whole_model(self) -> nn.Module | None:
        """Return the model, which is the same in all processes once they have met, in the first."""
        return self._model if self._rank == 0 else None


class DataParallel(Replicated):
    """Each process averages its gradients with the others'; running statistics stay its own."""

    bucket_mb: int | None = None
    """Gradients that travel together; None is what torch chooses."""

    def __init__(self, configuration: Answer) -> None:
        super().__init__(configuration)
        self._parallel = DistributedDataParallel(
            self._model,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
            bucket_cap_mb=self.bucket_mb,
        )
        self._values = sum(value.numel() for value in self._parameters)

    def step(self, number: int) -> float:
        """Run one optimiser step; return the loss of this process's samples."""
        loss = self.learned(number, self._parallel)
        self.sent["backward"] += ring_bytes(self._world, self.reduced())
        return loss

    def reduced(self) -> int:
        """Return how many values were all-reduced in the step that ends."""
        return self._values


class PowerSGD(DataParallel):
    """Gradients of matrices travel as two factors, with error feedback and a warm start (Vogels et al. 2019).

    Parameters
    ----------
    configuration
        Has the rank of the factors as ``factors``: ``rank`` is the process.
    """

    # Each bucket's sums follow one another as they arrive, which Gloo pairs up wrongly where several are under way.
    bucket_mb = 1 << 20

    def __init__(self, configuration: Answer) -> None:
        super().__init__(configuration)
        self._state = PowerSGDState(
            dist.group.WORLD, configuration["factors"], start_powerSGD_iter=WHOLE_STEPS
        )
        self._parallel.register_comm_hook(self._state, powerSGD_hook)
        self._counted = 0

    def reduced(self) -> int:
        """Return how many values the factors and what stays whole had; PowerSGD's own count of all steps."""
        new = self._state.total_numel_after_compression - self._counted
        self._counted += new
        return new or self._values
