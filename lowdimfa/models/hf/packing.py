"""Whether a network keeps texts apart that are packed into one sequence, as positions that begin again tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lowdimfa.models.hf.shapes import run_on_shapes

_TOKENS = 4


class _Looked(Exception):
    """The network looks for packed texts."""


def looks_for_packed(original: nn.Module) -> bool:
    """Return whether the masks of a network depend on positions, where there is no padding and no cache.

    Some kinds give positions to what makes their masks and others don't; nothing says so but their forward, which runs
    here up to there, on shapes alone.
    """
    for inputs in _inputs(original):
        try:
            run_on_shapes(original, inputs, _stop, use_cache=False)
        except _Looked:
            return True
        # What can't run on shapes, or takes no such inputs; a comparison follows.
        except Exception:
            continue
    return False


def _stop() -> None:
    raise _Looked


def _inputs(original: Any) -> Iterator[dict[str, tuple[tuple[int, ...], torch.dtype]]]:
    """Yield inputs in two ways: some kinds look at tokens, which have no values here, and others take nothing else."""
    tokens = (1, _TOKENS), torch.int64
    width = getattr(original.get_input_embeddings(), "embedding_dim", None)
    if width is not None:
        yield {"inputs_embeds": ((1, _TOKENS, width), torch.float32), "position_ids": tokens}
    yield {"input_ids": tokens, "position_ids": tokens}
