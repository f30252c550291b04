"""``lowdimfa train``: run a specification."""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.cli.display import Display, JsonDisplay, TextDisplay
from lowdimfa.services.cli.jobs_display import file_lines
from lowdimfa.services.cli.options import Format, FormatOption, OverridesOption, SpecArgument, placed
from lowdimfa.services.cli.output import claim_stdout, outlive
from lowdimfa.services.monitoring.journal import Event, Sink
from lowdimfa.services.run.loading import load, loading
from lowdimfa.services.run.user_code import Modules
from lowdimfa.services.trainer import early_ray
from lowdimfa.services.trainer.signals import STOP_LIVENESS, graceful_signals

if TYPE_CHECKING:
    from lowdimfa.services.cli.live import LiveRun
    from lowdimfa.services.trainer.api import DecoupledTrainer
    from lowdimfa.services.trainer.results import Result


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
Live = Annotated[
    bool, typer.Option("--live", help="Show the run in a browser on this machine while it goes.")
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
    live: Live = False,
    dry_run: DryRun = False,
    form: FormatOption = Format.text,
) -> None:
    """Train the network that SPEC describes."""
    own_ray = engine is EngineOption.ray and address is None and not dry_run
    with early_ray.begun(spec, overrides or []) if own_ray else nullcontext():
        if own_ray:
            load("lowdimfa.services.trainer.api")
        with loading():
            from lowdimfa.services.trainer.api import DecoupledTrainer

        if not dry_run:
            outlive("events.jsonl of the run has everything")
        page = _page() if live and not dry_run else None
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
                    on_event=display.show if page is None else _both(display.show, page.tell),
                )
                if dry_run:
                    if address is not None:
                        for line in file_lines(Modules.beside(spec.resolve().parent), "would be sent"):
                            print(line, file=sys.stderr)
                    display.show({"event": "plan"} | trainer.plan().describe())
                else:
                    if own_ray:  # only now: what is wrong in the specification is told without waiting for it
                        early_ray.prepare_workers()
                    display.show({"event": "starting"})
                    fit(trainer, page, display.show)
            except LowdimfaError as error:
                display.show({"event": "failed"} | error.as_event())
                raise


def _page() -> LiveRun:
    from lowdimfa.services.cli.live import LiveRun  # only here: what it needs takes a while to import

    return LiveRun()


def _both(*sinks: Sink) -> Sink:
    def tell(event: Event) -> None:
        for sink in sinks:
            sink(event)

    return tell


def fit(trainer: DecoupledTrainer, page: LiveRun | None = None, show: Sink = lambda event: None) -> Result:
    """Run a trainer to its end, which a first Ctrl-C brings about in order, and a second one at once.

    Parameters
    ----------
    trainer
        Of the run.
    page
        Shows the run while it goes.
    show
        Is told where the page is.
    """
    from lowdimfa.services.trainer.stopping import stopped

    patience = STOP_LIVENESS * trainer.specification.run.liveness_seconds
    try:
        with graceful_signals(trainer.stop, patience) as stopping, ExitStack() as stack:
            if page is not None:
                stack.enter_context(page.served(trainer, stopping))
                show({"event": "live", "address": page.address})
            return trainer.fit()
    except KeyboardInterrupt:
        raise stopped(trainer.request.run_dir) from None
