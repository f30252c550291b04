"""The search with Ray Tune: its trials are runs on Ray, in places that Tune counts, and end with all that they hold."""

from __future__ import annotations

import runpy
import time
from pathlib import Path

import pytest

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


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_trial_without_places_for_its_blocks_is_told_what_to_ask_for(tmp_path: Path) -> None:
    trial = runpy.run_path(str(EXAMPLE))["trial"]
    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": 1}),
        param_space={"lr": 0.01, "error_dim": 4, "epochs": 1},
        run_config=tune.RunConfig(name="cramped", storage_path=str(tmp_path), verbose=0),
    )
    (result,) = tuner.fit()
    assert "has 1 bundles" in str(result.error)
    assert "tune.PlacementGroupFactory([{'CPU': 1}] + [{'CPU': 1.0}] * 2)" in str(result.error)
