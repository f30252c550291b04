"""Blocks spread over two Ray nodes: off loopback everything is encrypted, and the bits stay the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.cluster_utils import Cluster
from specifications import specification

from services.run.checkpoint import CheckpointStore, export_state
from services.trainer.api import DecoupledTrainer


def add_node(cluster: Cluster, **options: Any) -> None:
    """Add a node; on a busy machine Ray's own deadline of 30 s may need a second try."""
    try:
        cluster.add_node(**options)
    except Exception:  # Ray raises a plain exception
        cluster.add_node(**options)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two nodes with room for two blocks each."""
    cluster = Cluster()
    try:
        add_node(cluster, num_cpus=2, include_dashboard=False)
        add_node(cluster, num_cpus=2)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


USER_MODEL = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
"""


def test_spread_over_two_nodes_gives_the_bits_of_one_process(address: str, tmp_path: Path) -> None:
    (tmp_path / "beside_the_specification.py").write_text(USER_MODEL)
    plain = specification("mlp", 3, "probed", placement={"strategy": "SPREAD"})
    plain["model"] = {"factory": "beside_the_specification:make", "blocks": 3}
    events = []
    for engine, where in (("ray", address), ("local", None)):
        DecoupledTrainer(
            plain,
            engine=engine,  # type: ignore[arg-type]
            address=where,
            run_dir=tmp_path / engine,
            user_code=tmp_path,
            on_event=events.append,
        ).fit()
    assert [event["nodes"] for event in events if event["event"] == "started"] == [2, 1]
    found, expected = (
        export_state(CheckpointStore(tmp_path / engine).load(None)) for engine in ("ray", "local")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
