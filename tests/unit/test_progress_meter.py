"""What a run says of its speed."""

from __future__ import annotations

from typing import Any

import pytest

from lowdimfa.network import StepResult
from lowdimfa.services.monitoring.metrics_table import METRICS
from lowdimfa.services.trainer import progress
from lowdimfa.services.trainer.progress import FEWEST_MARKS, RECENT_SECONDS, ProgressMeter


@pytest.mark.parametrize("burst", [1, 40])
def test_the_speed_is_that_of_training_however_many_steps_come_at_once(
    burst: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 steps a second, each told as it comes or 40 together; an hour before they were ten times slower."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    events: list[dict[str, Any]] = []

    def emit(event: str, **fields: Any) -> dict[str, Any]:
        events.append(fields)
        return fields

    meter = ProgressMeter(
        emit, drawn=lambda steps: 8 * steps, steps_per_epoch=100, total_steps=20_000, every=1
    )
    meter.begin(0)
    done = 0
    for seconds, bursts in ((0.05, 200), (0.005, 10_000 // burst)):
        for _ in range(bursts):
            clock[0] += seconds * burst
            meter.take([StepResult(step, [1.0]) for step in range(done, done + burst)])
            done += burst
    assert events[-1]["samples_per_second"] == pytest.approx(8 * 200, rel=0.01)
    assert events[-1]["eta_seconds"] == pytest.approx((20_000 - done) / 200, rel=0.01)


def test_the_metrics_say_of_what_time_the_speed_is() -> None:
    (said,) = (row.help for row in METRICS if row.name.endswith("throughput_samples_per_second"))
    assert f"last {RECENT_SECONDS:g} seconds" in said and f"last {FEWEST_MARKS - 1} bursts" in said
