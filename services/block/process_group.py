"""Two blocks that send each other tensors by `torch.distributed`: a process group of their own, made directly.

There is no global group, so a lost block takes no more than its neighbours' groups with it. A group serves one run
identifier, and is never mended: when its connection breaks, its blocks count as lost to each other.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, TCPStore

_POLL_SECONDS = 50e-6


class Group:
    """Two neighbours that send each other tensors. What waits gives up after ``liveness`` seconds.

    Parameters
    ----------
    store
        Where they meet, and nobody else does.
    rank
        0 for the block that sends, 1 for the one that receives.
    host
        Address to connect from.
    device
        Of this end's tensors; a GPU has NCCL, a processor Gloo.
    liveness
        In seconds.

    Raises
    ------
    RuntimeError
        The other one did not come.
    """

    def __init__(self, store: Store, rank: int, host: str, device: torch.device, liveness: float) -> None:
        self._device, self._liveness = device, liveness
        self._closed = threading.Event()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        make = _nccl if self._stream is not None else _gloo
        self._group: Any = make(store, rank, host, timedelta(seconds=liveness))
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
        deadline = (
            time.monotonic() + self._liveness
        )  # NCCL itself would wait in the device, and could not be ended
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
