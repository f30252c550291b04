"""``lowdimfa drill``: a run under faults drawn at random, and the check that it comes to the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from lowdimfa.errors import DrillError, InputError, LowdimfaError
from lowdimfa.services.cli.display import Display, TextDisplay, aligned
from lowdimfa.services.cli.options import Format, FormatOption, OverridesOption, SpecArgument, expanded
from lowdimfa.services.cli.output import claim_stdout, outlive
from lowdimfa.services.cli.train import fit
from lowdimfa.services.lab.drill.plan import KINDS, Schedule, parse_kinds
from lowdimfa.services.lab.drill.report import (
    planned_event,
    round_event,
    round_lines,
    round_rows,
    summary,
    summary_rows,
)
from lowdimfa.services.monitoring.journal import Sink
from lowdimfa.services.monitoring.line_file import to_json
from lowdimfa.services.spec import load_specification
from lowdimfa.services.spec.addresses import is_address
from lowdimfa.services.trainer.run_dir import new_run_dir, reserved

if TYPE_CHECKING:
    from lowdimfa.services.lab.drill.round import Round
    from lowdimfa.services.trainer.api import DecoupledTrainer
    from lowdimfa.services.trainer.results import Result


class PolicyOption(StrEnum):
    """What happens when something is lost."""

    fail = "fail"
    restart = "restart"
    rejoin = "rejoin"


Policy = Annotated[PolicyOption | None, typer.Option(help="The policy to drill; without it that of SPEC.")]
Seed = Annotated[int, typer.Option(min=0, help="From which all faults are drawn.")]
Faults = Annotated[int, typer.Option(min=1, help="Faults in each round.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds, each with other faults.")]
Minutes = Annotated[float, typer.Option(min=0, help="Begin further rounds until so many minutes are over.")]
Kinds = Annotated[
    str | None,
    typer.Option(
        metavar="KIND,…", help=f"What may happen: some of {','.join(KINDS)}. Without it, everything."
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(min=0, help="How much lower the accuracy may be after rejoins: 0.02 is two points."),
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to drill; without it a local one is started.")]
RunDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", parser=expanded, help="New folder for the runs; without it one in run.storage."
    ),
]


def drill(
    spec: SpecArgument,
    overrides: OverridesOption = None,
    on_failure: Policy = None,
    seed: Seed = 0,
    faults: Faults = 12,
    rounds: Rounds = 1,
    minutes: Minutes = 0.0,
    kinds: Kinds = None,
    tolerance: Tolerance = 0.02,
    address: Address = None,
    run_dir: RunDir = None,
    form: FormatOption = Format.text,
) -> None:
    """Run SPEC under faults drawn at random, and check that the result holds and nothing is left behind."""
    from lowdimfa.services.lab.drill.drill import Drill, DrillRequest

    outlive("events.jsonl of each run has its events")
    policy = [] if on_failure is None else [f"run.on_failure={on_failure.value}"]
    show = _Lines(sys.stdout, seed) if form is Format.text else _Objects(claim_stdout(), seed)
    try:
        specification = load_specification(spec, [*(overrides or []), *policy])
        if is_address(specification.run.storage):
            raise InputError(
                "run.storage",
                "an address of an object store",
                "a folder, in which a drill sees what a run leaves",
                "Set run.storage for the drill alone: --set run.storage=runs",
            )
        own = reserved(Path(new_run_dir(specification.run.storage, f"drill-{spec.stem}")))
        with own if run_dir is None else nullcontext(run_dir.resolve()) as folder:
            request = DrillRequest(
                specification=specification,
                folder=folder,
                user_code=spec.resolve().parent,
                address=address,
                seed=seed,
                faults=faults,
                rounds=rounds,
                minutes=minutes,
                kinds=parse_kinds(kinds, trainer=address is None),
                tolerance=tolerance,
            )
            done = Drill(request).run(show.fit, show.begin, show.end)
        show.sum_up(done)
        if troubles := [trouble for entry in done for trouble in entry.troubles]:
            raise DrillError(
                f"round {done[-1].number} of the drill was not passed: {'; '.join(troubles)}. Its events, logs and "
                f"checkpoints are in {done[-1].run_dir}; --seed {seed} draws the same faults"
            )
    except LowdimfaError as error:
        show.failed(error)
        raise


class _Shown:
    """Shows a drill, and runs its parts so that Ctrl-C ends them in order."""

    def __init__(self, stream: TextIO, seed: int) -> None:
        self._stream, self._seed = stream, seed

    def fit(self, title: str, make: Callable[[Sink], DecoupledTrainer]) -> Result:
        """Run one part, shown as it goes."""
        with self.display(title) as display:
            display.show({"event": "starting"})
            return fit(make(display.show))

    def display(self, title: str) -> Display:
        """Return what shows one part."""
        raise NotImplementedError


class _Lines(_Shown):
    """For people."""

    def display(self, title: str) -> Display:
        self._say(f"--- {title}")
        return TextDisplay(self._stream)

    def begin(self, number: int, schedule: Schedule) -> None:
        count = len(schedule.faults) + len(schedule.trainer_steps)
        self._say(f"\nround {number}: {count} faults drawn from seed {self._seed}")

    def end(self, entry: Round) -> None:
        self._say("\n" + "\n".join([aligned(round_rows(entry)), *round_lines(entry)]))

    def sum_up(self, rounds: list[Round]) -> None:
        self._say("\n" + aligned(summary_rows(rounds)))

    def failed(self, error: LowdimfaError) -> None:
        """Leave it to standard error."""

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class _Objects(_Shown):
    """One JSON object per line."""

    def display(self, title: str) -> Display:
        return _Parts(self._write, title)

    def begin(self, number: int, schedule: Schedule) -> None:
        self._write(planned_event(number, schedule) | {"seed": self._seed})

    def end(self, entry: Round) -> None:
        self._write(round_event(entry))

    def sum_up(self, rounds: list[Round]) -> None:
        self._write({"event": "drilled", "seed": self._seed} | summary(rounds))

    def failed(self, error: LowdimfaError) -> None:
        self._write({"event": "failed"} | error.as_event())

    def _write(self, event: dict[str, Any]) -> None:
        self._stream.write(to_json(event) + "\n")
        self._stream.flush()


class _Parts:
    """The events of one part, with its name."""

    def __init__(self, write: Sink, title: str) -> None:
        self._write, self._title = write, title

    def show(self, event: dict[str, Any]) -> None:
        if event["event"] not in ("starting", "failed"):  # a failure is told once, by the drill
            self._write(event | {"part": self._title})

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *unused: object) -> None:
        return
