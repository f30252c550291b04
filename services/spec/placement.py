"""The section ``placement``: what each block gets from the cluster, and how activations travel."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lowdimfa.services.spec.carriers import CARRIERS
from lowdimfa.services.spec.section import Section, refusal

_Replicas = Annotated[int, Field(ge=1, json_schema_extra={"expected": "an integer of at least 1"})]
_Threads = Annotated[int, Field(ge=1, json_schema_extra={"expected": "an integer of at least 1"})]


def _known_carrier(name: str) -> str:
    if name not in CARRIERS:
        raise ValueError(f"no carrier {name!r}")
    return name


class PlacementSection(Section):
    """What each block gets from the cluster."""

    strategy: Literal["PACK", "SPREAD"] = Field(
        "PACK", description="Place blocks together on few machines, or spread them over many."
    )
    cpus_per_block: float = Field(1.0, ge=0, description="Processor cores reserved for each block.")
    gpus_per_block: float = Field(
        0.0,
        ge=0,
        description="GPUs reserved for each block: 0, a fraction of one to share it, or a whole number.",
    )
    threads_per_block: _Threads | dict[Annotated[int, Field(ge=0)], _Threads] = Field(
        1,
        description="Threads with which each block computes on processor cores: a number for all, or a mapping from "
        "block indexes to numbers, 1 for those that it leaves out, where one block has more to do than the others.",
        json_schema_extra={
            "expected": "an integer of at least 1 or a mapping from block indexes to such integers"
        },
    )
    transport: Annotated[str, AfterValidator(_known_carrier)] = Field(
        "auto",
        description="How activations travel between blocks. "
        + "".join(f"`{name}`: {carrier.words}. " for name, carrier in CARRIERS.items())
        + "The bits are the same. Broadcast errors always come by gRPC.",
        json_schema_extra={"enum": list(CARRIERS)},
    )
    insecure_activations: bool = Field(
        False,
        description="Allow `transport: torch` between machines too, where whoever is on the network can read and change "
        "what it carries.",
    )
    replicas: _Replicas | dict[Annotated[int, Field(ge=0)], _Replicas] = Field(
        1,
        description="Data-parallel replicas of a block: each works on its share of every step's micro-batches, and "
        "after each step they add up their gradients among themselves. A number for all blocks but the head, or a "
        "mapping from block indexes to numbers; the head has always one. Each replica is a process of its own with "
        "the resources of a block. The number must divide `train.microbatches`.",
        json_schema_extra={
            "expected": "an integer of at least 1 or a mapping from block indexes to such integers"
        },
    )

    def threads_of(self, block: int) -> int:
        """Return the number of threads with which a block computes."""
        wanted = self.threads_per_block
        return wanted.get(block, 1) if isinstance(wanted, dict) else wanted

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gpus_per_block > 1 and not self.gpus_per_block.is_integer():
            raise refusal(
                ("gpus_per_block",), f"{self.gpus_per_block:g}", "a fraction of one GPU, or a whole number"
            )
        if self.transport == "torch" and 0 < self.gpus_per_block < 1:
            found = f"'torch' with {self.gpus_per_block:g} of a GPU for each block"
            raise refusal(("transport",), found, "whole GPUs, as NCCL connects no two blocks on one GPU")
        return self
