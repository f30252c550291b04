"""The Python interface: ``result = DecoupledTrainer(…).fit()``, of a specification or of Python objects."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lowdimfa.callback import Callback
from lowdimfa.config import FeedbackConfig
from lowdimfa.errors import InputError, LowdimfaError
from lowdimfa.services.monitoring.journal import Event, Sink
from lowdimfa.services.run import weights
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.mirror import work_dir
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.storage import located
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec.addresses import is_address
from lowdimfa.services.trainer.arguments import (
    Model,
    Spelt,
    goes_on,
    near_misses,
    require_fit,
    require_ray,
    said_of_arguments,
    specified,
)
from lowdimfa.services.trainer.execute import execute, prepare
from lowdimfa.services.trainer.local_engine import alone
from lowdimfa.services.trainer.request import EngineName, RunRequest
from lowdimfa.services.trainer.results import Result
from lowdimfa.services.trainer.run_dir import new_run_dir, opened, require_run_dir, reserved, targets_file
from lowdimfa.services.trainer.signals import STOP_LIVENESS, graceful_by_default
from lowdimfa.services.trainer.stopping import StopRequest, stopped


def _code_beside(folder: Path | None, engine: EngineName, address: str | None) -> UserCode:
    """Return the user's files, packed where they may have to travel.

    What is too much for that is refused where the cluster is named; nodes of one that is joined may share the folder.
    """
    if address is None and _spans_nodes(engine):
        with suppress(InputError):
            return UserCode.beside(folder, pack=True)
    return UserCode.beside(folder, pack=address is not None)


def _spans_nodes(engine: EngineName) -> bool:
    """Return whether a run is to be in a cluster of several machines that the program is connected to already."""
    ray = sys.modules.get("ray")
    if engine != "ray" or ray is None or not ray.is_initialized():
        return False
    return sum(bool(node["Alive"]) for node in ray.nodes()) > 1


class DecoupledTrainer:
    """Trains a network in blocks: one that a specification describes, or one that is given as Python objects.

    Parameters
    ----------
    specification
        A YAML file, plain data, or a `Specification`; or nothing, and instead the arguments up to ``seed``. Of these,
        ``model``, ``data``, ``optimizer`` and ``scheduler`` may also be import paths, or mappings with ``factory`` and
        ``args``.
    model
        An `nn.Module`, which isn't changed: the run begins with its weights. Or a list of modules, or a callable that
        returns one of these, called with random numbers that depend on ``seed`` alone.
    data
        Four tensors or arrays (training inputs and targets, test inputs and targets), two data sets, a
        `lowdimfa.data.Dataset`, or a callable that returns one of these.
    collate
        Makes a batch of a list of items, as ``collate_fn`` of `torch.utils.data.DataLoader`.
    blocks
        How many blocks to cut the model into, or the names of the layers at which the second and later ones start.
    optimizer
        Called with the parameters of a block, such as ``functools.partial(torch.optim.SGD, lr=0.1)``.
    scheduler
        Called with the optimiser of a block.
    loss
        A name, or a function of outputs and targets.
    metrics
        By name, or in a list: objects and classes with ``reset``, ``update`` and ``compute``, as those of torchmetrics,
        and functions of outputs and targets. Objects are copied, and begin anew.
    feedback
        A `FeedbackConfig`, or a mapping with its keys.
    steps, epochs
        Length of the run: one of them.
    batch_size, microbatches
        Samples per optimiser step, and in how many parts they go through the blocks.
    seed
        Of all that is drawn.
    engine
        ``ray`` for an actor per block, ``local`` for all blocks in this process.
    address
        Of a Ray cluster; None starts one on this machine, or uses the connection that this process has.
    run_dir
        Directory of the run, or an address in an object store, such as ``s3://bucket/prefix/run``; None makes a new
        one below ``run.storage``.
    resume, resume_step
        Go on from the newest checkpoint in ``run_dir``, or that of this step; what came after it is given up.
    overrides
        Further settings by their keys in a specification, such as ``{"run.checkpoint_every": 100}``; or as the command
        line has them, ``["run.checkpoint_every=100"]``.
    user_code
        Folder with the user's own modules; by default that of the YAML file.
    on_event
        Gets every event as it happens.
    callbacks
        Are told of events in the trainer's process, after those of ``run.callbacks``; on Ray copies of them are.

    Raises
    ------
    InputError
        The specification isn't valid, or something given is none of the above.

    Examples
    --------
    >>> result = DecoupledTrainer("examples/digits_mlp.yaml", engine="local").fit()  # doctest: +SKIP
    >>> result.metrics["test_accuracy"]  # doctest: +SKIP
    """

    @near_misses
    def __init__(
        self,
        specification: Spelt | None = None,
        *,
        model: Model | Callable[[], Model] | str | Mapping[str, Any] | None = None,
        data: object = None,
        collate: Callable[[list[Any]], Any] | str | None = None,
        blocks: int | Sequence[str] | None = None,
        optimizer: Callable[..., Any] | str | Mapping[str, Any] | None = None,
        scheduler: Callable[..., Any] | str | Mapping[str, Any] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | str | None = None,
        metrics: Mapping[str, Any] | Sequence[Any] | None = None,
        feedback: FeedbackConfig | Mapping[str, Any] | None = None,
        steps: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        microbatches: int | Literal["auto"] | None = None,
        seed: int | None = None,
        engine: EngineName = "ray",
        address: str | None = None,
        run_dir: str | Path | None = None,
        resume: bool = False,
        resume_step: int | None = None,
        overrides: Sequence[str] | Mapping[str, Any] = (),
        user_code: str | Path | None = None,
        on_event: Sink | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        require_fit(
            engine=engine, run_dir=run_dir, user_code=user_code, on_event=on_event, callbacks=callbacks
        )
        objects = {"model": model, "data": data, "blocks": blocks, "feedback": feedback, "loss": loss}
        objects |= {"optimizer": optimizer, "scheduler": scheduler, "steps": steps, "epochs": epochs}
        objects |= {"collate": collate, "batch_size": batch_size, "microbatches": microbatches, "seed": seed}
        objects |= {"metrics": metrics}
        require_ray(engine, address)
        name, folder = "run", None if user_code is None else Path(user_code)
        if isinstance(specification, str | Path):
            path = Path(specification)
            name, folder = path.stem, folder or path.resolve().parent
        self._speaks = said_of_arguments if specification is None else nullcontext
        with self._speaks():
            self.specification = specified(specification, objects, overrides)
        self.specification = weights.located(self.specification)
        resume = goes_on(run_dir, resume, resume_step)
        self._address, self._stop = address, StopRequest()
        self._on_event: Sink = (lambda event: on_event(deepcopy(event))) if on_event else lambda event: None
        self._named = run_dir is None
        storage = self.specification.run.storage
        place = new_run_dir(storage, name) if run_dir is None else located(run_dir, "--run-dir")
        self.request = RunRequest(
            specification=self.specification.model_dump(),
            run_dir=place,
            engine=engine,
            resume=resume,
            user_code=_code_beside(folder, engine, address),
            resume_step=resume_step,
            callbacks=tuple(callbacks),
        )

    def plan(self, *, whole: bool = False) -> RunPlan:
        """Check everything and return the plan of the run, without running it.

        Parameters
        ----------
        whole
            Whether its blocks are to have their weights, however large the network is.
        """
        return self._planned(whole=whole)

    def _planned(self, *, whole: bool = False, in_turn: bool = True) -> RunPlan:
        liveness = self.specification.run.liveness_seconds
        require_run_dir(self.request.run_dir, self.request.resume, liveness)
        with self._speaks():
            return prepare(self.request, whole=whole, in_turn=in_turn).plan

    def fit(self) -> Result:
        """Run to the end.

        Raises
        ------
        InputError
            Something the user gave doesn't fit.
        StoppedError
            `stop` was called, or a signal came (Ctrl-C, SIGTERM); a checkpoint of the step reached is there.
        KeyboardInterrupt
            A second signal came.
        LowdimfaError
            The run failed; its last good checkpoint is kept.
        """
        patience = STOP_LIVENESS * self.specification.run.liveness_seconds
        signals = graceful_by_default(self.stop, patience)
        try:
            with signals, self._own_directory(), self._speaks(), alone(self.request.engine):
                finished = (
                    execute(self.request, self.request.journal(self._on_event), self._stop)
                    if self.request.engine == "local"
                    else self._fit_on_ray()
                )
        finally:
            self._stop = StopRequest()  # what this run was asked is not meant for another `fit`
        place = self.request.run_dir
        checkpoint = CheckpointStore(place).load(int(finished["steps"])).path
        metrics = {key: value for key, value in finished.items() if key not in ("event", "time")}
        return Result(metrics, checkpoint, place if is_address(place) else Path(place), self.request)

    def stop(self) -> None:
        """Let `fit` finish its step, write a checkpoint and end; any thread may call, or a signal handler."""
        self._stop.make()

    @contextmanager
    def _own_directory(self) -> Iterator[None]:
        """Reserve the directory of a run whose name nobody gave: another run may have begun in the same second."""
        if not self._named or is_address(self.request.run_dir):
            yield
            return
        self._named = False  # a second `fit` finds the run of the first there
        with reserved(Path(self.request.run_dir)) as path:
            self.request = replace(self.request, run_dir=str(path))
            yield

    def _fit_on_ray(self) -> Event:
        if self._address is None:  # what is wrong shows before a cluster starts
            self._planned(in_turn=False)  # what takes minutes is left to the trainer alone
        # Only here: 'local' needs no Ray.
        from ray.exceptions import RayTaskError

        from lowdimfa.services.trainer.cluster import start_ray
        from lowdimfa.services.trainer.replacement import run_in_actor
        from lowdimfa.services.trainer.sending import sent

        specification = self.specification
        disconnect = start_ray(
            self._address,
            specification.workers,
            specification.placement.cpus_per_block,
            specification.run.liveness_seconds,
        )
        try:
            outcome = run_in_actor(sent(self.request), self._on_event, self._stop)
        except KeyboardInterrupt:
            self._note_stop()
            raise
        except RayTaskError as error:
            raise LowdimfaError(
                f"the trainer failed ({type(error.cause).__name__}: {error.cause})"
            ) from error
        finally:
            disconnect()
        if isinstance(outcome, LowdimfaError):
            raise outcome
        return outcome

    def _note_stop(self) -> None:
        """Leave the run directory as a stopped run has it, since the trainer's process gets no chance to."""
        targets_file(self.request.run_dir).unlink(missing_ok=True)
        if work_dir(self.request.run_dir).is_dir():
            with opened(self.request.journal()) as journal:
                journal.emit("failed", **stopped(self.request.run_dir).as_event())
