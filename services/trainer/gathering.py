"""Bringing the blocks of a run together: processes, servers, connections."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass

from lowdimfa.errors import BlockLostError
from lowdimfa.services.block.job import BlockJob
from lowdimfa.services.block.worker import Reachable
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.trainer.fleet import Fleet
from lowdimfa.services.trainer.silence import START_LIVENESS


@dataclass(frozen=True)
class Gathering:
    """Blocks that are connected with each other.

    Attributes
    ----------
    reachable
        Where each worker is reached.
    nodes
        Identifiers of the nodes, by worker.
    pids
        Of their processes, by worker.
    """

    reachable: list[Reachable]
    nodes: list[str]
    pids: list[int]


def gather_blocks(fleet: Fleet, job: Callable[[int, str], BlockJob], new: Collection[int]) -> Gathering:
    """Connect all blocks under an identifier of the run that no earlier message has.

    Parameters
    ----------
    fleet
        The processes.
    job
        Makes a worker's job of its number and the run's identifier.
    new
        Workers that have to be built; the others open new connections in place of those they have.

    Raises
    ------
    LowdimfaError
        A block was lost, is silent, or can't connect.
    """
    patience = START_LIVENESS * fleet.liveness
    try:
        places = fleet.gather([actor.where.remote() for actor in fleet.actors], "start", patience)
    except BlockLostError as error:
        raise fleet.without_room(error) or error from None
    one_node = len({node for node, _, _ in places}) == 1
    security = Security.loopback() if one_node else Security.mutual_tls()
    hosts = ["127.0.0.1" if one_node else address for _, address, _ in places]
    run = secrets.token_hex(8)
    opened = [
        actor.prepare.remote(job(index, run), security, hosts[index])
        if index in new
        else actor.compute.remote("reopen", run, security, hosts[index])
        for index, actor in enumerate(fleet.actors)
    ]
    reachable: list[Reachable] = fleet.gather(opened, "prepare", patience)
    peers = [block.rpc for block in reachable]
    fleet.gather(fleet.compute("connect", peers), "connect", patience)
    fleet.gather(fleet.compute("wait_until_connected"), "connect", patience)
    return Gathering(reachable, [node for node, _, _ in places], [pid for _, _, pid in places])
