"""What a run says of its speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.network import StepResult
from lowdimfa.services.monitoring.metrics_table import METRICS
from lowdimfa.services.run.language import Language
from lowdimfa.services.trainer import progress
from lowdimfa.services.trainer.progress import FEWEST_MARKS, RECENT_SECONDS, ProgressMeter


def metered(drawn: Callable[[int], int], **settings: Any) -> tuple[ProgressMeter, list[dict[str, Any]]]:
    """Return a meter, and the list to which it adds what it reports."""
    events: list[dict[str, Any]] = []

    def emit(event: str, **fields: Any) -> dict[str, Any]:
        events.append(fields)
        return fields

    return ProgressMeter(emit, drawn=drawn, steps_per_epoch=100, **settings), events


@pytest.mark.parametrize("burst", [1, 40])
def test_the_speed_is_that_of_training_however_many_steps_come_at_once(
    burst: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 steps a second, each told as it comes or 40 together; an hour before they were ten times slower."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    meter, events = metered(lambda steps: 8 * steps, total_steps=20_000, every=1)
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


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 50)), min_size=1, max_size=6), st.booleans())
def test_each_sample_weighs_the_same_in_the_loss_whatever_the_sizes_of_the_batches(
    steps: list[tuple[float, int]], has_accuracy: bool
) -> None:
    sizes = [size for _, size in steps]
    meter, events = metered(lambda done: sum(sizes[:done]), total_steps=len(steps), every=len(steps))
    meter.begin(0)
    meter.take(
        [StepResult(step, [loss], 0, size if has_accuracy else 0) for step, (loss, size) in enumerate(steps)]
    )
    assert events[-1]["loss"] == pytest.approx(sum(loss * size for loss, size in steps) / sum(sizes))


def test_tokens_per_second_are_those_of_the_time_and_not_of_the_last_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second for each step, of 100 tokens; the last, of an epoch's last batch, has one."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    meter, events = metered(lambda steps: steps, total_steps=20, every=1, language=Language(True))
    meter.begin(0)
    for step in range(10):
        clock[0] += 1.0
        meter.take([StepResult(step, [1.0], 0, 100 if step < 9 else 1)])
    assert events[-1]["tokens_per_second"] == pytest.approx(901 / 10)
