"""What a run says of the bytes of its error broadcast."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from lossy_engine import plan

from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.trainer.engine import BroadcastTraffic
from lowdimfa.services.trainer.ray_engine import RayEngine
from lowdimfa.services.trainer.watch import TrainerWatch


def test_what_trained_no_sample_does_not_say_that_errors_have_no_bytes(tmp_path: Path) -> None:
    engine = RayEngine(plan(), tmp_path, UserCode(None), TrainerWatch("run"))
    engine._group = SimpleNamespace(topology=SimpleNamespace(subscribers=[1]))  # type: ignore[assignment]
    assert engine.traffic() == BroadcastTraffic(None, None)
    engine._group = SimpleNamespace(topology=SimpleNamespace(subscribers=[]))  # type: ignore[assignment]
    assert engine.traffic() == BroadcastTraffic(0.0, 0.0)
