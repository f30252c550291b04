"""Whole blocks whose activations travel by `torch.distributed`: the same bits as by gRPC, also after a restart."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
import torch
from rpc_helpers import no_threads_left
from specifications import specification
from thread_fleet import ThreadFleet, thread_fleet

from lowdimfa.errors import PeerError
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.stream.torch_carrier import GroupUpstream

STEPS = 6


def with_transport(transport: str, **sections: Any) -> dict[str, Any]:
    placement = {"transport": transport} | sections.pop("placement", {})
    return specification("transformer", 3, "probed", placement=placement, **sections)


def trained(plain: dict[str, Any], run_dir: Path) -> tuple[dict[str, torch.Tensor], object]:
    with no_threads_left(), thread_fleet(plain, run_dir) as fleet:
        fleet.run(0, 3)
        middle = fleet.evaluate()
        fleet.run(3, STEPS)
        return fleet.model_state(), (middle, fleet.evaluate())


@pytest.mark.parametrize("sections", [{}, {"train": {"window": 1}}, {"placement": {"replicas": {1: 2}}}])
def test_the_bits_are_those_of_grpc(sections: dict[str, Any], tmp_path: Path) -> None:
    expected, expected_evaluations = trained(with_transport("grpc", **sections), tmp_path / "grpc")
    found, evaluations = trained(with_transport("torch", **sections), tmp_path / "torch")
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    assert evaluations == expected_evaluations


def test_all_blocks_meet_again_under_a_new_identifier(tmp_path: Path) -> None:
    with no_threads_left(), thread_fleet(with_transport("torch"), tmp_path) as fleet:
        fleet.run(0, 2)
        before = _senders(fleet)
        run, security = secrets.token_hex(4), Security.loopback()
        fleet.each(lambda worker: worker.reopen(run, security, "127.0.0.1"))
        fleet.connect()
        fleet.run(2, STEPS)
        assert all(isinstance(sender._carrier, GroupUpstream) for sender in before)
        assert not set(map(id, before)) & set(map(id, _senders(fleet)))


def test_a_lost_block_ends_its_neighbours_waits_in_time(tmp_path: Path) -> None:
    plain = with_transport("torch", run={"liveness_seconds": 2.0})
    with no_threads_left(), thread_fleet(plain, tmp_path) as fleet:
        fleet.run(0, 1)
        fleet.workers[1].close()
        fleet.workers[1].close = lambda: None  # type: ignore[method-assign]
        running = [
            fleet._pool.submit(worker.run_steps, 1, STEPS) for worker in (fleet.workers[0], fleet.workers[2])
        ]
        for future in running:
            with pytest.raises(PeerError):
                future.result(30)


def _senders(fleet: ThreadFleet) -> list[Any]:
    return [sender for worker in fleet.workers for sender in worker._links.ends.senders.values()]
