"""A collate function of the user's own: the batches of plain torch, one in every process, or a refusal."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from lowdimfa.data import BatchOrder, Dataset, Reader, TensorSplit, as_dataset
from lowdimfa.errors import InputError
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.tickets import Ticket
from lowdimfa.values import named

LONGEST = 7


class Texts(TorchDataset[tuple[list[int], str]]):
    """Items of unequal lengths, and classes that are words: neither is a tensor."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[list[int], str]:
        return list(range(index % LONGEST + 1)), ("even", "odd")[index % 2]


def padded(items: list[tuple[list[int], str]]) -> tuple[Tensor, Tensor]:
    """A user's function."""
    rows = [torch.tensor(tokens + [0] * (LONGEST - len(tokens))) for tokens, _ in items]
    return torch.stack(rows).float(), torch.tensor([word == "odd" for _, word in items]).long()


def by_name(items: list[tuple[list[int], str]]) -> dict[str, Tensor]:
    inputs, labels = padded(items)
    return {"ids": inputs, "mask": inputs > 0, "labels": labels}


def masked(items: list[tuple[list[int], str]]) -> tuple[Tensor, Tensor]:
    """Draws which tokens a batch is to predict: one draw for both of its parts."""
    inputs, _ = padded(items)
    hidden = torch.rand(inputs.shape) + random.random() > 1
    return inputs * ~hidden, hidden.sum(1)


def reader(collate: Callable[..., Any], data: Any = None) -> Reader:
    dataset = as_dataset(data or (Texts(), Texts()), "data.factory", collate)
    return Reader(dataset, BatchOrder(24, 8, 2, seed=0))


@given(st.lists(st.integers(0, 23), min_size=1, max_size=9))
@settings(max_examples=20)
def test_batches_are_those_of_torchs_loader(indices: list[int]) -> None:
    (inputs, targets), *_ = DataLoader(Texts(), batch_sampler=[indices], collate_fn=padded)
    found = reader(padded).training(torch.tensor(indices))
    assert torch.equal(found.inputs(), inputs) and torch.equal(found.targets(), targets)
    (named,) = DataLoader(Texts(), batch_sampler=[indices], collate_fn=by_name)
    found = reader(by_name).training(torch.tensor(indices))
    assert named.pop("labels").equal(found.targets())
    inputs = found.inputs()
    assert not isinstance(inputs, Tensor) and all(torch.equal(inputs[name], named[name]) for name in named)


def test_what_it_draws_is_the_same_in_every_process_and_another_in_each_epoch() -> None:
    one, other = reader(masked), reader(masked)
    one.require_repeatable()
    for ticket in (Ticket(0, 1), Ticket(4, 0)):
        whole = padded([Texts()[int(index)] for index in one.order.indices(ticket)])[0]
        hidden = (one.microbatch(ticket).inputs() == 0) & (whole > 0)  # type: ignore[operator]
        torch.rand(ticket.step)  # the processes did different things before
        assert torch.equal(other.microbatch(ticket).inputs(), one.microbatch(ticket).inputs())
        assert (other.microbatch(ticket).targets() >= hidden.sum(1)).all()
    indices = torch.arange(8)
    epochs = [one.training(indices, epoch).targets() for epoch in (0, 1)]
    assert not torch.equal(*epochs) and one.fingerprint() == other.fingerprint()


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "three parts": (lambda items: (1, 2, 3), "a tuple of 3 as what it returned; expected"),
    "no target": (
        lambda items: {"x": torch.zeros(len(items))},
        "a dict without 'labels' as what it returned",
    ),
    "no tensor": (
        lambda items: (items, torch.zeros(len(items))),
        "made a list of .* items; expected tensors",
    ),
    "one sample": (
        lambda items: (torch.zeros(2, 3), torch.zeros(len(items))),
        r"made a Tensor of shape \(2, 3\) of",
    ),
    "another length in each batch": (
        lambda items: (pad_sequence([torch.ones(len(t)) for t, _ in items], True), padded(items)[1]),
        r"found float32 of shape .* as the input; expected float32 of shape .*, as in every batch\. Pad",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_batch_is_refused(kind: str) -> None:
    collate, message = REFUSED[kind]
    with pytest.raises(InputError, match=rf"^data\.collate: found .*{message.removeprefix('found ')}"):
        refusing = reader(collate)
        for index in range(24):
            refusing.training(torch.tensor([index])).inputs()


class _Halves:
    """A split of a user's own: input and target share what they draw, and fill the same memory at every call."""

    def __init__(self) -> None:
        self._memory = torch.zeros(24, 1)

    def __len__(self) -> int:
        return 24

    def inputs(self, indices: Tensor) -> Tensor:
        return self._memory[: len(indices)].copy_(indices[:, None] + torch.rand(len(indices), 1))

    def targets(self, indices: Tensor) -> Tensor:
        return 2 * (indices + torch.rand(len(indices), 1)[:, 0])


TENSORS = (torch.arange(48.0).view(24, 2), torch.arange(24) % 3)
WITHOUT_ITEMS = {
    "tensors": (*TENSORS, *TENSORS),
    "tensors by name": ({"one": TENSORS[0], "other": -TENSORS[0]}, TENSORS[1]) * 2,
    "a Dataset": Dataset("theirs", TensorSplit(*TENSORS), TensorSplit(*TENSORS), "classification"),
    "a Dataset with a part held out": Dataset(
        "theirs", TensorSplit(*TENSORS), TensorSplit(*TENSORS), "classification"
    ).with_validation(0.25),
}


def mixed(items: list[Any]) -> tuple[Any, Tensor]:
    """A user's function that mixes each sample with the one before it in the batch."""
    inputs, targets = default_collate(items)
    share = torch.rand(()) / 2
    soft = functional.one_hot(targets, 3).float()

    def mix(part: Tensor) -> Tensor:
        return (1 - share) * part + share * part.roll(1, 0)

    whole = {name: mix(part) for name, part in inputs.items()} if isinstance(inputs, dict) else mix(inputs)
    return whole, mix(soft)


@pytest.mark.parametrize("kind", WITHOUT_ITEMS)
def test_samples_of_any_data_are_put_together(kind: str) -> None:
    data = as_dataset(WITHOUT_ITEMS[kind], "data.factory", mixed)
    assert data.task == "regression"  # as the targets that the function makes are
    indices = torch.tensor([5, 1, 12])  # of three classes
    found = Reader(data, BatchOrder(len(data.train), 3, 1, seed=0)).training(indices)
    plain = as_dataset(WITHOUT_ITEMS[kind], "data.factory").train.inputs(indices)
    share = 1 - found.targets().max(1).values
    for name, part in named(found.inputs()).items():
        own = named(plain)[name]
        assert torch.allclose(part, own + share[:, None] * (own.roll(1, 0) - own))


def test_what_a_split_draws_for_input_and_target_stays_one_draw() -> None:
    data = as_dataset(Dataset("theirs", _Halves(), _Halves(), "regression"), "data.factory", default_collate)
    read = Reader(data, BatchOrder(24, 8, 2, seed=0))
    first, second = (read.microbatch(Ticket(0, part)) for part in (0, 1))
    for samples in (first, second):
        inputs = samples.inputs()
        assert isinstance(inputs, Tensor)
        assert torch.equal(2 * inputs[:, 0], samples.targets())
    assert data.name == "theirs"


@dataclass(frozen=True)
class _Digested(TensorSplit):
    """Is too large to be read before a run."""

    digest: str = ""

    def extremes(self) -> Tensor:
        return torch.stack(self.target_data.aminmax())


@pytest.mark.parametrize("collate", [None, default_collate])
def test_data_of_another_digest_are_other_data(collate: Any) -> None:
    found = set()
    for digest in ("ours", "theirs"):
        split = _Digested(torch.zeros(24, 2), torch.arange(24) % 3, digest=digest)
        data = as_dataset(Dataset(digest, split, split, "classification"), "data.factory", collate)
        found.add(Reader(data.limited(20), BatchOrder(20, 4, 1, seed=0)).fingerprint())
    assert len(found) == 2


def test_a_run_takes_one_as_an_object_or_by_its_path(tmp_path: Any) -> None:
    losses = []
    for number, collate in enumerate((lambda items: padded(items), f"{__name__}:padded")):
        trainer = DecoupledTrainer(
            model=network,
            data=(Texts(), Texts()),
            collate=collate,
            blocks=2,
            steps=4,
            batch_size=8,
            engine="local",
            run_dir=tmp_path / str(number),
        )
        losses.append(trainer.fit().metrics["test_loss"])
    assert losses[0] == losses[1]
    assert (
        "object" in str(trainer.specification.data.factory) and trainer.specification.data.collate == collate
    )


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(LONGEST, 4), nn.Tanh(), nn.Linear(4, 2))
