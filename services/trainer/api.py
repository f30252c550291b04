"""The Python interface: ``result = DecoupledTrainer(spec).fit()``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowdimfa.errors import InputError, LowdimfaError
from lowdimfa.services.monitoring.journal import Event, Sink
from lowdimfa.services.run import weights
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.mirror import work_dir
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.storage import Place, located
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import Specification, load_specification, parse_specification
from lowdimfa.services.spec.addresses import is_address
from lowdimfa.services.trainer.execute import EngineName, RunRequest, execute, prepare
from lowdimfa.services.trainer.run_dir import new_run_dir, opened, require_run_dir, reserved, targets_file
from lowdimfa.services.trainer.stopping import StopRequest, stopped


@dataclass(frozen=True)
class Result:
    """What a finished run leaves.

    Attributes
    ----------
    metrics
        The fields of the ``finished`` event: losses, accuracy, speed, traffic.
    checkpoint
        Directory of the last checkpoint, or its address.
    path
        Directory of the run, or its address.
    """

    metrics: dict[str, Any]
    checkpoint: Place
    path: Place


class DecoupledTrainer:
    """Trains the network that a specification describes.

    Parameters
    ----------
    specification
        A YAML file, plain data, or a `Specification`.
    engine
        ``ray`` for an actor per block, ``local`` for all blocks in this process.
    address
        Of a Ray cluster; None starts one on this machine, or uses the connection that this process has.
    run_dir
        Directory of the run, or an address in an object store, such as ``s3://bucket/prefix/run``; None makes a new
        one below ``run.storage``.
    resume
        Go on from the newest checkpoint in ``run_dir``.
    resume_step
        Go on from the checkpoint of this step in ``run_dir``; what came after it is given up.
    overrides
        Settings ``a.b=value`` on top of a YAML file.
    user_code
        Folder with the user's own modules; by default that of the YAML file.
    on_event
        Gets every event as it happens.

    Raises
    ------
    InputError
        The specification isn't valid.

    Examples
    --------
    >>> result = DecoupledTrainer("examples/digits_mlp.yaml", engine="local").fit()  # doctest: +SKIP
    >>> result.metrics["test_accuracy"]  # doctest: +SKIP
    """

    def __init__(
        self,
        specification: Specification | Mapping[str, Any] | str | Path,
        *,
        engine: EngineName = "ray",
        address: str | None = None,
        run_dir: str | Path | None = None,
        resume: bool = False,
        resume_step: int | None = None,
        overrides: Sequence[str] = (),
        user_code: str | Path | None = None,
        on_event: Sink | None = None,
    ) -> None:
        name, folder = "run", None if user_code is None else Path(user_code)
        if isinstance(specification, Specification):
            self.specification = specification
        elif isinstance(specification, Mapping):
            self.specification = parse_specification(specification, "the specification")
        else:
            path = Path(specification)
            self.specification = load_specification(path, overrides)
            name, folder = path.stem, folder or path.resolve().parent
        self.specification = weights.located(self.specification)
        resume = resume or resume_step is not None
        if resume and run_dir is None:
            raise InputError(
                "--resume" if resume_step is None else "--resume-step",
                "no --run-dir",
                "the directory of the run to continue",
            )
        self._address = address
        self._stop = StopRequest()
        self._on_event = on_event or (lambda event: None)
        self._named = run_dir is None
        place = (
            new_run_dir(self.specification.run.storage, name)
            if run_dir is None
            else located(run_dir, "--run-dir")
        )
        self.request = RunRequest(
            specification=self.specification.model_dump(),
            run_dir=place,
            engine=engine,
            resume=resume,
            user_code=UserCode.beside(folder, pack=address is not None),
            resume_step=resume_step,
        )

    def plan(self, *, whole: bool = False) -> RunPlan:
        """Check everything and return the plan of the run, without running it.

        Parameters
        ----------
        whole
            Whether its blocks are to have their weights, however large the network is.
        """
        liveness = self.specification.run.liveness_seconds
        require_run_dir(self.request.run_dir, self.request.resume, liveness)
        return prepare(self.request, whole=whole)[0]

    def fit(self) -> Result:
        """Run to the end.

        Raises
        ------
        InputError
            Something the user gave doesn't fit.
        StoppedError
            `stop` was called; a checkpoint of the step reached is there.
        LowdimfaError
            The run failed; its last good checkpoint is kept.
        """
        with self._own_directory():
            finished = (
                execute(self.request, self.request.journal(self._on_event), self._stop)
                if self.request.engine == "local"
                else self._fit_on_ray()
            )
        place = self.request.run_dir
        checkpoint = CheckpointStore(place).load(int(finished["steps"])).path
        metrics = {key: value for key, value in finished.items() if key not in ("event", "time")}
        return Result(metrics, checkpoint, place if is_address(place) else Path(place))

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
            self.plan()
        # Only here: 'local' needs no Ray.
        from ray.exceptions import RayTaskError

        from lowdimfa.services.trainer.cluster import start_ray
        from lowdimfa.services.trainer.replacement import run_in_actor

        specification = self.specification
        disconnect = start_ray(
            self._address,
            specification.workers,
            specification.placement.cpus_per_block,
            specification.run.liveness_seconds,
        )
        try:
            outcome = run_in_actor(self.request, self._on_event, self._stop)
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
        path = work_dir(self.request.run_dir)
        targets_file(path).unlink(missing_ok=True)
        if path.is_dir():
            with opened(self.request.journal()) as journal:
                journal.emit("failed", **stopped(self.request.run_dir).as_event())
