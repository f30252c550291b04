"""A drill: the undisturbed run, then round after round of it under faults."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowdimfa.errors import InputError
from lowdimfa.services.lab.drill.plan import HARMLESS, KINDS, Kind, Schedule, draw
from lowdimfa.services.lab.drill.round import Fit, Round, Terms, run_round
from lowdimfa.services.monitoring.journal import Sink
from lowdimfa.services.spec import Specification, parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.results import Result


@dataclass(frozen=True)
class DrillRequest:
    """What is drilled.

    Attributes
    ----------
    specification
        Of the run, with the policy to drill.
    folder
        Gets the directory of each run.
    user_code
        Folder with the user's own modules.
    address
        Of a Ray cluster, or None for one on this machine.
    seed
        From which all faults are drawn.
    faults
        Of each round.
    rounds
        At least so many.
    minutes
        Rounds begin until these are over.
    kinds
        Of faults that may be drawn.
    tolerance
        See `lowdimfa.services.lab.drill.compare.compare`.
    """

    specification: Specification
    folder: Path
    user_code: Path
    address: str | None
    seed: int
    faults: int
    rounds: int
    minutes: float
    kinds: Sequence[Kind]
    tolerance: float


class Drill:
    """Checks everything that can be checked before anything runs, then runs.

    Parameters
    ----------
    request
        What is drilled.

    Attributes
    ----------
    steps
        Of each run.

    Raises
    ------
    InputError
        The specification can't be run in actors, its policy can't survive the faults, or they don't fit into it.
    """

    def __init__(self, request: DrillRequest) -> None:
        self.request = request
        _require_policy(request)
        if request.folder.exists() and (not request.folder.is_dir() or any(request.folder.iterdir())):
            raise InputError(
                f"--run-dir {request.folder}", "a folder with something in it", "a new or empty one"
            )
        plan = self._trainer(request.specification, self._run_dir(1), lambda event: None).plan()
        self.steps = plan.network.training.total_steps
        self._specification = _pinned(request.specification, plan.network.boundaries)
        self._first_learns = plan.network.blocks[0].learns
        self.schedule(1)

    def schedule(self, number: int) -> Schedule:
        """Return the faults of a round, from 1."""
        request = self.request
        seed = f"{request.seed}, round {number}"
        kinds, faults = request.kinds, request.faults
        return draw(seed, self._specification, self.steps, kinds, faults, self._first_learns)

    def reference(self, fit: Fit) -> Result:
        """Run undisturbed, in this process."""
        plain = self._specification.model_dump()
        plain["train"]["staleness"] = 0  # which one process does not have
        plain["drill"]["faults"] = []
        specification = parse_specification(plain, "the specification of the undisturbed run")
        path = self.request.folder / "undisturbed"

        def trainer(sink: Sink) -> DecoupledTrainer:
            return DecoupledTrainer(
                specification, engine="local", run_dir=path, user_code=self.request.user_code, on_event=sink
            )

        return fit("undisturbed run", trainer)

    def run(
        self, fit: Fit, begin: Callable[[int, Schedule], None], end: Callable[[Round], None]
    ) -> list[Round]:
        """Run everything; the first round that is not passed is the last.

        Parameters
        ----------
        fit
            Runs a trainer.
        begin
            Told of each round before it.
        end
            Told of each round after it.

        Raises
        ------
        LowdimfaError
            The undisturbed run failed, or somebody asked for an end.
        """
        request = self.request
        terms = Terms(
            specification=self._specification,
            make=self._trainer,
            fit=fit,
            reference=self.reference(fit),
            own_cluster=request.address is None,
            tolerance=request.tolerance,
        )
        until = time.monotonic() + 60.0 * request.minutes
        rounds: list[Round] = []
        while len(rounds) < request.rounds or time.monotonic() < until:
            number = len(rounds) + 1
            schedule = self.schedule(number)
            begin(number, schedule)
            rounds.append(run_round(number, terms, schedule, self._run_dir(number)))
            end(rounds[-1])
            if rounds[-1].troubles:
                break
        return rounds

    def _run_dir(self, number: int) -> Path:
        return self.request.folder / f"round-{number}"

    def _trainer(self, specification: Specification, run_dir: Path, sink: Sink) -> DecoupledTrainer:
        return DecoupledTrainer(
            specification,
            address=self.request.address,
            run_dir=run_dir,
            user_code=self.request.user_code,
            on_event=sink,
        )


def _require_policy(request: DrillRequest) -> None:
    form = request.specification.feedback.form
    if form != "broadcast":
        expected = "'broadcast': the baselines run in one process, of which a drill could lose nothing"
        raise InputError("feedback.form", repr(form), expected)
    deadly = [kind for kind in request.kinds if kind not in HARMLESS]
    if request.specification.run.on_failure == "fail" and deadly:
        harmless = ",".join(kind for kind in KINDS if kind in HARMLESS)
        raise InputError(
            "run.on_failure",
            f"'fail' in a drill with faults of kind {', '.join(deadly)}",
            "a policy that recovers",
            f"Add --on-failure rejoin or restart, or draw only what needs no recovery: --kinds {harmless}.",
        )


def _pinned(specification: Specification, boundaries: list[str]) -> Specification:
    """Return the specification with its cut written out where it would be measured anew in each run."""
    if specification.model.balance != "time" or not boundaries:
        return specification
    plain = specification.model_dump()
    plain["model"]["blocks"] = boundaries
    return parse_specification(plain, "the specification of the drill")
