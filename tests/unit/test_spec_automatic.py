"""What `train.microbatches: auto` stands for: one number, whoever reads the specification, and kept by the run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lowdimfa.errors import InputError
from lowdimfa.services.lab.simulation.setting import BlockCosts, Setting
from lowdimfa.services.lab.simulation.simulate import simulate
from lowdimfa.services.spec import Specification, parse_specification, to_yaml
from lowdimfa.services.spec.automatic import with_microbatches
from lowdimfa.services.spec.load import parse_text


def specification(blocks: Any = 2, batch: int = 128, **sections: Any) -> Specification:
    train = {"steps": 5, "batch_size": batch, "microbatches": "auto"} | sections.pop("train", {})
    args = {"in_features": 64, "width": 8, "depth": 12, "classes": 10}
    model = {"factory": "lowdimfa.models:mlp", "args": args, "blocks": blocks}
    data = {"factory": "lowdimfa.data:digits"}
    return parse_specification({"model": model, "data": data, "train": train, **sections}, "the test")


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, 4),
        ({"blocks": ["1", "2"]}, 4),
        ({"blocks": 8}, 8),
        ({"blocks": 1}, 1),
        ({"train": {"staleness": 1}}, 1),
        ({"train": {"staleness": 1}, "blocks": 5}, 4),
        ({"train": {"staleness": 2}, "blocks": 5}, 2),
        ({"train": {"staleness": 1}, "blocks": 12}, 8),
        ({"feedback": {"form": "backprop"}}, 1),
        ({"batch": 126}, 3),
        ({"batch": 8}, 1),
        ({"batch": 7}, 1),
        ({"placement": {"replicas": {0: 2}}, "train": {"staleness": 2}}, 2),
        ({"placement": {"replicas": 3}, "batch": 120}, 3),
        ({"placement": {"replicas": {0: 2, 1: 3}}, "blocks": 3, "batch": 120}, 6),
    ],
)
def test_the_number_follows_from_the_rest(settings: dict[str, Any], number: int) -> None:
    found = specification(**settings)
    assert found.train.microbatches == number
    kept = to_yaml(found)
    assert f"microbatches: {number}\n" in kept and parse_text(kept, "spec.yaml") == found


def samples_per_second(blocks: int, staleness: int, parts: int, share: float) -> float:
    """Simulate blocks alike, each with a core; a part takes a fixed share of a batch's time, and the rest by its size."""
    part = share + (1 - share) / parts
    costs = (BlockCosts(forward=0.01 * part, update=0.02 * part, step=0.0),) * blocks
    nothing = (0.0,) * (blocks - 1)
    setting = Setting(costs, parts, 1, activation_bytes=nothing, error_bytes=0.0)
    return simulate(setting, f"staleness-{staleness}").samples_per_second / parts


@pytest.mark.parametrize("blocks", [2, 3, 4, 6, 8, 16])
def test_it_is_near_the_best_that_the_simulator_finds(blocks: int) -> None:
    for staleness in (0, 1, 2):
        chosen = specification(blocks, 840, train={"staleness": staleness}).train.microbatches
        for share in (0.02, 0.2):
            rates = {
                parts: samples_per_second(blocks, staleness, parts, share)
                for parts in (1, 2, 4, 8, 32, chosen)
            }
            assert rates[chosen] >= 0.8 * max(rates.values())


@example(4589, 8, 0, 1)  # 13 · 353
@given(st.integers(1, 10_000), st.integers(1, 12), st.integers(0, 2), st.integers(1, 4))
def test_whatever_the_batch_it_can_be_cut_so(batch: int, blocks: int, staleness: int, replicas: int) -> None:
    settings = {"train": {"staleness": staleness}, "placement": {"replicas": replicas if blocks > 1 else 1}}
    try:
        found = specification(blocks, batch, **settings)
    except InputError as error:
        assert batch % replicas and "divisor" in error.message
        return
    number = found.train.microbatches
    assert batch % number == 0 and number % max(found.replicas) == 0
    assert number < 2 * 8  # at most 8 are wanted, and from there 1 is nearer than 16


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.just("auto"),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["train", "microbatches", "batch_size", "model", "blocks", "placement", "replicas"]
                ),
                inner,
            )
        ),
    )
)
def test_what_is_wrong_is_left_to_who_checks_it(values: Any) -> None:
    with_microbatches(values)


def test_another_word_is_refused() -> None:
    with pytest.raises(InputError, match="an integer of at least 1, or 'auto'"):
        specification(train={"microbatches": "some"})
