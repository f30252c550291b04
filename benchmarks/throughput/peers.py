"""What the compared systems share, their models, data and steps, and the simplest: backpropagation in one process."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowdimfa.block_module import unchanged_buffers
from lowdimfa.data.reading import evaluation_batches
from lowdimfa.imports import resolve
from lowdimfa.losses import Objective
from lowdimfa.outcome import Evaluation
from lowdimfa.services.run.model import build_model
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.families import peak_bytes
from lowdimfa.tickets import Ticket

GLOO_SECONDS = 120.0
Answer = dict[str, Any]


def join_group(configuration: Answer) -> None:
    """Join the process group of a system over Gloo."""
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{configuration['meet']}",
        rank=configuration["rank"],
        world_size=configuration["world"],
        timeout=timedelta(seconds=GLOO_SECONDS),
    )


class Peer(ABC):
    """A process that trains with gradients, on the model and data that a specification names.

    Parameters
    ----------
    configuration
        ``specification``, and what the kind needs besides.
    """

    def __init__(self, configuration: Answer) -> None:
        self.specification = parse_specification(configuration["specification"], "the benchmark")
        # No rehearsal, and none of the plan's network is kept: this process's peak of memory is that of its own training.
        plan = make_run_plan(self.specification, rehearsed=False)
        self.dataset, self.example, self.order = plan.dataset, plan.example, plan.order
        self.data = self.dataset.train
        self.objective = Objective.of(plan.network.training, self.dataset.task)
        self.loss = self.objective.loss
        self.microbatches = self.specification.train.microbatches
        self.sent = {"forward": 0, "backward": 0}
        self._next = 0

    def model(self) -> nn.Module:
        """Return the model, with the weights that every other process draws too."""
        return build_model(self.specification).train()

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the specification's optimiser."""
        chosen = self.specification.train.optimizer
        factory = resolve(chosen.factory, "train.optimizer.factory")
        made: torch.optim.Optimizer = factory(parameters, **chosen.args)
        return made

    def batch(self, step: int) -> Tensor:
        """Return the indices of a step's whole batch, in the order of its micro-batches."""
        parts = [self.order.indices(Ticket(step, part)) for part in range(self.microbatches)]
        return torch.cat(parts)

    @abstractmethod
    def step(self, number: int) -> float | None:
        """Run one optimiser step; return the loss where this process has it."""

    @abstractmethod
    def whole_model(self) -> nn.Module | None:
        """Return the model with its present weights where this process has all of it, else None."""

    def steps(self, system: str, lead: int, count: int) -> Answer:
        """Run steps; see `benchmarks.throughput.worker.Contestant`."""
        sent, cpu = dict(self.sent), time.process_time()
        self._run(lead)
        began = time.perf_counter()
        losses = self._run(count)
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "losses": losses,
            "cpu_seconds": time.process_time() - cpu,
            "steps": lead + count,
            "forward_bytes": self.sent["forward"] - sent["forward"],
            "backward_bytes": self.sent["backward"] - sent["backward"],
            "peak_bytes": peak_bytes(),
        }

    def _run(self, count: int) -> list[float | None]:
        losses = []
        for _ in range(count):
            losses.append(self.step(self._next))
            self._next += 1
        return losses

    @torch.no_grad()
    def evaluate(self, system: str) -> Answer:
        """Return accuracy and loss on the test split."""
        model = self.whole_model()
        if model is None:
            return {"accuracy": None, "loss": None}
        test, found = self.dataset.test, Evaluation()
        model.eval()
        for indices in evaluation_batches(test, self.order.evaluation_size):
            found.add(model(test.inputs(indices)), test.targets(indices), self.objective, len(indices))
            found.samples += len(indices)
        model.train()
        return {"accuracy": found.accuracy, "loss": found.loss}

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def recomputed(module: nn.Module, inputs: Tensor) -> Tensor:
    """Run a module that keeps its inputs alone and runs again before its backward; its buffers change once."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), unchanged_buffers(module)

    output: Tensor = checkpoint(module, inputs, use_reentrant=False, context_fn=contexts)
    return output


class Single(Peer):
    """Backpropagation in this process alone.

    Parameters
    ----------
    configuration
        With ``parts``, 1 for whole batches, or the number of micro-batches; and ``recompute``, whether the layers of
        the model, an `nn.Sequential`, keep their inputs alone.
    """

    def __init__(self, configuration: Answer) -> None:
        super().__init__(configuration)
        self._parts, self._recompute = configuration["parts"], configuration.get("recompute", False)
        self._model = self.model()
        self._optimizer = self.optimizer(list(self._model.parameters()))

    def step(self, number: int) -> float:
        """Run one optimiser step; return the loss."""
        total = torch.zeros(())
        for indices in self.batch(number).chunk(self._parts):
            output = self._forward(self.data.inputs(indices))
            loss = self.loss(output, self.data.targets(indices)) / self._parts
            loss.backward()
            total += loss.detach()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total.item()

    def _forward(self, inputs: Tensor) -> Tensor:
        if not self._recompute:
            output: Tensor = self._model(inputs)
            return output
        for layer in self._model.children():
            inputs = recomputed(layer, inputs)
        return inputs

    def whole_model(self) -> nn.Module:
        """Return the model."""
        return self._model
