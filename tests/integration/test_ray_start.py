"""A Ray that does not come up is said to, and leaves nothing behind."""

from __future__ import annotations

import psutil
import pytest
from ray._private.node import Node

from lowdimfa.errors import ResourceError
from services.trainer.cluster import start_ray


@pytest.mark.xdist_group("ray")
def test_a_failed_start_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives up after its head processes are there, as on a machine that is too busy for its own deadline."""
    started: list[psutil.Process] = []

    def time_out(_node: Node) -> None:
        started.extend(set(psutil.Process().children(recursive=True)) - before)
        raise RuntimeError("The current node timed out during startup. This could happen for many reasons.")

    monkeypatch.setattr(Node, "start_ray_processes", time_out)
    before = set(psutil.Process().children(recursive=True))  # the shared Ray, whose processes come and go
    with pytest.raises(
        ResourceError, match=r"could not be started on this machine .*timed out during startup"
    ):
        start_ray(None)
    assert started
    assert not [process for process in started if process.is_running()]
