import json
from pathlib import Path
from typing import Any

import pytest

from lowdimfa.services.monitoring.report.balance import measure_balance
from lowdimfa.services.monitoring.report.page import write_report
from lowdimfa.services.monitoring.report.reading import read_run
from lowdimfa.services.monitoring.timeline import TimelineWriter

EPOCH = 1_700_000_000.0


def write_run(
    run_dir: Path,
    work: list[float],
    layers: list[list[float]],
    *,
    steps: int = 9,
    microbatches: int = 2,
    milliseconds: list[float] | None = None,
) -> None:
    """Write a run whose block ``k`` took ``work[k]`` seconds per micro-batch, and was predicted to as ``layers`` say."""
    run_dir.mkdir(exist_ok=True)
    blocks: list[dict[str, Any]] = []
    names = iter("abcdefgh")
    for index, shares in enumerate(layers):
        own = [next(names) for _ in shares]
        block = {
            "index": index,
            "name": own[0],
            "layers": own,
            "layer_shares": shares,
            "cost_share": sum(shares),
        }
        rest = {"parameters": 1, "input_shape": [1], "output_shape": [1], "tap": None}
        measured = {} if milliseconds is None else {"milliseconds": milliseconds[index]}
        blocks.append(block | rest | measured)
    starts = [name for block in blocks for name in block["layers"]][1:]
    balance = {
        "by": "flops" if milliseconds is None else "time",
        "bottleneck": 0,
        "predicted": 1,
        "starts": starts,
    }
    (run_dir / "plan.json").write_text(json.dumps({"blocks": blocks, "balance": balance}))
    for index, seconds in enumerate(work):
        writer = TimelineWriter(run_dir / "timeline" / f"block-{index}.jsonl")
        now = EPOCH
        for step in range(steps):
            slow = 50 if step == 0 else 1  # of a first step nothing must be concluded
            parts = [("forward", 0.25, n) for n in range(microbatches)]
            parts += [("update", 0.5, n) for n in range(microbatches)]
            for kind, share, microbatch in [*parts, ("step", 0.25 * microbatches, 0)]:
                taken = slow * share * seconds
                writer.record(kind, step, microbatch, now, now + taken)
                now += taken
            writer.record("wait", step + 1, 0, now, now + 1, "error")
            now += 1
        writer.close()


def test_shares_are_those_of_the_typical_step(tmp_path: Path) -> None:
    write_run(tmp_path, [0.003, 0.001], [[0.3, 0.2], [0.5]])
    found = measure_balance(read_run(tmp_path))
    assert found is not None
    assert [row.predicted for row in found.rows] == [0.5, 0.5]
    assert [row.achieved for row in found.rows] == pytest.approx([0.75, 0.25], rel=1e-3)
    assert [row.milliseconds for row in found.rows] == pytest.approx([3, 1], rel=1e-3)
    assert [row.busy_seconds for row in found.rows] == pytest.approx([0.348, 0.116], rel=1e-3)
    assert "1.00 was predicted (counted operations" in found.summary
    assert "0.67 came of it (bottleneck block 0)" in found.summary


def test_a_better_cut_is_named_with_what_it_saves(tmp_path: Path) -> None:
    # Measured, block 0's layers are three times as dear as those of block 1: 1.8 and 1.2 against 0.5 and 0.5.
    write_run(tmp_path, [0.003, 0.001], [[0.3, 0.2], [0.25, 0.25]], milliseconds=[2.0, 2.0])
    found = measure_balance(read_run(tmp_path))
    assert found is not None
    assert 'model.blocks: ["b"]' in found.hint
    assert "2.20 ms per micro-batch in place of 3.00 (27% less)" in found.hint
    assert found.rows[0].cells() == ["0", "50.0%", "75.0%", "2.00", "3.00", "0.3"]
    assert "measured before the run" in found.summary
    page = write_report(tmp_path).read_text()
    assert "[&#34;b&#34;]" in page
    assert '<td class="right">75.0%</td>' in page


def test_a_cut_that_cannot_be_bettered_is_left_alone(tmp_path: Path) -> None:
    write_run(tmp_path, [0.002, 0.002], [[0.25, 0.25], [0.25, 0.25]])
    found = measure_balance(read_run(tmp_path))
    assert found is not None
    assert "No other cut into 2 blocks" in found.hint


def test_replicas_share_their_blocks_work_and_do_not_disturb_the_report(tmp_path: Path) -> None:
    write_run(tmp_path, [0.004, 0.002], [[0.5], [0.5]])
    timeline = tmp_path / "timeline"
    (timeline / "block-0-replica-1.jsonl").write_bytes((timeline / "block-0.jsonl").read_bytes())
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"replicas": [2, 1]}))
    found = measure_balance(read_run(tmp_path))
    assert found is not None
    assert [row.predicted for row in found.rows] == pytest.approx([1 / 3, 2 / 3])
    assert [row.achieved for row in found.rows] == pytest.approx([0.5, 0.5], rel=1e-3)
    assert found.hint == ""


def test_without_every_blocks_work_there_is_no_table(tmp_path: Path) -> None:
    write_run(tmp_path, [0.002, 0.002], [[0.5], [0.5]])
    (tmp_path / "timeline" / "block-1.jsonl").unlink()
    assert measure_balance(read_run(tmp_path)) is None
    writer = TimelineWriter(tmp_path / "timeline" / "block-1.jsonl")
    writer.record("step", 0, 0, EPOCH, EPOCH + 1)  # as with all blocks in one process
    writer.close()
    assert measure_balance(read_run(tmp_path)) is None
    assert "don't tell what every block did" in write_report(tmp_path).read_text()
