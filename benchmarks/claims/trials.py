"""Every method's runs: its own learning rate and weight decay from one small grid, then the same with further seeds.

They are chosen on the last sixth of the training split with the first seed; the test split is seen only by runs with
what was chosen. Finished runs are cached, so that claims that share a network train it once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from benchmarks.claims.cache import key_of
from benchmarks.claims.claim import RunSettings
from benchmarks.claims.methods import Method
from benchmarks.claims.settings import VALIDATION, Setting, Update
from benchmarks.claims.training import Trained, train
from lowdimfa.data import Split
from lowdimfa.network import computing_threads


@dataclass(frozen=True)
class Run:
    """One training run: accuracies in percent after the last epoch.

    ``test`` is None for an entry of the grid that wasn't chosen; ``best`` is that after the epoch that was best in
    validation; ``curve`` has the accuracy in validation after each epoch.
    """

    setting: str
    method: str
    rate: float
    weight_decay: float
    seed: int
    validation: float
    test: float | None
    seconds: float
    feedback_rate: float | None = None
    best: float | None = None
    curve: list[float] | None = None


def runs_of(setting: Setting, method: Method, settings: RunSettings) -> tuple[Run, ...]:
    """Train a method with every entry of the grid, then with the best one on every other seed.

    Returns
    -------
    One run for every entry with the first seed, one for every other seed. Those with the best entry have a test
    accuracy.
    """
    grid = dict(setting.grids).get(method.rule, setting.grid)
    trials = [Trial(setting, method, update, 0, settings) for update in grid]
    tried = [trial.validated() for trial in trials]
    best = max(range(len(tried)), key=lambda index: tried[index].validation)
    tried[best] = trials[best].tested()
    chosen = grid[best]
    further = [Trial(setting, method, chosen, seed, settings).tested() for seed in range(1, settings.seeds)]
    return (*tried, *further)


Task = Callable[[RunSettings], Sequence[Run]]
"""Makes all runs of a method on a network. It may go to another process: a module's function with its arguments."""


def made(tasks: Sequence[Task], settings: RunSettings) -> list[Run]:
    """Make the runs of all tasks, by as many processes as are asked for, and return them in the tasks' order."""
    if settings.processes == 1:
        return [run for task in tasks for run in task(settings)]
    # Spawned: a fork of a process in which torch has computed hangs at its locks.
    processes = ProcessPoolExecutor(settings.processes, multiprocessing.get_context("spawn"), _begin)
    try:
        waiting = [processes.submit(_made_elsewhere, task, settings) for task in tasks]
        runs = [run for one in waiting for run in one.result()]
    finally:
        processes.shutdown(cancel_futures=True)
    settings.cache.refresh()
    return runs


def _begin() -> None:
    """Let this process end at once with an interrupt, and with the one that waits for it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _made_elsewhere(task: Task, settings: RunSettings) -> Sequence[Run]:
    settings.cache.refresh()
    with computing_threads(settings.threads):
        return task(settings)


@dataclass(frozen=True)
class Trial:
    """One run to be made, or found in the cache."""

    setting: Setting
    method: Method
    update: Update
    seed: int
    settings: RunSettings

    def validated(self) -> Run:
        """Return the run with its score on the validation split alone, whatever else is known of it."""
        return replace(self._stored() or self._trained_run, test=None, best=None)

    def tested(self) -> Run:
        """Return the run with its score on the test split too; what was trained only to be validated is used again."""
        stored = self._stored()
        if stored is not None and stored.test is not None:
            return stored
        run = self._trained_run
        started = time.monotonic()
        split = self.setting.dataset().test
        test, score_best = self._score(split), self.trained.score_best
        best = None if score_best is None else round(score_best(split), 3)
        run = replace(run, test=test, best=best, seconds=round(run.seconds + time.monotonic() - started, 2))
        self._keep(run)
        return run

    @cached_property
    def trained(self) -> Trained:
        """The trained network."""
        return train(self.setting, self.method, self.update, self.seed, self.settings.device)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What decides the result."""
        configuration = {
            name: value for name, value in self.setting.configuration().items() if not name.startswith("grid")
        }
        return {
            "setting": configuration,
            "method": self.method.configuration(),
            **asdict(self.update),
            "seed": self.seed,
        }

    @cached_property
    def _trained_run(self) -> Run:
        started = time.monotonic()
        _ = self.trained
        validation = self._score(self.setting.dataset().with_validation(VALIDATION).test)
        seconds = round(time.monotonic() - started, 2)
        run = Run(
            self.setting.label,
            self.method.label,
            **asdict(self.update),
            seed=self.seed,
            validation=validation,
            test=None,
            seconds=seconds,
            curve=self.trained.curve,
        )
        self._keep(run)
        return run

    def _score(self, split: Split) -> float:
        return round(self.trained.score(split), 3)

    def _stored(self) -> Run | None:
        """Return the cached run, under the names that this claim gives to network and method."""
        found = self.settings.cache.get(key_of(self.about, self.settings.device))
        if found is None:
            return None
        return Run(**{**found, "setting": self.setting.label, "method": self.method.label})

    def _keep(self, run: Run) -> None:
        self.settings.cache.put(key_of(self.about, self.settings.device), self.about, asdict(run))
        test = "" if run.test is None else f", test {run.test:.2f}"
        print(
            f"{run.setting}, {run.method}, rate {run.rate:g}, decay {run.weight_decay:g}, seed {run.seed}: "
            f"validation {run.validation:.2f}{test} ({run.seconds:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
