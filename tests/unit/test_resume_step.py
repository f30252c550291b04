"""Which checkpoint a further attempt takes, of a run that was to go on from a given one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowdimfa.services.monitoring.journal import Journal
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.trainer.request import RunRequest


@pytest.mark.parametrize(
    ("told", "step"),
    [
        (("started", "checkpoint", "failed", "started"), 10),
        (("started", "checkpoint", "failed", "started", "progress", "recovering"), 10),
        (("started", "checkpoint", "started", "checkpoint", "progress", "recovering"), None),
    ],
)
def test_the_given_checkpoint_counts_until_there_is_one_of_the_new_course(
    told: tuple[str, ...], step: int | None, tmp_path: Path
) -> None:
    for number in (10, 20):
        checkpoint = tmp_path / "checkpoints" / f"step-{number:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
    log = Journal(tmp_path)
    for event in told:
        log.emit(event, step=0)
    log.close()
    request = RunRequest({}, str(tmp_path), "ray", True, UserCode(), resume_step=10)
    assert request.again(1.0, began=True).resume_step == step
    assert request.again(1.0, began=True).resume


@pytest.mark.parametrize(
    "told",
    [
        ("started", "checkpoint", "failed", "recovering"),
        ("started", "checkpoint", "progress", "recovering"),  # of a part that had no last word
        ("started", "checkpoint", "failed", "recovering", "recovering"),
    ],
)
def test_a_checkpoint_of_the_earlier_part_does_not_count_before_the_attempt_began(
    told: tuple[str, ...], tmp_path: Path
) -> None:
    for number in (10, 20):
        checkpoint = tmp_path / "checkpoints" / f"step-{number:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
    log = Journal(tmp_path)
    for event in told:
        log.emit(event, step=0)
    log.close()
    again = RunRequest({}, str(tmp_path), "ray", True, UserCode(), resume_step=10).again(1.0)
    assert again.resume and again.resume_step == 10


def test_a_given_checkpoint_that_the_new_course_has_deleted_is_not_asked_for(tmp_path: Path) -> None:
    """The trainer was lost after the manifest of step 15 and before its event, which comes some steps later."""
    checkpoint = tmp_path / "checkpoints" / "step-00000015"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    log = Journal(tmp_path)
    for event in ("started", "checkpoint", "failed", "started", "progress"):
        log.emit(event, step=0)
    log.close()
    again = RunRequest({}, str(tmp_path), "ray", True, UserCode(), resume_step=10).again(1.0, began=True)
    assert again.resume and again.resume_step is None
