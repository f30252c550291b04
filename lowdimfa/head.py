"""The head: the last block, the loss, and the projection that makes the broadcast error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowdimfa.block_module import BlockModule
from lowdimfa.config import StageConfig
from lowdimfa.encoding import Encoder, State, decode
from lowdimfa.errors import InputError, NotFiniteError
from lowdimfa.feedback.projection import PRule
from lowdimfa.feedback.readout import with_classes
from lowdimfa.losses import Objective, right_predictions
from lowdimfa.optim import Updater
from lowdimfa.outcome import Broadcast, Evaluation, Sends
from lowdimfa.rules import P_RULES
from lowdimfa.sites import FeedbackSite, deliver, follow, tap_all
from lowdimfa.stage import Stage
from lowdimfa.tickets import Ticket
from lowdimfa.values import PLAIN, Activation, Ports, Value, one, without_past

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
    ) -> None:
        # Its backward follows at once, whatever the staleness: its weights can't change between.
        super().__init__(index, module, updater, sites, replace(config, staleness=0), parts, ports)
        self.projection = projection
        self._rules.append(projection.to(self.device))
        self.objective = objective
        self._sends = sends
        self._exact = len(self.sites)
        exact = {"logits": None, "head_input": self._exact, "hidden": len(self._parts) - 1}
        self._source = exact[sends.source]
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
        inputs, targets
            Of the micro-batch.
        ticket
            The micro-batch.
        perturbed
            On a probe, the same micro-batch's activations under the noise of all blocks before.
        weight
            One of those that `weights` returns for the step; by default that of a micro-batch that counts as all others.

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
            tapped = tap_all(self.sites, inner)
            loss, error = self.output_error(outputs, targets, weight)
            self.seed_for("update", *ticket)
            self._learn(entering, [*inner, outputs], error)
        if self._source is not None:
            error = _gradient_of(one(entering[self._source]))
        self._check_finite_loss(loss, error, ticket.step)
        with torch.no_grad():
            self.projection.accumulate(error)
        sent, projection = self.projected(error), self._news()
        if projection is not None:
            follow(self.sites, projection)
        deliver(self.sites, tapped, sent)
        clean = outputs if self._source is None else one(entering[self._source])
        response = None if perturbed is None else self._response(clean.detach(), perturbed, ticket)
        correct, counted = self.score(outputs, targets)
        return Broadcast(sent, response, loss, correct, counted, projection)

    def _enter(self, entering: list[Value], value: Value) -> Value:
        """Cut what goes into the next part from its past, and let it have a gradient if one is wanted of it."""
        part, cut = len(entering), without_past(value)
        if part > self._exact or part == self._source:
            leaf = one(cut)
            cut = (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).requires_grad_()
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

    def _news(self) -> Tensor | None:
        """Return ``P`` if blocks follow it and it isn't that of the last step. All of a step's errors have it."""
        weights = self.projection.weights
        return weights.clone() if self._sends.projection and weights._version != self._told else None

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
        if self._source is None:
            return error
        given = error.to(outputs.dtype)
        (found,) = torch.autograd.grad(
            outputs, one(entering[self._source]), given, retain_graph=True, materialize_grads=True
        )
        return found.float()

    def weights(self, targets: Sequence[Tensor]) -> list[float]:
        """Return what each micro-batch of a step weighs in the mean over what counts in its batch: 1 on average.

        Where nothing counts, in a micro-batch or in all of them, the weight is 0.
        """
        counted = [self._count(part) for part in targets]
        return [len(counted) * number / (sum(counted) or 1) for number in counted]

    def _count(self, targets: Tensor) -> int:
        counted = self.objective.counts(targets)
        return targets.numel() if counted is None else int(counted.sum())

    def output_error(
        self, outputs: Tensor, targets: Tensor, weight: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the micro-batch's weighted mean loss and ``e``, the gradient of the batch's mean loss, both detached."""
        leaf = _precise(outputs.detach()).requires_grad_()
        (weight,) = self.weights([targets]) if weight is None else (weight,)
        if not weight:  # the mean over nothing isn't a number
            return torch.zeros((), device=outputs.device), torch.zeros_like(leaf)
        with torch.enable_grad():
            loss = self.objective.loss(leaf, targets)
        (error,) = torch.autograd.grad(loss, leaf)
        if weight != 1:
            loss, error = weight * loss, weight * error
        return loss.detach(), error / self.objective.microbatches

    def score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many predictions are right, and how many count, as `right_predictions` does."""
        return right_predictions(outputs, targets, self.objective.task, self.objective.counts(targets))

    @torch.no_grad()
    def _response(self, clean: Tensor, perturbed: Activation, ticket: Ticket) -> Tensor:
        entering: list[Value] = []
        outputs, moved = self.run_perturbed(perturbed, ticket, entering)
        reached = one(outputs if self._source is None else entering[self._source])
        response = self.projected(reached.float() - clean.float())
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
        found: object = self.projection.project(error)
        shape = (*error.shape[:-1], len(self.projection.weights))
        if not isinstance(found, Tensor) or found.shape != shape or found.dtype != torch.float32:
            returned = (
                f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
            )
            name = P_RULES.name_of(type(self.projection))
            raise InputError(
                P_RULES.key,
                f"{name!r}, which makes {returned} of an error of shape {tuple(error.shape)}",
                f"torch.float32 of shape {shape}",
            )
        return with_classes(found, error) if self._sends.classes else found

    def evaluate_outputs(
        self, inputs: Activation, targets: Tensor, totals: Evaluation, batch: int = 0
    ) -> None:
        """Add the evaluation batch of that number to the totals."""
        outputs = _precise(one(self.evaluate(inputs, batch)))
        share = self._count(targets) / targets.numel()
        if share:
            totals.loss_sum += float(self.objective.loss(outputs, targets)) * len(targets) * share
        totals.samples += len(targets)
        totals.ignored += len(targets) * (1 - share)
        correct, counted = self.score(outputs, targets)
        totals.correct += int(correct)
        totals.counted += int(counted)

    def state(self) -> State:
        """Return everything that the head needs to go on."""
        (tensors, scalars), rule, encoder = super().state(), self.projection, Encoder(P_RULES.key)
        kept = {"rule": P_RULES.name_of(type(rule)), "state": encoder.encode(rule.state(), "projection")}
        return State(tensors | {"head/P": rule.weights} | encoder.tensors, scalars | {"projection": kept})

    def load(self, tensors: Mapping[str, Tensor], *scalars: Mapping[str, Any]) -> None:
        """Restore the state; what another rule for ``P`` kept is left."""
        super().load(tensors, *scalars)
        rule = self.projection
        rule.weights.copy_(tensors["head/P"])
        for kept in (part["projection"] for part in scalars if "projection" in part):
            if kept["rule"] == P_RULES.name_of(type(rule)):
                rule.load(decode(kept["state"], tensors, rule.state()))

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


def _precise(outputs: Tensor) -> Tensor:
    """Return outputs in the precision of the loss: at least single."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()
