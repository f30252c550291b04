"""How activations travel between two blocks: the choice of `placement.transport` made at both ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from lowdimfa.errors import LowdimfaError, ResourceError
from lowdimfa.services.block.activations import SampleLimit
from lowdimfa.services.block.ring import Ring
from lowdimfa.services.block.sender import ActivationSender
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.topology import Seat

Transport = Literal["auto", "grpc", "shared_memory", "torch"]

_log = logging.getLogger(__name__)


def make_sender(
    transport: Transport,
    largest: SampleLimit,
    *,
    address: str,
    host: str,
    security: Security,
    run: str,
    seat: Seat,
    peer: Seat,
    name: str,
    window: int,
    liveness: float,
    on_failure: Callable[[LowdimfaError], None],
) -> ActivationSender:
    """Return the upstream end of a connection, which is not started yet.

    The downstream end is the same for all: an `ActivationReceiver` takes the shared memory that it is offered.

    Parameters
    ----------
    transport
        ``grpc`` sends bytes over the connection. ``auto`` offers shared memory to a block at this host's own address,
        and sends bytes where that can't be used. ``shared_memory`` offers it to any, and gives up there. With ``torch``
        this is only the end that announces what travels by `lowdimfa.services.block.torch_transport`.
    largest
        What may be sent.
    seat, peer, name
        This worker, the next one, and what messages call that.
    host
        This machine's address, as its neighbours reach it.
    address, security, run, window, liveness, on_failure
        As for `ActivationSender`.

    Raises
    ------
    ResourceError
        There is no shared memory, and no other transport may be used.
    """
    own = address.rpartition(":")[0].strip("[]") == host
    offered = transport == "shared_memory" or (transport == "auto" and own)
    return ActivationSender(
        address,
        security,
        run,
        seat.block,
        peer.block,
        window,
        liveness,
        on_failure,
        rank=seat.rank,
        name=name,
        ring=_make_ring(transport, window, largest, seat) if offered else None,
        ring_only=transport == "shared_memory",
    )


def _make_ring(transport: Transport, window: int, largest: SampleLimit, seat: Seat) -> Ring | None:
    try:
        return Ring(window, largest.nbytes)
    except (OSError, OverflowError) as error:  # the second is for more than can be addressed
        if transport == "shared_memory":
            raise ResourceError(
                f"block {seat.block} can't make memory to share with the next one: {error}",
                block=seat.block,
                setting="placement.transport",
            ) from error
        _log.warning("block %d sends bytes over its connection: no memory to share: %s", seat.block, error)
        return None
