"""``lowdimfa train``: run a specification."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.cli.display import Display, JsonDisplay, TextDisplay
from lowdimfa.services.cli.jobs_display import file_lines
from lowdimfa.services.cli.options import Format, FormatOption, OverridesOption, SpecArgument, placed
from lowdimfa.services.cli.output import claim_stdout, outlive
from lowdimfa.services.cli.signals import graceful_signals
from lowdimfa.services.run.loading import load, loading
from lowdimfa.services.run.user_code import Modules
from lowdimfa.services.trainer import forks

if TYPE_CHECKING:
    from lowdimfa.services.trainer.api import DecoupledTrainer, Result

STOP_LIVENESS = 4.0
"""An ordered stop may take this many times the liveness: one step, and a checkpoint as long as at the start."""


class EngineOption(StrEnum):
    """Where the blocks run."""

    ray = "ray"
    local = "local"


Engine = Annotated[EngineOption, typer.Option(help="An actor per block, or all in this process.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join; without it a local one is started.")]
RunDir = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        parser=placed,
        help="Directory of the run, or an address such as s3://bucket/run; without it a new one in run.storage.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --run-dir.")]
ResumeStep = Annotated[
    int | None,
    typer.Option(
        metavar="STEP",
        min=0,
        help="Go on from the checkpoint of this step in --run-dir, for example because a newer one is damaged.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, and stop.")]


def train(
    spec: SpecArgument,
    overrides: OverridesOption = None,
    engine: Engine = EngineOption.ray,
    address: Address = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    resume_step: ResumeStep = None,
    dry_run: DryRun = False,
    form: FormatOption = Format.text,
) -> None:
    """Train the network that SPEC describes."""
    own_ray = engine is EngineOption.ray and address is None and not dry_run
    if own_ray:
        load("lowdimfa.services.trainer.api")
    with loading():
        from lowdimfa.services.trainer.api import DecoupledTrainer

    if not dry_run:
        outlive("events.jsonl of the run has everything")
    display: Display = JsonDisplay(claim_stdout()) if form is Format.json else TextDisplay(sys.stdout)
    with display:
        try:
            trainer = DecoupledTrainer(
                spec,
                engine=engine.value,
                address=address,
                run_dir=run_dir,
                resume=resume,
                resume_step=resume_step,
                overrides=overrides or [],
                on_event=display.show,
            )
            if dry_run:
                if address is not None:
                    for line in file_lines(Modules.beside(spec.resolve().parent), "would be sent"):
                        print(line, file=sys.stderr)
                display.show({"event": "plan"} | trainer.plan().describe())
            else:
                if own_ray:  # only now: what is wrong in the specification is told without waiting for it
                    forks.prepare()
                display.show({"event": "starting"})
                fit(trainer)
        except LowdimfaError as error:
            display.show({"event": "failed"} | error.as_event())
            raise


def fit(trainer: DecoupledTrainer) -> Result:
    """Run a trainer to its end, which a first Ctrl-C brings about in order, and a second one at once."""
    from lowdimfa.services.trainer.stopping import stopped

    patience = STOP_LIVENESS * trainer.specification.run.liveness_seconds
    try:
        with graceful_signals(trainer.stop, patience):
            return trainer.fit()
    except KeyboardInterrupt:
        raise stopped(trainer.request.run_dir) from None
