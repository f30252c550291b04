"""A tap that costs less on large feature maps: their mean over the cells of a coarse grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from lowdimfa.taps import NormalisedTap


class GridNormalisedTap(NormalisedTap):
    """The mean over the cells of a grid on a feature map, after a layer norm without parameters over all of them.

    For a map ``h`` of shape ``(channels, *sizes)`` the tap is ``t(h) = norm(A h)``. ``A`` takes the mean over windows
    of ``⌈size / 8⌉`` pixels along each dimension that don't overlap: 8 cells or fewer along each, the last of them
    smaller where the size is no multiple. The gradient is spread evenly: each pixel gets that of its cell, divided by
    the number of pixels in it. The features, and with them the products with ``Q``, are fewer by the number of pixels
    in a cell; other than after the mean over all pixels, what is delivered still differs between places.

    A map that is no larger than the grid, and what is no map of 2 or 3 dimensions, is tapped as by `NormalisedTap`, to
    the bit.

    Beyond the paper; the classifiers of greedy local learning average their maps in a like way (Nøkland and Eidnes,
    2019; Belilovsky et al., 2020). The windows of adaptive pooling overlap where the size is no multiple, for which
    accelerators have no deterministic gradient.

    Attributes
    ----------
    cells
        Most cells along a dimension of the map.
    """

    cells: ClassVar[int] = 8

    def _pool(self, output: Tensor, keepdim: bool = False) -> Tensor:
        windows = self._windows(output.shape)
        if max(windows, default=1) == 1:
            return output
        mean = functional.avg_pool2d if len(windows) == 2 else functional.avg_pool3d
        maps = mean(output.flatten(0, self.position_dims), windows, ceil_mode=True, count_include_pad=False)
        return maps.reshape(*output.shape[: 1 + self.position_dims], *maps.shape[1:])

    def _spread(self, noise: Tensor, shape: Sequence[int]) -> Tensor:
        for dim, window in enumerate(self._windows(shape), 2 + self.position_dims):  # channels before pixels
            noise = noise.repeat_interleave(window, dim).narrow(dim, 0, shape[dim])
        return noise

    def _windows(self, shape: Sequence[int]) -> list[int]:
        """Return the size of a cell along each dimension of a map; nothing for what is none."""
        sizes = shape[2 + self.position_dims :]
        return [math.ceil(size / self.cells) for size in sizes] if len(sizes) in (2, 3) else []
