"""Taps of whatever a block puts out: of one tensor, or of several members of a named set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lowdimfa.errors import InputError
from lowdimfa.taps import Tap
from lowdimfa.values import Value, one


class SetTap(NamedTuple):
    """The taps of several members of a named set, their features one after the other.

    Attributes
    ----------
    taps
        By name, with the shape of each member, without the batch.
    """

    taps: Mapping[str, tuple[Tap, tuple[int, ...]]]

    @property
    def name(self) -> str:
        """The names of its taps, each once."""
        return ", ".join(dict.fromkeys(tap.name for tap, _ in self.taps.values()))

    @property
    def position_dims(self) -> int:
        """As for each of them."""
        return next(iter(self.taps.values()))[0].position_dims

    def __call__(self, output: Mapping[str, Tensor]) -> Tensor:
        """Return float32, shape ``(batch, *positions, features)``."""
        return torch.cat([tap(output[name]) for name, (tap, _) in self.taps.items()], -1)

    def perturb(
        self, output: Mapping[str, Tensor], noise_scale: float, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Do as `Tap.perturb` for each of them."""
        found = {
            name: tap.perturb(output[name], noise_scale, generator) for name, (tap, _) in self.taps.items()
        }
        perturbed = {name: value for name, (value, _) in found.items()}
        return {**output, **perturbed}, torch.cat([moved for _, moved in found.values()], -1)


def tap_at(tap: Tap | SetTap, output: Value) -> Tensor:
    """Return the tap of what a block puts out.

    Raises
    ------
    InputError
        A tap has no longer what it was made for: one tensor, or a named set with these members.
    """
    if isinstance(tap, SetTap):
        if isinstance(output, dict) and tap.taps.keys() <= output.keys():
            return tap(output)
    elif isinstance(output, Tensor):
        return tap(output)
    found = "one tensor" if isinstance(output, Tensor) else f"{', '.join(map(repr, output))}"
    expected = ", ".join(map(repr, tap.taps)) if isinstance(tap, SetTap) else "one tensor"
    raise InputError(
        "model.factory", f"{found} as a layer's output", f"{expected}, as when the network was cut"
    )


def perturb_at(
    tap: Tap | SetTap, output: Value, noise_scale: float, generator: torch.Generator
) -> tuple[Value, Tensor]:
    """Return what a block puts out with noise, and the change of its tap, as `Tap.perturb` does."""
    if isinstance(tap, SetTap):
        assert isinstance(output, dict), "the clean pass came before"
        return tap.perturb(output, noise_scale, generator)
    return tap.perturb(one(output), noise_scale, generator)
