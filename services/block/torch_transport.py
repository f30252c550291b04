"""Activations by `torch.distributed` point to point: NCCL from GPU to GPU, Gloo between processors.

Of an activation only the buffer goes this way. That there is one, for which micro-batch and of how many samples, travels
over the gRPC transport as before: order, window, acknowledgements, and who counts as lost, are its business. So is the
place where the two blocks meet. The buffers are neither encrypted nor authenticated.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, TCPStore

from lowdimfa.errors import InputError, LowdimfaError, PeerError, ProtocolError
from lowdimfa.services.block.activations import Activation, Kind, SampleLimit
from lowdimfa.services.block.process_group import Group, listening_store
from lowdimfa.services.block.receiver import ActivationReceiver
from lowdimfa.services.block.sender import ActivationSender
from lowdimfa.services.rpc.protocol import Traffic
from lowdimfa.services.rpc.security import is_loopback
from lowdimfa.tickets import Ticket

_TENSORS = 2
_ANNOUNCED = 3  # numbers in an announcement: samples, or a port and an address
_TAGS = 1 << 31


def require_possible(host: str, insecure: bool, device: torch.device) -> None:
    """Refuse this transport where it would be open to others, or can't work.

    Parameters
    ----------
    host
        Address of this machine as its neighbours reach it.
    insecure
        Whether the user chose to send activations between machines as they are.
    device
        Of the block.

    Raises
    ------
    InputError
        It would.
    """
    if not is_loopback(host) and not insecure:
        raise InputError(
            "placement.transport",
            f"'torch' between machines (this block is at {host})",
            "blocks on one machine, as this transport neither encrypts nor authenticates",
            "Set placement.insecure_activations to true if nobody else can reach the network between the blocks, or "
            "use placement.transport: grpc.",
        )
    if device.type == "cuda" and not dist.is_nccl_available():
        raise InputError(
            "placement.transport", "'torch' with a torch without NCCL", "a CUDA build of torch for Linux"
        )


@dataclass(frozen=True)
class Terminal:
    """What both ends of this transport need to know of the block that they belong to.

    Attributes
    ----------
    host
        Address of this machine as its neighbours reach it.
    device
        Where the block's tensors are: with those of a GPU the group has NCCL, with those of a processor Gloo.
    liveness
        Seconds of silence after which a neighbour counts as lost.
    block
        Index of the block.
    """

    host: str
    device: torch.device
    liveness: float
    block: int

    def group(self, store: Store, rank: int) -> Group:
        """Return this end's group with a neighbour."""
        return Group(store, rank, self.host, self.device, self.liveness)

    def lost(self, neighbour: str, error: RuntimeError) -> PeerError:
        """Return the error for a group whose connection is gone."""
        reason = str(error).partition("\n")[0]
        return PeerError(
            f"block {self.block} lost the {neighbour} block's process group ({reason}); raise run.liveness_seconds if "
            "it may be silent longer",
            block=self.block,
            setting="run.liveness_seconds",
        )


class TorchSender:
    """Sends activations to the next block through a group, and announces them through another transport.

    Parameters
    ----------
    announcements
        The upstream end of the gRPC transport; not started.
    terminal
        Of this block.

    Attributes
    ----------
    traffic
        The buffers that were sent.
    """

    def __init__(self, announcements: ActivationSender, terminal: Terminal) -> None:
        self.traffic = Traffic()
        self._announcements = announcements
        self._terminal = terminal
        self._store: Store | None = None
        self._group: Group | None = None
        self._sent = 0
        self._under_way: deque[tuple[list[Any], tuple[Tensor, ...]]] = deque()

    def start(self) -> None:
        """Meet the next block, whose end waits for this one.

        Raises
        ------
        PeerError
            It did not come within the liveness.
        """
        self._announcements.start()
        try:
            self._store, port = listening_store(self._terminal.host, self._terminal.liveness)
            self._announcements.send("evaluate", Ticket(0, 0), (_place(self._terminal.host, port),))
            self._group = self._terminal.group(self._store, 0)
        except RuntimeError as error:
            self.close()
            raise self._terminal.lost("next", error) from error

    @property
    def unacknowledged(self) -> int:
        """Activations that were queued and have not been consumed yet."""
        return self._announcements.unacknowledged

    def send(self, kind: Kind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Queue an activation; wait while the window is full. The tensors must not be written again.

        Kept are those of the window, and those of the call that waits; what was consumed goes with the next call.

        Raises
        ------
        PeerError
            The next block is lost.
        """
        while len(self._under_way) > self._announcements.unacknowledged:
            self._under_way.popleft()  # whoever consumed it has received it
        if (group := self._group) is not None:
            try:
                sent = tuple(tensor.detach().contiguous() for tensor in tensors)
                begun = [group.send(tensor, _tag(self._sent, index)) for index, tensor in enumerate(sent)]
            except RuntimeError as error:
                raise self._terminal.lost("next", error) from error
            self._under_way.append((begun, sent))
            self._sent += 1
        # Last, since nobody waits for what was not announced: a full window, `drop` and `abort` end here.
        self._announcements.send(kind, ticket, tuple(_samples(tensor) for tensor in tensors))
        self.traffic.add_tensors(sum(tensor.nbytes for tensor in tensors))

    def drop(self) -> None:
        """Let `send` drop what it is given from now on, also what waits: nobody will need it."""
        self._announcements.drop()

    def abort(self, failure: LowdimfaError) -> None:
        """Let `send` raise an error from now on, also one that waits."""
        self._announcements.abort(failure)

    def close(self) -> None:
        """End both connections."""
        self._announcements.close()
        group, self._group = self._group, None
        if group is not None:
            group.close()
        self._under_way.clear()
        self._store = None


class TorchReceiver:
    """Receives the previous block's activations through a group, as another transport announces them.

    Parameters
    ----------
    make
        Makes the downstream end of the gRPC transport, given what takes each announcement.
    terminal
        Of this block.
    on_message, on_failure
        As for the gRPC transport.

    Attributes
    ----------
    traffic
        The buffers that were received.
    """

    def __init__(
        self,
        make: Callable[[Callable[[Activation], None]], ActivationReceiver],
        terminal: Terminal,
        on_message: Callable[[Activation], None],
        on_failure: Callable[[LowdimfaError], None],
    ) -> None:
        self.traffic = Traffic()
        self._announcements = make(self._announced)
        self._announcements.expect((_ANNOUNCED,), torch.int64, 1)
        self._terminal = terminal
        self._on_message, self._on_failure = on_message, on_failure
        self._limit: SampleLimit | None = None
        self._group: Group | None = None
        self._received = 0
        self._state = threading.Lock()
        self._closed = False

    def attach(self, server: Any, pool: ThreadPoolExecutor) -> None:
        """Register the service of the announcements."""
        self._announcements.attach(server, pool)

    def expect(self, shape: Sequence[int], dtype: torch.dtype, max_samples: int) -> None:
        """Announce the type of one sample, and the largest number of samples in a tensor."""
        self._limit = SampleLimit(tuple(shape), dtype, max_samples)

    def release(self, activation: Activation) -> None:
        """Say that an activation was consumed, which makes room in the sender's window."""
        self._announcements.release(activation)

    def renew(self) -> None:
        """Have the sender repeat announcements that may have been lost."""
        self._announcements.renew()

    def close(self) -> None:
        """End both connections. A wait for a buffer ends with the sender's end, or after the liveness."""
        with self._state:
            self._closed = True
            group, self._group = self._group, None
        if group is not None:
            group.close()
        self._announcements.close()

    def _announced(self, announcement: Activation) -> None:
        """Take an announcement, each once and in order, in a thread of gRPC's."""
        try:
            if announcement.sequence == 0:
                self._meet(announcement)
            else:
                self._receive(announcement)
        except RuntimeError as error:
            if not self._closed:
                self._on_failure(self._terminal.lost("previous", error))
        except LowdimfaError as error:
            self._on_failure(error)

    def _meet(self, announcement: Activation) -> None:
        host, port = _place_of(announcement.tensors[0])
        patience = timedelta(seconds=self._terminal.liveness)
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=patience)
        group = self._terminal.group(store, 1)
        with self._state:
            if not self._closed:
                self._group = group
        if self._group is None:
            group.close()
        self._announcements.release(announcement)

    def _receive(self, announcement: Activation) -> None:
        group, limit = self._group, self._limit
        assert limit is not None, "expected before the server is started"
        if group is None:
            return  # closed meanwhile
        tensors = []
        for index, announced in enumerate(announcement.tensors):
            samples = int(announced[0, 0])
            if not 0 <= samples <= limit.max_samples:
                raise ProtocolError(
                    f"block {self._terminal.block} can't use an activation of {samples} samples; at most "
                    f"{limit.max_samples} were expected",
                    block=self._terminal.block,
                )
            tensor = group.empty((samples, *limit.shape), limit.dtype)
            group.wait(group.receive(tensor, _tag(self._received, index)))
            tensors.append(tensor)
        self._received += 1
        self.traffic.add_tensors(sum(tensor.nbytes for tensor in tensors))
        self._on_message(announcement._replace(tensors=tuple(tensors)))


def _place(host: str, port: int) -> Tensor:
    """Return an address as an announcement."""
    address = ipaddress.ip_address(host)
    whole = ipaddress.IPv6Address(f"::ffff:{host}") if address.version == 4 else address
    halves = [int.from_bytes(half, "big", signed=True) for half in (whole.packed[:8], whole.packed[8:])]
    return torch.tensor([[port, *halves]])


def _place_of(announced: Tensor) -> tuple[str, int]:
    port, *halves = (int(value) for value in announced[0])
    whole = ipaddress.IPv6Address(b"".join(half.to_bytes(8, "big", signed=True) for half in halves))
    return str(whole.ipv4_mapped or whole), port


def _samples(tensor: Tensor) -> Tensor:
    """Return the announcement of a tensor: all else is agreed in the handshake."""
    return torch.tensor([[len(tensor), 0, 0]])


def _tag(sequence: int, index: int) -> int:
    return (_TENSORS * sequence + index + 1) % _TAGS
