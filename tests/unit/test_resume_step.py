"""Which checkpoint a further attempt takes, of a run that was to go on from a given one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.trainer.request import RunRequest


@pytest.mark.parametrize(
    ("there", "saved", "step"),
    [
        ((10, 20), False, 10),
        ((10, 15), True, None),
        # The trainer was lost after the manifest of step 15 and before its event, which comes some steps later.
        ((15,), False, None),
    ],
)
def test_the_given_checkpoint_counts_until_there_is_one_of_the_new_course(
    there: tuple[int, ...], saved: bool, step: int | None, tmp_path: Path
) -> None:
    for number in there:
        checkpoint = tmp_path / "checkpoints" / f"step-{number:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
    again = RunRequest({}, str(tmp_path), "ray", True, UserCode(), resume_step=10).again(1.0, saved=saved)
    assert again.resume and again.resume_step == step
