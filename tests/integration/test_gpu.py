"""The same blocks on a GPU as on processors; skipped where torch finds none."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from specifications import specification
from thread_fleet import thread_fleet

from lowdimfa.build import build_block
from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.feedback.resolving import error_shape
from lowdimfa.models import mlp
from lowdimfa.partitioning import partition
from lowdimfa.services.block.devices import Check, Cuda, StreamedCopies, block_device
from lowdimfa.tickets import Ticket

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine")

STEPS = 4


def test_copies_through_page_locked_memory_bring_every_bit() -> None:
    copies = StreamedCopies(Cuda(block_device(1)))
    tensors = [torch.randn(257, 1031) for _ in range(8)]
    moved = [copies.to_device(tensor) for tensor in tensors]
    doubled = [arrived.use()[0] * 2 for arrived in moved]
    finite = [Check(tensor.isfinite().all(), AssertionError) for tensor in doubled]  # type: ignore[arg-type]
    back = [copies.to_host(tensor, checks=[check]) for tensor, check in zip(doubled, finite, strict=True)]
    for tensor, computed in zip(tensors, back, strict=True):
        (found,) = computed.wait()
        assert found.is_pinned()
        assert torch.equal(found, tensor * 2)


@pytest.mark.parametrize("model", ["mlp", "transformer"])
def test_blocks_on_a_gpu_learn_what_blocks_on_processors_do(model: str, tmp_path: Path) -> None:
    found = {}
    for gpus in (0.0, 0.3):
        plain = specification(model, 3, "probed", placement={"gpus_per_block": gpus})
        with thread_fleet(plain, tmp_path / f"{gpus}") as fleet:
            fleet.run(0, STEPS)
            fleet.evaluate()
            found[gpus] = {name: value.cpu() for name, value in fleet.model_state().items()}
    for name, value in found[0.0].items():
        torch.testing.assert_close(found[0.3][name], value, rtol=1e-3, atol=1e-4)


def test_a_compiled_block_does_what_it_does_without() -> None:
    plans = partition(mlp(in_features=64, width=128, depth=4, classes=10), 2, torch.randn(4, 64))
    feedback, inputs = FeedbackConfig(q_rule="hebbian"), torch.randn(32, 64, device="cuda")
    error = torch.randn(32, 10, device="cuda") / 32
    gradients = []
    for compiled in (False, True):
        training = TrainingConfig(total_steps=4, compile=compiled)
        block = build_block(
            copy.deepcopy(plans[0]), error_shape(plans, feedback), feedback, training, block_device(1)
        )
        block.forward(inputs, Ticket(0, 0))
        block.receive_error(Ticket(0, 0), error)
        gradients.append([p.grad.clone() for p in block.module.parameters() if p.grad is not None])
    assert gradients[0]
    for eager, compiled_one in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled_one, eager, rtol=1e-3, atol=1e-5)
