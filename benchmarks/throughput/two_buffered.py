"""PipeDream-2BW: a pipeline with gradients that never waits for a step, with AdamW and with Nesterov's look-ahead."""

from __future__ import annotations

from collections import deque
from copy import deepcopy

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.throughput.peers import Answer
from benchmarks.throughput.stages import Staged, Wire
from lowdimfa.tickets import Ticket


class Channel:
    """Tensors of one shape, in order, to a neighbour or from one.

    Receives are posted ahead, and sends are left to themselves: Gloo carries both on while this process computes.
    """

    def __init__(self, wire: Wire, peer: int, shape: tuple[int, ...], ahead: int) -> None:
        self._wire, self._peer, self._shape, self._ahead = wire, peer, shape, ahead
        self._under_way: deque[tuple[dist.Work, Tensor]] = deque()

    def send(self, tensor: Tensor) -> int:
        """Begin to send a tensor; return the bytes."""
        packed = self._wire.pack(tensor)
        self._under_way.append((_begun(dist.isend(packed, self._peer)), packed))
        if len(self._under_way) > self._ahead:
            self._under_way.popleft()[0].wait()
        return packed.nbytes

    def take(self) -> Tensor:
        """Wait for the next tensor."""
        while len(self._under_way) < self._ahead:
            room = self._wire.empty(self._shape)
            self._under_way.append((_begun(dist.irecv(room, self._peer)), room))
        work, packed = self._under_way.popleft()
        work.wait()
        return self._wire.unpack(packed, self._shape)


class TwoBuffered(Staged):
    """One stage of PipeDream-2BW (Narayanan et al. 2021, "Memory-efficient pipeline-parallel DNN training").

    ``W(t+1) = W(t) + step(∇f(W(t−1)))``, with ``W(−1) = W(0)``: all micro-batches of step ``t`` see ``W(t−1)`` in all
    stages, forward and back, and the optimiser applies their mean gradient to ``W(t)``. So a stage has two versions of
    its weights, and one optimiser. Stage ``s`` of ``S`` is ``S − 1 − s`` micro-batches ahead with its forwards, then
    takes one forward and one backward in turn, from step to step and from turn to turn of a measurement: it is never
    emptied.

    Raises
    ------
    ValueError
        There are too few micro-batches: forwards that are that far ahead would need a third version.
    """

    def __init__(self, configuration: Answer) -> None:
        super().__init__(configuration)
        if self.microbatches < self.world - 1:
            raise ValueError(f"{self.microbatches} micro-batches; {self.world} stages need {self.world - 1}")
        plan = self.plans(self.world)[self.rank]
        self._new = plan.build()
        self._old = deepcopy(self._new)
        for new, old in zip(self._new.modules(), self._old.modules(), strict=True):
            old._buffers = new._buffers  # running statistics have one version
        self._stepped = [nn.Parameter(value.new_empty(0)) for value in self._new.parameters()]
        self._optimizer = self.optimizer(self._stepped)
        self._ahead = self.world - 1 - self.rank
        part = self.order.microbatch_size
        before, after = self.rank - 1, self.rank + 1
        self._first, self._last = before < 0, after == self.world
        self._graphs: deque[tuple[Tensor, Tensor]] = deque()
        if not self._first:
            shape = (part, *plan.input_shape)
            self._inputs, self._errors_back = (Channel(self.wire, before, shape, self.world) for _ in "io")
        if not self._last:
            shape = (part, *plan.output_shape)
            self._outputs, self._errors = (Channel(self.wire, after, shape, self.world) for _ in "oi")

    def step(self, number: int) -> float | None:
        """Run one optimiser step; return the loss in the process of the last stage."""
        if number == 0:
            for part in range(self._ahead):
                self._forward(0, part)
        losses = []
        for part in range(self.microbatches):
            self._forward(number, part + self._ahead)
            losses.append(self._backward())
        self._apply()
        return torch.stack(losses).mean().item() if self._last else None

    def _forward(self, number: int, part: int) -> None:
        """Run a micro-batch forward, counted from the beginning of a step: those of the next one come after its own."""
        later, part = divmod(part, self.microbatches)
        module = self._new if later else self._old
        indices = self.order.indices(Ticket(number + later, part))
        inputs = self.data.inputs(indices) if self._first else self._inputs.take().requires_grad_()
        output = module(inputs)
        if self._last:
            output = self.loss(output, self.data.targets(indices))
        else:
            self.sent["forward"] += self._outputs.send(output)
        self._graphs.append((inputs, output))

    def _backward(self) -> Tensor:
        """Carry the oldest micro-batch back; return its output, which is the loss in the last stage."""
        inputs, output = self._graphs.popleft()
        gradient = torch.ones_like(output) if self._last else self._errors.take()
        output.backward(gradient / self.microbatches if self._last else gradient)
        if inputs.grad is not None:
            self.sent["backward"] += self._errors_back.send(inputs.grad)
        return output.detach()

    @torch.no_grad()
    def _apply(self) -> None:
        """Make the next weights where the older ones were: no graph refers to those any more."""
        for stepped, new, old in zip(
            self._stepped, self._new.parameters(), self._old.parameters(), strict=True
        ):
            stepped.data = old.data.copy_(new)
            stepped.grad, old.grad = old.grad, None
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._new, self._old = self._old, self._new

    def whole_model(self) -> nn.Module | None:
        """Return the model with its newest weights in the first process."""
        return self.gathered([self._new])


class LookingAhead(TwoBuffered):
    """The same with Nesterov's look-ahead in place of AdamW's step (Ajanthan et al., ICML 2025, arXiv:2505.01099).

    As in its authors' code it is ``torch.optim.NAdam`` with ``β₁ = 0.99`` and weight decay of 0.01 apart from the
    gradient, on the gradients ``g`` as they come, stale: ``m ← β₁ m + (1 − β₁) g``, ``v ← β₂ v + (1 − β₂) g²`` and ``w
    ← (1 − 0.01 η) w − η (μ' m / (1 − ∏μ μ') + (1 − μ) g / (1 − ∏μ)) / (√(v / (1 − β₂ᵗ)) + ε)``, where ``μ`` and ``μ'``
    are the momentum of this step and the next, which grows from about a half of ``β₁`` to all of it. So a step goes on
    along the momentum before the gradient that was taken there is known. The rate ``η`` is AdamW's.
    """

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return NAdam."""
        rate = self.specification.train.optimizer.args["lr"]
        return torch.optim.NAdam(
            parameters, rate, betas=(0.99, 0.999), weight_decay=0.01, decoupled_weight_decay=True
        )


def _begun(work: dist.Work | None) -> dist.Work:
    """Return work that this process takes part in."""
    assert work is not None
    return work
