"""Pipelines that wait for their gradients: the schedules of ``torch.distributed.pipelining`` over Gloo."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, schedules

from benchmarks.throughput.peers import Answer, recomputed
from benchmarks.throughput.registry import stages_of
from benchmarks.throughput.stages import Staged, Wire
from lowdimfa.block_module import BlockModule, unchanged_buffers


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


class Contiguous(nn.Module):
    """A stage whose output, and the gradient of its input, lie row-major."""

    def __init__(self, module: BlockModule, first: bool, recompute: bool) -> None:
        super().__init__()
        self.module, self._first, self._recompute = module, first, recompute

    def forward(self, inputs: Tensor) -> Tensor:
        """Run the layers."""
        arrived = inputs if self._first else ContiguousGradient.apply(inputs)  # type: ignore[no-untyped-call]
        output: Tensor = recomputed(self.module, arrived) if self._recompute else self.module(arrived)
        return output.contiguous()


class PackedStage(PipelineStage):
    """A stage that packs what it sends to other processes, counts its bytes, and unpacks what it receives."""

    def __init__(self, wire: Wire, sent: dict[str, int], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._wire, self._sent = wire, sent
        self._arriving: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}

    def _prepare_forward_infra(self, *arguments: Any, **options: Any) -> Any:
        """Find shapes by a forward on made-up numbers, of which running statistics must keep nothing."""
        with unchanged_buffers(self.submod):
            return super()._prepare_forward_infra(*arguments, **options)

    def _prepare_backward_infra(self, *arguments: Any, **options: Any) -> Any:
        """Do the same for gradients."""
        with unchanged_buffers(self.submod):
            return super()._prepare_backward_infra(*arguments, **options)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the sends of an output."""
        return self._packed("forward", super().get_fwd_send_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the sends of a gradient."""
        return self._packed("backward", super().get_bwd_send_ops(bwd_chunk_id))

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the receives of an input."""
        return self._expected(("forward", fwd_chunk_id), super().get_fwd_recv_ops(fwd_chunk_id))

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the receives of a gradient."""
        return self._expected(("backward", bwd_chunk_id), super().get_bwd_recv_ops(bwd_chunk_id))

    def forward_one_chunk(self, fwd_chunk_id: int, *arguments: Any, **options: Any) -> Any:
        """Run the layers on what has arrived."""
        self._unpack(("forward", fwd_chunk_id))
        return super().forward_one_chunk(fwd_chunk_id, *arguments, **options)

    def backward_one_chunk(self, bwd_chunk_id: int, *arguments: Any, **options: Any) -> Any:
        """Carry back the gradient that has arrived."""
        self._unpack(("backward", bwd_chunk_id))
        return super().backward_one_chunk(bwd_chunk_id, *arguments, **options)

    def _packed(self, direction: str, operations: list[dist.P2POp]) -> list[dist.P2POp]:
        for one in operations:
            one.tensor = self._wire.pack(one.tensor)
            self._sent[direction] += one.tensor.nbytes
        return operations

    def _expected(self, what: tuple[str, int], operations: list[dist.P2POp]) -> list[dist.P2POp]:
        if self._wire.plain:
            return operations
        self._arriving[what] = []
        for one in operations:
            place, one.tensor = one.tensor, self._wire.empty(tuple(one.tensor.shape))
            self._arriving[what].append((one.tensor, place))
        return operations

    def _unpack(self, what: tuple[str, int]) -> None:
        for packed, place in self._arriving.pop(what, ()):
            place.detach().copy_(self._wire.unpack(packed, tuple(place.shape)))


class Pipeline(Staged):
    """One process of a pipeline, whose schedule the configuration names."""

    def __init__(self, configuration: Answer) -> None:
        super().__init__(configuration)
        per_rank = configuration["per_rank"]
        count = self.world * per_rank
        mine = stages_of(self.rank, self.world, per_rank, configuration["layout"])
        plans = self.plans(count)
        recompute = configuration.get("recompute", False)
        self._modules = [Contiguous(plans[i].build(), i == 0, recompute) for i in mine]
        stages = [
            PackedStage(self.wire, self.sent, module, index, count, torch.device("cpu"))
            for index, module in zip(mine, self._modules, strict=True)
        ]
        made = getattr(schedules, configuration["schedule"])
        several = issubclass(made, schedules.PipelineScheduleMulti)
        self._schedule = made(stages if several else stages[0], self.microbatches, loss_fn=self.loss)
        self._optimizer = self.optimizer([p for module in self._modules for p in module.parameters()])
        self._first, self._last = 0 in mine, count - 1 in mine

    def step(self, number: int) -> float | None:
        """Run one optimiser step; return the loss in the process of the last stage."""
        indices = self.batch(number)
        arguments = (self.data.inputs(indices),) if self._first else ()
        losses: list[Tensor] = []
        options = {"target": self.data.targets(indices), "losses": losses} if self._last else {}
        self._schedule.step(*arguments, **options, return_outputs=False)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).mean().item() if losses else None

    def whole_model(self) -> nn.Module | None:
        """Return the model in the first process."""
        return self.gathered([part.module for part in self._modules])
