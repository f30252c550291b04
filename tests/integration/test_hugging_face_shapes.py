"""What running a network of Hugging Face on shapes leaves behind."""

from __future__ import annotations

import threading

import torch
from hugging_face import CASES, original
from test_hugging_face import made

from lowdimfa.models.hf.shapes import run_on_shapes

TOKENS = (1, 4), torch.int64
PACKED = {"input_ids": TOKENS, "position_ids": TOKENS}


def test_two_threads_leave_the_package_as_it_was() -> None:
    """Of two that overlapped, the second left what the first had put in: its thread kept no packed texts apart."""
    network = made(CASES["llama"]).eval()
    tokens = torch.arange(8, 20).view(1, 12)
    packed = {"input_ids": tokens, "position_ids": torch.arange(6).repeat(2).view(1, 12)}
    before = network.run(**packed)
    assert not torch.equal(before, network.run(input_ids=tokens))
    entered, over = threading.Event(), threading.Event()

    def second() -> None:
        entered.set()
        over.wait(60)

    other = threading.Thread(
        target=run_on_shapes, args=(original(CASES["llama"]), PACKED, second), kwargs={"use_cache": False}
    )

    def first() -> None:
        if other.ident is None:
            other.start()
            entered.wait(0.5)  # in vain where one waits for the other

    run_on_shapes(original(CASES["llama"]), PACKED, first, use_cache=False)
    over.set()
    other.join(60)
    assert entered.is_set()
    assert torch.equal(network.run(**packed), before)
