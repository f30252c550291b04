"""The registry of carriers: by what the tensors of activations can travel, and where the code for it is."""

from __future__ import annotations

from typing import NamedTuple


class CarrierEntry(NamedTuple):
    """A value of `placement.transport`.

    Attributes
    ----------
    path
        ``module:class`` of the `lowdimfa.services.stream.carriers.Carrier`. Nothing is imported before it is used.
    words
        What it does, for the reference.
    """

    path: str
    words: str


_HERE = "lowdimfa.services.stream"

CARRIERS: dict[str, CarrierEntry] = {
    "auto": CarrierEntry(
        f"{_HERE}.shared_memory:SharedMemoryOnThisHost",
        "through shared memory between blocks on one host, and as bytes of a gRPC stream where that can't be had",
    ),
    "grpc": CarrierEntry(f"{_HERE}.carriers:Carrier", "always as bytes"),
    "shared_memory": CarrierEntry(
        f"{_HERE}.shared_memory:SharedMemory", "give up where blocks can't share memory"
    ),
    "torch": CarrierEntry(
        f"{_HERE}.torch_carrier:TorchCarrier",
        "by `torch.distributed` point to point, from GPU to GPU with NCCL and between processors with Gloo, neither "
        "encrypted nor authenticated",
    ),
}
