"""A run's course in MLflow."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lowdimfa.callback import Run
from lowdimfa.errors import InputError
from lowdimfa.services.callbacks.numbers import flattened
from lowdimfa.services.callbacks.tracker import Ending, Numbers, Tracker
from lowdimfa.services.spec.addresses import is_address

MOST_METRICS, MOST_PARAMETERS, LONGEST = 1000, 100, 6000
"""What MLflow takes in one call, and of one parameter's characters."""

_log = logging.getLogger(__name__)

_STATES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflow(Tracker):
    """Keeps the specification as parameters, all numbers by step, and specification, report and result as files.

    Parameters
    ----------
    experiment
        Made if it isn't there.
    tracking_uri
        Of a server, or of anything else that MLflow knows; or a folder, a relative one beside the run's directory, for an
        SQLite file and what belongs to it. None takes ``MLFLOW_TRACKING_URI``, else the folder ``mlflow``. A relative
        folder is refused where ``run.storage`` is an address. Names and passwords come from the environment alone, as
        MLflow reads them.
    run_name
        None takes the name of the run's directory.
    tags
        Of the run.

    Raises
    ------
    InputError
        MLflow isn't installed, or there is a password in the address.
    """

    name = "mlflow"

    def __init__(
        self,
        experiment: str = "lowdimfa",
        tracking_uri: str | None = None,
        run_name: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        super().__init__(run_name)
        if tracking_uri is not None and urlsplit(tracking_uri).password:
            raise InputError(
                "run.callbacks: MLflow: tracking_uri",
                "an address with a password, which would be in the run's log",
                "one without",
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the trainer's environment.",
            )
        self._experiment, self._uri = experiment, tracking_uri
        self._tags = dict(tags or {})

    def check(self, specification: Mapping[str, Any]) -> None:
        """Refuse a folder beside a run's directory that is only a copy: nothing but the run is kept in its store."""
        storage, given = specification["run"]["storage"], self._given()
        if is_address(storage) and _is_folder(given) and not Path(given).expanduser().is_absolute():
            raise InputError(
                "run.callbacks: MLflow: tracking_uri",
                f"the folder {given!r} beside the run's directory, with run.storage {storage!r}",
                "the address of a server",
                "An absolute path, or MLFLOW_TRACKING_URI in the trainer's environment, does as well.",
            )

    def begin(self, known: str | None, run: Run) -> str:
        """Begin a run of MLflow's, or set the known one running again."""
        uri, artifacts = self._place(run)
        client = self._client = self._package.MlflowClient(tracking_uri=uri)
        if known is not None and self._goes_on(known):
            self._run = known
            return known
        found = client.get_experiment_by_name(self._experiment)
        experiment = (
            client.create_experiment(self._experiment, artifact_location=artifacts)
            if found is None
            else found.experiment_id
        )
        made = client.create_run(experiment, run_name=self._called(run), tags=self._tags)
        self._run = str(made.info.run_id)
        self._parameters(run.specification)
        return self._run

    def _goes_on(self, known: str) -> bool:
        """Set a run running again; return False where the tracking store has none of this identifier."""
        try:
            self._client.update_run(known, status="RUNNING")
        except self._package.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            _log.warning("MLflow has no run %s here, in which the run would go on; a new one begins", known)
            return False
        return True

    def _given(self) -> str:
        return self._uri or os.environ.get("MLFLOW_TRACKING_URI") or "mlflow"

    def _place(self, run: Run) -> tuple[str, str | None]:
        """Return the address of the tracking store, and where its files go if that isn't for the store to say."""
        given = self._given()
        if not _is_folder(given):
            return given, None
        folder = (run.path.parent / Path(given).expanduser()).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri()

    def _parameters(self, specification: Mapping[str, Any]) -> None:
        entity = self._package.entities.Param
        found = [
            entity(_allowed(key), value[:LONGEST])
            for key, value in flattened(specification).items()
            if value not in ("", "None", "{}", "[]")
        ]
        for first in range(0, len(found), MOST_PARAMETERS):
            self._client.log_batch(self._run, params=found[first : first + MOST_PARAMETERS])

    def log(self, numbers: list[Numbers]) -> None:
        """Add numbers to the run."""
        entity = self._package.entities.Metric
        found = [
            entity(_allowed(name), value, int(1000 * each.time), each.step)
            for each in numbers
            for name, value in each.values.items()
        ]
        for first in range(0, len(found), MOST_METRICS):
            self._client.log_batch(self._run, metrics=found[first : first + MOST_METRICS])

    def end(self, ending: Ending, files: list[Path], run: Run) -> None:
        """Add files, and set the run's state."""
        for path in files:
            self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run, _STATES[ending])


def _is_folder(given: str) -> bool:
    return "://" not in given and not given.startswith(("file:", "databricks", "uc:"))


def _allowed(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)[:250]
