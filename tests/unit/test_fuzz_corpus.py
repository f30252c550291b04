"""Every input that a fuzzer found worth keeping, against the decoder that it is for."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.fuzz.cover import CORPUS, corpus
from tests.fuzz.guard import Finding, guarded
from tests.fuzz.targets import TARGETS

MOST_FILES, MOST_BYTES = 400, 300 << 10


@pytest.mark.parametrize("name", TARGETS)
def test_no_kept_input_makes_a_decoder_misbehave(name: str) -> None:
    target = TARGETS[name]
    inputs = corpus(name)
    assert inputs, f"no corpus: run python -m tests.fuzz.run {name} --keep"
    outcomes: Counter[bool] = Counter()
    for file, data in inputs.items():
        try:
            outcomes[guarded(target.decode, data)] += 1
        except Finding as finding:
            pytest.fail(f"tests/fuzz/corpus/{name}/{file}: {finding}")
    assert outcomes[True], "none is accepted: the inputs no longer reach what comes after the first checks"
    assert outcomes[False] or name == "event", "none is refused"


@pytest.mark.parametrize("name", TARGETS)
def test_the_project_s_own_messages_are_accepted_and_changed_ones_do_no_harm(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())
    draw = random.Random(0)
    assert sum(guarded(target.decode, data) for data in seeds) >= len(seeds) / 3
    for data in seeds:
        for _ in range(3):
            changed = target.mutate(data, draw)
            if changed is not None:
                guarded(target.decode, changed)


def test_the_corpus_stays_small() -> None:
    sizes = [path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()]
    assert len(sizes) <= MOST_FILES
    assert sum(sizes) <= MOST_BYTES
