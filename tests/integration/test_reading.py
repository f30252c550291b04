"""Data that draw random numbers: one reading in every process, run and resumption; and data that can't have that."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, Subset

from lowdimfa.config import TrainingConfig
from lowdimfa.data import BatchOrder, Dataset, ItemSplit, Reader, TensorSplit, as_dataset
from lowdimfa.data.fingerprint import differing
from lowdimfa.errors import InputError, StoppedError
from lowdimfa.network import computing_threads, decouple
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.run.data import Source
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.tickets import Ticket
from lowdimfa.trainer import InProcessTrainer

SAMPLES, BATCH = 48, 12
RAMP = torch.arange(16.0).view(4, 4) / 8 - 1


class Turned(TorchDataset[tuple[Tensor, Tensor]]):
    """Pictures turned at random, with how often as the target: one draw for both parts, of each kind of generator."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples = samples
        self.read: Counter[int] = Counter()

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read[index] += 1
        turns = (int(torch.randint(4, ())) + random.randrange(4) + int(numpy.random.randint(4))) % 4
        picture = torch.rot90(RAMP, turns) + 0.1 * torch.randn(4, 4)
        picture[0, 0] = index / self.samples
        return picture.flatten(), torch.tensor(turns)


class Batched(Turned):
    """The same, fetched by the batch."""

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        return [self[index] for index in indices]


class DrawingSplit:
    """A split of a user's own that draws in both of its methods."""

    def __len__(self) -> int:
        return SAMPLES

    def inputs(self, indices: Tensor) -> Tensor:
        turns = torch.randint(4, (len(indices),))
        return torch.stack([torch.rot90(RAMP, int(number)).flatten() for number in turns])

    def targets(self, indices: Tensor) -> Tensor:
        return torch.randint(4, (len(indices),))


def turned(samples: int = SAMPLES) -> tuple[Turned, Turned]:
    """A user's factory."""
    return Turned(samples), Turned(samples)


def split_of_own() -> Dataset:
    return Dataset("own", DrawingSplit(), DrawingSplit(), "classification")


def noisy() -> Dataset:
    inputs, targets = RAMP.flatten().repeat(SAMPLES, 1), torch.arange(SAMPLES) % 4
    split = TensorSplit(inputs, targets, lambda batch: batch + torch.randn_like(batch))
    return Dataset("noisy", split, split, "classification")


def reader(data: object, microbatches: int = 2, seed: int = 0) -> Reader:
    dataset = as_dataset(data, "data.factory")
    return Reader(dataset, BatchOrder(len(dataset.train), BATCH, microbatches, seed))


def turns_of(pictures: Tensor) -> Tensor:
    """Return how often each picture was turned."""
    candidates = torch.stack([torch.rot90(RAMP, turns).flatten() for turns in range(4)])[:, 1:]
    return torch.cdist(pictures[:, 1:], candidates).argmin(1)


def step_of(reader: Reader, step: int) -> tuple[Tensor, Tensor]:
    read = list(reader.step(step))
    return torch.cat([part.inputs() for part in read]), torch.cat([part.targets() for part in read])


@pytest.mark.parametrize("kind", [Turned, Batched])
def test_inputs_and_targets_read_in_two_processes_are_those_of_one_item(kind: type[Turned]) -> None:
    first_block, head = reader((kind(), kind())), reader((kind(), kind()))
    for step in range(9):
        (
            torch.rand(step),
            random.random(),
            numpy.random.rand(step),
        )  # the processes did different things before
        inputs = first_block.microbatch(Ticket(step, 1)).inputs()
        assert torch.equal(turns_of(inputs), head.microbatch(Ticket(step, 1)).targets())
    for index in range(head.evaluation_batches):
        inputs = first_block.evaluation_batch(index).inputs()
        assert torch.equal(turns_of(inputs), head.evaluation_batch(index).targets())


@given(st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 30), st.integers(0, 2**31))
@settings(max_examples=25)
def test_a_sample_draws_by_run_epoch_and_its_number_whatever_it_is_read_with(
    microbatches: int, step: int, seed: int
) -> None:
    whole, parts = reader(turned(), 1, seed), reader(turned(), microbatches, seed)
    assert all(map(torch.equal, step_of(whole, step), step_of(parts, step)))
    other_seed, other_epoch = reader(turned(), 1, seed + 1), step + whole.order.steps_per_epoch
    for other in (step_of(other_seed, step), step_of(whole, other_epoch)):
        assert not torch.equal(other[0], step_of(whole, step)[0])


def test_a_sample_draws_the_same_in_a_part_of_the_data() -> None:
    whole = reader(turned())
    indices = torch.tensor([3, 40, 7])
    expected = whole.training(indices, epoch=2)
    data = as_dataset(turned(), "data.factory")
    subset = Subset(Subset(Turned(), list(range(1, SAMPLES))), [2, 39, 6])
    for part, chosen in (
        (data.limited(41), indices),
        (data.with_validation(0.1), indices),
        (as_dataset((subset, Turned()), "data.factory"), torch.arange(3)),
    ):
        found = Reader(part, BatchOrder(3, 3, 1, seed=0)).training(chosen, epoch=2)
        assert torch.equal(found.inputs(), expected.inputs())
        assert torch.equal(found.targets(), expected.targets())


@pytest.mark.parametrize("kind", [Turned, Batched])
def test_a_sample_that_is_there_more_often_draws_anew_each_time(kind: type[Turned]) -> None:
    inner = Subset(kind(), [7, 7, 3, 7])
    whole, parts = (
        Reader(as_dataset((items, kind()), "data.factory"), BatchOrder(4, 4, 1, seed=0))
        for items in (kind(), Subset(inner, [0, 1, 2, 3, 2, 0]))
    )
    found = [parts.training(torch.tensor([place])).inputs() for place in range(6)]
    first = [whole.training(torch.tensor([number])).inputs() for number in (7, 3)]
    assert torch.equal(found[0], first[0]) and torch.equal(found[2], first[1])
    drawn = {tuple(part.flatten()[1:].tolist()) for part in found}
    assert len(drawn) == 6
    again = parts.training(torch.arange(6)).inputs()
    assert kind is Batched or torch.equal(again, torch.cat(found))


def test_evaluations_draw_the_same_each_time_and_otherwise_than_training() -> None:
    whole = as_dataset(turned(), "data.factory")
    once, again = (reader(whole.with_validation(0.5)).evaluation_batch(0) for _ in range(2))
    assert torch.equal(once.inputs(), again.inputs())
    assert not torch.equal(once.targets(), reader(whole).training(torch.arange(24, 48)).targets())


@pytest.mark.parametrize("make", [split_of_own, noisy])
def test_a_split_of_ones_own_is_seeded_around_each_call(make: Callable[[], Dataset]) -> None:
    one, other = reader(make()), reader(make())
    for ticket in (Ticket(0, 0), Ticket(5, 1)):
        inputs, torch_draw = one.microbatch(ticket).inputs(), torch.rand(2)
        assert torch.equal(inputs, other.microbatch(ticket).inputs())
        assert torch.equal(torch_draw, torch.rand(2))
    if make is split_of_own:
        assert torch.equal(
            turns_of(one.microbatch(Ticket(3, 0)).inputs()), other.microbatch(Ticket(3, 0)).targets()
        )
    again = one.microbatch(Ticket(one.order.steps_per_epoch, 0)).inputs()
    assert not torch.equal(again, one.microbatch(Ticket(0, 0)).inputs())


def test_an_item_is_read_once_in_a_process_and_the_users_generators_stay_as_they_were() -> None:
    train, test = turned()
    dataset = as_dataset((train, test), "data.factory")
    layers = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    training = TrainingConfig(4, microbatches=2)
    network = decouple(layers, torch.zeros(2, 16), blocks=2, total_steps=4, training=training)
    trainer = InProcessTrainer(network, dataset, BatchOrder(SAMPLES, BATCH, 2, seed=0))
    train.read.clear(), test.read.clear()
    numpy.random.normal()  # leaves a second number waiting

    def drawn() -> list[Any]:
        states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
        return [str(state) for state in states]

    before = drawn()
    trainer.run(0, SAMPLES // BATCH)
    assert set(train.read.values()) == {1} and len(train.read) == SAMPLES
    trainer.evaluate()
    assert set(test.read.values()) == {1} and len(test.read) == SAMPLES
    assert drawn() == before
    make_run_plan(parse_specification(specification(), "test"))
    assert drawn() == before


def specification(**train: Any) -> dict[str, Any]:
    args = {"in_features": 16, "width": 24, "depth": 2, "classes": 4}
    train = {"steps": 40, "batch_size": 64, "microbatches": 2} | train
    return {
        "model": {"factory": "lowdimfa.models:mlp", "args": args, "blocks": 2},
        "data": {"factory": f"{__name__}:turned", "args": {"samples": 256}},
        "train": train | {"optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.01}}},
        "run": {"evaluate_every_epochs": 0, "tensorboard": False, "checkpoint_every": 10},
    }


def test_a_run_learns_what_its_items_say_and_gives_the_same_bits_again_and_resumed(tmp_path: Path) -> None:
    def fit(name: str, stop_at: int = 0, resume: bool = False) -> dict[str, Any]:
        torch.manual_seed(len(name))  # whatever happened before in the process
        trainer = DecoupledTrainer(
            specification(),
            engine="local",
            run_dir=tmp_path / name,
            resume=resume,
            on_event=lambda event: trainer.stop() if stop_at and event.get("step") == stop_at else None,
        )
        return trainer.fit().metrics

    accuracy = fit("whole")["test_accuracy"]
    assert accuracy > 0.9  # 0.25 is chance, and what inputs and targets of two readings come to
    with pytest.raises(StoppedError):
        fit("parts", stop_at=10)
    assert fit("again")["test_accuracy"] == accuracy == fit("parts", resume=True)["test_accuracy"]
    whole, again, parts = (
        export_state(CheckpointStore(tmp_path / name).load(None)) for name in ("whole", "again", "parts")
    )
    for name, value in whole.items():
        assert torch.equal(value, again[name]) and torch.equal(value, parts[name])


class OwnGenerator(Turned):
    """Draws from a generator of its own, whose state is another in every process."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = numpy.random.default_rng(0)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.generator.normal(size=3)), torch.tensor(0)


class Counted(Turned):
    """Gives its items in the order of asking, as an iterator would."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read[0] += 1
        return torch.zeros(3), torch.tensor(self.read[0] % 4)


class InPlace(Turned):
    """Changes what it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.ones(SAMPLES, 3)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.kept[index].mul_(0.5), torch.tensor(0)


class InPlaceSplit(DrawingSplit):
    """Changes what it keeps, and returns it, not a copy."""

    def __init__(self) -> None:
        self.kept = torch.ones(SAMPLES, 3)

    def inputs(self, indices: Tensor) -> Tensor:
        return self.kept.mul_(0.5)[: len(indices)]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: (Turned(), OwnGenerator()), "test samples whose inputs"),
        (lambda: (Counted(), Turned()), "training samples whose targets"),
        (lambda: (InPlace(), InPlace()), "training samples whose inputs"),
        (lambda: replace(split_of_own(), train=InPlaceSplit()), "training samples whose inputs"),
    ],
)
def test_data_that_change_with_each_reading_are_refused(make: Callable[[], Any], what: str) -> None:
    with pytest.raises(InputError, match=rf"^data\.factory: found {what} differ when they are read again"):
        reader(make()).require_repeatable()


class Latched(Turned):
    """Changes with the sixth item that is read, and never again."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read[0] += 1
        return torch.full((3,), float(self.read[0] > 5)), torch.tensor(0)


class LatchedStream(IterableDataset[Any]):
    """The same, one after the other."""

    def __init__(self) -> None:
        self.items = Latched()

    def __iter__(self) -> Iterator[Any]:
        yield from map(self.items.__getitem__, range(SAMPLES))

    def __len__(self) -> int:
        return SAMPLES


@pytest.mark.parametrize("make", [Latched, LatchedStream])
def test_several_samples_are_read_again_however_small_micro_batches_are(make: Callable[[], Any]) -> None:
    data = as_dataset((make(), turned()[1]), "data.factory")
    assert isinstance(data.train, ItemSplit)
    items = getattr(data.train.items, "_stream", data.train.items)
    getattr(items, "items", items).read.clear()
    order = BatchOrder(SAMPLES, BATCH, BATCH, seed=0, shuffled=make is Latched)
    with pytest.raises(InputError, match="training samples whose inputs differ when they are read again"):
        Reader(data, order).require_repeatable()


class Reused(DrawingSplit):
    """Fills the same memory at each call."""

    def __init__(self, named: bool) -> None:
        self.named, self.input, self.target = named, torch.empty(SAMPLES, 2), torch.empty(SAMPLES)

    def inputs(self, indices: Tensor) -> Any:
        self.input[: len(indices)] = indices[:, None].float()
        given = self.input[: len(indices)]
        return {"x": given} if self.named else given

    def targets(self, indices: Tensor) -> Tensor:
        self.target[: len(indices)] = indices.float()
        return self.target[: len(indices)]


@pytest.mark.parametrize("named", [False, True])
def test_a_split_may_fill_the_same_memory_again(named: bool) -> None:
    split = Reused(named)
    read = reader(Dataset("own", split, split, "regression"), microbatches=4)
    parts = [(part.inputs(), part.targets()) for part in read.step(0)]
    expected = [read.order.indices(Ticket(0, part)).tolist() for part in range(4)]
    for (inputs, targets), numbers in zip(parts, expected, strict=True):
        given = inputs if isinstance(inputs, Tensor) else inputs["x"]
        assert given[:, 0].tolist() == targets.tolist() == numbers


class NamedInput(nn.Linear):
    """Names its input in Python."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("kind", ["tensors", "items", "by name"])
@pytest.mark.parametrize("form", ["backprop", "broadcast"])
def test_samples_have_no_past_whatever_made_them(kind: str, form: str, tmp_path: Path) -> None:
    """Features that a network has computed may come with its graph, which a second backward pass doesn't find."""
    torch.manual_seed(0)
    inputs, targets = nn.Linear(8, 8)(torch.randn(32, 8)), nn.Linear(8, 4)(torch.randn(32, 8))

    def data(x: Tensor, y: Tensor) -> Any:
        if kind == "items":
            return [list(zip(x, y, strict=True))] * 2
        given = {"x": x} if kind == "by name" else x
        return given, y, given, y

    layers, weights = [NamedInput(8, 8), nn.Linear(8, 4)], []
    for name, made in (("graph", data(inputs, targets)), ("plain", data(inputs.detach(), targets.detach()))):
        options: dict[str, Any] = {"engine": "local", "run_dir": tmp_path / name, "feedback": {"form": form}}
        run = DecoupledTrainer(model=layers, data=made, blocks=2, steps=3, batch_size=16, **options).fit()
        weights.append(run.model().state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_split_that_returns_no_tensors_is_refused() -> None:
    split = Reused(named=False)
    split.inputs = lambda indices: numpy.zeros((len(indices), 2))  # type: ignore[method-assign]
    with pytest.raises(
        InputError, match=r"data\.factory: found a Reused that returned a ndarray for 3 samples"
    ):
        reader(Dataset("own", split, split, "regression"), microbatches=4).require_repeatable()


@pytest.mark.parametrize("make", [turned, split_of_own, noisy, lambda: (Batched(), Batched())])
def test_data_that_draw_from_the_seeded_generators_are_taken(make: Callable[[], Any]) -> None:
    reader(make()).require_repeatable()


def tensors(**changed: Tensor) -> tuple[Tensor, ...]:
    parts = {
        "x": torch.arange(500).view(250, 2),
        "y": torch.arange(250),
        "test_x": torch.zeros(9, 2),
        "test_y": torch.arange(9),
    }
    return tuple((parts | changed).values())


def test_the_fingerprint_tells_data_apart() -> None:
    shuffled = torch.randperm(250, generator=torch.Generator().manual_seed(0))
    data = [
        tensors(),
        tensors(y=torch.arange(250).roll(1)),
        tensors(x=torch.arange(500).view(250, 2)[shuffled]),
        tensors(x=torch.arange(500.0).view(250, 2)),
        tensors(x=torch.arange(1000).view(250, 4)),
        tensors(x=torch.arange(502).view(251, 2), y=torch.arange(251)),
        tensors(test_y=torch.arange(9) * 2),
    ]
    prints = [reader(parts).fingerprint() for parts in data]
    assert len(set(prints)) == len(prints)
    assert reader(tensors()).fingerprint() == prints[0]


def pictures(kind: str) -> Tensor:
    """Return 250 of noise, of noise without a mean, or of gentle slopes, as photographs are."""
    generator = torch.Generator().manual_seed(0)
    if kind == "smooth":
        coarse = torch.rand(250, 3, 2, 2, generator=generator)
        return nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    noise = torch.rand(250, 3, 8, 8, generator=generator)
    return (
        noise
        if kind == "noise"
        else (noise - noise.mean((1, 2, 3), True)) / noise.std((1, 2, 3), keepdim=True)
    )


def printed(x: Tensor, y: Tensor) -> str:
    return reader(tensors(x=x, y=y)).fingerprint()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["noise", "standardised", "smooth"])
def test_the_fingerprint_knows_another_order_of_pictures_but_no_last_bits(
    kind: str, dtype: torch.dtype
) -> None:
    """Pictures of a class in another order, as a listing may have them, are other samples with equal targets."""
    generator = torch.Generator().manual_seed(1)
    x = pictures(kind).to(dtype)
    y = torch.arange(250) % 5
    once = printed(x, y)
    noise = torch.randn(x.shape, generator=generator)
    rounded = (pictures(kind) * (1 + 2e-7 * noise)).to(dtype)
    assert differing(once, printed(x.clone(), y)) is None
    assert differing(once, printed(rounded, y)) is None
    assert differing(once, printed(x[torch.randperm(250, generator=generator)], y)) is not None
    gap = torch.where(x == x[0, 0, 0, 0], torch.nan, x)
    assert differing(printed(gap, y), printed(gap, y)) is None
    assert differing(printed(gap, y), once) is not None


@pytest.mark.parametrize("offset", [0.0, 20_000.0])
@pytest.mark.parametrize("beside", [1.0, 1e9])
def test_the_fingerprint_knows_other_numbers_as_targets(offset: float, beside: float) -> None:
    """However large the inputs or the targets' mean are, and though one of them is missing."""
    generator = torch.Generator().manual_seed(0)
    x, y = beside * torch.rand(250, 2, generator=generator), offset + torch.randn(250, generator=generator)
    y[7] = torch.nan
    once = printed(x, y)
    assert differing(once, printed(x * (1 + 1e-7), y * (1 - 1e-7))) is None
    swapped = y.clone()
    swapped[[3, 4]] = y[[4, 3]]
    for other in (swapped, y.flip(0), y + 0.1, torch.full_like(y, offset), y.double(), y[:, None]):
        assert differing(once, printed(x, other)) is not None
    assert differing(once, "") == (once[:16], "") and differing("a;x", "a;1 y") is not None


def times_beside(scale: float = 1.0) -> Tensor:
    """Return rows of a time in seconds, of numbers as large as this, and of what last bits leave of a constant."""
    rows = torch.randn(250, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (rows * torch.tensor([1e7, scale, 1, 1e-9]) + torch.tensor([1.7e9, 0, 0, 0])).float()


def test_the_fingerprint_knows_small_columns_beside_a_large_one() -> None:
    x, y = times_beside(), torch.arange(250) % 5
    once = printed(x, y)
    rounded = x * (1 + 1e-7)
    rounded[:, 3] = 0
    assert differing(once, printed(rounded, y)) is None
    moved = x.clone()
    moved[:, 1] += 0.1
    for other in (times_beside(1.1), times_beside(-1), moved):
        assert differing(once, printed(other, y)) is not None
    targets = printed(y[:, None].float(), x[:, :2])
    assert differing(targets, printed(y[:, None].float(), times_beside(-1)[:, :2])) is not None


@pytest.mark.parametrize("other", [torch.full((9, 2), 3), torch.full((9, 2), 0.5), torch.zeros(9, 3)])
def test_the_fingerprint_knows_other_test_inputs(other: Tensor) -> None:
    once, changed = (reader(tensors(test_x=inputs)).fingerprint() for inputs in (torch.zeros(9, 2), other))
    assert differing(once, changed) is not None


def test_a_factory_makes_the_same_bits_whatever_number_of_threads_its_process_has() -> None:
    source = Source.of(parse_specification(THREADS, "test"))
    assert source.threads == 1
    made = []
    for threads in (1, 2):
        with computing_threads(threads):
            made.append(source.load().train.targets(torch.arange(100_000)))
            assert torch.get_num_threads() == threads
    assert torch.equal(*made)


def standardised() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return data whose targets depend on the order in which a sum is made."""
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    values = (values - values.mean()) / values.std()
    return values[:, None], values, values[:9, None], values[:9]


THREADS = {
    "model": {"factory": "torch.nn.Flatten", "blocks": 1},
    "data": {"factory": "test_reading:standardised"},
    "train": {"steps": 1},
}


def test_the_fingerprint_and_the_check_of_targets_read_few_of_many_items() -> None:
    data = Turned(100_000), Turned(100_000)
    once, again = (reader(data).fingerprint() for _ in range(2))
    assert once == again
    assert sum(map(len, reader(data).known_targets(1000))) == 2000
    assert sum(data[0].read.values()) < 2000


def tensors_by_name() -> dict[str, Tensor]:
    ids = torch.arange(3 * SAMPLES).view(SAMPLES, 3)
    return {"ids": ids, "mask": ids % 2 == 0}


class Named:
    """A split of one's own whose inputs change when told to."""

    def __init__(self) -> None:
        self.change: Callable[[dict[str, Any]], dict[str, Any]] = dict

    def __len__(self) -> int:
        return SAMPLES

    def inputs(self, indices: Tensor) -> dict[str, Any]:
        return self.change({"ids": indices[:, None].repeat(1, 3), "mask": torch.ones(len(indices), 3).bool()})

    def targets(self, indices: Tensor) -> Tensor:
        return indices % 2


LATER: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "a mask of another length": (
        lambda inputs: inputs | {"mask": inputs["mask"][:, :2]},
        r"found bool of shape \[2\] as the input 'mask'; expected bool of shape \[3\], as in every sample. Pad",
    ),
    "another type": (
        lambda inputs: inputs | {"ids": inputs["ids"].int()},
        r"found int32 of shape \[3\] as the input 'ids'; expected int64 of shape \[3\]",
    ),
    "a name less": (
        lambda inputs: {"ids": inputs["ids"]},
        r"found nothing as the input 'mask'; expected bool of shape \[3\]",
    ),
    "a new name": (
        lambda inputs: inputs | {"more": inputs["ids"]},
        r"found int64 of shape \[3\] as the input 'more'; expected none of that name",
    ),
    "fewer samples": (
        lambda inputs: inputs | {"ids": inputs["ids"][:1]},
        r"found a tensor of shape \(1, 3\) for 4 samples as the input 'ids'",
    ),
    "a list": (lambda inputs: inputs | {"ids": [1, 2]}, "found a list as the input 'ids'"),
}


@pytest.mark.parametrize("kind", LATER)
def test_inputs_by_name_that_change_later_are_refused_with_name_found_and_expected(kind: str) -> None:
    change, message = LATER[kind]
    split = Named()
    reader = Reader(Dataset("named", split, split, "classification"), BatchOrder(SAMPLES, 4, 1, seed=0))
    reader.microbatch(Ticket(0, 0)).inputs()
    split.change = change
    with pytest.raises(InputError, match=f"^data.factory: {message}"):
        reader.microbatch(Ticket(1, 0)).inputs()


def test_four_parts_may_have_inputs_by_name_and_the_fingerprint_tells_them_apart() -> None:
    def read(**changes: Any) -> Reader:
        inputs = tensors_by_name() | changes
        parts = (inputs, torch.arange(SAMPLES) % 2)
        return Reader(as_dataset((*parts, *parts), "data.factory"), BatchOrder(SAMPLES, 4, 1, seed=0))

    inputs = read().training(torch.tensor([1, 3])).inputs()
    assert torch.equal(inputs["ids"], torch.tensor([[3, 4, 5], [9, 10, 11]]))  # type: ignore[call-overload, index]
    first = read().fingerprint()
    assert read().fingerprint() == first
    others = [
        read(ids=-tensors_by_name()["ids"]),
        read(mask=torch.ones(SAMPLES, 3)),
        read(third=torch.ones(SAMPLES)),
    ]
    assert first not in {other.fingerprint() for other in others}
    with pytest.raises(InputError, match=f"found 3 inputs 'ids' and {SAMPLES} targets"):
        read(ids=torch.zeros(3))


def test_a_transform_gets_all_inputs_by_name() -> None:
    def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return inputs | {"ids": 2 * inputs["ids"]}

    split = TensorSplit(tensors_by_name(), torch.zeros(SAMPLES), double)
    assert torch.equal(split.inputs(torch.tensor([1]))["ids"], torch.tensor([[6, 8, 10]]))  # type: ignore[call-overload, index]
