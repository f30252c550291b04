"""A run's course in Weights & Biases."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Literal

from lowdimfa.callback import Run
from lowdimfa.services.callbacks.tracker import Ending, Numbers, Tracker


class WandB(Tracker):
    """Keeps the specification as configuration, all numbers by step, and specification, report and result as files.

    Offline, each part of the run between a start and a stop leaves a folder in ``wandb`` of the run's directory, all of
    them with the same identifier; ``wandb sync`` sends them.

    Parameters
    ----------
    project
        Made if it isn't there.
    mode
        ``online`` sends to the server that the environment names (``WANDB_API_KEY``, ``WANDB_BASE_URL``); ``offline``
        writes files alone.
    entity, group
        As `wandb.init` takes them.
    run_name
        None takes the name of the run's directory.
    tags
        Of the run.

    Raises
    ------
    InputError
        The package isn't installed.
    ValueError
        ``mode`` is neither.
    """

    name = "wandb"

    def __init__(
        self,
        project: str = "lowdimfa",
        mode: Literal["online", "offline"] = "online",
        entity: str | None = None,
        group: str | None = None,
        run_name: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        super().__init__(run_name)
        if mode not in ("online", "offline"):
            raise ValueError(f"mode is {mode!r}, but is 'online' or 'offline'")
        self._settings = {"project": project, "mode": mode, "entity": entity, "group": group}
        self._tags = tags

    def begin(self, known: str | None, run: Run) -> str:
        """Begin a run, or go on in the known one."""
        wandb, known = self._package, known or secrets.token_hex(4)
        self._run = wandb.init(
            **self._settings,
            id=known,
            resume="allow",
            name=self._called(run),
            tags=self._tags,
            dir=str(run.path),
            config=dict(run.specification),
            reinit="create_new",
            # What the run prints has files of its own, and it may hold what nobody meant to send.
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )
        self._run.define_metric("*", step_metric="step")
        return known

    def log(self, numbers: list[Numbers]) -> None:
        """Add numbers to the run; the step is one of them, as the tracker's own never goes back."""
        for each in numbers:
            self._run.log({"step": each.step, **each.values})

    def end(self, ending: Ending, files: list[Path], run: Run) -> None:
        """Add files, and end the run."""
        for path in files:
            shutil.copy(path, self._run.dir)  # from where it is sent
        self._run.finish(exit_code=0 if ending == "finished" else 1)
