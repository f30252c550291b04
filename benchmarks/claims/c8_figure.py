"""The figure of C8, and the filters as text that a stored result can have."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.claims.claim import Result

SHAPE = (3, 32, 32)


def encoded(filters: Tensor) -> list[str]:
    """Return filters as text: bytes with 128 for a weight of 0, scaled by each filter's largest weight."""
    largest = filters.flatten(1).abs().amax(1).clamp_min(1e-12)
    levels = (filters / largest[:, None, None, None] * 127).round() + 128
    images = levels.to(torch.uint8).numpy()
    return [base64.b64encode(zlib.compress(image.tobytes(), 9)).decode() for image in images]


def decoded(text: str) -> np.ndarray:
    """Return a filter as a picture, ``(height, width, channels)``, bytes."""
    content = zlib.decompress(base64.b64decode(text))
    return np.frombuffer(content, dtype=np.uint8).reshape(SHAPE).transpose(1, 2, 0)


def draw(result: Result) -> Figure:
    """Draw the strongest filters of the first seed, a row for each method, and the index beside them."""
    shown = {run["method"]: run["filters"] for run in result["runs"] if run["filters"]}
    columns = max(len(filters) for filters in shown.values())
    figure = Figure(figsize=(2.4 + 1.06 * columns, 1.06 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), columns, squeeze=False)
    for row, (label, filters) in zip(axes, shown.items(), strict=True):
        index = result["summary"][label]["centre_surround"]
        for axis, text in zip(row, filters, strict=True):
            axis.imshow(decoded(text), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
        row[0].set_ylabel(
            f"{label}\nindex {sum(index) / len(index):.3f}", rotation=0, ha="right", va="center", fontsize=10
        )
    return figure
