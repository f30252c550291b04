"""Whether a run under faults came to what the undisturbed one came to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.spec import Specification
from lowdimfa.services.trainer.results import Result


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to.

    Attributes
    ----------
    holds
        Whether the result is as good as it has to be.
    words
        What was compared and how it differs.
    """

    holds: bool
    words: str


def must_be_equal(specification: Specification) -> bool:
    """Whether nothing may differ: the run repeats what it lost, and the processor cores compute it to the same bits."""
    return (
        specification.run.on_failure != "rejoin"
        and specification.train.staleness == 0
        and specification.placement.gpus_per_block == 0
    )


def compare(reference: Result, run: Result, equal: bool, tolerance: float) -> Comparison:
    """Compare two finished runs.

    Parameters
    ----------
    reference
        The undisturbed one.
    run
        The other.
    equal
        Whether every tensor of the last checkpoint must be the same, bit for bit.
    tolerance
        Else, by how much the test accuracy may be lower; or, without one, by what share the test loss may be higher.
    """
    if equal:
        return _compare_tensors(_tensors(reference), _tensors(run))
    expected, found = reference.metrics["test_accuracy"], run.metrics["test_accuracy"]
    if expected is not None and found is not None:
        words = f"test accuracy {100 * found:.2f} %, undisturbed {100 * expected:.2f} %"
        return Comparison(found >= expected - tolerance, words)
    expected, found = reference.metrics["test_loss"], run.metrics["test_loss"]
    words = f"test loss {found:.4f}, undisturbed {expected:.4f}"
    return Comparison(found <= expected + tolerance * abs(expected), words)


def _tensors(result: Result) -> dict[str, Tensor]:
    return CheckpointStore(result.path).load(int(result.metrics["steps"])).tensors(lambda name: True)


def _compare_tensors(expected: dict[str, Tensor], found: dict[str, Tensor]) -> Comparison:
    names = sorted(expected.keys() | found.keys())
    differing = [name for name in names if not _same(expected.get(name), found.get(name))]
    if not differing:
        return Comparison(True, f"all {len(names)} tensors equal bit for bit")
    return Comparison(False, f"{len(differing)} of {len(names)} tensors differ, such as {differing[0]}")


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    # As bytes: numbers that aren't finite are equal to themselves too, and zeros of both signs are not.
    return bool(torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other))))
