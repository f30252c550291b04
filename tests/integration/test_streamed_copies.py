"""Whole blocks whose copies to and from the device run late: the same bits, and nothing wrong gets out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerators import LateDevice
from specifications import specification
from thread_fleet import ThreadFleet, thread_fleet

from lowdimfa.errors import NotFiniteError, PeerError
from lowdimfa.services.block import worker
from lowdimfa.services.block.devices import StreamedCopies

STEPS = 6


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the processors as a GPU, whose memory is another one and whose work is done late."""
    monkeypatch.setattr(worker, "copies_for", lambda device, direct: StreamedCopies(LateDevice(), direct))


def trained(plain: dict[str, Any], run_dir: Path) -> tuple[dict[str, torch.Tensor], list[float], object]:
    with thread_fleet(plain, run_dir) as fleet:
        fleet.run(0, 3)
        fleet.run(3, STEPS)
        losses = [result.loss for result in fleet.workers[-1].finished_steps()]
        return fleet.model_state(), losses, fleet.evaluate()


@pytest.mark.parametrize("q_rule", ["hebbian", "probed"])
def test_late_copies_change_no_bit(q_rule: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    plain = specification("transformer", 3, q_rule)
    expected, expected_losses, expected_evaluation = trained(plain, tmp_path / "host")
    request.getfixturevalue("late")
    found, losses, evaluation = trained(plain, tmp_path / "late")
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    assert losses == expected_losses
    assert evaluation == expected_evaluation


def run_all(fleet: ThreadFleet) -> dict[int, Exception]:
    """Run until a block fails; return what each block raised."""
    failures: dict[int, Exception] = {}

    def run(one: worker.BlockWorker) -> None:
        try:
            one.run_steps(0, STEPS)
        except Exception as error:
            failures[one.job.index] = error
            for other in fleet.workers:
                other.abort(PeerError("stopped"))

    fleet.each(run)
    return failures


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_value_that_is_not_finite_names_its_block_and_step_and_reaches_no_weights(
    bad: int, tmp_path: Path
) -> None:
    plain = specification("mlp", 3)
    with thread_fleet(plain, tmp_path) as fleet:
        stage = fleet.workers[bad].stage
        run = stage.run_parts

        def spoiled(inputs, ticket, **others):  # type: ignore[no-untyped-def]
            outputs = run(inputs, ticket, **others)
            return [output * torch.nan for output in outputs] if ticket.step == 2 else outputs

        stage.run_parts = spoiled  # type: ignore[method-assign]
        failures = run_all(fleet)
        found = failures[bad]
        assert isinstance(found, NotFiniteError), found
        assert (found.block, found.step) == (bad, 2)
        assert not any(isinstance(error, NotFiniteError) for index, error in failures.items() if index != bad)
        assert all(bool(value.isfinite().all()) for value in fleet.model_state().values())
