"""Backpropagation in one process, and data-parallel in several: the models, data and steps of the compared systems."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lowdimfa.data.reading import evaluation_batches
from lowdimfa.imports import resolve
from lowdimfa.losses import make_loss
from lowdimfa.services.run.model import build_model
from lowdimfa.services.run.plan import RunPlan, make_run_plan
from lowdimfa.services.spec import parse_specification
from lowdimfa.tickets import Ticket

GLOO_SECONDS = 120.0
Answer = dict[str, Any]


def peak_bytes(pid: int | str = "self") -> int:
    """Return the most memory that a process has had at a time: ``VmHWM`` of ``/proc/<pid>/status``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


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
        self.plan: RunPlan = make_run_plan(self.specification)
        self.data, self.order = self.plan.dataset.train, self.plan.order
        self.loss = make_loss(self.specification.train.loss, self.plan.dataset.task)
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
    def step(self, number: int) -> None:
        """Run one optimiser step."""

    @abstractmethod
    def whole_model(self) -> nn.Module | None:
        """Return the model with its present weights where this process has all of it, else None."""

    def steps(self, system: str, lead: int, count: int) -> Answer:
        """Run steps; see `benchmarks.throughput.worker.Contestant`."""
        sent, cpu = dict(self.sent), time.process_time()
        self._run(lead)
        began = time.perf_counter()
        self._run(count)
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu,
            "steps": lead + count,
            "forward_bytes": self.sent["forward"] - sent["forward"],
            "backward_bytes": self.sent["backward"] - sent["backward"],
            "peak_bytes": peak_bytes(),
        }

    def _run(self, count: int) -> None:
        for _ in range(count):
            self.step(self._next)
            self._next += 1

    @torch.no_grad()
    def evaluate(self, system: str) -> Answer:
        """Return the accuracy on the test split."""
        model = self.whole_model()
        if model is None:
            return {"accuracy": None}
        test, right = self.plan.dataset.test, 0
        model.eval()
        for indices in evaluation_batches(test, self.order.microbatch_size):
            right += int((model(test.inputs(indices)).argmax(1) == test.targets(indices)).sum())
        model.train()
        return {"accuracy": right / len(test)}

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


class Single(Peer):
    """Backpropagation in this process alone; ``parts`` is 1 for whole batches, or the number of micro-batches."""

    def __init__(self, configuration: Answer) -> None:
        super().__init__(configuration)
        self._parts = configuration["parts"]
        self._model = self.model()
        self._optimizer = self.optimizer(list(self._model.parameters()))

    def step(self, number: int) -> None:
        """Run one optimiser step."""
        total = torch.zeros(())
        for indices in self.batch(number).chunk(self._parts):
            loss = self.loss(self._model(self.data.inputs(indices)), self.data.targets(indices)) / self._parts
            loss.backward()
            total += loss.detach()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        total.item()

    def whole_model(self) -> nn.Module:
        """Return the model."""
        return self._model


class DataParallel(Peer):
    """DistributedDataParallel over Gloo: every process has the whole model and an equal part of each batch."""

    def __init__(self, configuration: Answer) -> None:
        super().__init__(configuration)
        join_group(configuration)
        self._rank, self._world = configuration["rank"], configuration["world"]
        self._model = self.model()
        self._parallel = DistributedDataParallel(self._model, gradient_as_bucket_view=True)
        parameters = list(self._model.parameters())
        self._optimizer = self.optimizer(parameters)
        values = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        # What a ring sends in all is 2 (n - 1) times the gradients; each process sends its share of that.
        self._all_reduce = 2 * (self._world - 1) * values // self._world

    def step(self, number: int) -> None:
        """Run one optimiser step."""
        indices = self.batch(number).chunk(self._world)[self._rank]
        loss = self.loss(self._parallel(self.data.inputs(indices)), self.data.targets(indices))
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.sent["backward"] += self._all_reduce
        loss.item()

    def whole_model(self) -> nn.Module:
        """Return the model, which is the same in all processes."""
        return self._model
