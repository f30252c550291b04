"""Evaluate a run's checkpoint in this process."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from lowdimfa.errors import other_peoples_code
from lowdimfa.head import Evaluation
from lowdimfa.services.monitoring.journal import Event
from lowdimfa.services.run.best import load_best
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.data import load_dataset
from lowdimfa.services.run.example import Example
from lowdimfa.services.run.language import Language
from lowdimfa.services.run.manifest import Manifest
from lowdimfa.services.run.mirror import DESCRIPTION, fetch
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.storage import Place, located
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec.placement import PlacementSection
from lowdimfa.services.trainer.evaluate_in_turn import evaluate_in_turn
from lowdimfa.services.trainer.execute import prepare
from lowdimfa.services.trainer.local_engine import LocalEngine
from lowdimfa.services.trainer.request import RunRequest
from lowdimfa.services.trainer.run_dir import read_plan, read_run

_log = logging.getLogger(__name__)


def evaluate_run(place: Place, best: bool = False, test: bool = False) -> Event:
    """Return an ``evaluated`` event for a checkpoint, with the number of samples and the split that these are.

    A network that no process of a run holds isn't held here either. Where this machine has no GPU, the processor
    evaluates what was trained on one, after a warning.

    Parameters
    ----------
    place
        Of the run.
    best
        Take the best checkpoint in place of the newest one.
    test
        Take the test split, also where ``data.validation`` kept it away from the run's own evaluations.

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
            "placement": _here(specification.placement),
        }
    )
    code = UserCode(read_plan(folder).get("user_code"))
    request = RunRequest(sequential.model_dump(), place, "local", True, code)
    plan = prepare(request, rehearsed=False).plan
    split: str = specification.data.evaluated_split
    if test and split != "test":
        split, plan = "test", _with_test_split(plan)
    with other_peoples_code("the evaluation failed"):
        result = _evaluated(plan, manifest, place)
    return {
        "event": "evaluated",
        "step": manifest.step,
        "test_loss": result.loss,
        "test_accuracy": result.accuracy,
        "samples": result.samples,
        "split": split,
        **Language.of(plan).evaluated(result),
        **({"metrics": result.metrics} if result.metrics else {}),
    }


def _here(placement: PlacementSection) -> PlacementSection:
    """Return where this machine can compute: nobody can change the specification of a run that is done."""
    if not placement.gpus_per_block or torch.cuda.is_available():
        return placement
    _log.warning(
        "the run was trained on GPUs, and there is none here: the processor evaluates, to other last digits"
    )
    return placement.model_copy(update={"gpus_per_block": 0.0})


def _evaluated(plan: RunPlan, manifest: Manifest, place: Place) -> Evaluation:
    if plan.network.outline is not None:
        return evaluate_in_turn(plan, manifest)
    engine = LocalEngine(plan, place)
    engine.start(manifest.step)
    try:
        return engine.evaluate()
    finally:
        engine.close()


def _with_test_split(plan: RunPlan) -> RunPlan:
    """Return a plan that evaluates the data's own test split in place of training samples that were held out."""
    specification = plan.specification
    data = specification.data.model_copy(update={"validation": 0.0, "workers": 0})
    with other_peoples_code("the test split can't be loaded"):
        own = specification.model_copy(update={"data": data})
        test = load_dataset(own).test
        found = replace(plan, specification=own, dataset=replace(plan.dataset, test=test))
        Example.of(found.reader)  # raises where its samples are of another kind
    return found
