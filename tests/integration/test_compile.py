"""Compiled blocks: the same learning as eager ones; the compiler's own processes make this no unit test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa.block import Block
from lowdimfa.build import build_block
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.errors import InputError
from lowdimfa.feedback.resolving import error_shape
from lowdimfa.partitioning import partition
from lowdimfa.tickets import Ticket

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)"),
]


@pytest.fixture(autouse=True)
def compiler() -> Iterator[Any]:
    """Give the compiler, with nothing compiled; late, as it takes seconds to import."""
    import torch._dynamo.utils

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo
    torch._dynamo.reset()


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_block(compiled: bool, staleness: int) -> Block:
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 5), nn.Linear(5, 3))
    plans = partition(layers, ["4"], normal(2, 6, seed=0))
    # A plain descent: an optimiser that divides by a gradient's size would magnify the last bit's difference.
    update = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.1}))
    training = TrainingConfig(3, staleness=staleness, compile=compiled, update=update)
    return build_block(
        plans[0], error_shape(plans, FeedbackConfig()), FeedbackConfig(q_rule="hebbian"), training
    )


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_compiled_block_learns_what_an_eager_one_does(staleness: int, compiler: Any) -> None:
    blocks = [make_block(compiled, staleness) for compiled in (False, True)]
    for block in blocks:
        for step in range(3 + staleness):
            if step < 3:
                block.forward(normal(4, 6, seed=step), Ticket(step, 0))
            if (late := step - staleness) >= 0:
                block.receive_error(Ticket(late, 0), normal(4, 3, seed=late))
                block.step()
    eager, compiled = blocks
    assert compiler.utils.counters["stats"]["unique_graphs"] >= 1
    for expected, found in zip(eager.module.parameters(), compiled.module.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    assert compiled.state().tensors.keys() == eager.state().tensors.keys()


def test_without_a_compiler_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with pytest.raises(InputError, match=r"train\.compile.*block 0.*Set it to false") as refusal:
        make_block(True, 0).forward(normal(4, 6, seed=0), Ticket(0, 0))
    assert "compiler" in refusal.value.message
