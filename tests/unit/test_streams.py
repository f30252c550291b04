"""Streams: whoever asks for whatever sample, in any order, gets the one that a list would have there."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import ChainDataset, DataLoader, IterableDataset, TensorDataset

from lowdimfa.data import BatchOrder, Reader, StreamSplit, as_dataset
from lowdimfa.data import streams as streaming
from lowdimfa.errors import InputError
from lowdimfa.services.run.data import load_dataset
from lowdimfa.services.spec import parse_specification
from lowdimfa.tickets import Ticket

SAMPLES = 20


class Drawn(IterableDataset[Any]):
    """Samples in a drawn order, each with numbers of its own from all kinds of generators."""

    def __init__(self, samples: int = SAMPLES, fails: int = -1) -> None:
        self.samples, self.fails, self.epoch = samples, fails, -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        left = list(range(self.samples))
        while left:
            number = left.pop(random.randrange(len(left)))
            if number == self.fails:
                raise OSError("a torn picture")
            drawn = torch.rand(2), torch.tensor(numpy.random.rand(2)), torch.tensor([number, self.epoch])
            yield {"x": torch.cat(drawn), "labels": number % 3}


class Sized(Drawn):
    """One that says how long it is."""

    def __len__(self) -> int:
        return self.samples


class Rewound(IterableDataset[Any]):
    """What begins anew when it is asked for an iterator, which it is itself."""

    def __iter__(self) -> Iterator[Any]:
        self.number = 0
        return cast(Iterator[Any], self)

    def __next__(self) -> Any:
        self.number += 1
        return torch.rand(3) + self.number, 0


def streams(
    train: str = "Drawn", test: str = "Sized", samples: int = SAMPLES
) -> tuple[Iterable[Any], Iterable[Any]]:
    """Return data of these kinds; ``Listed`` has numbers."""
    kinds: dict[str, Callable[[int], Any]] = {"Drawn": Drawn, "Sized": Sized}
    kinds["Listed"] = lambda samples: [(torch.zeros(2), 0)] * samples
    kinds["Chained"] = lambda samples: ChainDataset([Drawn(samples)])
    kinds["Fixed"] = lambda _: Sized()
    kinds["Endless"] = lambda _: Endless()
    return kinds[train](samples), kinds[test](samples)


class Endless(IterableDataset[Any]):
    """It has no end."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat((torch.zeros(1), 0))


def loaded(train: dict[str, Any] | None = None, args: dict[str, Any] | None = None, **data: Any) -> Reader:
    plain = {
        "model": {"factory": "torch.nn.Flatten", "blocks": 1},
        "data": {"factory": "test_streams:streams", "args": args or {}} | data,
        "train": {"steps": 9, "batch_size": 4, "steps_per_epoch": 5} | (train or {}),
    }
    dataset = load_dataset(parse_specification(plain, "test"))
    return Reader(dataset, BatchOrder(len(dataset.train), 4, 2, seed=3, shuffled=False))


READER = loaded()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, SAMPLES - 1), min_size=1)), max_size=6))
def test_any_requests_give_what_a_list_of_the_epoch_would(requests: list[tuple[int, list[int]]]) -> None:
    for epoch, numbers in requests:
        found = READER.training(torch.tensor(numbers), epoch)
        inputs, targets = whole(epoch)
        assert torch.equal(cast(dict[str, Tensor], found.inputs())["x"], inputs[numbers])
        assert torch.equal(found.targets(), targets[numbers])


def whole(epoch: int, known: dict[int, tuple[Tensor, Tensor]] = {}) -> tuple[Tensor, Tensor]:  # noqa: B006
    """Return an epoch, read from its beginning to its end."""
    if epoch not in known:
        samples = loaded().training(torch.arange(SAMPLES), epoch)
        known[epoch] = cast(dict[str, Tensor], samples.inputs())["x"], samples.targets()
    return known[epoch]


def test_epochs_have_all_samples_and_differ() -> None:
    epochs = [whole(epoch)[0] for epoch in range(3)]
    assert all(epoch[:, 4].sort().values.tolist() == list(range(SAMPLES)) for epoch in epochs)
    assert [epoch[:, 5].unique().tolist() for epoch in epochs] == [[0], [1], [2]]
    assert len({tuple(epoch[:, 4].tolist()) for epoch in epochs}) == 3


def test_test_samples_are_read_once_and_stay() -> None:
    first, second = (loaded().test(torch.arange(SAMPLES)) for _ in range(2))
    assert torch.equal(
        cast(dict[str, Tensor], first.inputs())["x"], cast(dict[str, Tensor], second.inputs())["x"]
    )


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 11), st.sampled_from(("drop", "keep")))
def test_an_epoch_in_order_has_each_sample_once(parts: int, size: int, extra: int, last: Any) -> None:
    samples = parts * size + extra
    if last == "keep" and 0 < samples % (parts * size) < parts:
        return
    order = BatchOrder(samples, parts * size, parts, 0, last, shuffled=False)
    for first in (0, 2 * order.steps_per_epoch):
        steps = range(first, first + order.steps_per_epoch)
        drawn = torch.cat([order.indices(Ticket(step, part)) for step in steps for part in range(parts)])
        assert drawn.tolist() == list(range(samples - order.left_out))


def test_a_stream_s_own_length_is_that_of_its_epochs() -> None:
    reader = loaded({"steps_per_epoch": None}, {"train": "Sized", "samples": 22}, last_batch="keep")
    assert len(reader.dataset.train) == 22
    assert len(loaded({"steps_per_epoch": 2}, {"train": "Sized"}).dataset.train) == 8


NONE = {"steps_per_epoch": None}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no length": ({"train": NONE}, r"train\.steps_per_epoch: found none, with .* no length \(Drawn\); expected how"),
    "a chain's length": ({"train": NONE, "args": {"train": "Chained"}}, r"train\.steps_per_epoch: found none"),
    "more than there is": (
        {"train": {"steps_per_epoch": 6}, "args": {"train": "Sized"}},
        r"train\.steps_per_epoch: found 6 with a stream of 20 samples, 4 in a step; expected at most 5",
    ),
    "samples that have numbers": (
        {"args": {"train": "Listed"}},
        r"train\.steps_per_epoch: found 5, and training samples that aren't a stream; expected none",
    ),
    "validation": ({"validation": 0.1}, r"data\.validation: found 0\.1 with training samples from a stream"),
    "a limit": ({"train": {"limit_samples": 8}}, r"train\.limit_samples: found 8 with .*steps_per_epoch"),
    "workers": ({"workers": 2}, r"data\.workers: found 2 with .* stream; expected 0 or 1\. Each would read"),
    "keep": ({"last_batch": "keep"}, r"data\.last_batch: found 'keep' .* every batch is whole"),
    "an endless test": ({"args": {"test": "Endless"}}, r"data\.factory: found more than 50 test samples"),
    "nothing to test on": ({"args": {"samples": 0}}, r"data\.factory: found a test split without samples"),
    "nothing to train on": (
        {"args": {"samples": 0, "test": "Fixed"}},
        r"data\.factory: found a train split without samples",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_stream_can_give_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "TEST_SAMPLES", 50)
    options, message = REFUSED[kind]
    with pytest.raises(InputError, match=f"^{message}"):
        loaded(**options)


def test_an_iterator_is_refused_and_what_begins_anew_is_not() -> None:
    with pytest.raises(InputError, match=r"^data\.factory: found an iterator \(generator\), .* begins anew"):
        as_dataset((iter_of(Drawn()), [(torch.zeros(2), 0)]), "data.factory")
    data = as_dataset((Rewound(), [(torch.zeros(3), 0)]), "data.factory")
    assert isinstance(data.train, StreamSplit)
    numbers = [data.train.targets(torch.tensor(each)).tolist() for each in ([2], [0, 1], [1])]
    assert numbers == [[0], [0, 0], [0]]
    loader: DataLoader[Any] = DataLoader(TensorDataset(torch.zeros(4, 2)))
    with pytest.raises(InputError, match=r"returned tuple of DataLoader, DataLoader; expected .* iterable"):
        as_dataset((loader, loader), "data.factory")


def iter_of(stream: Iterable[Any]) -> Iterator[Any]:
    return iter(stream)


def test_a_stream_that_ends_too_soon_says_how_many_steps_it_has() -> None:
    reader = loaded({"steps_per_epoch": 7})
    message = r"^train\.steps_per_epoch: found a stream that ended after 20 samples of epoch 2; expected 28, for 7 steps"
    for _ in range(2):
        with pytest.raises(InputError, match=message + r" of 4\. Set train\.steps_per_epoch to at most 5\.$"):
            reader.microbatch(Ticket(12, 0))
    assert reader.microbatch(Ticket(11, 1)).targets().shape == (2,)


class Understated(Sized):
    """One that has more than it says."""

    def __len__(self) -> int:
        return SAMPLES // 2


def test_a_stream_that_goes_on_behind_its_length_is_told_once() -> None:
    data = as_dataset((Understated(), Sized()), "data.factory")
    reader = Reader(data, BatchOrder(len(data.train), 5, 1, seed=1, shuffled=False))
    message = "Understated says that it has 10 samples, and goes on behind them: each epoch leaves out"
    with pytest.warns(UserWarning, match=message) as told:
        epochs = [
            torch.cat([reader.microbatch(Ticket(step, 0)).targets() for step in range(4)]) for _ in "12"
        ]
    assert len(told) == 1 and torch.equal(*epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = as_dataset((Sized(), Sized()), "data.factory")
        Reader(data, BatchOrder(SAMPLES, 5, 1, seed=1, shuffled=False)).training(torch.arange(SAMPLES))
        loaded({"steps_per_epoch": 2}).training(torch.arange(8))


def test_a_sample_that_fails_is_named_each_time() -> None:
    data = as_dataset((Drawn(fails=7), Sized()), "data.factory")
    reader = Reader(data, BatchOrder(SAMPLES, 4, 2, seed=1, shuffled=False))
    for _ in range(2):
        with pytest.raises(Exception, match=r"item \d+ of the data set can't be read.*a torn picture"):
            reader.training(torch.arange(SAMPLES))
