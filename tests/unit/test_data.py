"""The interface of data sets and the order of batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Subset

from lowdimfa.data import BatchOrder, Dataset, Reader, TensorSplit, as_dataset
from lowdimfa.errors import InputError
from lowdimfa.services.run.example import Example
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.tickets import Ticket


def numbered(train: int = 10, test: int = 4) -> Dataset:
    def split(samples: int) -> TensorSplit:
        return TensorSplit(torch.arange(float(samples)).unsqueeze(1), torch.arange(samples))

    return Dataset("numbered", split(train), split(test), "classification")


def epoch_of(order: BatchOrder, epoch: int, microbatches: int) -> list[Tensor]:
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return [order.indices(Ticket(step, part)) for step in steps for part in range(microbatches)]


@given(
    microbatches=st.integers(1, 4),
    size=st.integers(1, 5),
    extra=st.integers(0, 50),
    seed=st.integers(0, 2**31),
)
def test_each_epoch_draws_every_sample_at_most_once(
    microbatches: int, size: int, extra: int, seed: int
) -> None:
    batch_size = microbatches * size
    samples = batch_size + extra
    order = BatchOrder(samples, batch_size, microbatches, seed)
    for epoch in (0, 3):
        drawn = torch.cat(epoch_of(order, epoch, microbatches))
        assert len(drawn) == samples // batch_size * batch_size
        assert len(drawn.unique()) == len(drawn)
        assert drawn.min() >= 0 and drawn.max() < samples


def test_microbatches_partition_the_batch_of_the_same_step() -> None:
    whole, parts = BatchOrder(100, 12, 1, seed=5), BatchOrder(100, 12, 3, seed=5)
    for step in (0, 7, 8, 30):
        pieces = [parts.indices(Ticket(step, part)) for part in range(3)]
        assert [len(piece) for piece in pieces] == [4, 4, 4]
        assert torch.equal(torch.cat(pieces), whole.indices(Ticket(step, 0)))


def test_order_depends_on_nothing_but_seed_step_and_microbatch() -> None:
    tickets = [Ticket(step, part) for step in range(20) for part in range(2)]
    first, second = BatchOrder(50, 10, 2, seed=1), BatchOrder(50, 10, 2, seed=1)
    forwards = {ticket: first.indices(ticket).clone() for ticket in tickets}
    for ticket in reversed(tickets):
        assert torch.equal(second.indices(ticket), forwards[ticket])


def test_epochs_and_seeds_differ() -> None:
    order = BatchOrder(200, 200, 1, seed=0)
    assert not torch.equal(order.indices(Ticket(0, 0)), order.indices(Ticket(1, 0)))
    other = BatchOrder(200, 200, 1, seed=1)
    assert not torch.equal(order.indices(Ticket(0, 0)), other.indices(Ticket(0, 0)))


@pytest.mark.parametrize(
    ("arguments", "key"), [((100, 10, 3, 0), "microbatches"), ((9, 10, 1, 0), "batch_size")]
)
def test_order_refuses_what_does_not_divide_or_fit(arguments: tuple[int, int, int, int], key: str) -> None:
    with pytest.raises(InputError, match=key):
        BatchOrder(*arguments)


def test_limited_keeps_the_first_training_samples_and_the_test_split() -> None:
    data = numbered()
    short = data.limited(3)
    assert len(short.train) == 3 and short.test is data.test
    assert short.train.targets(torch.tensor([2, 0])).tolist() == [2, 0]
    assert short.train.inputs(torch.tensor([2])).tolist() == [[2.0]]
    with pytest.raises(InputError, match="limit_samples"):
        data.limited(11)


def test_validation_is_the_end_of_the_training_split() -> None:
    data = numbered().with_validation(0.3)
    assert data.train.targets(torch.arange(len(data.train))).tolist() == list(range(7))
    assert data.test.targets(torch.arange(len(data.test))).tolist() == [7, 8, 9]
    for fraction in (0.0, 1.0, 0.001):
        with pytest.raises(InputError, match="validation"):
            numbered().with_validation(fraction)


def test_tensor_split_transforms_inputs_only() -> None:
    split = TensorSplit(torch.tensor([1, 2]), torch.tensor([5, 6]), lambda batch: batch * 10)
    assert split.inputs(torch.tensor([1])).tolist() == [20]
    assert split.targets(torch.tensor([1])).tolist() == [6]


class Pairs(torch.utils.data.Dataset[tuple[Tensor, Any]]):
    def __init__(self, samples: int, target: Any) -> None:
        self.samples, self.target = samples, target

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return torch.full((3,), float(index)), self.target


def test_as_dataset_passes_a_dataset_through() -> None:
    data = numbered()
    assert as_dataset(data, "data.factory") is data


@pytest.mark.parametrize(
    ("targets", "task"),
    [
        (torch.zeros(4, dtype=torch.int64), "classification"),
        (torch.zeros(4, 7, dtype=torch.int64), "tokens"),
        (torch.zeros(4, 1), "regression"),
    ],
)
def test_as_dataset_takes_four_tensors(targets: Tensor, task: str) -> None:
    data = as_dataset((torch.ones(4, 2), targets, torch.ones(4, 2), targets), "data.factory")
    assert data.task == task
    assert data.train.inputs(torch.tensor([0, 3])).shape == (2, 2)


@pytest.mark.parametrize(
    ("target", "task"),
    [
        (3, "classification"),
        (torch.tensor([1, 2]), "tokens"),
        (torch.tensor([0.5]), "regression"),
        (0.5, "regression"),
    ],
)
def test_as_dataset_takes_two_map_style_datasets(target: Any, task: str) -> None:
    data = as_dataset((Pairs(5, target), Pairs(2, target)), "data.factory")
    assert data.task == task and len(data.train) == 5 and len(data.test) == 2
    assert data.train.inputs(torch.tensor([4, 1])).tolist() == [[4.0] * 3, [1.0] * 3]
    assert len(data.train.targets(torch.tensor([4, 1]))) == 2


class Iterated:
    """What has no numbers."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


@pytest.mark.parametrize("part", [lambda items: items, lambda items: Subset(items, range(1, 8)), Iterated])
def test_a_regression_may_begin_with_whole_numbers(part: Any) -> None:
    items = [(torch.ones(3), target) for target in (3, 2, 1, 2.5, 3, 1, 0.5, 4)]
    assert as_dataset((part(items), items), "data.factory").task == "regression"
    whole = [(torch.ones(3), int(target)) for _, target in items]
    assert as_dataset((part(whole), whole), "data.factory").task == "classification"


X = numpy.arange(24.0, dtype=numpy.float32).reshape(6, 4)
UNUSUAL: dict[str, Any] = {
    "steps backwards": X[::-1][::-1],
    "other bytes": X.astype(">f4"),
    "both": X.astype(">f4")[::-1, ::-1][::-1, ::-1],
    "columns first": numpy.asfortranarray(X),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_arrays_are_taken_however_they_lie_in_memory(kind: str) -> None:
    targets = numpy.arange(6, dtype=">i8")[::-1]
    data = as_dataset((UNUSUAL[kind], targets, X, targets), "data.factory")
    found = data.train.inputs(torch.arange(6))
    assert isinstance(found, Tensor) and torch.equal(found, torch.from_numpy(X))
    assert data.train.targets(torch.arange(6)).tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (numpy.array(["cat"] * 6), "an array of <U3 as training targets; expected numbers.* Number classes"),
        (numpy.array([{}] * 6), "an array of object as training targets"),
        (numpy.ma.masked_array(numpy.arange(6), X[:, 0] > 9), "a masked array as training targets"),
        (numpy.array(1), "a single number as training targets; expected the samples in the first dimension"),
        (torch.tensor(1), "a single number as training targets"),
        (torch.arange(6).to_sparse(), "a tensor of the layout sparse_coo as training targets; .*to_dense"),
    ],
)
def test_arrays_that_are_none_of_numbers_for_samples_are_refused(part: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"^data\.factory: found {message}"):
        as_dataset((X, part, X, numpy.arange(6)), "data.factory")


WHOLE = (torch.bool, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64)


@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_numbers_of_any_type_and_truth_values_are_classes(dtype: torch.dtype, tmp_path: Path) -> None:
    trained = []
    for targets in (torch.arange(8) % 2, (torch.arange(8) % 2).to(dtype)):
        torch.manual_seed(0)
        x = torch.randn(8, 4)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        result = DecoupledTrainer(
            model=model,
            data=(x, targets, x, targets),
            blocks=2,
            engine="local",
            steps=4,
            batch_size=4,
            run_dir=tmp_path / str(targets.dtype),
            overrides={"run.tensorboard": False},
        ).fit()
        trained.append((result.metrics["test_loss"], result.metrics["test_accuracy"]))
    assert trained[0] == trained[1]


@pytest.mark.parametrize("value", [None, 3, [], (torch.ones(2), torch.ones(2), torch.ones(2)), (1, 2)])
def test_as_dataset_refuses_anything_else(value: object) -> None:
    with pytest.raises(InputError, match=r"data\.factory.*four tensors"):
        as_dataset(value, "data.factory")


def test_as_dataset_refuses_empty_splits() -> None:
    with pytest.raises(InputError, match="test split without samples"):
        as_dataset(numbered(test=0), "data.factory")
    with pytest.raises(InputError, match="train split without samples"):
        as_dataset(([], Pairs(2, 1)), "data.factory")


def test_as_dataset_refuses_tensors_of_unequal_length() -> None:
    with pytest.raises(InputError, match="3 inputs and 2 targets"):
        as_dataset((torch.ones(4), torch.ones(4), torch.ones(3), torch.ones(2)), "data.factory")


@pytest.mark.parametrize("other", [torch.zeros(4, 5), torch.zeros(4, 6, dtype=torch.float64)])
def test_test_samples_of_another_kind_are_refused_before_training(other: Tensor) -> None:
    data = as_dataset((torch.zeros(4, 6), torch.zeros(4), other, torch.zeros(4)), "data.factory")
    message = (
        r"^data\.factory: found float.* as a test input; expected float32 of shape \[6\], as the training"
    )
    with pytest.raises(InputError, match=message):
        Example.of(Reader(data, BatchOrder(4, 4, 1, seed=0)))
