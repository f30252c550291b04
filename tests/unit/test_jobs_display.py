from __future__ import annotations

from typing import Any

import pytest

from lowdimfa.services.cli.jobs_display import age, job_lines, jobs_table

JOB: dict[str, Any] = {
    "id": "mnist-abc234",
    "owner": "ada",
    "state": "queued",
    "detail": "waits for 4 CPUs: 2 of 6 are free",
    "created": 0.0,
    "started": None,
    "ended": None,
    "attempt": 0,
    "step": 0,
    "steps": 0,
    "loss": None,
    "test_accuracy": None,
    "error": None,
    "run_dir": "/runs/mnist-abc234",
}
RUNNING = JOB | {
    "id": "a-much-longer-name-xyz789",
    "state": "running",
    "step": 1200,
    "steps": 20_000,
    "loss": 0.25,
}


def test_columns_are_even_and_the_detail_comes_last() -> None:
    title, queued, running = (line.plain for line in jobs_table([JOB, RUNNING]))
    for name in ("state", "detail"):
        assert title.index(name) == {"state": queued.index("queued"), "detail": queued.index("waits")}[name]
    assert running.index("running") == queued.index("queued")
    assert "1,200/20,000  0.2500" in running
    assert queued.endswith("2 of 6 are free")


def test_only_what_is_known_is_shown_of_a_job() -> None:
    text = "\n".join(job_lines(JOB))
    assert "queued: waits for 4 CPUs" in text and "/runs/mnist-abc234" in text
    for word in ("loss", "ended", "attempt", "error", "None"):
        assert word not in text
    failed = job_lines(
        JOB | {"error": {"code": "not_finite", "exit_code": 3}, "attempt": 2, "test_accuracy": 0.5}
    )
    assert "error                not_finite (exit code 3)" in failed
    assert "attempt              2" in failed and "evaluation accuracy  50.00 %" in failed


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59, "59 s"), (90, "2 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_an_age_has_its_largest_unit(seconds: float, text: str) -> None:
    assert age(seconds) == text
