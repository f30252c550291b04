"""A network of few blocks, and a few tokens or images for it: enough to compare its layers with it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from lowdimfa.errors import InputError
from lowdimfa.models.hf.outlines import Outline, Task
from lowdimfa.models.hf.running import image_shape
from lowdimfa.models.hf.source import make

_SAMPLES, _TOKENS, _BLOCKS = 2, 6, 2
_WINDOW = 3
"""Tokens that a sliding window has at most here: fewer than there are, so that one that only one of both has shows."""


def made_small(original: Any, outline: Outline, task: Task) -> Any:
    """Return the network with few blocks: two, and of each kind that its configuration lists one more."""
    config = original.config
    blocks = original.get_submodule(outline.blocks)
    count = len(blocks)
    if getattr(config, "num_hidden_layers", None) != count or _rotates_twice(original, outline):
        return make(_narrow(config), task)  # what its blocks do depends on more than their number
    lists = [value for value in vars(config).values() if isinstance(value, list) and len(value) == count]
    listed = _first([[value[index] for value in lists] for index in range(count)])
    # Jamba and its kin list nothing, and don't run without a block that has attention.
    through = _first([[type(module) for module in block.modules()] for block in blocks])[-1] + 1
    for kept in (listed, range(through)):
        few = _with_blocks(config, outline, task, kept)
        if few is None or through <= _BLOCKS or _runs(few, task):
            break
    return make(_narrow(config), task) if few is None else few


def _first(kinds: Sequence[Any]) -> list[int]:
    """Return the places of two blocks, and of the first of each other kind."""
    return [index for index, kind in enumerate(kinds) if index < _BLOCKS or kind not in kinds[:index]]


def _with_blocks(config: Any, outline: Outline, task: Task, kept: Sequence[int]) -> Any:
    """Return the network with some of its blocks; None if their number alone doesn't make it so."""
    few = _narrow(config)
    lists = {
        key: value
        for key, value in vars(few).items()
        if isinstance(value, list) and len(value) == config.num_hidden_layers
    }
    for key, value in lists.items():
        setattr(few, key, [value[index] for index in kept])
    with suppress(InputError, NotImplementedError):
        few.num_hidden_layers = len(kept)
        small: Any = make(few, task)
        if len(small.get_submodule(outline.blocks)) == len(kept):
            return small
    return None


def _runs(network: Any, task: Task) -> bool:
    inputs = inputs_of(network.config, task)
    with suppress(Exception), torch.no_grad():
        network(**inputs)
        return True
    return False


def _narrow(config: Any) -> Any:
    """Return a copy of a configuration, with a sliding window that reaches less far than the tokens."""
    copy = deepcopy(config)
    if isinstance(window := getattr(copy, "sliding_window", None), int):
        copy.sliding_window = min(window, _WINDOW)
    return copy


def _rotates_twice(original: Any, outline: Outline) -> bool:
    """Whether there are several rotary embeddings beside the list of blocks, of which each block gets one."""
    beside = original.get_submodule(outline.blocks.rpartition(".")[0]).named_children()
    return len([name for name, _ in beside if "rotary" in name]) > 1


def inputs_of(config: Any, task: Task) -> dict[str, Tensor]:
    """Return some tokens of which the last of one sample is padding, or images."""
    if task == "image-classification":
        return {"pixel_values": torch.randn(image_shape(config, _SAMPLES))}
    length = min(_TOKENS, getattr(config, "max_position_embeddings", _TOKENS))
    mask = torch.ones(_SAMPLES, length, dtype=torch.int64)
    mask[-1, length - 1 :] = 0
    return {"input_ids": torch.randint(config.vocab_size, (_SAMPLES, length)), "attention_mask": mask}
