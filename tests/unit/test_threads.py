"""Each block computes with its own number of threads, in whatever process it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lowdimfa.build import build_stages
from lowdimfa.errors import InputError
from lowdimfa.network import DecoupledNetwork
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.run.profile import make_bench
from lowdimfa.services.run.training import use_own_threads
from lowdimfa.services.spec import Specification, parse_specification
from lowdimfa.trainer import InProcessTrainer

SEEN: list[tuple[int, int]] = []


class Noting(nn.Linear):
    """Notes with how many threads it computes, forward and backward."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        SEEN.append((self.in_features, torch.get_num_threads()))
        outputs = super().forward(inputs)
        if outputs.requires_grad:
            outputs.register_hook(lambda error: SEEN.append((self.in_features, torch.get_num_threads())))
        return outputs


def model() -> nn.Module:
    return nn.Sequential(Noting(6, 8), Noting(8, 10), Noting(10, 4))


def specification(threads: Any, **sections: Any) -> Specification:
    plain: dict[str, Any] = {
        "model": {"factory": f"{__name__}:model", "blocks": ["1", "2"]},
        "data": {
            "factory": "lowdimfa.data:teacher",
            "args": {"in_features": 6, "outputs": 4, "samples": 32, "test_samples": 8},
        },
        "train": {"steps": 2, "batch_size": 8, "microbatches": 2},
        "placement": {"threads_per_block": threads},
    }
    return parse_specification(plain | sections, "the test")


def test_in_one_process_each_block_has_its_threads_and_all_others_keep_theirs() -> None:
    wanted, before = {6: 3, 8: 1, 10: 2}, torch.get_num_threads()
    plan = make_run_plan(specification({0: 3, 2: 2}), rehearsed=False)
    network = plan.network
    blocks, head = build_stages(network.blocks, network.feedback, network.training, plan.dataset.task)
    use_own_threads([*blocks, head], plan.specification.placement)
    trainer = InProcessTrainer(DecoupledNetwork(blocks, head, network.feedback), plan.dataset, plan.order)
    SEEN.clear()
    trainer.run(0, 2)
    trainer.evaluate()
    assert {width for width, _ in SEEN} == set(wanted)
    assert all(threads == wanted[width] for width, threads in SEEN)
    SEEN.clear()
    bench = make_bench(plan.specification, network.feedback, network.training, plan.reader)
    bench.times(network.blocks)
    assert SEEN and all(threads == wanted[width] for width, threads in SEEN)
    assert torch.get_num_threads() == before


def test_what_no_block_can_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"threads_per_block\.3.*an index from 0 to 2"):
        specification({3: 2})
    with pytest.raises(InputError, match="the baselines are computed as one network"):
        specification({0: 2}, feedback={"form": "backprop"})
