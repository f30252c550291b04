"""The head: the last block, the loss, and the projection that makes the broadcast error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowdimfa.block_module import BlockModule
from lowdimfa.chunks import chunks, over_chunks
from lowdimfa.encoding import State
from lowdimfa.errors import NotFiniteError
from lowdimfa.feedback.projection import PRule, projected_by
from lowdimfa.feedback.readout import with_classes
from lowdimfa.feedback.source import mean_over_pixels, over_pixels
from lowdimfa.losses import Objective
from lowdimfa.metrics import Metrics
from lowdimfa.optim import Updater
from lowdimfa.outcome import Broadcast, Evaluation, Sends
from lowdimfa.sites import FeedbackSite, deliver, follow, load_projection, pack_projection, tap_all
from lowdimfa.stage import Stage
from lowdimfa.stage_config import StageConfig
from lowdimfa.tickets import Ticket
from lowdimfa.values import PLAIN, Activation, Ports, Value, one, without_past

_BODY, _LAST = -1, -2
"""Numbers under which evaluation in chunks knows the layers before the output layer, and that."""

__all__ = ["Broadcast", "Evaluation", "Head"]


class Head(Stage):
    """The last block. It alone sees the targets, and learns from the exact error.

    Parameters
    ----------
    projection
        Makes the broadcast error of the output error.
    objective
        What is minimised; the error vector comes from it by autograd.
    sends
        What is broadcast.
    ports
        What enters; one tensor leaves.
    chunk
        Positions of which outputs and loss are computed at once; None for all. The last part, which may be all of the
        head but has what enters it for itself, is then the output layer.
    metrics
        What evaluations measure beside loss and accuracy.
    """

    def __init__(
        self,
        index: int,
        module: BlockModule,
        updater: Updater,
        projection: PRule,
        objective: Objective,
        sites: Sequence[FeedbackSite],
        config: StageConfig,
        parts: Sequence[int] = (0,),
        sends: Sends = Sends(),  # noqa: B008 (it can't change)
        ports: Ports = PLAIN,
        chunk: int | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        # Its backward follows at once, whatever the staleness: its weights can't change between.
        super().__init__(index, module, updater, sites, replace(config, staleness=0), parts, ports)
        self.projection = projection
        self._rules.append(projection.to(self.device))
        self.objective = objective
        self.metrics = metrics or Metrics({})
        self.sends = sends
        self._exact = len(self.sites)
        exact = {"logits": None, "head_input": self._exact, "hidden": len(self._parts) - 1}
        self._source = exact[sends.source]
        self.chunk = chunk
        if chunk is not None:
            self._output = self._parts.pop()
            self._body, self._last = module.parts([0, parts[-1]])
        self._told = self.projection.weights._version

    def forward(
        self,
        inputs: Activation,
        targets: Tensor,
        ticket: Ticket,
        perturbed: Activation | None = None,
        weight: float | None = None,
    ) -> Broadcast:
        """Run the layers, accumulate the head's own exact gradients, and make the broadcast error.

        Parameters
        ----------
        inputs, targets, ticket
            Of the micro-batch.
        perturbed
            On a probe, the same micro-batch's activations under the noise of all blocks before.
        weight
            One of those that `Objective.weights` returns; by default that of a micro-batch that counts as all others.

        Raises
        ------
        NotFiniteError
            The loss or the error isn't finite.
        """
        self._learned = ticket
        entering: list[Value] = []
        with self.learning():
            *inner, last = self.run_parts(inputs.detach(), ticket, cut=partial(self._enter, entering))
            outputs = one(last)
            tapped = tap_all(self.sites, [*inner, last])
            if self.chunk is None:
                loss, error = self.output_error(outputs, targets, weight)
                correct, counted = self.objective.score(outputs, targets)
            else:
                loss, error, correct, counted = self.learn_by_chunks(outputs, targets, weight)
            self.seed_for("update", *ticket)
            self._learn(entering, [*inner, outputs], error)
        if self._source is not None:
            error = error if self._source == len(entering) else _gradient_of(one(entering[self._source]))
            error = over_pixels(error)
        self._check_finite_loss(loss, error, ticket.step)
        with torch.no_grad():
            self.projection.accumulate(error)
        sent, projection = self.projected(error), self._news()
        if projection is not None:
            follow(self.sites, projection)
        deliver(self.sites, tapped, sent)
        clean = self._at_source(entering, outputs)
        response = None if perturbed is None else self._response(clean.detach(), perturbed, ticket)
        return Broadcast(sent, response, loss, correct, counted, projection)

    def _enter(self, entering: list[Value], value: Value) -> Value:
        """Cut what goes into the next part from its past, and let it have a gradient if one is wanted of it."""
        part, cut = len(entering), without_past(value)
        if part > self._exact or part == self._source:
            cut = one(cut).requires_grad_()
        entering.append(cut)
        return cut

    def _learn(self, entering: Sequence[Value], outputs: Sequence[Value], error: Tensor) -> None:
        """Carry the output error back through the parts that learn exactly, from the last to the first."""
        for part in range(len(outputs) - 1, self._exact - 1, -1):
            output = one(outputs[part])
            if output.requires_grad:
                torch.autograd.backward(output, error.to(output.dtype))
            if part > self._exact:
                error = _gradient_of(one(entering[part]))

    def _at_source(self, entering: Sequence[Value], output: Tensor) -> Tensor:
        """Return the tensor whose error is broadcast; in chunks, what the parts put out enters the output layer."""
        return output if self._source is None else mean_over_pixels(one([*entering, output][self._source]))

    def learn_by_chunks(
        self, hidden: Tensor, targets: Tensor, weight: float | None = None, learn: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Learn the output layer, some positions at a time; return loss, the hidden state's error, right and counted."""
        assert self.chunk is not None, "asked for where outputs come in chunks"
        pieces = chunks(hidden.detach(), targets, self.chunk)
        run, objective = self._run_output, self.objective
        loss, error, correct, counted = over_chunks(pieces, run, objective, weight, learn)
        return loss, error.view(hidden.shape), correct, counted

    def run_whole(self, inputs: Activation, ticket: Ticket, cut: Callable[[Value], Value]) -> list[Value]:
        """Do as `run_parts`, and run the output layer on all positions at once where it isn't one of the parts."""
        outputs = self.run_parts(inputs, ticket, cut=cut)
        if self.chunk is not None:
            outputs.append(self._run_output(one(cut(outputs[-1]))))
        return outputs

    def _run_output(self, hidden: Tensor) -> Tensor:
        return one(self._full_precision(self._call(len(self._parts), self._output, hidden, {})))

    def last_error(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the error of what the last of the parts puts out."""
        if self.chunk is None:
            return self.output_error(output, targets)[1]
        return self.learn_by_chunks(output, targets, learn=False)[1]

    def _news(self) -> Tensor | None:
        """Return ``P`` if blocks follow it and it isn't that of the last step. All of a step's errors have it."""
        weights = self.projection.weights
        return weights.clone() if self.sends.projection and weights._version != self._told else None

    def step(self) -> None:
        """Apply the accumulated gradients, and what the projection has learned."""
        self._told = self.projection.weights._version
        super().step()

    def source_error(self, entering: Sequence[Value], outputs: Tensor, error: Tensor) -> Tensor:
        """Return the error that is broadcast, of an output error.

        Parameters
        ----------
        entering
            What went into each part, from which a graph leads to the outputs.
        outputs, error
            Of the network.
        """
        if self._source is None or self._source == len(entering):
            return error
        given = error.to(outputs.dtype)
        (found,) = torch.autograd.grad(
            outputs, one(entering[self._source]), given, retain_graph=True, materialize_grads=True
        )
        return over_pixels(found.float())

    def output_error(
        self, outputs: Tensor, targets: Tensor, weight: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return loss and error of the outputs, as `Objective.error` does."""
        return self.objective.error(outputs, targets, weight)

    @torch.no_grad()
    def _response(self, clean: Tensor, perturbed: Activation, ticket: Ticket) -> Tensor:
        entering: list[Value] = []
        output, moved = self.run_perturbed(perturbed, ticket, entering)
        response = self.projected(self._at_source(entering, one(output)).float() - clean.float())
        self.accumulate_probe(moved, response, ticket)
        return response

    @torch.no_grad()
    def projected(self, error: Tensor) -> Tensor:
        """Return ``c``, what is broadcast of an output error, with the number of its class where that is sent.

        Raises
        ------
        InputError
            The projection makes something else of it.
        """
        found = projected_by(self.projection, error)
        if self.sends.coarse:
            found = found.bfloat16().float()
        return with_classes(found, error) if self.sends.classes else found

    @torch.no_grad()
    def evaluate_outputs(
        self, inputs: Activation, targets: Tensor, totals: Evaluation, batch: int = 0
    ) -> None:
        """Add the evaluation batch of that number to the totals; metrics begin anew with the first one."""
        if batch == 0:
            self.metrics.reset()
        totals.samples += len(targets)
        totals.ignored += len(targets) * (1 - self.objective.count(targets) / targets.numel())
        if self.chunk is None:
            self._measure(one(self.evaluate(inputs, batch)), targets, totals, len(targets))
            return
        self.seed_for("evaluate", batch)
        with self.evaluating():
            hidden = one(self._full_precision(self._call(_BODY, self._body, *self.entering(inputs))))
            for rows, labels in chunks(hidden, targets, self.chunk):
                outputs = one(self._full_precision(self._call(_LAST, self._last, rows, {})))
                self._measure(outputs, labels, totals, len(targets) * labels.numel() / targets.numel())

    def _measure(self, outputs: Tensor, targets: Tensor, totals: Evaluation, samples: float) -> None:
        totals.add(outputs, targets, self.objective, samples)
        self.metrics.update(outputs, targets, self.objective.counts(targets))

    def state(self) -> State:
        """Return everything that the head needs to go on."""
        own, kept = super().state(), pack_projection(self.projection)
        return State(own.tensors | kept.tensors, own.scalars | kept.scalars)

    def load(self, tensors: Mapping[str, Tensor], *scalars: Mapping[str, Any]) -> None:
        """Restore the state; what another rule for ``P`` kept is left."""
        super().load(tensors, *scalars)
        load_projection(self.projection, tensors, *scalars)

    def _check_finite_loss(self, loss: Tensor, error: Tensor, step: int) -> None:
        for what, value in (("loss", loss), ("error", error)):
            self.check(torch.isfinite(value).all(), partial(self._loss_not_finite, what, step))

    def _loss_not_finite(self, what: str, step: int) -> NotFiniteError:
        return NotFiniteError(
            f"the {what} is not finite at step {step} in the head (block {self.index}); lower the learning "
            f"rate ({self.updater.config.rate_key}), set {self.updater.config.clip_key}, or check the data",
            block=self.index,
            step=step,
            setting=self.updater.config.rate_key,
        )


def _gradient_of(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
