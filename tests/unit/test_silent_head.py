"""What the trainer asks of the head after a loss: not what it has just been silent to."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lowdimfa.errors import BlockLostError
from lowdimfa.services.trainer import ray_engine
from lowdimfa.services.trainer.ray_engine import RayEngine
from lowdimfa.services.trainer.stopping import StopRequest

HEAD = 2


@pytest.mark.parametrize(("lost", "asked"), [(HEAD, 1), (0, 2)])
def test_a_head_that_is_lost_is_not_asked_again(
    lost: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it hangs, each question is waited for as long as the liveness."""
    questions: list[Any] = []

    def ask_one(worker: Any, method: Any) -> list[Any]:
        questions.append(method)
        if lost == HEAD:
            raise BlockLostError("no answer", block=HEAD)
        return []

    def drive(tick: Callable[[], None], *_: Any) -> list[int]:
        tick()
        raise BlockLostError("its process is gone", block=lost)

    for name in ("StallWatch", "EarlyEnd"):
        monkeypatch.setattr(ray_engine, name, lambda *_: SimpleNamespace(look=lambda: None))
    engine: Any = RayEngine.__new__(RayEngine)
    engine._group = SimpleNamespace(
        head=SimpleNamespace(seat=SimpleNamespace(block=HEAD)), ask_one=ask_one, drive=drive
    )
    with pytest.raises(BlockLostError):
        engine.run_steps(0, 10, lambda results: None, StopRequest())
    assert len(questions) == asked
