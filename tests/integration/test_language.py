"""Perplexity, bits per byte and tokens per second: right over tokens that count, and seen wherever a run is watched."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.data.base import Dataset, bytes_per_target
from lowdimfa.data.splits import TensorSplit
from lowdimfa.data.text import WindowSplit
from lowdimfa.errors import InputError
from lowdimfa.head import Evaluation
from lowdimfa.services.callbacks.numbers import scalars
from lowdimfa.services.cli.display import TextDisplay
from lowdimfa.services.coordinator.messages import event_to_message, message_to_event
from lowdimfa.services.coordinator.store import JobEvent
from lowdimfa.services.monitoring.line_file import to_json
from lowdimfa.services.monitoring.report.page import write_report
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.run.language import Language, perplexity
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.evaluate import evaluate_run
from lowdimfa.services.trainer.watch import TrainerWatch

VOCABULARY, CONTEXT, SAMPLES, TESTED = 7, 5, 40, 300
BYTES = 3.5


class Text(TensorSplit):
    bytes_per_target = BYTES


class Odd(TensorSplit):
    bytes_per_target = -1


def data(split: Callable[..., Any] = Text) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (SAMPLES + TESTED, CONTEXT + 1), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[
        torch.rand(targets.shape, generator=generator) < torch.linspace(0, 0.9, len(targets))[:, None]
    ] = -100
    return Dataset(
        "some text",
        split(inputs[:SAMPLES], targets[:SAMPLES]),
        split(inputs[SAMPLES:], targets[SAMPLES:]),
        "tokens",
    )


def odd() -> Dataset:
    return data(Odd)


def silent() -> Dataset:
    return data(TensorSplit)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, VOCABULARY))


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def fit(run_dir: Path, **sections: Any) -> list[dict[str, Any]]:
    here = Path(__file__).stem
    plain = {
        "model": {"factory": f"{here}:model", "blocks": 2},
        "data": {"factory": f"{here}:data"},
        "train": {"steps": 8, "batch_size": 8, "log_every": 4},
    }
    for section, values in sections.items():
        plain[section] = plain.get(section, {}) | values
    events: list[dict[str, Any]] = []
    DecoupledTrainer(plain, engine="local", run_dir=run_dir, on_event=events.append).fit()
    return events


def last(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return [event for event in events if event["event"] == kind][-1]


def test_the_numbers_of_an_evaluation_are_over_all_tokens_that_count(tmp_path: Path) -> None:
    events = fit(tmp_path / "run")
    plain = model()
    plain.load_state_dict(export_state(CheckpointStore(tmp_path / "run").load(None)))
    split = data().test
    everything = torch.arange(
        TESTED
    )  # more than one batch of an evaluation, with ever fewer tokens that count
    with torch.no_grad():
        loss = float(own_loss(plain(split.inputs(everything)), split.targets(everything)))
    for event in (last(events, "evaluated"), last(events, "finished"), evaluate_run(tmp_path / "run")):
        assert event["test_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert event["test_bits_per_byte"] == pytest.approx(loss / math.log(2) / BYTES, rel=1e-5)
        assert event["test_tokens"] == int((split.targets(everything) != -100).sum())


def test_training_has_them_too_and_keeps_samples_per_second(tmp_path: Path) -> None:
    events = fit(tmp_path / "run", data={"validation": 0.2})
    progress = last(events, "progress")
    assert 1 < progress["perplexity"] < 3 * VOCABULARY
    assert progress["bits_per_byte"] == pytest.approx(math.log2(progress["perplexity"]) / BYTES)
    share = progress["tokens_per_second"] / (progress["samples_per_second"] * CONTEXT)
    assert 0.5 < share < 1  # of the first samples most tokens count
    assert last(events, "evaluated")["test_bits_per_byte"] is not None


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"loss": f"{Path(__file__).stem}:own_loss"}},
        {"model": {"factory": "lowdimfa.models:mlp", "args": {"in_features": 64, "width": 9, "depth": 2, "classes": 10}},
         "data": {"factory": "lowdimfa.data:digits"}},
    ],
)  # fmt: skip
def test_other_losses_and_tasks_have_none(sections: dict[str, Any], tmp_path: Path) -> None:
    events = fit(tmp_path / "run", **sections)
    for kind, names in (
        ("progress", ("perplexity", "bits_per_byte", "tokens_per_second")),
        ("evaluated", ("test_perplexity", "test_bits_per_byte", "test_tokens")),
    ):
        assert [last(events, kind)[name] for name in names] == [None] * 3


def test_without_bytes_there_are_no_bits_for_each(tmp_path: Path) -> None:
    events = fit(tmp_path / "run", data={"factory": f"{Path(__file__).stem}:silent"})
    assert last(events, "evaluated")["test_bits_per_byte"] is None
    assert last(events, "evaluated")["test_perplexity"] is not None


def test_a_split_that_tells_no_number_of_bytes_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.factory: found a split whose bytes_per_target is -1"):
        fit(tmp_path / "run", data={"factory": f"{Path(__file__).stem}:odd"})
    assert not (tmp_path / "run").exists()
    assert bytes_per_target(WindowSplit(torch.zeros(9, dtype=torch.uint8), 4, 4)) == 1


def test_the_numbers_are_those_of_the_mean_loss() -> None:
    found = Language(True, train_bytes=2.0).trained(3.0, 7, 11.0)
    assert found["perplexity"] == pytest.approx(math.exp(3.0))
    assert found["bits_per_byte"] == pytest.approx(3.0 / math.log(2) / 2)
    assert found["tokens_per_second"] == 11.0


def test_where_nothing_counts_there_is_no_perplexity() -> None:
    language = Language(True, 1.0, 1.0)
    assert set(language.trained(0.0, 0, 0.0).values()) == {None}
    assert set(language.evaluated(Evaluation(samples=3, ignored=3.0)).values()) == {None}


def test_an_infinite_perplexity_is_shown_as_such() -> None:
    assert perplexity(709.0) < math.inf == perplexity(710.0)
    evaluation = Evaluation(loss_sum=2000.0, samples=2, correct=0, counted=2)
    found = Language(True).evaluated(evaluation)
    assert found["test_perplexity"] == math.inf
    event = {"event": "evaluated", "time": 0.0, "step": 3, "test_loss": 1000.0, "test_accuracy": None} | found
    travelled = json.loads(to_json(event))
    by_service = message_to_event(event_to_message(JobEvent(1, travelled)))
    for seen in (event, travelled, by_service):
        stream = io.StringIO()
        with TextDisplay(stream) as display:
            display.show(seen)
        assert stream.getvalue() == "test at step 3: loss 1000.0000, perplexity inf\n"
    assert "test/perplexity" not in dict(scalars(event))


def test_everybody_who_watches_sees_them(tmp_path: Path) -> None:
    events = fit(tmp_path / "run")
    progress, evaluated = last(events, "progress"), last(events, "evaluated")
    stream = io.StringIO()
    with TextDisplay(stream) as display:
        for event in [{"event": "starting"}, *events]:
            display.show(event)
    shown = stream.getvalue()
    assert (
        f"perplexity {progress['perplexity']:,.2f}" in shown
        and " tokens/s" in shown
        and " bits/byte" in shown
    )
    assert shown.count(f"perplexity {evaluated['test_perplexity']:,.2f}") == 2  # evaluated and finished
    tags = {tag for event in events for tag, _ in scalars(event)}
    assert {"train/perplexity", "train/bits_per_byte", "train/tokens_per_second", "test/perplexity"} <= tags
    watch = TrainerWatch("run")
    for event in (progress, evaluated):
        watch.saw(event)
    registry = watch._metrics.registry
    for name, value in {
        "throughput_tokens_per_second": progress["tokens_per_second"],
        "training_perplexity_value": progress["perplexity"],
        "training_bpb_value": progress["bits_per_byte"],
        "test_perplexity_value": evaluated["test_perplexity"],
        "test_bpb_value": evaluated["test_bits_per_byte"],
    }.items():
        assert registry.get_sample_value(f"lowdimfa_trainer_{name}", {"job": "run"}) == value
    for event in (progress, evaluated, last(events, "finished")):
        travelled = json.loads(to_json(event))
        by_service = message_to_event(event_to_message(JobEvent(1, travelled)))
        assert {name: by_service[name] for name in travelled if name in by_service and name != "time"} == {
            name: value for name, value in travelled.items() if name != "time"
        }
    page = write_report(tmp_path / "run").read_text()
    assert "Test perplexity" in page and f"{evaluated['test_perplexity']:,.2f}" in page
    assert "Tokens per second" in page and "bits per byte" in page
