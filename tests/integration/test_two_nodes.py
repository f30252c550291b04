"""Blocks spread over two Ray nodes: off loopback everything is encrypted, and the bits stay the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster
from specifications import specification

from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer

USER_MODEL = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
"""


@pytest.mark.usefixtures("second_node")
def test_spread_over_two_nodes_gives_the_bits_of_one_process(shared_ray: Cluster, tmp_path: Path) -> None:
    (tmp_path / "beside_the_specification.py").write_text(USER_MODEL)
    plain = specification("mlp", 3, "probed", placement={"strategy": "SPREAD"})
    plain["model"] = {"factory": "beside_the_specification:make", "blocks": 3}
    events = []
    for engine, where in (("ray", shared_ray.address), ("local", None)):
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
