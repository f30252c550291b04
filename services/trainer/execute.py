"""One run from request to result, in whatever process it happens to be."""

from __future__ import annotations

import threading
from typing import NamedTuple

from lowdimfa.callback import Callback
from lowdimfa.errors import (
    DiskFullError,
    InputError,
    LowdimfaError,
    StorageError,
    other_peoples_code,
    unforeseen,
)
from lowdimfa.services.callbacks.numbers import require_watched
from lowdimfa.services.monitoring.journal import EVENTS, Event, Journal
from lowdimfa.services.monitoring.line_file import to_json
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.manifest import Manifest
from lowdimfa.services.run.mirror import Mirror, fetch, forget, work_dir
from lowdimfa.services.run.objects import KEY
from lowdimfa.services.run.plan import RunPlan, make_run_plan
from lowdimfa.services.run.process_log import keep_output, log_file
from lowdimfa.services.run.profile import free_gpu
from lowdimfa.services.run.state import boundaries_of, require_resumable
from lowdimfa.services.spec import Specification
from lowdimfa.services.trainer.callbacks import Callbacks, ended, make_callbacks
from lowdimfa.services.trainer.engine import Engine
from lowdimfa.services.trainer.local_engine import LocalEngine
from lowdimfa.services.trainer.loop import TrainingLoop
from lowdimfa.services.trainer.recovery import history_of
from lowdimfa.services.trainer.request import EngineName, RunRequest
from lowdimfa.services.trainer.run_dir import RunDir, opened, require_run_dir
from lowdimfa.services.trainer.stopping import StopRequest, stopped, with_way_on
from lowdimfa.services.trainer.watch import TrainerWatch


class Prepared(NamedTuple):
    """What a run begins with: its plan, the checkpoint that it goes on from, if any, and its callbacks."""

    plan: RunPlan
    manifest: Manifest | None
    callbacks: list[Callback]


def prepare(
    request: RunRequest, rehearsed: bool = True, whole: bool = False, in_turn: bool = True
) -> Prepared:
    """Check everything that can be checked before the first block starts.

    Parameters
    ----------
    request
        What to run.
    rehearsed
        Whether a step is made on copies, and callbacks: not for a run that is only evaluated.
    whole
        Whether this process is to hold the network, however large it is; with the engine ``local`` it is, to train it.
    in_turn
        Whether a network that it doesn't hold is rehearsed too, piece by piece: it takes minutes.

    Raises
    ------
    InputError
        The specification, the data, the model, or the checkpoint to resume doesn't fit.
    """
    request.user_code.install(with_others=request.engine != "local")
    specification = request.parsed()
    require_engine(specification, request.engine)
    callbacks = make_callbacks(specification, request.callbacks) if rehearsed else []
    manifest = _resumed(request) if request.resume else None
    boundaries = None
    if manifest is not None and specification.model.blocks == len(manifest.entries):
        boundaries = boundaries_of(manifest.entries)
    with other_peoples_code("the run can't be planned"):
        whole = whole or (request.engine == "local" and rehearsed)
        resumed = manifest is not None
        plan = make_run_plan(specification, boundaries, rehearsed, resumed, whole, in_turn)
        free_gpu()
        require_watched(plan, callbacks)
        if manifest is not None:
            require_resumable(plan, manifest)
    return Prepared(plan, manifest, callbacks)


def _resumed(request: RunRequest) -> Manifest:
    store, step = CheckpointStore(request.run_dir), request.resume_step
    if request.lost_at is not None and step is None and store.list():
        manifest = store.newest_good().manifest  # nobody is there to choose an older one, as for a lost block
    else:
        manifest = store.latest() if step is None else store.load(step)
    if manifest is None:
        where = f"--resume with --run-dir {request.run_dir}"
        raise InputError(where, "no complete checkpoint", "one to go on from")
    return manifest


def require_engine(specification: Specification, engine: EngineName) -> None:
    """Refuse a form of feedback that an engine can't run.

    Raises
    ------
    InputError
        A baseline in actors: it has no broadcast, and backpropagation needs gradients between the blocks.
    """
    form = specification.feedback.form
    if engine == "ray" and form != "broadcast":
        raise InputError(
            "feedback.form",
            f"{form!r} with --engine ray",
            "'broadcast'",
            "The baselines run in one process: add --engine local.",
        )
    if engine == "local" and specification.train.staleness:
        raise InputError(
            "train.staleness",
            f"{specification.train.staleness} with --engine local",
            "0",
            "Blocks in one process never run ahead of each other; use --engine ray.",
        )


def execute(
    request: RunRequest,
    journal: Journal,
    stop: StopRequest | None = None,
    *,
    own_process: bool = False,
) -> Event:
    """Run to the end and return the ``finished`` event.

    Parameters
    ----------
    request
        What to run.
    journal
        Of the request; it is opened and closed here.
    stop
        Asks for an early end, with a checkpoint.
    own_process
        Whether this process is there for the run alone: its standard output and error then go to the run's logs.

    Raises
    ------
    StoppedError
        The run ended early, as ``stop`` asked; the journal has a ``failed`` event.
    LowdimfaError
        Bad input, or the run failed; the journal has a ``failed`` event.
    """
    place, path = request.run_dir, work_dir(request.run_dir)
    liveness = request.parsed().run.liveness_seconds
    require_run_dir(place, request.resume, liveness)
    if own_process and path.is_dir():
        keep_output(log_file(path, "trainer"))
    # Before the directory is made: a refusal leaves none.
    fresh = None if request.resume else prepare(request)
    # A trainer that was lost to its cluster may work on until it notices.
    patience = 0.0 if request.lost_at is None else liveness
    with RunDir(place, request.resume, patience) as run_dir:
        if request.resume or request.lost_at is not None:
            fetch(place, patience=liveness)
        else:
            forget(place)
            fetch(place, EVENTS.__eq__, liveness)  # of attempts before a run was there, as a folder has them
        if own_process:
            keep_output(log_file(path, "trainer"))
        prepared = fresh or prepare(request)
        mirror = Mirror(place, patience=liveness)
        try:
            with opened(journal):
                mirror.keep_up()
                return _run(request, prepared, run_dir, journal, stop or StopRequest(), mirror)
        finally:  # with the last event; a store that is out of reach has been told of
            mirror.close()


def _run(
    request: RunRequest,
    prepared: Prepared,
    run_dir: RunDir,
    journal: Journal,
    stop: StopRequest,
    mirror: Mirror,
) -> Event:
    watch = TrainerWatch(run_dir.path.name)
    plan, manifest, made = prepared
    callbacks = Callbacks(made, plan.specification, run_dir.path, stop.finish)
    engine: Engine | None = None
    loop: TrainingLoop | None = None
    former: dict[str, bytes] = {}
    try:
        if stop.made:  # before anything of a run is there, so that it may still begin as a new one
            raise stopped(request.run_dir)
        former = run_dir.description() if manifest is not None else {}
        run_dir.describe(plan.specification, plan.describe() | {"user_code": request.user_code.folder})
        _copy(mirror, "the run can't be described")
        engine = make_engine(request, plan, watch)
        history = None if request.lost_at is None else history_of(journal)
        loop = TrainingLoop(plan, engine, request.run_dir, journal, watch, callbacks, stop, mirror, history)
        finished = loop.run(manifest)
        run_dir.conclude(to_json(finished))
        _copy(mirror, "the run is done, but its result can't be kept")
        return finished
    except BaseException as error:  # the user's own layers, loss or data may raise anything
        if former and not (loop and loop.begun):  # a run that isn't resumed after all is still what it was
            run_dir.restore(former)
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            ended(journal, watch, callbacks, "failed", stopped(request.run_dir).as_event())
            raise
        failure = error if isinstance(error, LowdimfaError) else unforeseen(error)
        if failure.code == LowdimfaError.code:
            failure = _with_traceback(failure, run_dir)
        elif isinstance(failure, DiskFullError | StorageError):
            failure = with_way_on(failure, request.run_dir, request.way_on)
        ended(journal, watch, callbacks, "failed", failure.as_event())
        if failure is error:
            raise
        raise failure from error
    finally:
        if engine is not None:
            engine.close()
        watch.close()


def _with_traceback(error: LowdimfaError, run_dir: RunDir) -> LowdimfaError:
    """Keep where an error that nobody foresaw came from, and return it with that file's name."""
    kept = run_dir.keep_traceback(error)
    fields = {"block": error.block, "step": error.step, "setting": error.setting, "replica": error.replica}
    return LowdimfaError(f"{error.message}; where it came from: {kept}", **fields)  # type: ignore[arg-type]


def _copy(mirror: Mirror, what: str) -> None:
    if trouble := mirror.update():
        raise StorageError(f"{what}: {trouble}", setting=KEY)


def make_engine(request: RunRequest, plan: RunPlan, watch: TrainerWatch) -> Engine:
    """Return the engine that the request names."""
    if request.engine == "local":
        return LocalEngine(plan, request.run_dir)
    # Ray takes a second to import, and 'local' needs none of it.
    from lowdimfa.services.trainer.ray_engine import RayEngine

    return RayEngine(plan, request.run_dir, request.user_code, watch)
