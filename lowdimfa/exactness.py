"""Whether blocks learn as their layers would in plain torch, in whatever order a run lets them work.

A user's layers may do anything with autograd. Three things are different in a block, and show here before a run: its
input doesn't require a gradient; the forward of another micro-batch may come between a forward and its update; and so
may an update of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from lowdimfa.block import Block
from lowdimfa.block_module import BlockModule, unchanged_buffers
from lowdimfa.calling import FACTORY_KEY
from lowdimfa.errors import InputError, LowdimfaError, finds_no_memory, in_words
from lowdimfa.head import Head
from lowdimfa.sending import arriving
from lowdimfa.set_taps import tap_at
from lowdimfa.sites import delivered, tap_all
from lowdimfa.tickets import Ticket
from lowdimfa.values import Activation, Value, everywhere, mapped, one, opened, with_side

T = TypeVar("T")
Gradients = dict[str, Tensor]
Batch = tuple[Activation, Tensor]

TOLERANCE = 1e-3
"""Largest difference of gradients, relative to their norm, that is taken for rounding."""

ROUNDING = 1e-6
"""The same relative to all gradients of a head whose loss comes in chunks: in a sum of other order, a gradient that is
none but for rounding, as of a key's bias in attention, is another one.
"""

_FEW = 2
"""Samples for which a head's outputs are made whole that come in chunks elsewhere."""

_FIRST, _SECOND = Ticket(0, 0), Ticket(0, 1)


def refuse_inexact(
    stages: Iterable[Block | Head], batches: Sequence[Batch], *, overlapping: bool, stale: bool
) -> None:
    """Compare the gradients of every block with those of plain torch.

    Parameters
    ----------
    stages
        The network, as it is before the first step, the head last; each is dropped before the next is asked for.
        Afterwards parameters and buffers are as before, but its feedback isn't.
    batches
        Two micro-batches, on the network's device.
    overlapping
        Whether the run may have a forward between another one and its update.
    stale
        Whether weights may change between a forward and its update.

    Raises
    ------
    InputError
        A block's gradients are others than those of plain torch, or its layers fail; names its layers.
    """
    (first, targets), (second, _) = batches
    for stage in stages:
        if isinstance(stage, Head):
            _check_head(stage, first, targets)
        else:
            first, second = _Checked(stage, (first, second)).checked(overlapping, stale)
        del stage


class _Checked:
    """One block and two micro-batches that reach it."""

    def __init__(self, block: Block, inputs: tuple[Activation, Activation]) -> None:
        self.block = block
        self.inputs = dict(zip((_FIRST, _SECOND), inputs, strict=True))

    def checked(self, overlapping: bool, stale: bool) -> tuple[Activation, Activation]:
        """Return what the block makes of both."""
        for site in self.block.sites:  # which may have started at zero, and would show nothing
            site.feedback.weights.data.normal_(generator=torch.Generator(self.block.device).manual_seed(0))
        outputs = _trying(self.block, self._outputs)
        if self.block.learns:
            self._compare_orders(outputs, overlapping, stale)
        first, second = outputs.values()
        return first, second

    def _compare_orders(self, outputs: Mapping[Ticket, Activation], overlapping: bool, stale: bool) -> None:
        self.errors = {ticket: self._error(output) for ticket, output in outputs.items()}
        alone = _trying(self.block, partial(self._learn, "f0 u0"))
        plain = _trying(self.block, partial(_restored, self.block, self._plain))
        _compare(self.block, plain, alone, "others than plain torch's", _NEEDS_GRADIENT)
        if overlapping:
            in_turn = self._learn("f0 u0 f1 u1")
            mixed = _trying(self.block, partial(self._learn, "f0 f1 u0 u1"), _OVERLAPS)
            _compare(self.block, in_turn, mixed, "others when two micro-batches are under way", _OVERLAPS)
        if stale:
            fresh = self._learn("f0 u0")
            late = _trying(self.block, partial(self._learn, "f0 w u0"), _STALE)
            _compare(
                self.block, fresh, late, "others once the weights have changed since its forward", _STALE
            )

    def _outputs(self) -> dict[Ticket, Activation]:
        return _restored(self.block, lambda: {t: self.block.forward(x, t) for t, x in self.inputs.items()})

    def _error(self, output: Activation) -> Tensor:
        site = self.block.sites[-1]
        tapped = tap_at(site.tap, arriving(self.block.form, self.block.ports.leaves, opened(output)[0]))
        shape = *tapped.shape[:-1], site.feedback.received
        return torch.randn(
            shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32, device="cpu"
        ).to(tapped.device) / len(tapped)

    def _learn(self, events: str) -> Gradients:
        """Return the gradients and buffers after these events: f and u of a micro-batch, and w, other weights."""

        def run() -> Gradients:
            for event in events.split():
                ticket = _SECOND if event.endswith("1") else _FIRST
                if event == "w":
                    self.block.before_update()
                    _move(self.block.module)
                elif event.startswith("f"):
                    self.block.forward(self.inputs[ticket], ticket)
                else:
                    self.block.receive_error(ticket, self.errors[ticket])
            return _gradients(self.block.module) | _buffers(self.block.module)

        return _restored(self.block, run)

    def _plain(self) -> Gradients:
        """Return the gradients that plain torch gives layers whose input has a past."""
        with torch.enable_grad():
            outputs = self.block.run_parts(
                self.inputs[_FIRST], _FIRST, cut=lambda value: mapped(value, _with_past)
            )
            tapped = tap_all(self.block.sites, outputs)
            self.block.seed_for("update", *_FIRST)
            return _by_autograd(self.block, tapped, delivered(self.block.sites, tapped, self.errors[_FIRST]))


def _check_head(head: Head, inputs: Activation, targets: Tensor) -> None:
    if head.chunk is not None:  # whose outputs, all at once, may find no memory
        inputs, targets = everywhere(with_side(*head.entering(inputs)), lambda x: x[:_FEW]), targets[:_FEW]

    def learn() -> Gradients:
        head.forward(inputs, targets, _FIRST)
        return _gradients(head.module)

    def plain() -> Gradients:
        with torch.enable_grad():
            entering: list[Value] = []
            *inner, last = head.run_whole(inputs, _FIRST, partial(_entering, head, entering))
            outputs = one(last)
            _, error = head.output_error(outputs, targets)
            tapped = tap_all(head.sites, inner)
            fed = delivered(head.sites, tapped, head.projected(head.source_error(entering, outputs, error)))
            return _by_autograd(head, [*tapped, outputs], [*fed, error.to(outputs.dtype)])

    own = _trying(head, partial(_restored, head, learn))
    expected = _trying(head, partial(_restored, head, plain))
    least = 0.0 if head.chunk is None else ROUNDING * _norm(expected)
    _compare(head, expected, own, "others than plain torch's", _NEEDS_GRADIENT, least)


_NEEDS_GRADIENT = (
    "layers that learn alike whether or not their input requires a gradient (at a block's start it doesn't)",
    "Checkpointing does with use_reentrant=False; a layer that differentiates its input may call x.requires_grad_().",
)
_ASKED = (
    "others when it is asked for than when it is accumulated",
    (
        "layers that give torch.autograd.grad what they give backward",
        "Checkpointing does with use_reentrant=False.",
    ),
)
_OVERLAPS = (
    "layers whose backward pass uses nothing that a later forward changes",
    "Set train.microbatches to 1, train.window to 1 and train.staleness to 0, which lets nothing come between.",
)
_STALE = (
    "layers whose backward pass autograd can give the weights of their forward",
    "Set train.staleness to 0.",
)


def _trying(stage: Block | Head, run: Callable[[], T], advice: tuple[str, str] | None = None) -> T:
    try:
        return run()
    except LowdimfaError:
        raise
    except (Exception, SystemExit) as error:  # a user's layers may fail in any way
        if finds_no_memory(error):
            raise MemoryError(str(error)) from error
        if "saved tensor hooks" in str(
            error
        ):  # by which stale weights are kept, and which torch.func refuses
            advice = _STALE
        expected, hint = advice or ("layers that train on the data", "")
        reason = f"which fails in training ({in_words(error)})"
        raise InputError(FACTORY_KEY, f"{_named(stage)}, {reason}", expected, hint) from error


def _compare(
    stage: Block | Head,
    expected: Gradients,
    found: Gradients,
    what: str,
    advice: tuple[str, str],
    least: float = 0.0,
) -> None:
    for name, wanted in expected.items():
        difference = float((found[name].double() - wanted.double()).norm())
        allowed = TOLERANCE * max(float(wanted.double().norm()), float(found[name].double().norm()))
        if difference > max(allowed, least):
            raise InputError(FACTORY_KEY, f"{_named(stage)}, whose {name} is {what}", *advice)


def _norm(gradients: Gradients) -> float:
    return math.hypot(*(float(value.double().norm()) for value in gradients.values()))


def _named(stage: Block | Head) -> str:
    first, *_, last = (*stage.module.layer_names, stage.module.layer_names[-1])
    layers = f"layer {first!r}" if first == last else f"layers {first!r} to {last!r}"
    return f"block {stage.index} ({layers})"


def _restored(stage: Block | Head, run: Callable[[], T]) -> T:
    """Run something and put parameters, buffers and gradients back."""
    values = [(parameter, parameter.detach().clone()) for parameter in stage.module.parameters()]
    try:
        with unchanged_buffers(stage.module):
            return run()
    finally:
        for parameter, value in values:
            parameter.data.copy_(value)
        for parameter in (*stage.module.parameters(), *stage.updater.trained):
            parameter.grad = None


def _move(module: BlockModule) -> None:
    """Change all learned weights in place, as an optimiser does."""
    with torch.no_grad():
        for _, parameter in _learned(module):
            parameter.mul_(0.5).add_(0.1)


def _gradients(module: BlockModule) -> Gradients:
    return {
        _key(name): torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in _learned(module)
    }


def _buffers(module: BlockModule) -> Gradients:
    return {f"buffer {name}": buffer.clone() for name, buffer in module.named_plain_buffers()}


def _by_autograd(stage: Block | Head, outputs: Sequence[Tensor], errors: Sequence[Tensor]) -> Gradients:
    """Return the gradients that a backward pass accumulates, once it is sure that asking for them gives the same."""
    pairs = [(output, error) for output, error in zip(outputs, errors, strict=True) if output.requires_grad]
    learned = _learned(stage.module)
    roots, deltas = [output for output, _ in pairs], [error for _, error in pairs]
    if learned and pairs:
        stage.seed_for("update", *_FIRST)
        asked = torch.autograd.grad(
            roots, [value for _, value in learned], deltas, retain_graph=True, materialize_grads=True
        )
        stage.seed_for("update", *_FIRST)
        torch.autograd.backward(roots, deltas)
        named = zip(learned, asked, strict=True)
        _compare(stage, {_key(name): value for (name, _), value in named}, _gradients(stage.module), *_ASKED)
    return _gradients(stage.module)


def _key(parameter: str) -> str:
    return f"gradient of {parameter}"


def _learned(module: BlockModule) -> list[tuple[str, nn.Parameter]]:
    return [(name, value) for name, value in module.named_plain_parameters() if value.requires_grad]


def _entering(head: Head, entering: list[Value], value: Value) -> Value:
    """Note what goes into a part, and cut it from its past where no gradient passes."""
    entering.append(mapped(value, _with_past) if len(entering) <= len(head.sites) else value)
    return entering[-1]


def _with_past(activations: Tensor) -> Tensor:
    """Return activations as in the middle of a network: with a gradient to be had, and no leaf of the graph."""
    leaf = activations.detach()
    return leaf.requires_grad_().clone() if leaf.is_floating_point() or leaf.is_complex() else leaf
