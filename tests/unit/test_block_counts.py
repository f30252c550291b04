"""What a block counts: time while it passes, and micro-batches until their errors have come."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from lowdimfa.errors import PeerError
from lowdimfa.services.block.instructions import Policy
from lowdimfa.services.block.observer import Observer
from lowdimfa.services.block.runner import BlockRunner
from lowdimfa.services.monitoring import numbers
from lowdimfa.services.monitoring.metrics import BlockMetrics
from lowdimfa.services.stream.frames import ErrorVector
from lowdimfa.tickets import Ticket

SECONDS = {"read": 1.0, "forward": 2.0, "update": 4.0, "probe": 8.0, "apply": 16.0, "wait": 32.0}
"""What each piece of work takes, by the clock of these tests."""

COUNTED = {
    "read": ("waiting", "cause", "data"),
    "forward": ("busy", "kind", "forward"),
    "update": ("busy", "kind", "update"),
    "probe": ("busy", "kind", "probe"),
    "apply": ("busy", "kind", "step"),
    "wait": ("waiting", "cause", "error"),
}
"""Where it is counted."""


class Counted:
    """A block whose work takes seconds that pass at once, while somebody scrapes it.

    Parameters
    ----------
    policy
        Of its schedule.
    monkeypatch
        For the clock.
    """

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.scraped, self.in_flight = 0.0, list[tuple[str, float]](), list[float]()
        self.inbox: list[Any] = []
        self.registry: CollectorRegistry
        monkeypatch.setattr(numbers, "time", SimpleNamespace(monotonic=lambda: self.now))
        metrics = BlockMetrics("job", "0", "0")
        self.registry = metrics.registry
        work: Any = SimpleNamespace(
            stage=SimpleNamespace(index=0),
            reads=policy.first,
            begin=lambda step: None,
            settle=lambda patience: True,
            keep=lambda message: None,
            read=lambda ticket: self.spend("read"),
            forward=lambda ticket, probe: self.spend("forward"),
            update=lambda ticket, kind: self.spend("update" if kind == "train" else "probe"),
            apply=lambda step: self.spend("apply"),
            send=self._answer if policy.updates else lambda ticket: None,
            publish=lambda ticket: None,
        )
        self._probed = policy.probed
        inbox: Any = SimpleNamespace(take=self._take)
        neighbours: Any = SimpleNamespace(renew=lambda: None)
        self.observer = Observer(metrics, None, lambda: None)
        self.runner = BlockRunner(work, policy, inbox, neighbours, self.observer, 4.0, SECONDS["wait"])

    def value(self, metric: str, **labels: str) -> float:
        """Return what a scrape shows."""
        own = {"job": "job", "block": "0", "replica": "0"}
        value = self.registry.get_sample_value(f"lowdimfa_block_{metric}", own | labels)
        assert value is not None
        return value

    def seconds(self, work: str) -> float:
        """Return what a scrape shows of the time for some work."""
        name, label, value = COUNTED[work]
        return self.value(f"{name}_seconds_total", **{label: value})

    def spend(self, work: str) -> None:
        """Let the time for some work pass, and scrape it in the middle."""
        before = self.seconds(work)
        self.now += SECONDS[work] / 2
        self.scraped.append((work, self.seconds(work) - before))
        self.in_flight.append(self.value("inflight_microbatches"))
        self.now += SECONDS[work] / 2

    def _answer(self, ticket: Ticket) -> None:
        """Have the errors come once they are waited for."""
        self.inbox.append(ErrorVector(ticket, "train", 0, (torch.zeros(1),)))
        if self._probed(ticket):
            self.inbox.append(ErrorVector(ticket, "probe", 1, (torch.zeros(1),)))

    def _take(self, timeout: float) -> Any:
        if not timeout:
            return None
        if not self.inbox:
            self.now += timeout
            return None
        self.spend("wait")
        return self.inbox.pop(0)


def test_time_is_counted_while_it_passes_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Counted(Policy(True, False, 1, 1, 0, probe_every=1), monkeypatch)
    for step in range(3):
        assert block.runner.run(step, step + 1) == step + 1
    times = {"read": 3, "forward": 3, "update": 3, "probe": 3, "apply": 3, "wait": 6}
    assert {work for work, _ in block.scraped} == set(times)
    assert all(grew == SECONDS[work] / 2 for work, grew in block.scraped)
    assert {work: block.seconds(work) for work in times} == {
        work: count * SECONDS[work] for work, count in times.items()
    }


def test_a_wait_that_is_given_up_is_counted_and_then_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Counted(Policy(True, False, 1, 1, 0), monkeypatch)
    monkeypatch.setattr(block.runner.work, "send", lambda ticket: None)  # no error ever comes
    with pytest.raises(PeerError, match="error of step 0"):
        block.runner.run(0, 1)
    assert block.seconds("wait") == SECONDS["wait"]
    block.now += 1000.0
    assert block.seconds("wait") == SECONDS["wait"]


def test_what_is_in_flight_grows_with_forwards_and_falls_with_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Counted(Policy(True, False, 4, 3, 1, probe_every=2), monkeypatch)
    assert block.runner.run(0, 4) == 4
    assert max(block.in_flight) == 3 and block.value("inflight_microbatches") == 0
    changes = [after - before for before, after in pairwise(block.in_flight)]
    assert set(changes) == {-1, 0, 1}


@pytest.mark.parametrize("policy", [Policy(True, True, 2, 1, 0), Policy(True, False, 2, 1, 0, learns=False)])
def test_nothing_is_in_flight_where_no_error_is_awaited(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Counted(policy, monkeypatch)
    assert block.runner.run(0, 2) == 2
    assert set(block.in_flight) == {0} and block.value("inflight_microbatches") == 0


def test_nothing_is_in_flight_after_a_state_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Counted(Policy(True, False, 1, 1, 0), monkeypatch)
    monkeypatch.setattr(block.runner.work, "send", lambda ticket: None)
    with pytest.raises(PeerError):
        block.runner.run(0, 1)
    assert block.value("inflight_microbatches") == 1
    block.observer.rest(0)
    assert block.value("inflight_microbatches") == 0


def test_a_block_that_takes_a_state_has_applied_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Counted(Policy(True, True, 1, 1, 0), monkeypatch)
    block.observer.rest(7)  # resumed
    assert block.value("applied_steps") == 7
    block.runner.run(7, 9)
    assert block.value("applied_steps") == 9
    block.observer.rest(8)  # another one was lost
    assert block.value("applied_steps") == 8
