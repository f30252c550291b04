"""Loading: YAML's numbers and duplicates, overrides, round trips, examples."""

from __future__ import annotations

import inspect
import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lowdimfa.errors import InputError
from lowdimfa.imports import resolve
from lowdimfa.services.run.training import training_config
from lowdimfa.services.spec import load_specification, parse_specification, to_yaml
from lowdimfa.services.spec.dialect import read_yaml, write_yaml
from lowdimfa.services.spec.load import indexed, violations
from lowdimfa.services.spec.schema import BestSection

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = "model: {factory: 'a:b', blocks: 2}\ndata: {factory: 'a:c'}\ntrain: {epochs: 1}\n"

names = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)
paths = st.builds("{}.{}:{}".format, names, names, names)
counts = st.integers(1, 10**9)
rates = st.floats(1e-30, 1e30)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
args = st.dictionaries(st.text(), plain, max_size=3)
factories = st.fixed_dictionaries({"factory": paths}, optional={"args": args})
blocks = counts | st.lists(st.text(min_size=1), min_size=1, unique=True)


@st.composite
def train_sections(draw: st.DrawFn) -> dict[str, Any]:
    microbatches = draw(st.integers(1, 50))
    section = {
        draw(st.sampled_from(["epochs", "steps"])): draw(counts),
        "microbatches": microbatches,
        "batch_size": microbatches * draw(st.integers(1, 50)),
    }
    override = st.fixed_dictionaries({}, optional={"optimizer": factories, "grad_clip": rates})
    optional = {
        "loss": st.sampled_from(["auto", "mse"]) | paths,
        "window": st.none() | counts,
        "staleness": st.integers(0, 5),
        "optimizer": factories,
        "scheduler": st.none() | factories,
        "grad_clip": st.none() | rates,
        "per_block": st.dictionaries(st.just(0), override),
    }
    return section | draw(st.fixed_dictionaries({}, optional=optional))


specifications = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries({"factory": paths, "blocks": blocks}, optional={"args": args}),
        "data": factories,
        "train": train_sections(),
    },
    optional={
        "feedback": st.fixed_dictionaries(
            {}, optional={"error_dim": counts, "p_lr": rates, "q_rule": st.sampled_from(["fixed", "probed"])}
        ),
        "run": st.fixed_dictionaries(
            {},
            optional={"storage": st.text(min_size=1), "timeline": st.booleans(), "liveness_seconds": rates},
        ),
        "placement": st.fixed_dictionaries({}, optional={"gpus_per_block": st.sampled_from([0, 0.5, 2])}),
    },
)


MINIMAL = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 8, "depth": 3, "classes": 10},
        "blocks": 3,
    },
    "data": {"factory": "lowdimfa.data:digits"},
}


def write(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@given(specifications)
def test_resolved_yaml_loads_back_equal(mapping: dict[str, Any]) -> None:
    before = deepcopy(mapping)
    spec = parse_specification(mapping, "generated")
    assert mapping == before
    text = to_yaml(spec)
    again = parse_specification(read_yaml(text, "resolved"), "resolved")
    assert again == spec
    assert to_yaml(again) == text


@given(plain)
@example("a\x85b\u2028")
@example({"1e-3": ["1e-3", 1e-3, "=", "<<", "", " x", "yes", "0x1f", "2024-01-31"]})
def test_the_dialect_keeps_values_and_their_types(value: Any) -> None:
    assert repr(read_yaml(write_yaml(value), "text")) == repr(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("3e-4", 3e-4),
        ("-2E5", -2e5),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("1_000.5", 1000.5),
        ("-.inf", -math.inf),
        ("12", 12),
        ("60_000", 60000),
        ("2024-01-31", "2024-01-31"),
        ("'1e-3'", "1e-3"),
        ("e3", "e3"),
        ("1e", "1e"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    read = read_yaml(text, "text")
    assert read == value
    assert type(read) is type(value)


def test_exponents_are_numbers_everywhere(tmp_path: Path) -> None:
    text = SMALL.replace("epochs: 1", "epochs: 1, optimizer: {args: {lr: 3e-4, betas: [9e-1, 0.95]}}")
    spec = load_specification(write(tmp_path, text + "feedback: {p_lr: 1e-3}\n"), ["model.args.scale=1e-3"])
    assert spec.feedback.p_lr == 1e-3
    assert spec.train.optimizer.args == {"lr": 3e-4, "betas": [0.9, 0.95]}
    assert spec.model.args == {"scale": 1e-3}


def test_merge_keys_may_repeat_a_key() -> None:
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\n"
    assert read_yaml(text, "text") == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 2, "y": 3}}


def test_overrides_replace_add_and_nest_in_order(tmp_path: Path) -> None:
    overrides = [
        "model.args.channels=[16, 32]",
        "model.args.inner.flag=true",
        "train.epochs=",
        "train.steps=5",
        "train.steps=7",
        "train.per_block.1.optimizer.args.lr=1e-2",
        "train.scheduler.factory=a:schedule",
        "run.storage=a=b",
    ]
    spec = load_specification(write(tmp_path, SMALL), overrides)
    assert spec.model.args == {"channels": [16, 32], "inner": {"flag": True}}
    assert (spec.train.epochs, spec.train.steps) == (None, 7)
    assert spec.train.for_block(1).optimizer.args == {"lr": 1e-2}
    assert spec.train.for_block(0).optimizer == spec.train.optimizer
    assert spec.train.for_block(1).scheduler == spec.train.scheduler is not None
    assert spec.run.storage == "a=b"


def test_an_override_of_a_shared_mapping_changes_one_place(tmp_path: Path) -> None:
    text = "model: {factory: 'a:b', blocks: 2, args: &shared {n: 1}}\ndata: {factory: 'a:c', args: *shared}\n"
    spec = load_specification(write(tmp_path, text + "train: {steps: 1}\n"), ["model.args.n=2"])
    assert (spec.model.args, spec.data.args) == ({"n": 2}, {"n": 1})


def test_defaults_and_derived_values() -> None:
    minimal = {"model": {"factory": "a:b", "blocks": ["x", "y"]}, "data": {"factory": "a:c"}}
    spec = parse_specification(
        minimal | {"train": {"steps": 1, "microbatches": 4, "staleness": 1}}, "spec.yaml"
    )
    assert spec.model.block_count == 3
    assert spec.train.effective_window == 8
    assert (spec.train.optimizer.factory, spec.train.optimizer.args) == ("torch.optim.AdamW", {"lr": 0.001})
    given = parse_specification(minimal | {"train": {"steps": 1, "window": 3}}, "spec.yaml")
    assert given.train.effective_window == 3


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_examples_load_and_their_factories_take_the_arguments(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(path.parent))
    spec = load_specification(path)
    for section in (spec.model, spec.data):
        inspect.signature(resolve(section.factory, "factory")).bind(**section.args)
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert parse_specification(read_yaml(to_yaml(spec), "resolved"), "resolved") == spec


def test_a_specification_does_not_change() -> None:
    spec = parse_specification(read_yaml(SMALL, "text"), "text")
    with pytest.raises(ValueError, match="frozen"):
        spec.train.epochs = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "spec.yaml: found nothing; expected a mapping with keys model, data and train"),
        (b"- 1", "spec.yaml: found the list [1]; expected a mapping"),
        (b"model:\n  blocks: [1\n", "spec.yaml, line 3: found YAML that can't be read"),
        (b"a: 1\nb: 2\na: 3\n", "spec.yaml, line 3: found YAML that can't be read (the key 'a' comes twice)"),
        (b"a:\n  x: 1\n  x: 2\n", "spec.yaml, line 3: found YAML that can't be read (the key 'x' comes twic"),
        (b"a: 1\nb: !!int many\n", "spec.yaml, line 2: found YAML that can't be read (a value that does not"),
        (b"a: !!python/name:os.system\n", "spec.yaml, line 1: found YAML that can't be read (could not dete"),
        (b"a: \x07\n", "spec.yaml: found YAML that can't be read (unacceptable character"),
        (b"a: " + b"[" * 500, "spec.yaml: found YAML that can't be read (maximum recursion depth"),
        (b"a: \xff\n", "spec.yaml: found a file that is not UTF-8 text; expected a YAML file"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_specification(path)
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: found a file that can't be read \(no such file"):
        load_specification(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a directory"):
        load_specification(tmp_path)


def test_violations_name_every_key_and_nothing_for_a_good_specification() -> None:
    good = "model: {factory: a.b, blocks: 2}\ndata: {factory: a.c}\ntrain: {steps: 3}\n"
    assert violations(good) == []
    found = dict(violations(good.replace("steps: 3", "steps: x, lr: 1").replace("blocks: 2", "blocks: 0")))
    assert set(found) == {"train.steps", "train.lr", "model.blocks"}
    assert "an unknown key" in found["train.lr"]
    for text in ("", "- 1", "a: [", "a: 1\na: 2"):
        ((key, words),) = violations(text)
        assert key == "" and words


def test_replicas_are_a_number_for_all_blocks_but_the_head_or_one_for_some(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "model: {factory: 'a:b', blocks: 3}\ndata: {factory: 'a:c'}\ntrain: {epochs: 1, microbatches: 4}\n"
    )
    assert load_specification(path).replicas == [1, 1, 1]
    for_all = load_specification(path, ["placement.replicas=4"])
    assert (for_all.replicas, for_all.workers) == ([4, 4, 1], 9)
    for_some = load_specification(path, ["placement.replicas.1=2"])
    assert (for_some.replicas, for_some.workers) == ([1, 2, 1], 4)
    for_first = load_specification(path, ["placement.replicas.0=2", "placement.threads_per_block.0=3"])
    assert for_first.replicas == [2, 1, 1]
    assert [for_first.placement.threads_of(block) for block in range(3)] == [3, 1, 1]


def test_indexes_of_blocks_come_back_from_json() -> None:
    """The agent of a service gets its requests so."""
    plain = {
        **MINIMAL,
        "train": {"steps": 1, "microbatches": 2, "batch_size": 4, "per_block": {0: {"grad_clip": 1.0}}},
        "placement": {"replicas": {0: 2}, "threads_per_block": {1: 2}},
    }
    dumped = parse_specification(plain, "test").model_dump()
    text = json.loads(json.dumps(dumped))
    with pytest.raises(InputError, match="the key '0'"):
        parse_specification(text, "test")
    assert parse_specification(indexed(text), "test").model_dump() == dumped


def test_an_optimiser_of_one_block_is_that_of_all_if_it_names_none() -> None:
    train = {
        "steps": 1,
        "optimizer": {"factory": "torch.optim.SGD", "args": {"lr": 0.1}},
        "per_block": {
            0: {"optimizer": {"args": {"lr": 0.2}}},
            1: {"optimizer": {"factory": "torch.optim.Adam"}},
        },
    }
    found = parse_specification({**MINIMAL, "train": train}, "test").train
    assert [found.for_block(index).optimizer.factory for index in range(3)] == [
        "torch.optim.SGD",
        "torch.optim.Adam",
        "torch.optim.SGD",
    ]
    assert found.for_block(0).optimizer.args == {"lr": 0.2}
    dumped = parse_specification({**MINIMAL, "train": train}, "test").model_dump()
    other = parse_specification(dumped, "test", {"train.optimizer.factory": "torch.optim.RMSprop"}).train
    assert other.for_block(0).optimizer.factory == "torch.optim.RMSprop"
    training = training_config(parse_specification(dumped, "test"), 1)
    assert [training.update_of(index).optimizer.name for index in range(3)] == [
        "torch.optim.SGD",
        "torch.optim.Adam",
        "torch.optim.SGD",
    ]
    wrong = {"train.per_block.0.optimizer.args": {"betas": [0.1, 0.2]}}
    with pytest.raises(InputError, match=r"train\.per_block\.0\.optimizer\.args"):
        parse_specification(dumped, "test", wrong)


def test_what_is_better_is_known_of_the_numbers_of_every_evaluation() -> None:
    for metric, less in (("test_accuracy", False), ("test_loss", True), ("test_perplexity", True)):
        assert BestSection(metric=metric).less_is_better is less
    assert BestSection(metric="test_accuracy", mode="min").less_is_better
    with pytest.raises(InputError, match=r"run\.keep_best\.mode: found 'auto' for the metric 'f1'"):
        parse_specification(
            {
                **MINIMAL,
                "train": {"steps": 1, "metrics": {"f1": "torchmetrics:F1Score"}},
                "run": {"keep_best": {"metric": "f1"}},
            },
            "test",
        )


@pytest.mark.parametrize("name", ["loss", "accuracy", "perplexity", "bits_per_byte", "test_loss"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_metric_that_trackers_would_take_for_the_runs_own_is_refused(name: str, listed: bool) -> None:
    path = f"my_metrics:{name}"
    metrics = [path] if listed else {name: "my_metrics:mine"}
    with pytest.raises(InputError, match=rf"train\.metrics: found the name '{name}'.*a name of its own"):
        parse_specification({**MINIMAL, "train": {"steps": 1, "metrics": metrics}}, "test")
    parse_specification({**MINIMAL, "train": {"steps": 1, "metrics": {"balanced": path}}}, "test")
