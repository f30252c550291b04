"""Activations by `torch.distributed` point to point: NCCL from GPU to GPU, Gloo between processors.

Two neighbours have a process group of their own, made directly, at a store whose address the sender offers. There is no
global group, so a lost block takes no more than its neighbours' groups with it. A group serves one run identifier, and is
never mended: when its connection breaks, its blocks count as lost to each other. Only tensors go this way, neither
encrypted nor authenticated; order, window, acknowledgements, and who else counts as lost, are the stream's business.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, TCPStore

from lowdimfa.errors import InputError, PeerError
from lowdimfa.services.rpc.security import is_loopback
from lowdimfa.services.stream.carriers import Carrier, Downstream, Here, Intake, Upstream
from lowdimfa.services.stream.frames import MAX_TENSORS, Assembly, Message, without_data
from lowdimfa.services.stream.limits import SampleLimit
from lowdimfa.services.stream.resumable import Sent

GROUP_KEY = "lowdimfa-group"
"""The metadata key of the address where the two meet."""

_POLL_SECONDS = 50e-6
_TAGS = 1 << 31


class TorchCarrier(Carrier):
    """A process group with each neighbour."""

    direct = True

    def __init__(self, here: Here) -> None:
        super().__init__(here)
        if not is_loopback(here.host) and not here.insecure:
            raise InputError(
                "placement.transport",
                f"'torch' between machines (this block is at {here.host})",
                "blocks on one machine, as this transport neither encrypts nor authenticates",
                "Set placement.insecure_activations to true if nobody else can reach the network between the blocks, or "
                "use placement.transport: grpc.",
            )
        if here.device.type == "cuda" and not dist.is_nccl_available():
            raise InputError(
                "placement.transport", "'torch' with a torch without NCCL", "a CUDA build of torch for Linux"
            )

    def upstream(self, address: str, window: int, limit: SampleLimit) -> Upstream:
        """Return the sending end, which listens for the other one."""
        return GroupUpstream(self.here)

    def downstream(self, window: int, limit: SampleLimit) -> Downstream:
        """Return the receiving end."""
        return GroupDownstream(self.here)


class GroupUpstream(Upstream):
    """The sending end, of which `start` waits for the other one."""

    def __init__(self, here: Here) -> None:
        self._here = here
        self._store: Store | None = None
        self._group: Group | None = None
        try:
            self._store, port = listening_store(here.host, here.liveness)
        except RuntimeError as error:
            raise _lost(here, "next", error) from error
        self.offer = ((GROUP_KEY, f"{here.host}:{port}"),)

    def start(self) -> None:
        """Make the group; the other end is lost if it does not come within the liveness."""
        assert self._store is not None, "not closed"
        try:
            self._group = Group(self._store, 0, self._here)
        except RuntimeError as error:
            raise _lost(self._here, "next", error) from error

    def pack(self, message: Message, run: int, block: int) -> Sent:
        """Begin to send tensors, which must not be written again. They are kept until they were consumed."""
        sent = tuple(tensor.detach().contiguous() for tensor in message.tensors)
        begun = []
        if (group := self._group) is not None:
            try:
                begun = [group.send(each, _tag(message.sequence, index)) for index, each in enumerate(sent)]
            except RuntimeError as error:
                raise _lost(self._here, "next", error) from error
        payload = sum(tensor.nbytes for tensor in sent)
        return Sent(message.sequence, payload, [without_data(message, run, block)], kept=(begun, sent))

    def close(self) -> None:
        """End the group; what the other end waits for fails there."""
        group, self._group, self._store = self._group, None, None
        if group is not None:
            group.close()


class GroupDownstream(Downstream):
    """The receiving end."""

    def __init__(self, here: Here) -> None:
        self._here = here
        self._meeting, self._state = threading.Lock(), threading.Lock()
        self._group: Group | None = None
        self._closed = False

    def take(self, metadata: Mapping[str, str | bytes]) -> Intake:
        """Return what receives from the group that the sender offers."""
        address = metadata.get(GROUP_KEY)
        return GroupIntake(self, address) if isinstance(address, str) else Intake()

    def meet(self, address: str) -> None:
        """Make the group, unless an earlier connection has."""
        with self._meeting:
            if self._group is not None or self._closed:
                return
            host, _, port = address.rpartition(":")
            patience = timedelta(seconds=self._here.liveness)
            try:
                store = TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=patience)
                group = Group(store, 1, self._here)
            except (RuntimeError, ValueError) as error:
                raise _lost(self._here, "previous", error) from error
            with self._state:
                if not self._closed:
                    self._group = group
            if self._group is None:
                group.close()

    def receive(self, assembly: Assembly) -> Message:
        """Receive the tensors of a message; if they don't come, the sender is lost."""
        try:
            if (group := self._group) is None:
                raise RuntimeError("the connection was closed")
            tensors = [group.empty(shape, dtype) for dtype, shape in assembly.types]
            for index, tensor in enumerate(tensors):
                group.wait(group.receive(tensor, _tag(assembly.sequence, index)))
        except RuntimeError as error:
            raise _lost(self._here, "previous", error) from error
        return assembly.with_tensors(tuple(tensors))

    def close(self) -> None:
        """End the group. A wait for a tensor ends with the sender's end, or after the liveness."""
        with self._state:
            self._closed = True
            group, self._group = self._group, None
        if group is not None:
            group.close()


class GroupIntake(Intake):
    """What one connection announces comes by the group of all of them."""

    def __init__(self, end: GroupDownstream, address: str) -> None:
        self._end, self._address = end, address

    def begin(self) -> None:
        """Meet the sender."""
        self._end.meet(self._address)

    def carried(self, assembly: Assembly) -> Message:
        """Receive a message's tensors."""
        return self._end.receive(assembly)


def _lost(here: Here, neighbour: str, error: Exception) -> PeerError:
    """Return the error for a group whose connection is gone."""
    reason = str(error).partition("\n")[0]
    return PeerError(
        f"block {here.block} lost the {neighbour} block's process group ({reason}); raise run.liveness_seconds if "
        "it may be silent longer",
        block=here.block,
        setting="run.liveness_seconds",
    )


def _tag(sequence: int, index: int) -> int:
    return (MAX_TENSORS * sequence + index + 1) % _TAGS


class Group:
    """Two neighbours that send each other tensors. What waits gives up after the liveness.

    Parameters
    ----------
    store
        Where they meet, and nobody else does.
    rank
        0 for the block that sends, 1 for the one that receives.
    here
        This end's block: a GPU has NCCL, a processor Gloo.

    Raises
    ------
    RuntimeError
        The other one did not come.
    """

    def __init__(self, store: Store, rank: int, here: Here) -> None:
        device, self._device, self._liveness = here.device, here.device, here.liveness
        self._closed = threading.Event()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        make = _nccl if self._stream is not None else _gloo
        self._group: Any = make(store, rank, here.host, timedelta(seconds=here.liveness))
        # NCCL makes its connection with the first message, for which both have to be there: so it is made here.
        greeting = torch.zeros(1, dtype=torch.uint8, device=device)
        self.wait(self.send(greeting, 0) if rank == 0 else self.receive(greeting, 0))

    def send(self, tensor: Tensor, tag: int) -> Any:
        """Begin to send a tensor, which must not be written before it has arrived."""
        with torch.cuda.stream(self._stream):
            return self._alive().send([tensor], 1, tag)

    def receive(self, tensor: Tensor, tag: int) -> Any:
        """Begin to receive into a tensor."""
        with torch.cuda.stream(self._stream):
            return self._alive().recv([tensor], 0, tag)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory to receive into."""
        with torch.cuda.stream(self._stream):
            return torch.empty(tuple(shape), dtype=dtype, device=self._device)

    def wait(self, work: Any) -> None:
        """Wait until a tensor is sent or received.

        Raises
        ------
        RuntimeError
            The other end is gone, was silent too long, or this end was closed.
        """
        if self._stream is None:
            work.wait(timedelta(seconds=self._liveness))
            return
        # NCCL itself would wait in the device, and could not be ended.
        deadline = time.monotonic() + self._liveness
        while not work.is_completed():
            if self._closed.is_set() or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"nothing for {self._liveness:g} s")
            time.sleep(_POLL_SECONDS)
        with torch.cuda.stream(self._stream):
            work.wait(timedelta(seconds=self._liveness))  # complete, or failed: then this raises why

    def close(self) -> None:
        """Drop the connection; what the other end waits for fails there."""
        self._closed.set()
        group, self._group = self._group, None
        if group is not None:
            group.abort()

    def _alive(self) -> Any:
        group = self._group
        if group is None:
            raise RuntimeError("the connection was closed")
        return group


def _gloo(store: Store, rank: int, host: str, patience: timedelta) -> Any:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout, options._threads = patience, 1
    return dist.ProcessGroupGloo(store, rank, 2, options)


def _nccl(store: Store, rank: int, host: str, patience: timedelta) -> Any:
    # The blocks end their waits themselves; NCCL's own watchdog would end the process.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = patience
    return dist.ProcessGroupNCCL(store, rank, 2, options)


def listening_store(host: str, liveness: float) -> tuple[Store, int]:
    """Return a store that listens on one address alone, and its port; torch's own choice would be all addresses."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        port = int(listening.getsockname()[1])
        store = TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=liveness),
            master_listen_fd=listening.detach(),
        )
    return store, port
