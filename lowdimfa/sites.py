"""Where the broadcast error enters a block: at the end of it, or of each of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowdimfa.encoding import Encoder, State, decode
from lowdimfa.errors import InputError
from lowdimfa.feedback.projection import PRule, WholeError
from lowdimfa.feedback.rules import QRule, TransposedFeedback
from lowdimfa.rules import P_RULES, Q_RULES
from lowdimfa.set_taps import SetTap, tap_at
from lowdimfa.taps import Tap
from lowdimfa.values import Value


class FeedbackSite(NamedTuple):
    """The end of a part of a block, which learns there from the broadcast error.

    Attributes
    ----------
    boundary
        Name of the part's last layer, under which the feedback weights are kept.
    tap
        The function of the part's output at which the error enters.
    feedback
        The feedback weights and their rule.
    """

    boundary: str
    tap: Tap | SetTap
    feedback: QRule


def tap_all(sites: Sequence[FeedbackSite], outputs: Sequence[Value]) -> list[Tensor]:
    """Return the taps' values, given the outputs of the parts: one for each site, maybe more."""
    return [tap_at(site.tap, output) for site, output in zip(sites, outputs, strict=False)]


@torch.no_grad()
def delivered(sites: Sequence[FeedbackSite], tapped: Sequence[Tensor], error: Tensor) -> list[Tensor]:
    """Return what a broadcast error would deliver at the taps, of which nothing is learned; see `deliver`."""
    return [
        site.feedback.deliver(site.feedback.errors(value.detach(), error).delivered)
        for site, value in zip(sites, tapped, strict=True)
    ]


def deliver(sites: Sequence[FeedbackSite], tapped: Sequence[Tensor], error: Tensor) -> None:
    """Let parts learn from a broadcast error: accumulate the gradients of their layers and of their feedback weights.

    Parameters
    ----------
    sites, tapped
        The ends of the parts, and the values of their taps with their graphs.
    error
        ``c``, shape ``(batch, *positions, error_dim)``.

    Raises
    ------
    InputError
        A rule delivers something else than an error at its tap.
    """
    for site, value in zip(sites, tapped, strict=True):
        fed = _respond(site.feedback, value.detach(), error)
        if value.requires_grad:
            torch.autograd.backward(value, fed)


@torch.no_grad()
def _respond(rule: QRule, tapped: Tensor, error: Tensor) -> Tensor:
    errors: object = rule.errors(tapped, error)
    if not (isinstance(errors, tuple) and len(errors) == 2):
        raise InputError(
            Q_RULES.key,
            f"{Q_RULES.name_of(type(rule))!r}, whose errors() returns {type(errors).__name__}",
            "lowdimfa.Errors(learned, delivered)",
        )
    learned, delivered = errors
    rule.accumulate(tapped, learned)
    found: object = rule.deliver(delivered)
    if not isinstance(found, Tensor) or found.shape != tapped.shape or found.dtype != tapped.dtype:
        returned = (
            f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        )
        raise InputError(
            Q_RULES.key,
            f"{Q_RULES.name_of(type(rule))!r}, which delivers {returned} at a tap of shape {tuple(tapped.shape)}",
            f"{tapped.dtype} of that shape",
        )
    return found


def follow(sites: Sequence[FeedbackSite], projection: Tensor) -> None:
    """Let the feedback weights that go with ``P`` follow it."""
    for site in sites:
        site.feedback.follow(projection)


def pack_rules(sites: Sequence[FeedbackSite]) -> State:
    """Return the feedback weights, and what their rules keep beside them, by boundary.

    Raises
    ------
    InputError
        A rule keeps something that a checkpoint can't hold.
    """
    encoder = Encoder(Q_RULES.key)
    kept = {site.boundary: encoder.encode(site.feedback.state(), "rule", site.boundary) for site in sites}
    # A Q that is the head's P has no state of its own.
    own = [site for site in sites if not isinstance(site.feedback, TransposedFeedback)]
    weights = {f"feedback/{site.boundary}/Q": site.feedback.weights.detach() for site in own}
    return State(weights | encoder.tensors, {boundary: data for boundary, data in kept.items() if data})


def load_rules(
    sites: Sequence[FeedbackSite], tensors: Mapping[str, Tensor], *scalars: Mapping[str, Any]
) -> None:
    """Restore what `pack_rules` returned, maybe of several blocks; a site that wasn't there stays as it was drawn."""
    kept = {boundary: data for part in scalars for boundary, data in part.items()}
    for boundary, _, rule in sites:
        saved = tensors.get(f"feedback/{boundary}/Q")
        if saved is not None and not isinstance(rule, TransposedFeedback):
            rule.weights.data.copy_(saved)
        if boundary in kept:
            rule.load(decode(kept[boundary], tensors, rule.state()))


def pack_projection(rule: PRule) -> State:
    """Return ``P``, and what its rule keeps beside it; it raises as `pack_rules` does."""
    encoder = Encoder(P_RULES.key)
    kept = {"rule": P_RULES.name_of(type(rule)), "state": encoder.encode(rule.state(), "projection")}
    whole = isinstance(rule, WholeError) and rule.is_identity
    weights = {} if whole else {"head/P": rule.weights}
    return State(weights | encoder.tensors, {"projection": kept})


def load_projection(rule: PRule, tensors: Mapping[str, Tensor], *scalars: Mapping[str, Any]) -> None:
    """Restore what `pack_projection` returned; what another rule kept is left."""
    saved = tensors.get("head/P")  # without one it was the identity, with which any rule begins
    if saved is not None and isinstance(rule, WholeError):
        rule.restore(saved)
    elif saved is not None:
        rule.weights.copy_(saved)
    for kept in (part["projection"] for part in scalars if "projection" in part):
        if kept["rule"] == P_RULES.name_of(type(rule)):
            rule.load(decode(kept["state"], tensors, rule.state()))
