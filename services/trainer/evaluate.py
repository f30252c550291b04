"""Evaluate a run's checkpoint in this process."""

from __future__ import annotations

from lowdimfa.errors import other_peoples_code
from lowdimfa.services.monitoring.journal import Event
from lowdimfa.services.run.best import load_best
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.language import Language
from lowdimfa.services.run.mirror import DESCRIPTION, fetch
from lowdimfa.services.run.storage import Place, located
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.trainer.execute import prepare
from lowdimfa.services.trainer.local_engine import LocalEngine
from lowdimfa.services.trainer.request import RunRequest
from lowdimfa.services.trainer.run_dir import read_plan, read_run


def evaluate_run(place: Place, best: bool = False) -> Event:
    """Return an ``evaluated`` event for the newest checkpoint, or the best one, with the number of samples.

    Raises
    ------
    InputError
        The directory isn't a run's, has no checkpoint, or its data or model can't be had any more.
    """
    place = located(place, "RUN_DIR")
    folder = fetch(place, DESCRIPTION.__contains__)
    specification = read_run(folder)
    store = CheckpointStore(place)
    manifest = load_best(store) if best else store.load(None)
    sequential = specification.model_copy(
        update={
            "train": specification.train.model_copy(update={"staleness": 0}),
            "run": specification.run.model_copy(update={"timeline": False}),
        }
    )
    code = UserCode(read_plan(folder).get("user_code"))
    request = RunRequest(sequential.model_dump(), place, "local", True, code)
    plan = prepare(request, rehearsed=False).plan
    engine = LocalEngine(plan, place)
    with other_peoples_code("the evaluation failed"):
        engine.start(manifest.step)
        try:
            result = engine.evaluate()
        finally:
            engine.close()
    return {
        "event": "evaluated",
        "step": manifest.step,
        "test_loss": result.loss,
        "test_accuracy": result.accuracy,
        "samples": result.samples,
        **Language.of(plan).evaluated(result),
        **({"metrics": result.metrics} if result.metrics else {}),
    }
