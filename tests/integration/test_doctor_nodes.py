"""`lowdimfa doctor --address`: the nodes of a real Ray cluster."""

from __future__ import annotations

import socket

import ray
from ray.cluster_utils import Cluster

from lowdimfa.services.cli.doctor.finding import State
from lowdimfa.services.cli.doctor.nodes import cluster


def test_every_node_is_asked(shared_ray: Cluster, second_node: None) -> None:
    whole, *nodes = cluster(shared_ray.address, liveness=120.0)
    assert (whole.state, whole.found) == (State.ok, f"2 nodes at {shared_ray.address}")
    assert len(nodes) == 2
    for node in nodes:
        assert node.state is State.ok, node  # one machine, so its versions and its clock
        assert "same versions; clock" in node.found
    assert any("2 CPUs" in node.found for node in nodes)
    assert not ray.is_initialized()


def test_where_no_cluster_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (found,) = cluster(address, liveness=1.0)
    assert found.state is State.problem
    assert f"no Ray cluster answers at {address}" in found.found
