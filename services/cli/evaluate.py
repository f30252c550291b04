"""``lowdimfa evaluate``: measure a finished run again."""

from __future__ import annotations

from typing import Annotated

import typer

from lowdimfa.services.cli.display import JsonDisplay
from lowdimfa.services.cli.options import BestOption, Format, FormatOption, RunDirArgument
from lowdimfa.services.cli.output import claim_stdout
from lowdimfa.services.cli.words import language, measured

TestOption = Annotated[
    bool,
    typer.Option(
        "--test",
        help="Measure the test split, also where data.validation kept it away from the run's evaluations.",
    ),
]
_SPLITS = {"test": "samples", "validation": "training samples that data.validation held out"}


def evaluate(
    run_dir: RunDirArgument,
    best: BestOption = False,
    test: TestOption = False,
    form: FormatOption = Format.text,
) -> None:
    """Evaluate the newest checkpoint of a run, or the best one, as the run did."""
    from lowdimfa.services.trainer.evaluate import evaluate_run

    if form is Format.json:
        JsonDisplay(claim_stdout()).show(evaluate_run(run_dir, best, test))
        return
    event = evaluate_run(run_dir, best, test)
    accuracy = (
        "" if event["test_accuracy"] is None else f", test accuracy {100 * event['test_accuracy']:.2f} %"
    )
    print(
        f"step {event['step']:,}: test loss {event['test_loss']:.4f}{language(event)}{accuracy}{measured(event)} "
        f"({event['samples']:,} {_SPLITS[event['split']]})"
    )
