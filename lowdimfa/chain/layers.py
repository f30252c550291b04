"""`nn.Linear` and `nn.Conv2d` with feedback: the same parameters and outputs, another way back."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.chain.maps import ConvMap, LinearMap, Map

LINEAR = LinearMap()


class Runner(Protocol):
    """What runs a map forward, and sends its errors back by a rule."""

    def run(self, map_: Map, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the map's output."""


class Converted:
    """What classes of converted layers have in common."""

    plain_class: type[nn.Module]

    def __init_subclass__(cls) -> None:
        """Make the class of a converted layer, of which the user's own class that it derives from needn't know."""


class ChainLinear(Converted, nn.Linear):
    """An `nn.Linear` whose input gradient comes through its feedback."""

    feedback: Runner

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(…, in_features)`` to ``(…, out_features)``."""
        return self.feedback.run(LINEAR, input, self.weight, self.bias)


class ChainConv2d(Converted, nn.Conv2d):
    """An `nn.Conv2d` whose input gradient comes through its feedback.

    Padding that a zero-padded convolution can't do itself goes before it as an operation of its own, whose gradient
    is exact.
    """

    feedback: Runner

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(batch, in_channels, height, width)``, or one image, as `nn.Conv2d` does."""
        around = padding_before(self)
        if any(around):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = functional.pad(input, around, mode=mode)
        map_ = map_of(self)
        if input.dim() == 3:
            return self.feedback.run(map_, input[None], self.weight, self.bias)[0]
        return self.feedback.run(map_, input, self.weight, self.bias)


def map_of(module: nn.Module) -> LinearMap | ConvMap:
    """Return the map that a layer runs, without the padding that goes before it."""
    if not isinstance(module, nn.Conv2d):
        return LINEAR
    left, _, top, _ = (0,) * 4 if any(padding_before(module)) else _padding(module)
    return ConvMap(_pair(module.stride), (top, left), _pair(module.dilation), module.groups)


def padding_before(module: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return the padding (left, right, top, bottom) that isn't the same zeros on both sides."""
    left, right, top, bottom = _padding(module)
    if module.padding_mode == "zeros" and (left, top) == (right, bottom):
        return 0, 0, 0, 0
    return left, right, top, bottom


def _padding(module: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return left, right, top and bottom; ``same`` puts an odd pixel to the right and below."""
    if module.padding == "valid":
        return 0, 0, 0, 0
    if isinstance(module.padding, str):
        high, wide = (
            dilation * (size - 1) for dilation, size in zip(module.dilation, module.kernel_size, strict=True)
        )
        return wide // 2, wide - wide // 2, high // 2, high - high // 2
    top, left = _pair(module.padding)
    return left, left, top, top


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
