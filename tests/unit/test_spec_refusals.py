"""Every refusal is one `InputError` that names file and key, what was found and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowdimfa.errors import InputError
from lowdimfa.services.spec import load_specification, parse_specification
from lowdimfa.services.spec.dialect import read_yaml

SMALL = "model: {factory: 'a:b', blocks: 2}\ndata: {factory: 'a:c'}\ntrain: {epochs: 1}\n"


def refusal(changes: dict[str, dict[str, Any]]) -> str:
    """Return the message about a small specification with keys of its sections replaced."""
    mapping = read_yaml(SMALL, "text")
    for section, values in changes.items():
        mapping[section] = mapping.get(section, {}) | values
    with pytest.raises(InputError) as caught:
        parse_specification(mapping, "spec.yaml")
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("train", {"epochs": True}, "train.epochs: found true; expected an integer of at least 1 or null."),
        ("train", {"epochs": 1.0}, "train.epochs: found 1.0; expected an integer of at least 1 or null."),
        ("train", {"epochs": None}, "train.epochs: found neither 'epochs' nor 'steps'; expected exactly one"),
        ("train", {"steps": 2}, "train.epochs: found both 'epochs' and 'steps'; expected exactly one of the"),
        ("train", {"batch_size": "3"}, "train.batch_size: found the string '3'; expected an integer of at l"),
        ("train", {"microbatches": 3}, "train.microbatches: found 3; expected a divisor of batch_size (128)"),
        ("train", {"staleness": -1}, "train.staleness: found -1; expected an integer of at least 0."),
        ("train", {"window": 0}, "train.window: found 0; expected an integer of at least 1 or null."),
        ("train", {"grad_clip": 0}, "train.grad_clip: found 0; expected a number above 0 or null."),
        ("train", {"loss": "abc"}, "train.loss: found the string 'abc'; expected 'auto', 'cross_entropy', '"),
        ("train", {"precision": "fp23"}, "train.precision: found the string 'fp23'; expected 'fp32' or 'bf1"),
        ("train", {"optimizer": "sgd"}, "train.optimizer: found the string 'sgd'; expected a mapping with k"),
        ("train", {"scheduler": {}}, "train.scheduler.factory: found nothing; expected an import path such"),
        ("train", {"per_block": {"0": {}}}, "train.per_block.0: found the key '0'; expected a mapping from"),
        ("train", {"per_block": {2: {}}}, "train.per_block.2: found block 2; expected an index from 0 to 1,"),
        ("train", {"per_block": {0: {"lr": 1}}}, "train.per_block.0.lr: found an unknown key; expected one"),
        ("placement", {"replicas": 0}, "placement.replicas: found 0; expected an integer of at least 1 or"),
        ("placement", {"replicas": 2}, "placement.replicas: found 2; expected a divisor of train.microbat"),
        ("placement", {"replicas": {0: "x"}}, "placement.replicas.0: found the string 'x'; expected an in"),
        ("placement", {"replicas": {1: 2}}, "placement.replicas.1: found 2 for the head (block 1); expect"),
        ("placement", {"replicas": {2: 1}}, "placement.replicas.2: found block 2; expected an index below"),
        ("model", {"factory": "cnn"}, "model.factory: found the string 'cnn'; expected an import path such"),
        ("model", {"blocks": 0}, "model.blocks: found 0; expected an integer of at least 1 or a list of lay"),
        ("model", {"blocks": []}, "model.blocks: found an empty list; expected an integer of at least 1 or"),
        ("model", {"blocks": ["a", 2]}, "model.blocks.1: found 2; expected a non-empty string. Quote it if"),
        ("model", {"blocks": ["a", "a"]}, "model.blocks: found 'a' more than once; expected each layer name"),
        ("model", {"args": {1: 2}}, "model.args.1: found the key 1; expected a mapping of arguments by name"),
        ("model", {"args": {"x": [{3}]}}, "model.args.x.0: found {3}; expected a finite number, string, tru"),
        ("model", {"args": {"x": float("nan")}}, "model.args.x: found nan; expected a finite number, string"),
        ("data", {"validation": 1}, "data.validation: found 1; expected a number of at least 0 and below 1."),
        ("feedback", {"eror_dim": 3}, "feedback.eror_dim: found an unknown key; expected one of form, sourc"),
        ("feedback", {"p_lr": True}, "feedback.p_lr: found true; expected a number above 0."),
        ("feedback", {"p_lr": float("inf")}, "feedback.p_lr: found inf; expected a number above 0."),
        ("feedback", {"probe_every": 0}, "feedback.probe_every: found 0; expected an integer of at least 1."),
        ("feedback", {"probe_decay": 1.0}, "feedback.probe_decay: found 1.0; expected a number of at least"),
        (
            "feedback",
            {"own_error": 1.5},
            "feedback.own_error: found 1.5; expected a number of at least 0 and at most 1.",
        ),
        (
            "feedback",
            {"form": "local", "q_rule": "readout"},
            "feedback.q_rule: found 'readout' with form 'loc",
        ),
        ("feedback", {"form": "local", "broadcast": "bf16"}, "feedback.broadcast: found 'bf16' with form 'l"),
        ("feedback", {"form": "local", "error_dim": 3}, "feedback.error_dim: found 3 with form 'local'; exp"),
        ("feedback", {"form": "local", "q_rule": "probed"}, "feedback.q_rule: found 'probed' with form 'loc"),
        ("feedback", {"form": "backprop", "p_rule": "oja"}, "feedback.p_rule: found 'oja' with form 'backpr"),
        ("run", {"timeline": "yes"}, "run.timeline: found the string 'yes'; expected true or false."),
        ("run", {"storage": ""}, "run.storage: found the string ''; expected a non-empty string."),
        ("run", {"on_failure": "retry"}, "run.on_failure: found the string 'retry'; expected 'fail', 're"),
        (
            "drill",
            {"faults": 3},
            "drill.faults: found 3; expected a list of faults, each with keys kind, block and",
        ),
        (
            "drill",
            {"faults": [{"kind": "crash", "block": 9, "step": 3}]},
            "drill.faults.0.block: found 9; expected an index from 0 to ",
        ),
        (
            "drill",
            {"faults": [{"kind": "hang", "block": 0, "step": 3}]},
            "drill.faults.0.seconds: found 0 with kind 'hang'; expected a number above 0",
        ),
        ("placement", {"gpus_per_block": 1.5}, "placement.gpus_per_block: found 1.5; expected a fraction of"),
        (
            "placement",
            {"gpus_per_block": 0.5, "transport": "torch"},
            "placement.transport: found 'torch' with 0.5 of a GPU for each block; expected whole GPUs",
        ),
        ("placement", {"cpus_per_block": {}}, "placement.cpus_per_block: found an empty mapping; expected a"),
    ],
)
def test_message(section: str, values: dict[str, Any], message: str) -> None:
    text = refusal({section: values})
    assert text.startswith(f"spec.yaml: {message}")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("section", "values", "near"),
    [
        ("feedback", {"eror_dim": 3}, "error_dim"),
        ("feedback", {"q_rule": "hebian"}, "hebbian"),
        ("train", {"batchsize": 3}, "batch_size"),
        ("train", {"q_rule": "fixed"}, "feedback.q_rule"),
        ("placement", {"strategy": "pack"}, "PACK"),
    ],
)
def test_the_nearest_right_word_is_named(section: str, values: dict[str, Any], near: str) -> None:
    assert refusal({section: values}).endswith(f"Did you mean {near!r}?")


def test_stale_weights_need_feedback_of_their_own() -> None:
    text = refusal({"feedback": {"form": "backprop"}, "train": {"staleness": 1}})
    assert text.startswith(
        "spec.yaml: train.staleness: found 1 with feedback.form 'backprop'; expected 0, as"
    )


def test_all_that_is_wrong_is_named_unknown_keys_first() -> None:
    text = refusal({"train": {"batch_size": 0}, "data": {"factry": "a:b"}, "feedback": {"tap": 3}})
    assert text.splitlines() == [
        "spec.yaml: data.factry: found an unknown key; expected one of factory, args, validation, last_batch, collate, "
        "workers, prefetch. Did you mean 'factory'? Also wrong:",
        "  spec.yaml: feedback.tap: found 3; expected 'auto', 'identity', 'pooled', 'normalised', 'pooled-normalised', "
        "'grid-normalised', an import path such as 'package.module:Class' or a mapping with keys factory and args. Quote "
        "it if a string is meant.",
        "  spec.yaml: train.batch_size: found 0; expected an integer of at least 1.",
    ]


def test_missing_null_unknown_and_strange_sections() -> None:
    for mapping, message in [
        ({}, "model: found nothing; expected a mapping with keys such as factory, args and blocks."),
        ({"train": None}, "train: found null; expected a mapping with keys such as epochs, steps and batch_"),
        ({"trian": {}}, "trian: found an unknown key; expected one of model, data, feedback, train, run, pl"),
        ({3: {}}, "3: found an unknown key; expected one of model, data, feedback"),
    ]:
        with pytest.raises(InputError) as caught:
            parse_specification(mapping, "job")  # type: ignore[arg-type]
        assert f"job: {message}" in str(caught.value)
    with pytest.raises(InputError, match=r"^job: found the string 'text'; expected a mapping"):
        parse_specification("text", "job")  # type: ignore[arg-type]


def test_a_value_that_contains_itself() -> None:
    args: dict[str, Any] = {}
    args["x"] = args
    assert "model.args.x.x: found a value that contains itself" in refusal({"model": {"args": args}})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "--set train.epochs: found no key and value; expected a setting such as train.step"),
        ("=3", "--set =3: found no key and value"),
        ("train..epochs=3", "--set train..epochs=3: found no key and value"),
        ("train.epocs=3", "--set train.epocs: found an unknown key; expected one of epochs, steps,"),
        ("trin.epochs=3", "--set trin: found an unknown key; expected one of model, data,"),
        ("train.optimizer.lr=3", "--set train.optimizer.lr: found an unknown key; expected one of factory,"),
        ("train.epochs.x=3", "--set train.epochs.x: found 1 at train.epochs; expected an integer of at leas"),
        ("model.factory.x=3", "--set model.factory.x: found the string 'a:b' at model.factory; expected an"),
        ("train.epochs='2'", "--set train.epochs: found the string '2'; expected an integer of at least 1 o"),
        ("train.epochs=null", "--set train.epochs: found neither 'epochs' nor 'steps'; expected exactly one"),
        ("train.epochs=[", "--set train.epochs, line 1: found YAML that can't be read"),
        ("train.per_block.5.grad_clip=1", "--set train.per_block.5: found block 5; expected an index from 0"),
    ],
)
def test_overrides_are_refused_by_their_own_name(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SMALL, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_specification(path, [override])
    assert str(caught.value).startswith(message)


def test_errors_of_the_file_are_not_blamed_on_overrides(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SMALL.replace("epochs: 1", "epochs: 0"), encoding="utf-8")
    with pytest.raises(InputError, match=r"spec\.yaml: train\.epochs: found 0"):
        load_specification(path, ["train.batch_size=64"])


def test_replicas_that_rejoin_are_refused_with_what_to_use() -> None:
    changes = {
        "placement": {"replicas": 2},
        "run": {"on_failure": "rejoin"},
        "train": {"microbatches": 4},
    }
    message = refusal(changes)
    assert "run.on_failure: found 'rejoin' with more than one replica of a block" in message
    assert "expected 'restart' or 'fail'" in message


def test_a_fault_of_a_replica_that_is_not_there_is_refused() -> None:
    fault = {"kind": "crash", "block": 0, "replica": 1, "step": 0}
    assert "drill.faults.0.replica: found 1; expected a number below 1" in refusal(
        {"drill": {"faults": [fault]}}
    )
