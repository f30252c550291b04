"""The memory that a block takes: its weights and what goes with them, and what a forward keeps for its update."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowdimfa.block import Block
from lowdimfa.generators import unchanged_generators
from lowdimfa.head import Head
from lowdimfa.sites import tap_all
from lowdimfa.tickets import Ticket
from lowdimfa.values import Activation, tensors_of


@dataclass(frozen=True)
class StageMemory:
    """What a block holds, in bytes.

    Attributes
    ----------
    weights
        Parameters and buffers.
    gradients
        Of the parameters and of learned feedback weights.
    optimizer
        State of the optimiser.
    feedback
        The feedback weights; in the head the projection.
    kept
        What one forward keeps for its update: the activations, the output among them, each storage once. 0 where there
        is nothing to learn.
    stale
        Weights that are kept beside the present ones for forwards that ran ahead of an update.
    """

    weights: int
    gradients: int
    optimizer: int
    feedback: int
    kept: int
    stale: int

    @property
    def state(self) -> int:
        """Bytes of what a checkpoint of the block holds."""
        return self.weights + self.optimizer + self.feedback

    def total(self, in_flight: int) -> int:
        """Return all of it with so many micro-batches in flight."""
        fixed = self.weights + self.gradients + self.optimizer + self.feedback + self.stale
        return fixed + in_flight * self.kept


def measure_memory(stage: Block | Head, inputs: Activation, staleness: int) -> StageMemory:
    """Return what a stage holds that has made a step, and keeps of a forward.

    Parameters
    ----------
    stage
        Built for a staleness of 0, so that what its graphs refer to shows.
    inputs
        Of one micro-batch, on the stage's device.
    staleness
        Of the run. Each step of it may hold a copy of the weights (`lowdimfa.stash`).
    """
    state = stage.module.plain_state_dict().values()
    learned_feedback = [site.feedback for site in stage.sites]
    feedback: list[Tensor] = [one.weights for one in learned_feedback]
    if isinstance(stage, Head):
        feedback.append(stage.projection.weights)
    learned = [parameter for parameter in stage.module.parameters() if parameter.requires_grad]
    weights = _bytes(state)
    extra = [one.weights for one in learned_feedback if one.trained_by_optimizer and learned]
    own = {tensor.untyped_storage().data_ptr() for tensor in (*state, *feedback)}
    return StageMemory(
        weights=weights,
        gradients=_bytes([*learned, *extra]),
        optimizer=_bytes(stage.updater.state().tensors.values()),
        feedback=_bytes(feedback),
        kept=_kept_bytes(stage, inputs, own),
        stale=_bytes(learned) * staleness if isinstance(stage, Block) else 0,
    )


def _kept_bytes(stage: Block | Head, inputs: Activation, own: set[int]) -> int:
    """Return the bytes of what autograd saves of a forward, without the stage's own weights, and of its output."""
    if isinstance(stage, Block) and not stage.learns:
        return 0
    saved: list[Tensor] = []  # the tensors themselves, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with (
        unchanged_generators(stage.device),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        stage.learning(),
    ):
        outputs = stage.run_parts(inputs, Ticket(0, 0))
        saved += [*tensors_of(outputs[-1]), *tap_all(stage.sites, outputs)]
    return _bytes(tensor for tensor in saved if tensor.untyped_storage().data_ptr() not in own)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors' storages, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())
