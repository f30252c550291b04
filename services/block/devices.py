"""Tensors on their way between a block's device and the host, while the device goes on computing.

On processors nothing is copied and nothing is waited for. On a GPU, each direction has a stream of its own and goes
through page-locked memory, so that copies overlap with the block's computation and nobody waits for more than the one
copy that it needs: the computing stream for the copy of its input, whoever sends for that of the output.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from lowdimfa.errors import LowdimfaError, ResourceError


@dataclass(frozen=True)
class OnDevice:
    """Tensors that are, or soon will be, on the block's device.

    Attributes
    ----------
    tensors
        In the order in which they were given.
    ready
        Makes the stream that computes wait until they are there.
    """

    tensors: tuple[Tensor, ...]
    ready: Callable[[], None] = lambda: None

    def use(self) -> tuple[Tensor, ...]:
        """Return the tensors, for use in the stream that computes."""
        self.ready()
        return self.tensors


@dataclass(frozen=True)
class Check:
    """A finding of the device that nobody has looked at yet.

    Attributes
    ----------
    passed
        A boolean scalar.
    failure
        Makes what to raise if it is false.
    """

    passed: Tensor
    failure: Callable[[], LowdimfaError]


@dataclass(frozen=True)
class OnHost:
    """Tensors that are, or soon will be, in the host's memory. Any thread may wait for them.

    Attributes
    ----------
    tensors
        In the order in which they were given; not to be read before `wait`.
    checks
        Findings that came with them.
    arrived
        Waits until all of it is here.
    """

    tensors: tuple[Tensor, ...]
    checks: tuple[Check, ...] = ()
    arrived: Callable[[], None] = field(default=lambda: None, compare=False)

    def wait(self) -> tuple[Tensor, ...]:
        """Wait for the tensors and return them.

        Raises
        ------
        LowdimfaError
            The failure of a check that was not passed.
        """
        self.arrived()
        for check in self.checks:
            if not bool(check.passed):
                raise check.failure()
        return self.tensors


class Copies(Protocol):
    """Moves a block's tensors between its device and the host. One thread owns it."""

    deferred: bool
    """Whether findings of the device are to be copied with what they are about, and not to be waited for."""

    def to_device(self, *tensors: Tensor) -> OnDevice:
        """Begin to bring tensors to the device."""

    def to_host(self, *tensors: Tensor, checks: Sequence[Check] = ()) -> OnHost:
        """Begin to bring tensors to the host, and findings with them."""

    def to_next_block(self, *tensors: Tensor, checks: Sequence[Check] = ()) -> OnHost:
        """Begin to bring tensors to where the transport of activations takes them, and findings to the host.

        They may be written again at once: some layers have memory of their own for what they put out.
        """


class NoCopies:
    """For a block on processors: what it computes with is in the host's memory already.

    Parameters
    ----------
    direct
        Whether the transport keeps the tensors that it is given, until they have arrived.
    """

    deferred = False

    def __init__(self, direct: bool = False) -> None:
        self._direct = direct

    def to_device(self, *tensors: Tensor) -> OnDevice:
        """Return the tensors."""
        return OnDevice(tensors)

    def to_host(self, *tensors: Tensor, checks: Sequence[Check] = ()) -> OnHost:
        """Return the tensors."""
        return OnHost(tensors, tuple(checks))

    def to_next_block(self, *tensors: Tensor, checks: Sequence[Check] = ()) -> OnHost:
        """Return the tensors, or copies for a transport that keeps them."""
        return self.to_host(*map(torch.clone, tensors) if self._direct else tensors, checks=checks)


class Accelerator(Protocol):
    """What `StreamedCopies` needs of `torch.cuda`."""

    def stream(self) -> Any:
        """Return a new stream."""

    def computing(self) -> Any:
        """Return the stream in which the calling thread computes."""

    def within(self, stream: Any) -> AbstractContextManager[Any]:
        """Let what follows run in a stream."""

    def event(self, stream: Any) -> Any:
        """Return an event that happens once everything in a stream so far is done."""

    def locked(self, tensor: Tensor) -> Tensor:
        """Return uninitialised page-locked memory for a tensor's copy."""

    def is_on(self, tensor: Tensor) -> bool:
        """Return whether a tensor is on the device already."""

    def empty(self, tensor: Tensor) -> Tensor:
        """Return uninitialised memory of the device for a tensor's copy, owned by the present stream."""

    def used_in(self, tensor: Tensor, stream: Any) -> None:
        """Keep the memory of a tensor from being given away before a stream is done with it."""


class Cuda:
    """`torch.cuda` on one device.

    Page-locked memory is dear to get, and comes from torch's own pool: once released it is used again, after the copies
    that were begun with it are done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def stream(self) -> torch.cuda.Stream:
        """Return a new stream."""
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def computing(self) -> torch.cuda.Stream:
        """Return the stream in which the calling thread computes."""
        return torch.cuda.current_stream(self._device)

    def within(self, stream: torch.cuda.Stream) -> AbstractContextManager[Any]:
        """Let what follows run in a stream."""
        return torch.cuda.stream(stream)

    def event(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        """Return an event that happens once everything in a stream so far is done; waiting for it takes no core."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def locked(self, tensor: Tensor) -> Tensor:
        """Return uninitialised page-locked memory for a tensor's copy."""
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    def is_on(self, tensor: Tensor) -> bool:
        """Return whether a tensor is on the device already, as NCCL brings it."""
        return tensor.is_cuda

    def empty(self, tensor: Tensor) -> Tensor:
        """Return uninitialised memory of the device for a tensor's copy, owned by the present stream."""
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)

    def used_in(self, tensor: Tensor, stream: torch.cuda.Stream) -> None:
        """Keep the memory of a tensor from being given away before a stream is done with it."""
        tensor.record_stream(stream)


class StreamedCopies:
    """Copies that run beside the computation, each direction in a stream of its own.

    Parameters
    ----------
    accelerator
        The device.
    direct
        Whether the transport takes activations from the device's memory, as NCCL does.
    """

    deferred = True

    def __init__(self, accelerator: Accelerator, direct: bool = False) -> None:
        self._accelerator = accelerator
        self._direct = direct
        self._inward = accelerator.stream()
        self._outward = accelerator.stream()

    def to_device(self, *tensors: Tensor) -> OnDevice:
        """Begin to bring tensors to the device; what is given twice, or is there already, is not copied."""
        device, computing = self._accelerator, self._accelerator.computing()
        there: dict[int, Tensor] = {}
        with device.within(self._inward):
            for tensor in tensors:
                if id(tensor) in there:
                    continue
                copy = tensor if device.is_on(tensor) else self._begun(tensor)
                # Its memory belongs to another stream, which else would use it anew as soon as Python lets go of it.
                device.used_in(copy, computing)
                there[id(tensor)] = copy
            done = device.event(self._inward)
        return OnDevice(
            tuple(there[id(tensor)] for tensor in tensors), lambda: device.computing().wait_event(done)
        )

    def _begun(self, tensor: Tensor) -> Tensor:
        locked = self._accelerator.locked(tensor)
        locked.copy_(tensor)
        copy = self._accelerator.empty(tensor)
        copy.copy_(locked, non_blocking=True)
        return copy

    def to_host(self, *tensors: Tensor, checks: Sequence[Check] = ()) -> OnHost:
        """Begin to bring tensors to the host, once what computes them is done, and findings with them."""
        return self._outgoing(tensors, checks, self._copied)

    def to_next_block(self, *tensors: Tensor, checks: Sequence[Check] = ()) -> OnHost:
        """Do as `to_host`, but let the tensors stay on the device if the transport takes them from there."""
        # What computes next does not wait for the copies to the host.
        own = [tensor.clone() for tensor in tensors]
        return self._outgoing(own, checks, (lambda tensor: tensor) if self._direct else self._copied)

    def _outgoing(
        self, tensors: Sequence[Tensor], checks: Sequence[Check], taken: Callable[[Tensor], Tensor]
    ) -> OnHost:
        device = self._accelerator
        self._outward.wait_event(device.event(device.computing()))
        with device.within(self._outward):
            there = tuple(taken(tensor) for tensor in tensors)
            found = tuple(Check(self._copied(check.passed), check.failure) for check in checks)
            done = device.event(self._outward)
        return OnHost(there, found, done.synchronize)

    def _copied(self, tensor: Tensor) -> Tensor:
        copy = self._accelerator.locked(tensor)
        copy.copy_(tensor, non_blocking=True)
        self._accelerator.used_in(tensor, self._outward)
        return copy


def copies_for(device: torch.device, direct: bool) -> Copies:
    """Return what moves the tensors of a block on a device; ``direct`` as for `StreamedCopies`."""
    return StreamedCopies(Cuda(device), direct) if device.type == "cuda" else NoCopies(direct)


def block_device(gpus: float) -> torch.device:
    """Return the device of a block for which ``gpus`` GPUs are reserved, and let its kernels repeat their bits.

    Ray shows a process only the GPUs that are its own, so the first one is the block's.

    Raises
    ------
    ResourceError
        GPUs are reserved, but torch finds none here.
    """
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        build = "a CPU build" if torch.version.cuda is None else f"a build for CUDA {torch.version.cuda}"
        raise ResourceError(
            f"placement.gpus_per_block is {gpus:g}, but torch ({torch.__version__}, {build}) finds no GPU in this "
            "process; install a CUDA build of torch on the nodes, look at their driver (nvidia-smi), or set "
            "placement.gpus_per_block to 0",
            setting="placement.gpus_per_block",
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # counts until the first matrix product
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return torch.device("cuda", 0)
