"""What a run's data have to be for its network, its loss and its metrics, found out before the first step."""

from __future__ import annotations

import math

import torch

from lowdimfa.data.base import Task
from lowdimfa.data.reading import Reader
from lowdimfa.data.streams import StreamSplit
from lowdimfa.errors import InputError
from lowdimfa.loss_check import checked_loss
from lowdimfa.losses import (
    Objective,
    counts,
    is_cross_entropy,
    make_loss,
    precise,
    right_predictions,
    shows_targets,
    validate_class_targets,
    validate_tokens,
)
from lowdimfa.metrics import Metrics
from lowdimfa.models.hf.layers import Part
from lowdimfa.services.run.network_plan import NetworkPlan
from lowdimfa.tickets import Ticket
from lowdimfa.values import ONE, named

_PROBLEMS: dict[Task, str] = {
    "classification": "single_label_classification",
    "tokens": "single_label_classification",
    "regression": "regression",
}
"""The ``problem_type`` whose loss ``auto`` is."""

_LOSSES = {
    "regression": "targets that are floating-point numbers, or mse where squared errors are meant",
    "multi_label_classification": "bce, and a target for each label",
    "single_label_classification": "integers as targets, or a loss of your own such as "
    "torch.nn.functional:cross_entropy for shares of classes",
}

_SAMPLES_COMPARED, _BY_CHANCE = 16, 8
"""Samples whose targets are compared with their inputs, and targets that are not all equal to them by chance."""

_ITEMS_CHECKED = 1024
"""Items of a data set, which may be costly to read, whose targets are looked at before a run. Of others all are."""


def check_tokens(network: NetworkPlan, reader: Reader) -> None:
    """Look at the tokens of the data, if the network begins with an embedding that says how many it has room for."""
    first = network.blocks[0].layers[0].module
    vocabulary = getattr(first, "vocabulary", None)
    if vocabulary is not None:
        for inputs in reader.known_inputs(_ITEMS_CHECKED):
            validate_tokens(inputs, vocabulary)
    # A loss of the user's own may move targets itself.
    if (
        isinstance(first, Part)
        and first.predicts
        and is_cross_entropy(network.training.loss, reader.dataset.task)
    ):
        _refuse_seen_targets(network, reader, first.predicts)


def _refuse_seen_targets(network: NetworkPlan, reader: Reader, predicts: str) -> None:
    """Refuse targets that the network sees at their place or the one after: it would learn to copy."""
    samples = reader.training(torch.arange(min(_SAMPLES_COMPARED, len(reader.dataset.train))))
    inputs, targets = named(samples.inputs()), samples.targets()
    tokens, ignored = inputs.get("input_ids", inputs.get(ONE)), network.training.ignore_index
    if tokens is None or tokens.shape != targets.shape:
        return
    if predicts == "next" and _all_seen(tokens, targets, ignored, least=1):
        raise InputError(
            "data.factory",
            "targets that are the very tokens of the inputs, for a network that predicts the next ones",
            "at each position the token after it",
            f"Move them on by one: labels[i] = input_ids[i + 1], the last {ignored}.",
        )
    if predicts == "hidden":
        _refuse_nothing_hidden(tokens, targets, ignored)


def _refuse_nothing_hidden(tokens: torch.Tensor, targets: torch.Tensor, ignored: int) -> None:
    """Refuse targets that no input hides, as those for the task causal-lm are."""
    # A token that is hidden may stay as it is, or be that after it, by chance; not so many.
    if _all_seen(tokens, targets, ignored, least=_BY_CHANCE):
        found = "targets that are the very tokens of the inputs"
    elif tokens.dim() == 2 and _all_seen(tokens[:, 1:], targets[:, :-1], ignored, least=_BY_CHANCE):
        found = "targets that are the tokens after those of the inputs"
    else:
        return
    raise InputError(
        "data.factory",
        f"{found}, which a network with the task masked-lm sees",
        f"inputs of which some tokens are hidden, these as targets, and {ignored} elsewhere",
        "transformers.DataCollatorForLanguageModeling makes them, in a function for data.collate; or set the task "
        "causal-lm.",
    )


def _all_seen(tokens: torch.Tensor, targets: torch.Tensor, ignored: int, least: int) -> bool:
    counted = targets.long() != ignored
    return int(counted.sum()) >= least and torch.equal(tokens[counted], targets[counted])


def check_targets(network: NetworkPlan, reader: Reader, new: bool) -> list[str]:
    """Run the loss once on an output of the right shape, so that a mismatch is found before the first step.

    Parameters
    ----------
    network, reader
        Of the run.
    new
        Whether the run begins: one that goes on, or is evaluated, has the loss that it began with.

    Returns
    -------
    The names of the numbers that evaluations will have.
    """
    training, task = network.training, reader.dataset.task
    shape, kind = network.blocks[-1].output_shape, _precision(network)
    head = network.blocks[-1].layers[-1].module
    if new and training.loss == "auto" and isinstance(head, Part) and head.labels:
        _refuse_other_loss(head, task)
    loss = make_loss(training.loss, task, training.ignore_index)
    shown = shows_targets(training.loss, task)
    if shown:
        for targets in reader.known_targets(_ITEMS_CHECKED):
            validate_class_targets(targets, shape[-1], training.ignore_index)
    elif isinstance(train := reader.dataset.train, StreamSplit):  # which may end too soon
        reader.training(torch.tensor([min(_ITEMS_CHECKED, len(train)) - 1])).targets()
    # A number of samples that no other dimension has: what is broadcast then shows.
    samples = next(number for number in range(2, 8) if number not in shape)
    few = torch.arange(min(samples, len(reader.dataset.test)))
    targets = reader.training(reader.order.indices(Ticket(0, 0))[:samples]).targets()
    counting = counts(training.loss, task, training.ignore_index)
    checked_loss(loss, torch.zeros(len(targets), *shape, dtype=kind), targets, counting(targets))
    names = _check_metrics(network, targets, task)
    tests = _as_in_training(reader.test(few).targets(), targets)
    counted = counting(tests)
    if counted is None or counted.any():
        try:
            checked_loss(loss, torch.zeros(len(tests), *shape, dtype=kind), tests, counted)
            _check_metrics(network, tests, task)
        except InputError as error:
            raise InputError(
                "data.factory",
                f"test targets unlike those of training ({error.message})",
                "such as the loss and the metrics take too",
            ) from error
    return names


def _refuse_other_loss(head: Part, task: Task) -> None:
    """Refuse ``auto`` where it is another loss than that which `transformers` takes for the labels."""
    chosen = "mse for targets that are no integers" if task == "regression" else "cross_entropy for integers"
    if head.problem is not None and head.problem != _PROBLEMS[task]:
        expected = _LOSSES.get(head.problem, "the loss that is meant")
        found = f"'auto', which is {chosen}, with the configuration's problem_type {head.problem!r}"
        raise InputError("train.loss", found, expected)
    if head.problem is None and head.labels > 1 and task == "regression":
        raise InputError(
            "train.loss",
            f"'auto', which is {chosen}, with a network of {head.labels} labels",
            "bce where several labels may be right, or mse where squared errors are meant",
        )


def _as_in_training(targets: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    """Return test targets, unless they are of a shape that a loss might take, by broadcasting, for that of training."""
    test, own = targets.shape[1:], training.shape[1:]
    alike = math.prod(test) == math.prod(own) or (
        len(test) == len(own) and all(a == b or 1 in (a, b) for a, b in zip(test, own, strict=True))
    )
    if test != own and alike:
        found = f"a target of shape {list(test)} for a test sample"
        raise InputError("data.factory", found, f"{list(own)}, as the training targets have it")
    return targets


def _precision(network: NetworkPlan) -> torch.dtype:
    """Return the type in which the loss and the metrics get the network's outputs."""
    return precise(torch.empty(0, dtype=network.blocks[-1].outputs[ONE].dtype)).dtype


def _check_metrics(network: NetworkPlan, targets: torch.Tensor, task: Task) -> list[str]:
    """Measure made-up outputs, so that a metric that can't take them is found before the first step."""
    training = network.training
    objective, metrics = Objective.of(training, task), Metrics(training.metrics)
    generator = torch.Generator().manual_seed(0)
    shape = (len(targets), *network.blocks[-1].output_shape)
    outputs = torch.rand(shape, generator=generator, dtype=_precision(network))
    metrics.update(outputs, targets, objective.counts(targets))
    outputs, targets = torch.cat([outputs, outputs]), torch.cat([targets, targets])  # another number of rows
    metrics.update(outputs, targets, objective.counts(targets))
    judged = ["test_accuracy"] if right_predictions(outputs, targets, task)[1] else []
    own = [name for name, value in metrics.compute().items() if not isinstance(value, list)]
    return ["test_loss", *judged, *own]
