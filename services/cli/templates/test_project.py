"""Quick checks of the specification with its model and data, in one process: run ``pytest`` after each change."""

from pathlib import Path
from typing import Any

from lowdimfa import DecoupledTrainer

SPECIFICATION = Path(__file__).with_name("spec.yaml")


def test_the_specification_has_a_plan() -> None:
    """Everything is loaded, built, cut and checked as before a run, and nothing is written."""
    trainer = DecoupledTrainer(SPECIFICATION, engine="local")
    assert trainer.plan().describe()["parameters"] > 0


def test_three_steps_lower_the_loss(tmp_path: Path) -> None:
    """If not, the learning rate, the loss or the targets may be wrong."""
    losses: list[float] = []

    def watch(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            losses.append(event["loss"])

    three_steps = ["train.epochs=null", "train.steps=3", "train.batch_size=250", "train.log_every=1"]
    trainer = DecoupledTrainer(
        SPECIFICATION, engine="local", run_dir=tmp_path / "run", overrides=three_steps, on_event=watch
    )
    result = trainer.fit()
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert result.metrics["test_loss"] < losses[0]
