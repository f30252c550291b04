"""What pipelines with gradients share: stages of the network, the format in which tensors travel, and the whole model."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.throughput.peers import Answer, Peer, join_group
from lowdimfa.block_module import BlockModule
from lowdimfa.config import Activations
from lowdimfa.formats import format_of
from lowdimfa.partitioning import BlockPlan, partition


class Wire:
    """The format of what travels, ``fp32`` for as it is; the library's own, so that all systems pack by the same code."""

    def __init__(self, name: Activations) -> None:
        self._format = format_of(name)
        self.plain = self._format is None

    def pack(self, tensor: Tensor) -> Tensor:
        """Return what travels of a float32 tensor, contiguous: Gloo sends nothing else."""
        return (tensor.detach() if self._format is None else self._format.pack(tensor.detach())).contiguous()

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """Return room for what travels of a tensor of that shape."""
        if self._format is None:
            return torch.empty(shape)
        kind = self._format.packed(shape)
        return torch.empty(kind.shape, dtype=kind.dtype)

    def unpack(self, packed: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the tensor, as far as the format keeps it."""
        return packed if self._format is None else self._format.unpack(packed, shape, torch.float32)


class Staged(Peer):
    """One process of a pipeline, with some of its stages.

    They are cut as the runtime cuts its blocks: equal counted operations, or where the specification says for so many.

    Parameters
    ----------
    configuration
        With ``rank``, ``world``, ``format`` of what travels, and ``exchange``, a folder that all processes have.
    """

    def __init__(self, configuration: Answer) -> None:
        super().__init__(configuration)
        self.rank, self.world = configuration["rank"], configuration["world"]
        self.wire = Wire(configuration["format"])
        self._exchange = Path(configuration["exchange"])
        join_group(configuration)

    def plans(self, count: int) -> list[BlockPlan]:
        """Return all stages."""
        blocks = self.specification.model.blocks
        cut = blocks if isinstance(blocks, list) and len(blocks) == count - 1 else count
        return partition(self.model(), cut, self.example.batch())

    def gathered(self, mine: list[BlockModule]) -> nn.Module | None:
        """Gather all stages' weights in the first process, through files, and return the model there."""
        state = {name: value for part in mine for name, value in part.plain_state_dict().items()}
        safetensors.torch.save_file(
            {name: value.contiguous() for name, value in state.items()},
            self._exchange / f"{self.rank}.safetensors",
        )
        dist.barrier()
        whole = None if self.rank else self.model()
        if whole is not None:
            for rank in range(1, self.world):
                state |= safetensors.torch.load_file(self._exchange / f"{rank}.safetensors")
            whole.load_state_dict(state)
        dist.barrier()
        return whole
