"""Short pieces of a run on the cluster: its first steps, from its first weights, measured and forgotten."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from lowdimfa.errors import InputError, LowdimfaError, PeerError, StoppedError, other_peoples_code, unforeseen
from lowdimfa.network import StepResult
from lowdimfa.services.lab.simulation.calibrate import WARM_UP, Measured, read_measured
from lowdimfa.services.lab.tuning.search import Changes, Segment
from lowdimfa.services.monitoring.report.reading import CATEGORIES, read_run
from lowdimfa.services.recovery.deadlines import longest_silence
from lowdimfa.services.run.plan import RunPlan, make_run_plan
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import Specification, parse_specification
from lowdimfa.services.trainer.actor import end
from lowdimfa.services.trainer.families import peak_bytes
from lowdimfa.services.trainer.ray_engine import RayEngine
from lowdimfa.services.trainer.run_dir import RunDir
from lowdimfa.services.trainer.stopping import StopRequest
from lowdimfa.services.trainer.watch import TrainerWatch

_LOOK = 0.2
"""Seconds between looks at whether somebody asked for an end."""

_OWN: Changes = {"run.metrics": "off", "run.timeline": True, "drill": {}}
"""What is another way in a segment than in the run: what it took is read from its timeline, and nobody watches it."""

_WAITS = [index for index, name in enumerate(CATEGORIES) if name.startswith("wait")]
_STEP = CATEGORIES.index("step")

Found = tuple[Segment, Measured | None]
"""What a segment came to, and what the simulator can learn of it."""


def least_steps(specification: Specification) -> int:
    """Return how many steps a segment needs at least: some to settle, some to count, some in which it drains."""
    return 6 + 2 * specification.train.staleness


class SegmentHost:
    """Trains segments, as a trainer does, in a process of the cluster; errors are returned, so that they cross whole.

    Parameters
    ----------
    folder
        For what they leave, which is removed after each: on storage that the nodes share.
    user_code
        The user's own files.
    """

    def __init__(self, folder: str, user_code: UserCode) -> None:
        self._folder, self._user_code = Path(folder), user_code
        self._stop, self._stopped = StopRequest(), threading.Event()
        self._number = 0

    @ray.method(concurrency_group="io")
    def alive(self) -> bool:
        """Answer, as a process does that isn't stuck."""
        return True

    @ray.method(concurrency_group="io")
    def stop(self) -> None:
        """End the present segment after the step that it is in; all later ones fail."""
        self._stopped.set()
        self._stop.make()

    @ray.method(concurrency_group="run")
    def measure(
        self, plain: dict[str, Any], cut: Sequence[str] | None, seconds: float
    ) -> Found | LowdimfaError:
        """Train a segment of about so many seconds; ``cut`` has the boundaries between blocks, unless they are named."""
        self._number += 1
        path = self._folder / f"segment-{self._number}"
        self._stop = StopRequest()
        try:
            self._user_code.install()
            specification = parse_specification(plain, "the specification", _OWN)
            plan = make_run_plan(specification, cut, rehearsed=False, whole=False)
            return self._measured(plan, path, seconds)
        except LowdimfaError as error:
            return error.plain()
        except BaseException as error:  # the user's own layers, loss or data may raise anything
            return unforeseen(error, "a segment failed")
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _measured(self, plan: RunPlan, path: Path, seconds: float) -> Found:
        watch = TrainerWatch(path.name)
        with RunDir(path, resume=False) as run_dir:
            run_dir.describe(plan.specification, plan.describe())
            engine = RayEngine(plan, path, self._user_code, watch)
            try:
                started = engine.start(None)
                self._run(engine, plan, seconds)
                here = started["nodes"] == 1
                peak = max(map(_peak_bytes, started["pids"]["blocks"])) if here else 0
            finally:
                engine.close()
                watch.close()
            if self._stopped.is_set():
                raise StoppedError("stopped")
            return _segment(path, plan, peak or None), _calibration(path)

    def _run(self, engine: RayEngine, plan: RunPlan, seconds: float) -> None:
        """Train until so many seconds after the first step, and until there are steps enough."""
        began, least = 0.0, least_steps(plan.specification)

        def look(results: Sequence[StepResult]) -> None:
            nonlocal began
            began = began or time.monotonic()
            if results[-1].step + 1 >= least and time.monotonic() - began >= seconds:
                self._stop.make()

        if self._stopped.is_set():
            self._stop.make()
        engine.run_steps(0, plan.network.training.total_steps, look, self._stop)


def _segment(path: Path, plan: RunPlan, peak: int | None) -> Segment:
    """Read what a segment took in its steady state: without the steps in which the pipeline fills and drains."""
    spans = read_run(path).spans
    if missing := [block for block in range(len(plan.network.blocks)) if block not in spans]:
        raise InputError(
            "run.storage",
            f"a folder in which block {missing[0]} left no timeline",
            "one that all nodes of the cluster share",
        )
    steps = {block: own[own.category == _STEP] for block, own in spans.items()}
    last = min(int(own.step.max(initial=-1)) for own in steps.values())
    first, final = math.ceil(WARM_UP * last), last - plan.specification.train.staleness
    if final <= first:
        raise LowdimfaError(
            f"a segment of {last + 1} steps is too short to be measured", setting="train.steps"
        )
    began, ended = (
        max(float(own.end[own.step == at][-1]) for own in steps.values()) for at in (first, final)
    )
    if ended <= began:
        raise LowdimfaError("a clock was set during a segment: its steps end before they begin")
    samples = plan.order.drawn(final + 1) - plan.order.drawn(first + 1)
    busy = []
    for _, own in sorted(spans.items()):
        waits = np.isin(own.category, _WAITS)
        waited = np.minimum(own.end[waits], ended) - np.maximum(own.start[waits], began)
        busy.append(1 - float(np.maximum(waited, 0).sum()) / (ended - began))
    return Segment(samples / (ended - began), tuple(busy), peak)


def _calibration(path: Path) -> Measured | None:
    try:
        return read_measured(path)
    except InputError:  # replicas, of which the simulator can't tell what one alone would take
        return None


def _peak_bytes(pid: int) -> int:
    try:
        return peak_bytes(pid)
    except OSError:
        return 0


_SegmentActor: Any = ray.remote(
    num_cpus=0, concurrency_groups={"io": 2, "run": 1}, max_restarts=0, max_task_retries=0
)(SegmentHost)


class Segments:
    """Measures segments by a process of the cluster to which this one is connected; a context manager.

    Parameters
    ----------
    specification
        What is changed.
    cut
        Boundaries of its blocks.
    folder, user_code
        As for `SegmentHost`.
    seconds
        That a segment trains.
    stop
        Ends the segment, and with it all.

    Attributes
    ----------
    found
        What the simulator can learn of the segments, newest last.
    """

    def __init__(
        self,
        specification: Specification,
        cut: Sequence[str],
        folder: Path,
        user_code: UserCode,
        seconds: float,
        stop: StopRequest,
    ) -> None:
        self._plain, self._cut, self._seconds, self._stop = specification.model_dump(), cut, seconds, stop
        self._liveness = specification.run.liveness_seconds
        self._host = _SegmentActor.remote(str(folder), user_code)
        self.found: list[Measured] = []

    def measure(self, changes: Changes) -> Segment:
        """Train a segment with some changes.

        Raises
        ------
        StoppedError
            Somebody asked for an end.
        LowdimfaError
            It can't be trained so.
        """
        specification = parse_specification(self._plain, "the specification", changes)
        wanted = specification.model_dump(), self._cut_of(changes), self._seconds
        try:
            outcome = self._awaited(self._host.measure.remote(*wanted))
        except RayError as error:
            raise PeerError(f"the process that measures was lost ({type(error).__name__})") from error
        if isinstance(outcome, LowdimfaError):
            raise outcome
        segment: Segment = outcome[0]
        measured: Measured | None = outcome[1]
        self.found += [measured] if measured is not None else []
        return segment

    def rehearse(self, changes: Changes) -> None:
        """Make the first step of a run with some changes on copies, as whoever starts it does; nothing of it stays.

        Raises
        ------
        InputError
            The run would be refused.
        StoppedError
            Somebody asked for an end meanwhile.
        """
        specification = parse_specification(self._plain, "the specification", changes)
        with other_peoples_code("a run with these settings can't be planned"):
            # Of a network that no process holds piece by piece takes minutes.
            make_run_plan(specification, self._cut_of(changes), whole=False, in_turn=False)
        if self._stop.made:
            raise StoppedError("stopped")

    def _cut_of(self, changes: Changes) -> Sequence[str] | None:
        return None if "model.blocks" in changes else self._cut

    def _awaited(self, running: Any) -> Any:
        patience, asked = longest_silence(self._liveness, started=False), False
        while True:
            done, _ = ray.wait([running], timeout=_LOOK)
            if done:
                return ray.get(running)
            if self._stop.made and not asked:
                asked = True
                ray.get(self._host.stop.remote(), timeout=patience)
            ray.get(self._host.alive.remote(), timeout=patience)

    def __enter__(self) -> Segments:
        return self

    def __exit__(self, *error: object) -> None:
        end(self._host)
