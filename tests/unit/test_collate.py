"""A collate function of the user's own: the batches of plain torch, one in every process, or a refusal."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lowdimfa.data import BatchOrder, Reader, as_dataset
from lowdimfa.errors import InputError
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.tickets import Ticket

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


def test_data_without_items_have_nothing_to_put_together() -> None:
    tensors = [torch.zeros(4, 2), torch.zeros(4)] * 2
    with pytest.raises(InputError, match=r"^data\.collate: found a function for list; expected two Datasets"):
        as_dataset(tensors, "data.factory", padded)


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
