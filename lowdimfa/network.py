"""All blocks of a network in one process, trained by one of the forms of feedback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lowdimfa.baselines import BackpropForm, FrozenForm, LocalForm
from lowdimfa.block import Block
from lowdimfa.build import build_stages
from lowdimfa.config import FeedbackConfig, Form, TrainingConfig
from lowdimfa.data.base import Task
from lowdimfa.errors import InputError
from lowdimfa.generators import unchanged_generators
from lowdimfa.head import Evaluation, Head
from lowdimfa.layers import as_module, named_tensors
from lowdimfa.partitioning import partition
from lowdimfa.stage import Stage
from lowdimfa.tickets import Ticket
from lowdimfa.values import Activation, Inputs, entering, everywhere, one

Batch = tuple[Activation, Tensor]
"""Inputs and targets of one micro-batch."""


@dataclass
class StepResult:
    """What one optimiser step measured, over all its micro-batches."""

    step: int
    losses: list[float] = field(default_factory=list)
    correct: int = 0
    counted: int = 0

    def add(self, loss: float, correct: int, counted: int) -> None:
        """Take in one micro-batch."""
        self.losses.append(loss)
        self.correct += correct
        self.counted += counted

    @property
    def loss(self) -> float:
        """Mean loss of the step's batch."""
        return sum(self.losses) / len(self.losses)

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions, or None where there is no accuracy."""
        return self.correct / self.counted if self.counted else None


class FormOfFeedback(Protocol):
    """How one micro-batch's forward and learning go: the interface of the method and of its baselines."""

    def run(
        self, inputs: Activation, targets: Tensor, ticket: Ticket, weight: float | None = None
    ) -> tuple[float, int, int]:
        """Accumulate every block's gradients of one micro-batch; return loss, right predictions, predictions.

        ``weight`` is that of the micro-batch in the mean over its step, as `Head.weights` returns it.
        """

    def step(self) -> None:
        """Apply all accumulated gradients."""


class BroadcastForm:
    """The method: activations flow forward, and one broadcast error flows back (direct form, arXiv:2502.20580)."""

    def __init__(self, blocks: Sequence[Block], head: Head, feedback: FeedbackConfig) -> None:
        self._blocks = blocks
        self._learning = [block for block in blocks if block.learns]
        self._head = head
        self._feedback = feedback

    def run(
        self, inputs: Activation, targets: Tensor, ticket: Ticket, weight: float | None = None
    ) -> tuple[float, int, int]:
        """Forward through all blocks, then deliver the broadcast error to each."""
        probed = self._feedback.probes(ticket)
        clean = perturbed = inputs
        for block in self._blocks:
            output = block.forward(clean, ticket)
            if probed:
                # The memory of the clean output may be the layers', which run once more.
                output = everywhere(output, torch.clone)
                perturbed = block.probe(perturbed, ticket)
            clean = output
        sent = self._head.forward(clean, targets, ticket, perturbed if probed else None, weight)
        for block in self._learning:
            block.receive_error(ticket, sent.error, projection=sent.projection)
            if sent.response is not None:
                block.receive_error(ticket, sent.response, "probe")
        return float(sent.loss), int(sent.correct), int(sent.counted)

    def step(self) -> None:
        """Let each block apply its own update."""
        for stage in (*self._blocks, self._head):
            stage.step()


def make_form(name: Form, blocks: Sequence[Block], head: Head, feedback: FeedbackConfig) -> FormOfFeedback:
    """Return the form of feedback that a specification names."""
    forms: dict[Form, Callable[[], FormOfFeedback]] = {
        "broadcast": lambda: BroadcastForm(blocks, head, feedback),
        "backprop": lambda: BackpropForm(blocks, head),
        "local": lambda: LocalForm(blocks, head),
        "frozen": lambda: FrozenForm(blocks, head),
    }
    return forms[name]()


class DecoupledNetwork:
    """A network cut into blocks, in this process.

    It does the same mathematics as the distributed run with ``staleness: 0``, and gives the same bits on the CPU.

    Parameters
    ----------
    blocks, head
        As `lowdimfa.build.build_stages` makes them.
    feedback
        Names the form of feedback and says which micro-batches carry probes.
    """

    def __init__(self, blocks: Sequence[Block], head: Head, feedback: FeedbackConfig) -> None:
        self.blocks = list(blocks)
        self.head = head
        self.form = make_form(feedback.form, self.blocks, head, feedback)
        # A stage without tensors counts as one on the processor.
        self._device = next((one.device for one in self.stages if one.device.type != "cpu"), head.device)

    @property
    def stages(self) -> list[Stage]:
        """Blocks and head, in order."""
        return [*self.blocks, self.head]

    def train_step(self, step: int, batches: Iterable[Batch], *, trial: bool = False) -> StepResult:
        """Run one optimiser step over its micro-batches; of one that fails, no gradient is left for the next.

        Parameters
        ----------
        step
            Number of the step, from 0; random draws depend on it.
        batches
            The micro-batches, of equal size: inputs ``(batch, …)``, by name as `lowdimfa.values.entering` returns them,
            and targets; as many as the training's settings have.
        trial
            Whether this is only to see that it works, for which any number will do.

        Raises
        ------
        InputError
            There are more or fewer of them.
        """
        result, batches = StepResult(step), list(batches)
        if not trial and len(batches) != (expected := self.head.objective.microbatches):
            raise InputError(
                "train.microbatches",
                f"{len(batches)} micro-batches in step {step}",
                f"{expected}: each counts as that part of the batch",
                "Give TrainingConfig and BatchOrder the same number.",
            )
        weights = self.head.objective.weights([targets for _, targets in batches])
        with unchanged_generators(
            self._device
        ):  # a user's loop draws from them, such as the order of samples
            try:
                for microbatch, ((inputs, targets), weight) in enumerate(zip(batches, weights, strict=True)):
                    result.add(*self.form.run(inputs, targets, Ticket(step, microbatch), weight))
                self.form.step()
            except BaseException:  # whoever catches it may go on with another batch
                for stage in self.stages:
                    stage.forget()
                raise
        return result

    def forward(self, inputs: Inputs) -> Tensor:
        """Return the network's output in evaluation mode."""
        activation = entering(inputs)
        with unchanged_generators(self._device):
            for stage in self.stages:
                activation = stage.evaluate(activation)
        return one(activation)

    def evaluate(self, batches: Iterable[Batch]) -> Evaluation:
        """Return loss and accuracy over batches, in evaluation mode."""
        totals = Evaluation()
        for number, (inputs, targets) in enumerate(batches):
            with unchanged_generators(self._device):
                for block in self.blocks:
                    inputs = block.evaluate(inputs, number)
                self.head.evaluate_outputs(inputs, targets, totals, number)
        totals.metrics = self.head.metrics.compute()
        return totals

    def state_dict(self) -> dict[str, Any]:
        """Return the plain model's state dict, which loads into the model that was cut."""
        states = [stage.module.plain_state() for stage in self.stages]
        return {name: value for state in states for name, value in (state.tensors | state.extra).items()}


def decouple(
    model: nn.Module | Sequence[nn.Module],
    example: Inputs,
    *,
    blocks: int | Sequence[str],
    total_steps: int,
    feedback: FeedbackConfig | None = None,
    training: TrainingConfig | None = None,
    task: Task = "classification",
) -> DecoupledNetwork:
    """Cut a model into blocks that learn from the broadcast error.

    Nothing is tried before the first step, other than by `DecoupledTrainer` and the command, which refuse layers that
    learn something else in a block than in plain torch, such as those under reentrant checkpointing
    (`lowdimfa.exactness.refuse_inexact`).

    Parameters
    ----------
    model
        An `nn.Sequential`, a list of modules, or a module that declares its layers. It stays on its device.
    example
        A small batch of inputs, maybe by name, for shapes and costs.
    blocks
        How many blocks, or the names of the layers at which the second and later ones start.
    total_steps
        Optimiser steps that will be run, for schedulers; ignored where ``training`` is given.
    feedback, training
        Feedback, optimiser, precision and seed; defaults as in the specification.
    task
        Decides the default loss and whether accuracy is counted.
    """
    feedback = feedback or FeedbackConfig()
    training = training or TrainingConfig(total_steps=total_steps)
    device = next((value.device for _, value in named_tensors(as_module(model))), None)
    plans = partition(model, blocks, example)
    return DecoupledNetwork(*build_stages(plans, feedback, training, task, device), feedback)


@contextmanager
def computing_threads(threads: int) -> Iterator[None]:
    """Run torch with a number of threads: the bits of a sum depend on it, so every engine sets the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
