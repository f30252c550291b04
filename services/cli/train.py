"""``lowdimfa train``: run a specification."""

from __future__ import annotations

import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lowdimfa.errors import LowdimfaError
from services.cli.display import Display, JsonDisplay, TextDisplay, claim_stdout
from services.cli.options import Format, FormatOption
from services.cli.signals import graceful_signals
from services.run.disk import no_room
from services.trainer.api import DecoupledTrainer
from services.trainer.events import Event, Sink
from services.trainer.stopping import stopped

STOP_LIVENESS = 4.0
"""An ordered stop may take this many times the liveness: one step, and a checkpoint as long as at the start."""


class EngineOption(StrEnum):
    """Where the blocks run."""

    ray = "ray"
    local = "local"


def train(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The specification, a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, such as train.epochs=1."),
    ] = None,
    engine: Annotated[
        EngineOption, typer.Option(help="An actor per block, or all in this process.")
    ] = EngineOption.ray,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; without it a local one is started.")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Directory of the run; without it a new one in run.storage.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in --run-dir.")
    ] = False,
    resume_step: Annotated[
        int | None,
        typer.Option(
            metavar="STEP",
            min=0,
            help="Go on from the checkpoint of this step in --run-dir, for example because a newer one is damaged.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the plan, and stop.")
    ] = False,
    form: FormatOption = Format.text,
) -> None:
    """Train the network that SPEC describes."""
    display: Display = JsonDisplay(claim_stdout()) if form is Format.json else TextDisplay(sys.stdout)
    show = _forgiving(display.show)
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
                on_event=show,
            )
            if dry_run:
                show({"event": "plan"} | trainer.plan().describe())
            else:
                _fit(trainer, show)
        except LowdimfaError as error:
            show({"event": "failed"} | error.as_event())
            raise


def _forgiving(show: Sink) -> Sink:
    """Return what shows an event if it can: no run ends because the disk that its output goes to is full."""
    told = False

    def show_if_there_is_room(event: Event) -> None:
        nonlocal told
        try:
            show(event)
        except OSError as error:
            if not no_room(error):
                raise
            if not told:
                told = True
                note = "part of the output is lost, since there is no room for it; events.jsonl of the run has everything"
                with suppress(OSError):
                    print(f"lowdimfa: {note}", file=sys.stderr)

    return show_if_there_is_room


def _fit(trainer: DecoupledTrainer, show: Sink) -> None:
    show({"event": "starting"})
    patience = STOP_LIVENESS * trainer.specification.run.liveness_seconds
    try:
        with graceful_signals(trainer.stop, patience):
            trainer.fit()
    except KeyboardInterrupt:
        raise stopped(Path(trainer.request.run_dir)) from None
