"""Pipelines with gradients: the schedules of ``torch.distributed.pipelining`` over Gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, schedules

from benchmarks.throughput.peers import Answer, Peer, join_group
from lowdimfa.block_module import BlockModule
from lowdimfa.partitioning import partition

SCHEDULES = {
    "gpipe": ("ScheduleGPipe", 1, "loop"),
    "1f1b": ("Schedule1F1B", 1, "loop"),
    "interleaved-1f1b": ("ScheduleInterleaved1F1B", 2, "loop"),
    "interleaved-zero-bubble": ("ScheduleInterleavedZeroBubble", 2, "loop"),
    # Its schedule with a single stage per process is that of ZB-H1.
    "zero-bubble-h1": ("ScheduleInterleavedZeroBubble", 1, "loop"),
    "zbv-zero-bubble": ("ScheduleZBVZeroBubble", 2, "v"),
}
"""By name: class, stages per process, and how they are laid out over the processes."""

TRAVEL = {"fp32": torch.float32, "bf16": torch.bfloat16}


def stages_of(rank: int, world: int, per_rank: int, style: str) -> list[int]:
    """Return which stages a process has: in turn (``loop``), or there and back (``v``)."""
    if style == "v":
        return [rank, 2 * world - 1 - rank]
    return [rank + world * turn for turn in range(per_rank)]


class ContiguousGradient(torch.autograd.Function):
    """Changes nothing but how the gradient lies in memory: Gloo sends no convolution's, which lies channels last."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        """Return the inputs."""
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient, row-major."""
        return gradients[0].contiguous()


class Travelling(nn.Module):
    """A stage whose output, and with it the gradient that comes back, travels in a number format of its own."""

    def __init__(self, module: BlockModule, travel: torch.dtype, first: bool, last: bool) -> None:
        super().__init__()
        self.module, self._travel, self._first, self._last = module, travel, first, last

    def forward(self, inputs: Tensor) -> Tensor:
        """Run the layers."""
        arrived = inputs if self._first else ContiguousGradient.apply(inputs).float()  # type: ignore[no-untyped-call]
        output: Tensor = self.module(arrived)
        return output if self._last else output.to(self._travel).contiguous()


class CountedStage(PipelineStage):
    """A stage that counts the bytes of what it sends to other processes."""

    def __init__(self, sent: dict[str, int], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._sent = sent

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the sends of an output."""
        return self._count("forward", super().get_fwd_send_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the sends of a gradient."""
        return self._count("backward", super().get_bwd_send_ops(bwd_chunk_id))

    def _count(self, direction: str, operations: list[dist.P2POp]) -> list[dist.P2POp]:
        self._sent[direction] += sum(one.tensor.nbytes for one in operations if one.tensor is not None)
        return operations


class Pipeline(Peer):
    """One process of a pipeline.

    Its stages are cut as the runtime cuts its blocks: equal counted operations.
    """

    def __init__(self, configuration: Answer) -> None:
        super().__init__(configuration)
        name, per_rank, style = SCHEDULES[configuration["schedule"]]
        rank, world = configuration["rank"], configuration["world"]
        count = world * per_rank
        self._model = self.model()
        plans = partition(self._model, count, self.plan.example.batch(), self.specification.model.balance)
        mine = stages_of(rank, world, per_rank, style)
        join_group(configuration)
        self._modules = [
            Travelling(plans[i].build(), TRAVEL[configuration["activations"]], i == 0, i == count - 1)
            for i in mine
        ]
        stages = [
            CountedStage(self.sent, module, index, count, torch.device("cpu"))
            for index, module in zip(mine, self._modules, strict=True)
        ]
        made = getattr(schedules, name)
        self._schedule = made(
            stages if issubclass(made, schedules.PipelineScheduleMulti) else stages[0],
            self.microbatches,
            loss_fn=self.loss,
        )
        self._optimizer = self.optimizer([p for module in self._modules for p in module.parameters()])
        self._first, self._last = 0 in mine, count - 1 in mine
        self._rank, self._exchange = rank, Path(configuration["exchange"])
        self._world = world

    def step(self, number: int) -> None:
        """Run one optimiser step."""
        indices = self.batch(number)
        arguments = (self.data.inputs(indices),) if self._first else ()
        losses: list[Tensor] = []
        options = {"target": self.data.targets(indices), "losses": losses} if self._last else {}
        self._schedule.step(*arguments, **options, return_outputs=False)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if losses:
            torch.stack(losses).mean().item()

    def whole_model(self) -> nn.Module | None:
        """Gather all stages' weights in the first process, through files, and return the model there."""
        mine = {
            name: value for part in self._modules for name, value in part.module.plain_state_dict().items()
        }
        safetensors.torch.save_file(
            {name: value.contiguous() for name, value in mine.items()},
            self._exchange / f"{self._rank}.safetensors",
        )
        dist.barrier()
        if self._rank:
            dist.barrier()
            return None
        state: dict[str, Tensor] = {}
        for rank in range(self._world):
            state |= safetensors.torch.load_file(self._exchange / f"{rank}.safetensors")
        dist.barrier()
        whole = self.model()
        whole.load_state_dict(state)
        return whole
