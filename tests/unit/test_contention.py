"""Contention is found again in timelines that were made with it, on simulated cores."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lowdimfa.services.lab.simulation.calibrate import Measured
from lowdimfa.services.lab.simulation.clock import Clock, Cores
from lowdimfa.services.lab.simulation.contention import company, estimate_contention
from lowdimfa.services.lab.simulation.fit import apart
from lowdimfa.services.lab.simulation.setting import BlockCosts, Setting
from lowdimfa.services.monitoring.report.reading import CATEGORIES, Spans

FORWARD, UPDATE = CATEGORIES.index("forward"), CATEGORIES.index("update")
SECONDS = {FORWARD: 0.010, UPDATE: 0.020}


def timelines(contention: float, blocks: int = 2, pieces: int = 400, noise: float = 0.05) -> dict[int, Spans]:
    """Let blocks compute and pause by chance on as many cores, and return what each did when."""
    clock, draw = Clock(), random.Random(3)
    cores = Cores(clock, blocks, contention)
    rows: list[list[tuple[int, float, float]]] = [[] for _ in range(blocks)]

    def begin(block: int) -> None:
        kind = draw.choice([FORWARD, UPDATE])
        seconds = SECONDS[kind] * draw.uniform(1 - noise, 1 + noise)
        cores.run(seconds, ended, block, kind, clock.now)

    def ended(block: int, kind: int, began: float) -> None:
        rows[block].append((kind, began, clock.now))
        if len(rows[block]) < pieces:
            clock.after(draw.choice([0.0, 0.0, 0.015]), begin, block)

    for block in range(blocks):
        begin(block)
    clock.run(lambda: False)
    return {block: spans(found) for block, found in enumerate(rows)}


def spans(rows: list[tuple[int, float, float]]) -> Spans:
    category, start, end = (np.array(column) for column in zip(*rows, strict=True))
    steps = np.arange(len(rows))
    return Spans(category.astype(np.int64), steps, np.zeros_like(steps), start, end)


@pytest.mark.parametrize("contention", [0.0, 0.15, 0.5])
@pytest.mark.parametrize("blocks", [2, 3])
def test_what_the_timelines_were_made_with_is_estimated(contention: float, blocks: int) -> None:
    found = estimate_contention(timelines(contention, blocks), blocks)
    assert found == pytest.approx(contention, abs=0.05)


def test_company_is_the_share_of_the_time_in_which_the_others_computed() -> None:
    first = spans([(FORWARD, 0.0, 1.0), (UPDATE, 2.0, 4.0)])
    second = spans([(FORWARD, 0.5, 1.5), (CATEGORIES.index("wait: error"), 1.5, 3.0), (UPDATE, 3.0, 3.5)])
    found = company({0: first, 1: second}, cores=2)
    assert found[0].tolist() == pytest.approx([0.5, 0.25])
    assert found[1].tolist() == pytest.approx([0.5, 2 / 3, 1.0])


def test_blocks_that_never_meet_show_no_contention() -> None:
    first = spans([(FORWARD, 2.0 * t, 2.0 * t + 0.9) for t in range(10)])
    second = spans([(FORWARD, 2.0 * t + 1, 2.0 * t + 1.7) for t in range(10)])
    assert estimate_contention({0: first, 1: second}, cores=2) == 0


def test_a_run_is_told_as_if_its_blocks_had_been_apart() -> None:
    made = timelines(0.4)

    def mean(own: Spans, kind: int) -> float:
        return float((own.end - own.start)[own.category == kind].mean())

    costs = tuple(BlockCosts(mean(own, FORWARD), mean(own, UPDATE)) for own in made.values())
    setting = Setting(costs, 1, 1, activation_bytes=(0.0,), error_bytes=0.0)
    run = Measured(setting, (0.5, 0.5), (1, 1), made)
    [alone], contention = apart([run], 2)
    assert contention == pytest.approx(0.4, abs=0.05)
    assert costs[0].forward > 1.1 * SECONDS[FORWARD]
    assert alone.setting.blocks[0].forward == pytest.approx(SECONDS[FORWARD], rel=0.03)
    assert alone.setting.blocks[0].update == pytest.approx(SECONDS[UPDATE], rel=0.03)
    assert apart([run], 1) == ([run], 0.0)  # blocks that took turns on one core tell nothing of it
