"""A carrier of one's own: a class and a line in the registry, and a run trains through it to the same bits."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from rpc_helpers import no_threads_left
from specifications import specification
from thread_fleet import thread_fleet

from lowdimfa.services.spec.carriers import CARRIERS, CarrierEntry
from lowdimfa.services.stream.carriers import Carrier, Downstream, Intake, Upstream
from lowdimfa.services.stream.frames import Assembly, Message, without_data
from lowdimfa.services.stream.limits import SampleLimit
from lowdimfa.services.stream.resumable import Sent

KEY = "lowdimfa-shelf"

_numbers = itertools.count()
_shelves: dict[str, dict[int, tuple[torch.Tensor, ...]]] = {}
_fetched = threading.Semaphore(0)


class ShelfUpstream(Upstream):
    """Puts copies of tensors on a shelf of this process."""

    def __init__(self) -> None:
        self._name = str(next(_numbers))
        self._shelf = _shelves.setdefault(self._name, {})
        self.offer = ((KEY, self._name),)

    def pack(self, message: Message, run: int, block: int) -> Sent:
        self._shelf[message.sequence] = tuple(tensor.clone() for tensor in message.tensors)
        payload = sum(tensor.nbytes for tensor in message.tensors)
        return Sent(message.sequence, payload, [without_data(message, run, block)])

    def close(self) -> None:
        _shelves.pop(self._name, None)


class ShelfIntake(Intake):
    """Fetches them there."""

    def __init__(self, shelf: dict[int, tuple[torch.Tensor, ...]]) -> None:
        self._shelf = shelf

    def carried(self, assembly: Assembly) -> Message:
        _fetched.release()
        return assembly.with_tensors(self._shelf.pop(assembly.sequence))


class ShelfDownstream(Downstream):
    def take(self, metadata: Mapping[str, str | bytes]) -> Intake:
        return ShelfIntake(_shelves[str(metadata[KEY])])


class Shelf(Carrier):
    """Carries between blocks of one process."""

    def upstream(self, address: str, window: int, limit: SampleLimit) -> Upstream:
        return ShelfUpstream()

    def downstream(self, window: int, limit: SampleLimit) -> Downstream:
        return ShelfDownstream()


def trained(transport: str, run_dir: Path) -> dict[str, torch.Tensor]:
    placement = {"transport": transport, "replicas": {1: 2}}
    plain = specification("transformer", 3, "probed", placement=placement)
    with no_threads_left(), thread_fleet(plain, run_dir) as fleet:
        fleet.run(0, 2)
        for worker in fleet.workers:
            worker._links.renew()  # what may have been lost is announced once more, and used once
        fleet.run(2, 4)
        fleet.evaluate()
        return fleet.model_state()


def test_a_carrier_is_a_class_and_a_line_in_the_registry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(CARRIERS, "shelf", CarrierEntry(f"{__name__}:Shelf", "on a shelf"))
    expected = trained("grpc", tmp_path / "grpc")
    assert not _fetched.acquire(blocking=False)
    found = trained("shelf", tmp_path / "shelf")
    assert _fetched.acquire(blocking=False)
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    assert not _shelves


@pytest.mark.parametrize("name", CARRIERS)
def test_every_carrier_of_the_registry_is_one(name: str) -> None:
    from lowdimfa.services.stream.carriers import carrier_class

    assert issubclass(carrier_class(name), Carrier)
