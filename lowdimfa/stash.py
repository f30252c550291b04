"""Weight stashing: a forward's graph that keeps the weights it used, though they are updated before its backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def keep_saved_weights(module: nn.Module) -> Iterator[None]:
    """Make autograd keep copies, instead of references, of the parameters and buffers that a forward saves.

    Without this, the update of an earlier step, applied between a micro-batch's forward and its backward, would mix
    old activations with new weights (autograd refuses that). One copy serves all uses within the forward.
    """
    storages = {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}
    copies: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in storages:
            return tensor
        if pointer not in copies:
            whole = tensor.detach().as_strided(
                (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0
            )
            copies[pointer] = whole.clone()
        return copies[pointer].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
