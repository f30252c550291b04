"""A search with Ray Tune: learning rate and error dimension, bad trials are stopped early by ASHA.

Each trial is a run with a process for each block. Tune counts what they take, since a trial asks for a place for itself
and one for each block. Needs ``pip install "lowdimfa[tune]"``.

    python examples/tune_search.py
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from lowdimfa import DecoupledTrainer, FeedbackConfig
from lowdimfa.data import digits
from lowdimfa.models import mlp

BLOCKS = 2


def trial(settings: dict[str, Any]) -> None:
    """Train with the settings that Tune has chosen, and tell it what every evaluation finds."""

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "evaluated":
            tune.report(
                {"loss": event["test_loss"], "accuracy": event["test_accuracy"], "step": event["step"]}
            )

    DecoupledTrainer(
        model=partial(mlp, in_features=64, width=64, depth=4, classes=10),
        data=digits,
        blocks=BLOCKS,
        optimizer=partial(torch.optim.AdamW, lr=settings["lr"]),
        feedback=FeedbackConfig(error_dim=settings["error_dim"]),
        epochs=settings["epochs"],
        batch_size=64,
        run_dir=Path(tune.get_context().get_trial_dir()) / "run",
        # The score is of samples that are held out of training: the test split is for the end.
        overrides={"data.validation": 0.2},
        on_event=report,
    ).fit()


SPACE = {"lr": tune.loguniform(1e-4, 1e-1), "error_dim": tune.choice([2, 4, 10])}


def search(
    space: dict[str, Any], trials: int, epochs: int, storage: Path, concurrent: int
) -> tune.ResultGrid:
    """Return what the trials found."""
    places = tune.PlacementGroupFactory([{"CPU": 1}] + [{"CPU": 1}] * BLOCKS)
    tuner = tune.Tuner(
        tune.with_resources(trial, places),
        param_space=space | {"epochs": epochs},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=trials,
            max_concurrent_trials=concurrent,
            scheduler=tune.schedulers.ASHAScheduler(max_t=epochs, grace_period=2, reduction_factor=2),
        ),
        run_config=tune.RunConfig(name="lowdimfa", storage_path=str(storage.resolve()), verbose=1),
    )
    return tuner.fit()


def main() -> None:
    """Search, and show what was found."""
    parser = argparse.ArgumentParser(description="Search for a learning rate and an error dimension.")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--concurrent", type=int, default=2, help="trials at a time")
    parser.add_argument(
        "--cpus", type=int, help="to count on this machine, if it has fewer than 3 for each trial"
    )
    parser.add_argument("--storage", type=Path, default=Path("runs/tune"))
    given = parser.parse_args()
    if given.cpus:
        ray.init(num_cpus=given.cpus)
    found = search(SPACE, given.trials, given.epochs, given.storage, given.concurrent)
    columns = ["config/lr", "config/error_dim", "step", "loss", "accuracy"]
    print(found.get_dataframe()[columns].sort_values("loss").to_string(index=False))
    best = found.get_best_result()
    print(f"best: {best.config}, loss {best.metrics['loss']:.3f}, run {best.path}/run")


if __name__ == "__main__":
    main()
