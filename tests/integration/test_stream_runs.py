"""Runs on streams: the same bits in one process and in many, also resumed; or refused before training."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import drawing
import pytest
import torch
from specifications import specification
from thread_fleet import thread_fleet
from torch import Tensor

from lowdimfa.errors import InputError
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer

STEPS = 8
PER_EPOCH = 3


def plain(
    factory: str = "drawing:streamed", args: dict[str, Any] | None = None, **train: Any
) -> dict[str, Any]:
    sections: dict[str, Any] = {
        "data": {"factory": factory, "args": args or {}},
        "run": {"evaluate_every_epochs": 1, "checkpoint_every": 4, "alignment_every": 4},
        "train": {"steps": STEPS, "steps_per_epoch": PER_EPOCH, "scheduler": None, "microbatches": 4} | train,
    }
    return specification(blocks=2, **sections)


def weights(run_dir: Path) -> dict[str, Tensor]:
    return export_state(CheckpointStore(run_dir).load(None))


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def fitted(run_dir: Path, options: dict[str, Any], **trainer: Any) -> dict[str, Tensor]:
    DecoupledTrainer(options, run_dir=run_dir, **trainer).fit()
    return weights(run_dir)


def test_a_stream_that_is_too_short_is_named_with_the_steps_it_has(tmp_path: Path) -> None:
    """Before training, if that shows in the samples that are looked at there; else when it comes to it."""
    for samples, steps in ((200, 4), (1100, 18)):
        message = (
            rf"^train\.steps_per_epoch: found a stream that ended after {samples:,} samples of epoch 1; expected "
            rf"{64 * steps:,}, for {steps} steps of 64\. Set train\.steps_per_epoch to at most {steps - 1}\.$"
        )
        options = plain(args={"samples": samples, "test": 16}, steps=20, steps_per_epoch=steps)
        with pytest.raises(InputError, match=message):
            fitted(tmp_path / f"{steps}", options, engine="local")


_CALLS = itertools.count()


def unlike() -> tuple[drawing.Streamed, drawing.Streamed]:
    """Return a stream with as many in its buffer as no call before."""
    return drawing.Streamed(200, 4 + next(_CALLS)), drawing.Streamed(300)


class Counting(drawing.Streamed):
    """A stream that remembers what was read."""

    def __iter__(self) -> Any:
        self.buffer += 1
        return super().__iter__()


def counting() -> tuple[drawing.Streamed, drawing.Streamed]:
    """Return a stream that is another one each time."""
    return Counting(200), drawing.Streamed(300)


def test_a_stream_that_cannot_be_repeated_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="samples whose inputs differ when they are read again"):
        fitted(tmp_path / "counting", plain("test_stream_runs:counting"), engine="local")
    options = plain("test_stream_runs:unlike", steps=4)
    fitted(tmp_path / "unlike", options, engine="local")
    with pytest.raises(
        InputError, match=r"^data\.factory: found other training or test samples, or in another order"
    ):
        fitted(tmp_path / "unlike", options, engine="local", resume_step=4)


def hugging_face() -> tuple[Any, Any]:
    """Return a stream of several shards, with a buffer that it shuffles, and the beginning of it."""
    import datasets  # late: it takes seconds, in each process of tests

    rows = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    listed = datasets.Dataset.from_dict({"x": rows.tolist(), "labels": [row % 10 for row in range(200)]})
    stream = listed.to_iterable_dataset(num_shards=4).shuffle(seed=3, buffer_size=16)
    return stream, stream.take(50)


def collated(items: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Put rows together, which are dicts of lists."""
    return torch.tensor([item["x"] for item in items]), torch.tensor([item["labels"] for item in items])


def test_hugging_face_s_stream_gives_the_same_bits_in_threads(tmp_path: Path) -> None:
    options = plain("test_stream_runs:hugging_face")
    options["data"]["collate"] = "test_stream_runs:collated"
    with thread_fleet(options, tmp_path / "threads") as fleet:
        fleet.run(0, 4)
        fleet.evaluate()
        fleet.run(4, STEPS)
        found = fleet.model_state()
    assert_same_bits(found, fitted(tmp_path / "local", options, engine="local"))
    options["data"]["workers"] = 1  # of which such a stream takes each for one that has a share of its shards
    assert_same_bits(fitted(tmp_path / "ahead", options, engine="local"), found)


@pytest.mark.xdist_group("ray")
def test_a_stream_gives_the_same_bits_in_actors_that_read_ahead_and_resumed(
    cluster: None, tmp_path: Path
) -> None:
    """Its samples and their order are drawn from the generators of the processes that read it."""
    expected = fitted(tmp_path / "local", plain(), engine="local")
    assert_same_bits(fitted(tmp_path / "local", plain(), engine="local", resume_step=4), expected)
    options = plain()
    options["data"]["workers"] = 1
    folder = Path(drawing.__file__).parent
    assert_same_bits(fitted(tmp_path / "ray", options, user_code=folder), expected)
