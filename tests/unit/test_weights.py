"""Weights with which a run begins: those of the files and no others, or a refusal that says what doesn't fit."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowdimfa.errors import InputError
from lowdimfa.services.run.model import build_model
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.run.tensor_files import TensorFiles
from lowdimfa.services.run.weights import Origin, Weights
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer

CLASSES = 3


def data() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, generator=generator)
    targets = torch.randint(CLASSES, (40,), generator=generator)
    return inputs[:32], targets[:32], inputs[32:], targets[32:]


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES))


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(CLASSES))


def tied() -> nn.Sequential:
    shared = nn.Linear(6, 6)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(6, CLASSES))


class Refusing(nn.Linear):
    def _load_from_state_dict(self, *args: Any) -> None:
        raise RuntimeError("not like this")


def refusing() -> nn.Sequential:
    return nn.Sequential(Refusing(6, 5), nn.Linear(5, CLASSES))


def specification(weights: Any, factory: str = "plain", **sections: Any) -> dict[str, Any]:
    here = Path(__file__).stem
    given = {
        "model": {"factory": f"{here}:{factory}", "blocks": 2, "weights": weights},
        "data": {"factory": f"{here}:data"},
        "train": {"steps": 4, "batch_size": 8},
        "run": {"tensorboard": False, "timeline": False},
    }
    for section, values in sections.items():
        given[section] = given.get(section, {}) | values
    return given


def state(make: Callable[[], nn.Module] = plain, seed: int = 7) -> dict[str, Tensor]:
    """Return a state with nothing in it that a new network has."""
    torch.manual_seed(seed)
    model = make()
    if make is lazy:
        model(torch.zeros(4, 6))
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.randn(value.shape) if value.is_floating_point() else torch.tensor(3))
    return {name: value.clone() for name, value in model.state_dict().items()}


def begun(given: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """Return the state with which a run begins."""
    plan = make_run_plan(parse_specification(given, "test"), **options)
    return {
        name: value
        for block in plan.network.blocks
        for name, value in block.build().plain_state_dict().items()
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


@pytest.mark.parametrize("factory", ["plain", "lazy"])
def test_a_run_begins_with_the_bits_of_a_file(factory: str, tmp_path: Path) -> None:
    saved = state(globals()[factory])
    save_file(saved, tmp_path / "any name")
    assert_same(begun(specification(str(tmp_path / "any name"), factory)), saved)


@pytest.mark.parametrize("index", [False, True])
def test_a_folder_of_several_files(index: bool, tmp_path: Path) -> None:
    saved = state()
    shards = {"a.safetensors": {}, "b.safetensors": {}}
    for number, (name, value) in enumerate(sorted(saved.items())):
        shards[f"{'ab'[number % 2]}.safetensors"][name] = value
    for file, tensors in shards.items():
        save_file(tensors, tmp_path / file)
    if index:
        save_file({"other": torch.zeros(1)}, tmp_path / "z.safetensors")  # which the index doesn't name
        places = {name: file for file, tensors in shards.items() for name in tensors}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(begun(specification(str(tmp_path))), saved)


def test_a_process_reads_its_own_block_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(state(), tmp_path / "w")
    given = specification(str(tmp_path / "w"))
    plan = make_run_plan(parse_specification(given, "test"))
    read: list[str] = []
    before = TensorFiles.read
    monkeypatch.setattr(TensorFiles, "read", lambda self, names: read.extend(names) or before(self, names))
    weights = Weights.of(plan.specification, plan.network.weights)
    assert weights is not None
    weights.load(plan.network.blocks, own=1)
    assert sorted(read) == sorted(plan.network.blocks[1].build().plain_state_dict())


def test_narrower_numbers_are_taken_where_none_is_lost(tmp_path: Path) -> None:
    saved = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in state().items()
    }
    save_file(saved, tmp_path / "w")
    found = begun(specification(str(tmp_path / "w")))
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    assert_same({name: value.to(saved[name].dtype) for name, value in found.items()}, saved)
    save_file(state() | {"0.bias": torch.zeros(5, dtype=torch.float64)}, tmp_path / "w")
    with pytest.raises(InputError, match=r"0\.bias of shape \(5,\) and type float64 .* type float32"):
        begun(specification(str(tmp_path / "w")))


def test_a_new_head_begins_as_the_factory_makes_it_and_old_parts_may_be_left(tmp_path: Path) -> None:
    saved = state() | {"3.weight": torch.zeros(9, 5), "old.weight": torch.zeros(2)}
    save_file(saved, tmp_path / "w")
    weights = {"path": str(tmp_path / "w"), "missing": ["3.*"], "unexpected": ["old.*"]}
    found, drawn = begun(specification(weights)), begun(specification(None))
    body = {name: value for name, value in saved.items() if not name.startswith(("3", "old"))}
    assert_same(found, body | {name: drawn[name] for name in ("3.weight", "3.bias")})
    with pytest.raises(
        InputError, match=r"model\.weights: found old\.weight in .*model\.weights\.unexpected"
    ):
        begun(specification(weights | {"unexpected": []}))
    with pytest.raises(
        InputError, match=r"model\.weights\.missing: found the pattern 'head\.\*'.*'0\.weight'"
    ):
        begun(specification(weights | {"missing": ["head.*"]}))


def test_one_name_of_a_tied_tensor_is_enough_and_two_must_agree(tmp_path: Path) -> None:
    saved = state(tied)
    del saved["0.weight"], saved["0.bias"]
    save_file(saved, tmp_path / "w")
    given = specification(str(tmp_path / "w"), "tied", model={"blocks": ["3"]})
    assert torch.equal(begun(given)["0.weight"], saved["2.weight"])
    save_file(saved | {"0.weight": saved["2.weight"] + 1, "0.bias": saved["2.bias"].clone()}, tmp_path / "w")
    with pytest.raises(InputError, match=r"0\.weight and 2\.weight with different values"):
        begun(given)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"0.weight": 1}))


def folder_of_pickles(path: Path) -> None:
    path.mkdir()
    pickled(path / "pytorch_model.bin")


def twice(path: Path) -> None:
    path.mkdir()
    for name in "ab":
        save_file(state(), path / f"{name}.safetensors")


def index_of(places: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        save_file(state(), path / "a.safetensors")
        (path / "a.safetensors.index.json").write_text(json.dumps(places))

    return make


def of(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    return lambda path: save_file(change(state()), path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, r"no .*w\.bin on .*every node"),
        (pickled, r"w\.bin, which can't be read .* never|w\.bin, which can't be read .*save_file"),
        (folder_of_pickles, r"no safetensors file in .* \(it has pytorch_model\.bin\).*save_file"),
        (lambda path: path.mkdir(), r"no safetensors file in .*w\.bin; expected"),
        (twice, r"0\.bias in both a\.safetensors and b\.safetensors"),
        (index_of({}), "which is no index"),
        (index_of({"weight_map": {"0.weight": "../a.safetensors"}}), r"the file '\.\./a\.safetensors'"),
        (index_of({"weight_map": {"x": "a.safetensors"}}), r"a\.safetensors without x"),
        (index_of({"weight_map": {"x": "b.safetensors"}}), r"b\.safetensors, which can't be read"),
        (of(lambda s: s | {"3.bias": torch.zeros(4)}), r"3\.bias of shape \(4,\) .*shape \(3,\)"),
        (of(lambda s: s | {"3.bias": torch.zeros(3).long()}), r"3\.bias of shape \(3,\) and type int64"),
        (
            of(lambda s: {n: v for n, v in s.items() if n != "1.running_var"}),
            r"without 1\.running_var; expected",
        ),
        (
            of(lambda s: {f"module.{n}": v for n, v in s.items()}),
            r"without 0\.weight.* and 4 more; it has module\.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_found(
    make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    make(tmp_path / "w.bin")
    with pytest.raises(InputError, match=words) as caught:
        begun(specification(str(tmp_path / "w.bin")))
    assert caught.value.message.startswith("model.weights: found ") and caught.value.exit_code == 2


def test_a_layer_that_refuses_its_weights_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(refusing().state_dict(), tmp_path / "w")
    with pytest.raises(InputError, match=r"layer '0' that doesn't take its weights .*not like this"):
        begun(specification(str(tmp_path / "w"), "refusing"))


def test_another_process_must_find_what_the_trainer_found(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w")
    parsed = parse_specification(specification(str(tmp_path / "w")), "test")
    first = Weights.of(parsed)
    assert first is not None and Weights.of(parsed, first.origin) is not None
    save_file(state(seed=8), tmp_path / "w")
    with pytest.raises(InputError, match=r"other contents of .*/w on .* than the trainer's"):
        Weights.of(parsed, first.origin)
    with pytest.raises(InputError, match="no /nowhere on "):
        Weights.of(parsed, Origin("/nowhere", ""))


def test_a_resumed_run_takes_the_checkpoint_and_needs_no_file(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w")
    given = specification(str(tmp_path / "w"), run={"checkpoint_every": 2, "keep": 9})
    whole = DecoupledTrainer(given, engine="local", run_dir=tmp_path / "run").fit()
    (tmp_path / "w").unlink()
    again = DecoupledTrainer(given, engine="local", run_dir=tmp_path / "run", resume_step=2).fit()
    assert again.metrics["test_loss"] == whole.metrics["test_loss"]


def test_a_relative_path_is_that_of_whoever_starts_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(state(), "w")
    trainer = DecoupledTrainer(specification({"path": "w", "missing": ["3.*"]}), engine="local")
    weights = trainer.specification.model.weights_section
    assert weights is not None
    assert (weights.path, weights.missing) == (str(tmp_path / "w"), ["3.*"])


def test_what_is_loaded_is_what_plain_torch_loads(tmp_path: Path) -> None:
    saved = state()
    save_file(saved, tmp_path / "w")
    parsed = parse_specification(specification(str(tmp_path / "w")), "test")
    model = build_model(parsed)
    model.load_state_dict(saved)
    assert_same(begun(specification(str(tmp_path / "w"))), dict(model.state_dict()))
