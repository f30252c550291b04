"""What users derive their callbacks from. It knows neither torch nor where a run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

Event = Mapping[str, Any]


class Run:
    """What a callback sees of its run.

    Attributes
    ----------
    specification
        As plain data, every default filled in.
    path
        Directory of the run.
    step
        Optimiser steps done when the callback is told of an event; a ``checkpoint`` may be of fewer.
    """

    def __init__(
        self, specification: Mapping[str, Any], path: Path, stop: Callable[[str], None] = lambda reason: None
    ) -> None:
        self.specification = specification
        self.path = path
        self.step = 0
        self._stop = stop

    def stop(self, reason: str) -> None:
        """Let the run end at the next step boundary, as finished: it evaluates, writes a checkpoint and has a result.

        Parameters
        ----------
        reason
            For people; the ``finished`` event has it as ``stopped_early``. The first one counts.
        """
        self._stop(reason)


class Callback:
    """Is told what happens in a run. All methods do nothing here; override those that you need.

    The methods are called in the process of the trainer, in the order in which things happen, each with the event, as
    the run's log has it, and the run. A callback that raises something, or that gives no answer for as long as
    ``run.liveness_seconds``, is a warning in the run's log; it isn't called any more, and the run goes on.

    Attributes
    ----------
    background
        Whether the run goes on while a method works: for what waits for a network or a disk. It must then draw nothing
        from the default random generators, which training seeds. Otherwise the run waits, so that `Run.stop` ends it
        right at the step of the event; callbacks are called in the order of their list.
    watches
        Names of numbers of the ``evaluated`` event, and of ``train.metrics``, that it can't do without: a run whose
        evaluations don't have one is refused before training.
    """

    background: ClassVar[bool] = False
    watches: Sequence[str] = ()

    def check(self, specification: Mapping[str, Any]) -> None:
        """Raise an `InputError` before training, if a run of this specification can't do with the callback."""

    def started(self, event: Event, run: Run) -> None:
        """Hear that all blocks are up. ``step`` is where the run begins or goes on; what came after is given up."""

    def progress(self, event: Event, run: Run) -> None:
        """Hear that ``train.log_every`` more steps are done: ``step``, ``loss``, ``accuracy``, ``samples_per_second``."""

    def evaluated(self, event: Event, run: Run) -> None:
        """Hear that the test split was evaluated: ``step``, ``test_loss``, ``test_accuracy``."""

    def alignment(self, event: Event, run: Run) -> None:
        """Hear that updates were compared with the true gradient: ``step``, ``blocks``."""

    def checkpoint(self, event: Event, run: Run) -> None:
        """Hear that a checkpoint is complete: ``step``, ``path``, ``seconds``. The run has gone on since that step."""

    def recovered(self, event: Event, run: Run) -> None:
        """Hear that the run goes on from ``step`` after a loss; what came after that step is given up."""

    def finished(self, event: Event, run: Run) -> None:
        """Hear that the run is done; the event is what ``result.json`` will have."""

    def failed(self, event: Event, run: Run) -> None:
        """Hear that the run ends without a result: ``code``, which is ``stopped`` if somebody asked, and ``message``."""


CALLS = tuple(name for name, value in vars(Callback).items() if callable(value) and name != "check")
"""The events of which callbacks are told, each by the method of its name."""
