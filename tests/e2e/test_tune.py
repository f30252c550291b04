"""The search with Ray Tune: its trials are runs on Ray, in places that Tune counts, and end with all that they hold."""

from __future__ import annotations

import runpy
import time
from pathlib import Path

import pytest

from lowdimfa.errors import NoRoomError
from lowdimfa.services.trainer.placement import _require_places

ray = pytest.importorskip("ray")
tune = pytest.importorskip("ray.tune", reason='the extra "tune" is not installed')

EXAMPLE = Path(__file__).parents[2] / "examples" / "tune_search.py"
EPOCHS = 5
SECONDS = 30.0


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_bad_trial_is_stopped_early_and_leaves_nothing(tmp_path: Path) -> None:
    free = ray.available_resources()["CPU"]
    search = runpy.run_path(str(EXAMPLE))["search"]
    space = {"lr": tune.grid_search([0.01, 1e-6]), "error_dim": 4}
    good, bad = search(space, trials=1, epochs=EPOCHS, storage=tmp_path, concurrent=1)
    assert good.error is None and bad.error is None
    assert good.metrics["training_iteration"] == EPOCHS
    assert bad.metrics["training_iteration"] == 2  # where bad trials are looked for first
    assert good.metrics["loss"] < bad.metrics["loss"]
    for trial in (good, bad):
        assert (Path(trial.path) / "run" / "events.jsonl").is_file()
    end = time.monotonic() + SECONDS
    while ray.available_resources().get("CPU") != free:
        assert time.monotonic() < end, ray.available_resources()
        time.sleep(0.1)


def test_a_trial_without_places_for_its_blocks_is_told_what_to_ask_for() -> None:
    one = {"CPU": 1.0}
    for places in ([], [one], [one, {"CPU": 0.5}]):
        with pytest.raises(NoRoomError, match=r"PlacementGroupFactory\(\[.*\] \+ \[\{'CPU': 1.0\}\] \* 2\)"):
            _require_places(places, [one, one])
    _require_places([{"GPU": 1.0}, one, one], [one, one])
