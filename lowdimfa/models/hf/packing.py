"""Whether a network keeps texts apart that are packed into one sequence, as positions that begin again tell."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import _disable_current_modes

_TOKENS = 4


class _Looked(Exception):
    """The network looks for packed texts."""


def looks_for_packed(original: nn.Module) -> bool:
    """Return whether the masks of a network depend on positions, where there is no padding and no cache.

    Some kinds give positions to what makes their masks and others don't; nothing says so but their forward, which runs
    here up to there, on shapes alone.
    """
    masks = import_module("transformers.masking_utils")
    find, thread = masks.find_packed_sequence_indices, threading.get_ident()

    def looked(*given: Any, **named: Any) -> Any:
        if threading.get_ident() == thread:
            raise _Looked
        return find(*given, **named)

    with _disable_current_modes(), torch.no_grad(), torch.device("meta"):
        shapes = {
            name: torch.empty_like(value, device="meta")
            for name, value in (*original.named_parameters(), *original.named_buffers())
        }
        with mock.patch.object(masks, "find_packed_sequence_indices", looked):
            for given in _inputs(original):
                try:
                    functional_call(original, shapes, kwargs=given)
                except _Looked:
                    return True
                # What can't run on shapes, or takes no such inputs; a comparison follows.
                except Exception:
                    continue
    return False


def _inputs(original: Any) -> Iterator[dict[str, Any]]:
    """Yield inputs in two ways: some kinds look at tokens, which have no values here, and others take nothing else."""
    positions = torch.zeros(1, _TOKENS, dtype=torch.int64)
    width = getattr(original.get_input_embeddings(), "embedding_dim", None)
    if width is not None:
        yield {"inputs_embeds": torch.empty(1, _TOKENS, width), "position_ids": positions, "use_cache": False}
    yield {"input_ids": torch.zeros_like(positions), "position_ids": positions, "use_cache": False}
