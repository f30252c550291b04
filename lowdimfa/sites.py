"""Where the broadcast error enters a block: at the end of it, or of each of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lowdimfa.feedback.rules import FeedbackWeights
from lowdimfa.taps import Tap


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
    tap: Tap
    feedback: FeedbackWeights


def tap_all(sites: Sequence[FeedbackSite], outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the taps' values, given the outputs of the parts: one for each site, maybe more."""
    return [site.tap(output) for site, output in zip(sites, outputs, strict=False)]


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
    """
    for site, value in zip(sites, tapped, strict=True):
        delivered = site.feedback.respond(value.detach(), error)
        if value.requires_grad:
            torch.autograd.backward(value, delivered)
