"""Items of map-style data sets: put together as torch's loader does, or refused with what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torch.utils.data import Dataset as TorchDataset

from lowdimfa.data import BatchOrder, ItemSplit, Reader, as_dataset
from lowdimfa.errors import InputError
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import parse_specification


class Items(TorchDataset[Any]):
    """Items made by a function of their number."""

    def __init__(self, make: Callable[[int], Any], samples: int = 20) -> None:
        self._make, self._samples = make, samples

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> Any:
        return self._make(index)


class WrongNumber(Items):
    """A batch with an item too few."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices[1:]]


MAKERS: dict[str, Callable[[int], Any]] = {
    "tensors": lambda index: (torch.full((3,), float(index)), torch.tensor(index)),
    "a list": lambda index: [torch.full((3,), float(index)), index],
    "float64 of NumPy": lambda index: (numpy.full(3, index / 2), numpy.float64(index)),
    "float32 of NumPy": lambda index: (numpy.full(3, index / 2, numpy.float32), numpy.float32(index)),
    "integers of NumPy": lambda index: (numpy.full((2, 2), index, numpy.uint8), numpy.int64(index)),
    "numbers": lambda index: (index / 2, index / 4),
    "whole numbers": lambda index: (index, index > 3),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_items_are_put_together_as_by_torchs_loader(kind: str) -> None:
    split = ItemSplit(Items(MAKERS[kind]))
    indices = [4, 0, 7]
    inputs, targets = default_collate([MAKERS[kind](index) for index in indices])
    for found, expected in ((split.inputs, inputs), (split.targets, targets)):
        values = found(torch.tensor(indices))
        assert values.dtype == expected.dtype and torch.equal(values, expected)


def test_a_batch_comes_from_getitems_where_there_is_one() -> None:
    class Fetched(Items):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [(torch.tensor(indices), index) for index in indices]  # what only a whole batch can know

    split = ItemSplit(Fetched(MAKERS["tensors"]))
    assert split.inputs(torch.tensor([5, 2])).tolist() == [[5, 2], [5, 2]]


def test_arrays_of_numpy_are_taken_as_tensors() -> None:
    x, y = numpy.ones((6, 3), numpy.float32), numpy.arange(6)
    data = as_dataset((x, y, torch.ones(2, 3), numpy.arange(2)), "data.factory")
    assert data.task == "classification"
    assert data.train.inputs(torch.tensor([1])).dtype == torch.float32


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a dict": (
        lambda: Items(lambda index: {"x": torch.zeros(3), "y": 0}),
        r"found a dict without 'labels' as item 0; expected \(input, target\), or a mapping with 'labels'\..* tuple",
    ),
    "three parts": (
        lambda: Items(lambda index: (torch.zeros(3), 0, 0)),
        "found a tuple of 3 as item 0; expected",
    ),
    "a tensor": (lambda: TensorDataset(torch.zeros(4, 2)), "found a tuple of 1 as item 0; expected"),
    "a bare tensor": (lambda: Items(lambda index: torch.zeros(2)), "found a Tensor as item 0; expected"),
    "no length": (
        lambda: type("Endless", (), {"__getitem__": lambda self, index: 0})(),
        r"found a data set without items by number \(Endless\)",
    ),
    "a text": (
        lambda: Items(lambda index: (torch.zeros(3), "cat")),
        "found a str as the target of item \\d+; expected a tensor",
    ),
    "an input of two": (
        lambda: Items(lambda index: ((torch.zeros(3), torch.zeros(3)), 0)),
        "found a tuple as the input of item \\d+; expected a tensor",
    ),
    "an object": (
        lambda: Items(lambda index: (object(), 0)),
        "found an object as the input of item \\d+; expected a tensor",
    ),
    "too few": (lambda: WrongNumber(MAKERS["tensors"]), "found .* items from __getitems__ for .* indices"),
    "names that change": (
        lambda: Items(lambda index: ({"x" if index % 2 else "y": torch.zeros(3)}, 0)),
        r"found \['[xy]'\] as the inputs of item \d+, and \['[xy]'\] as those of item \d+; expected inputs of the same",
    ),
    "a mapping and a tensor": (
        lambda: Items(lambda index: ({"x": torch.zeros(3)} if index % 2 else torch.zeros(3), 0)),
        "found .*a Tensor.* item \\d+; expected inputs of the same names",
    ),
    "a text by name": (
        lambda: Items(lambda index: {"x": torch.zeros(3), "title": "cat", "labels": 0}),
        "found a str as the input 'title' of item \\d+; expected a tensor",
    ),
    "lengths by name": (
        lambda: Items(lambda index: {"x": torch.zeros(index % 5), "labels": 0}),
        r"found inputs 'x' of shape \(\d,\) in item \d+ and \(\d,\) in item \d+.*pad or crop",
    ),
    "lengths": (
        lambda: Items(lambda index: (torch.zeros(index % 5), 0)),
        r"found inputs of shape \(\d,\) in item \d+ and \(\d,\) in item \d+.*pad or crop",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_items_are_refused_before_the_first_step(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(InputError, match=rf"^data\.factory: {message}"):
        data = as_dataset((make(), make()), "data.factory")
        Reader(data, BatchOrder(len(data.train), 4, 1, seed=0)).require_repeatable()


def test_loaders_are_refused_by_name() -> None:
    loader: DataLoader[Any] = DataLoader(Items(MAKERS["tensors"]))
    with pytest.raises(InputError, match=r"returned tuple of DataLoader, DataLoader; expected .* map-style"):
        as_dataset((loader, loader), "data.factory")


def test_an_item_that_is_wrong_further_on_is_named_when_it_is_read() -> None:
    items = Items(lambda index: (torch.zeros(3), 0) if index != 17 else (None, 0))
    with pytest.raises(InputError, match=r"found a NoneType as the input of item 17"):
        ItemSplit(items).inputs(torch.tensor([3, 17, 4]))


def test_a_wrong_target_further_on_is_named_when_the_loss_meets_it() -> None:
    from lowdimfa.losses import cross_entropy

    with pytest.raises(InputError, match="room for the targets 1 to 7 of the data"):
        cross_entropy(torch.zeros(3, 4), torch.tensor([1, -100, 7]))


def dicts() -> tuple[Items, Items]:
    """A user's factory."""
    return Items(lambda index: {"x": torch.zeros(3), "y": 0}), Items(MAKERS["tensors"])


def test_a_plan_refuses_them_too() -> None:
    plain = {
        "model": {
            "factory": "lowdimfa.models:mlp",
            "args": {"in_features": 3, "width": 4, "depth": 2, "classes": 4},
            "blocks": 2,
        },
        "data": {"factory": f"{__name__}:dicts"},
        "train": {"steps": 1, "batch_size": 4},
    }
    with pytest.raises(
        InputError, match=r"^data\.factory: found a dict without 'labels' as item 0"
    ) as refusal:
        make_run_plan(parse_specification(plain, "test"))
    assert refusal.value.exit_code == 2


def named_item(index: int) -> dict[str, Any]:
    return {
        "ids": torch.arange(3) + index,
        "mask": numpy.arange(3) < index,
        "weight": 0.5 * index,
        "labels": index % 2,
    }


@pytest.mark.parametrize(
    "make",
    [named_item, lambda index: ({k: v for k, v in named_item(index).items() if k != "labels"}, index % 2)],
)
def test_items_that_are_mappings_are_inputs_by_name(make: Callable[[int], Any]) -> None:
    data = as_dataset((Items(make), Items(make)), "data.factory")
    indices = torch.tensor([4, 2])
    inputs = Reader(data, BatchOrder(20, 4, 1, seed=0)).training(indices).inputs()
    assert not isinstance(inputs, torch.Tensor)
    assert {name: value.dtype for name, value in inputs.items()} == {
        "ids": torch.int64,
        "mask": torch.bool,
        "weight": torch.float64,
    }
    assert torch.equal(inputs["ids"], torch.tensor([[4, 5, 6], [2, 3, 4]]))
    assert torch.equal(data.train.targets(indices), torch.tensor([0, 0]))
    assert data.task == "classification"


def test_the_same_names_in_another_order_are_the_same_inputs() -> None:
    def make(index: int) -> dict[str, Any]:
        item = named_item(index)
        return item if index % 2 else dict(reversed(item.items()))

    inputs, expected = (ItemSplit(Items(each)).inputs(torch.tensor([4, 3])) for each in (make, named_item))
    assert isinstance(inputs, Mapping) and isinstance(expected, Mapping) and set(inputs) == set(expected)
    for name, part in expected.items():
        assert torch.equal(inputs[name], part)


@pytest.mark.parametrize("named", [False, True])
def test_a_collate_function_may_fill_the_same_memory_again(named: bool) -> None:
    items = [(torch.full((3,), float(number)), number) for number in range(8)]
    inputs, targets = torch.empty(4, 3), torch.empty(4, dtype=torch.int64)

    def reusing(batch: list[Any]) -> tuple[Any, Tensor]:
        for place, (one, label) in enumerate(batch):
            inputs[place], targets[place] = one, label
        return ({"x": inputs} if named else inputs), targets

    split = ItemSplit(items, "data.factory", reusing)
    first, second = (split.read(torch.arange(start, start + 4)) for start in (0, 4))
    for found, numbers in ((first, range(4)), (second, range(4, 8))):
        given = found.inputs()
        values = given["x"] if isinstance(given, Mapping) else given
        assert values[:, 0].tolist() == found.targets().tolist() == list(numbers)
