"""An output layer and its loss on some positions at a time, so that the outputs of all never lie in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.data.base import Task
from lowdimfa.errors import InputError, in_words
from lowdimfa.feedback.source import output_start, source_of, source_shape
from lowdimfa.layers import Layer, runs_children
from lowdimfa.losses import Objective, is_cross_entropy
from lowdimfa.partitioning import BlockPlan

_KEY = "train.loss_chunk"
_BY_POSITION = (nn.Linear, nn.Identity, nn.RMSNorm, nn.LayerNorm, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh)
_ROWS = 3


def chunks(hidden: Tensor, targets: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the positions of all samples, at most so many at once.

    Parameters
    ----------
    hidden
        What enters the output layer, shape ``(batch, *positions, width)``.
    targets
        Shape ``(batch, *positions)``.
    most
        Positions of a chunk, whose tensors have shapes ``(positions, width)`` and ``(positions,)``.
    """
    rows, labels = (torch.split(value, most) for value in (hidden.flatten(0, -2), targets.flatten()))
    return zip(rows, labels, strict=True)


def over_chunks(
    pieces: Iterable[tuple[Tensor, Tensor]],
    run: Callable[[Tensor], Tensor],
    objective: Objective,
    weight: float | None = None,
    learn: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run an output layer forwards and backwards on some positions at a time.

    Parameters
    ----------
    pieces
        What `chunks` yields of a micro-batch.
    run
        The output layer.
    objective
        What is minimised.
    weight
        Of the micro-batch: see `Objective.error`.
    learn
        Whether the layer's gradients are accumulated.

    Returns
    -------
    loss, error, correct, counted
        Of the micro-batch; the error is that of what enters, shape ``(positions, width)``.
    """
    pieces = list(pieces)
    numbers = [objective.count(labels) for _, labels in pieces]
    weight = float(any(numbers)) if weight is None else weight
    errors, sums = [], []
    for (rows, labels), number in zip(pieces, numbers, strict=True):
        leaf = rows.detach().requires_grad_()
        outputs = run(leaf)
        loss, error = objective.error(outputs, labels, weight * number / (sum(numbers) or 1))
        given = error.to(outputs.dtype)
        if learn and outputs.requires_grad:
            torch.autograd.backward(outputs, given)
            errors.append(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
        else:
            errors += torch.autograd.grad(outputs, leaf, given, materialize_grads=True)
        sums.append((loss, *objective.score(outputs, labels)))
    loss, correct, counted = (torch.stack(parts).sum() for parts in zip(*sums, strict=True))
    return loss, torch.cat(errors), correct, counted


def refuse_whole(plan: BlockPlan, feedback: FeedbackConfig, training: TrainingConfig, task: Task) -> None:
    """Refuse ``train.loss_chunk`` where the head's outputs are needed as a whole.

    Raises
    ------
    InputError
        The error of the outputs is broadcast, the loss isn't a mean over positions for certain, or a layer may mix
        them.
    """
    if training.loss_chunk is None:
        return
    if source_of(feedback) == "logits":
        found = f"{training.loss_chunk} with form {feedback.form!r} and the error of the logits"
        expected = "feedback.source 'hidden' or 'head_input'"
        raise InputError(_KEY, found, expected, "The error of the logits is as wide as they are.")
    if not is_cross_entropy(training.loss, task):
        raise InputError(_KEY, f"{training.loss_chunk} with the loss {training.loss!r}", "cross_entropy")
    layers = plan.layers[output_start(plan) :]
    beside = [name for flow in plan.flows[output_start(plan) :] for name in flow.side]
    if beside:
        raise _refused(layers[0], f"takes {beside[0]!r} from the data")
    mixing = next((layer for layer in layers if not _works_by_position(layer.module)), None)
    if mixing is not None:
        raise _refused(mixing, "isn't known to work position by position")
    _try(layers, source_shape(plan, replace(feedback, source="hidden", every_layer=False))[-1])


def _works_by_position(module: nn.Module) -> bool:
    if getattr(module, "by_position", False):
        return True
    if runs_children(module):
        return all(map(_works_by_position, module.children()))
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return False
    return type(module) in _BY_POSITION


@torch.no_grad()
def _try(layers: Sequence[Layer], width: int) -> None:
    """Refuse a module that declares what it doesn't do."""
    like = next((value for layer in layers for value in layer.module.parameters()), torch.zeros(()))
    whole = torch.randn(_ROWS, width, generator=torch.Generator().manual_seed(0), device="cpu").to(like)
    single = list(torch.split(whole, 1))
    for layer in layers:
        mode = layer.module.training
        layer.module.eval()
        try:
            whole, single = layer.module(whole.clone()), [layer.module(row.clone()) for row in single]
        except Exception as error:  # a user's module may fail in any way
            raise _refused(layer, f"fails on positions alone ({in_words(error)})") from error
        layer.module.train(mode)
        if not torch.allclose(whole, torch.cat(single), rtol=1e-3, atol=1e-5):
            raise _refused(layer, "makes something else of one position alone")


def _refused(layer: Layer, what: str) -> InputError:
    return InputError(
        _KEY,
        f"an output layer {layer.name!r} ({type(layer.module).__name__}) that {what}",
        "one of nn.Linear, norms over features and activations",
        "A module of your own says by a class attribute 'by_position = True' that it maps (positions, width) row by row.",
    )
