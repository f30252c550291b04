"""Networks of Hugging Face that no single process holds come back as a folder, and are evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_hugging_face_runs import LLAMA, NETWORKS, export, fit, inputs, transformers
from test_sparse import counted_memory
from torch import Tensor

from lowdimfa import sparse
from lowdimfa.models.hf import saving
from lowdimfa.services.run import in_turn, large, plan
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.pretrained import export_folder
from lowdimfa.services.trainer import evaluate, evaluate_in_turn
from lowdimfa.services.trainer.run_dir import read_run


def no_process_holds_it(patch: pytest.MonkeyPatch) -> None:
    """Take every network for a large one, and every layer for as much as a file may have."""
    patch.setattr(large, "LARGE", 0)
    patch.setattr(sparse, "SMALLEST", 256)
    patch.setattr(in_turn, "PIECE", 0)
    patch.setattr(saving, "PART", 1)


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        read = load_file(file)
        assert not found.keys() & read.keys()
        found |= read
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    alike = one.keys() == other.keys()
    return alike and all(v.dtype == other[n].dtype and torch.equal(v, other[n]) for n, v in one.items())


EXPERTS = {
    "config": LLAMA | {"model_type": "mixtral", "num_local_experts": 3},
    "layers": {"before": ["model.embed_tokens"], "list": "model.layers", "after": ["model.norm", "lm_head"]},
}
"""Which the library keeps in files one by one, and in memory together."""


@pytest.mark.parametrize("name", [*NETWORKS, "experts"])
def test_a_folder_in_parts_has_what_the_library_itself_writes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "experts", (EXPERTS, *NETWORKS["llama"][1:]))
    fit(name, tmp_path / "run", steps=12)
    assert export(tmp_path / "run", tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patch:
        no_process_holds_it(patch)
        outcome = export(tmp_path / "run", tmp_path / "parts")
    assert outcome.exit_code == 0, outcome.output
    assert [path.name for path in (tmp_path / "whole").glob("*.safetensors*")] == ["model.safetensors"]
    names = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert names == [f"model-{part:05}-of-00005.safetensors" for part in range(1, 6)]  # one for each layer
    for beside in ("config.json", "generation_config.json"):
        one, other = (tmp_path / folder / beside for folder in ("whole", "parts"))
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_text() == other.read_text()
    kind = getattr(transformers, NETWORKS[name][2])
    networks = []
    for folder in ("whole", "parts"):
        network, loading = kind.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(loading.values())
        networks.append(network)
        # Of what it has loaded, the library says itself under which names and of which types it is kept.
        network.save_pretrained(tmp_path / "again")
        assert same(weights(tmp_path / folder), weights(tmp_path / "again"))
    one, other = (network(inputs(name)).logits for network in networks)
    assert torch.equal(one, other)
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == weights(tmp_path / "parts").keys()
    sizes = [value.nbytes for value in weights(tmp_path / "parts").values()]
    assert index["metadata"]["total_size"] == sum(sizes)


def test_an_average_comes_in_parts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit("bert", tmp_path / "run", steps=12, average={"decay": 0.9})
    specification, manifest = read_run(tmp_path / "run"), CheckpointStore(tmp_path / "run").load(None)
    export_folder(specification, manifest, tmp_path / "whole", average=True)
    export_folder(specification, manifest, tmp_path / "weights")
    no_process_holds_it(monkeypatch)
    export_folder(specification, manifest, tmp_path / "parts", average=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "weights"))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Give a run of a network each of whose ten blocks is about a tenth of it, and the bytes of the whole."""
    config = LLAMA | {"num_hidden_layers": 10, "hidden_size": 256, "intermediate_size": 512}
    run, sgd = tmp_path_factory.mktemp("deep"), {"factory": "torch.optim.SGD", "args": {"lr": 0.1}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "deep", ({"config": config}, *NETWORKS["llama"][1:]))
        fit("deep", run, steps=1, blocks=10, optimizer=sgd)
    kept = CheckpointStore(run).load(None).tensors(lambda name: name.startswith("model/"))
    return run, sum(value.nbytes for value in kept.values())


def test_an_export_has_memory_for_a_part(
    deep: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, nbytes = deep
    specification, manifest = read_run(run), CheckpointStore(run).load(None)
    with pytest.raises(AssertionError), counted_memory(nbytes // 2):
        export_folder(specification, manifest, tmp_path / "whole")
    no_process_holds_it(monkeypatch)
    with counted_memory(nbytes // 2):
        export_folder(specification, manifest, tmp_path / "parts")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.parametrize("waiting", [1 << 30, 1])
def test_an_evaluation_in_turn_is_that_of_the_whole(
    waiting: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with an average of weights and a metric of several batches, which wait for a block together or alone."""
    monkeypatch.setattr(plan, "_EVALUATION_NUMBERS", 1)
    monkeypatch.setattr(evaluate_in_turn, "WAITING", waiting)
    metrics = {"spread": {"factory": f"{__name__}:spread"}}
    fit("bert", tmp_path / "run", steps=6, average={"decay": 0.9}, metrics=metrics)
    expected = evaluate.evaluate_run(tmp_path / "run")
    assert expected["samples"] > 16 and expected["metrics"]["spread"] > 0
    no_process_holds_it(monkeypatch)
    monkeypatch.delattr(evaluate, "LocalEngine")
    assert evaluate.evaluate_run(tmp_path / "run") == expected


def spread(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.std()


def test_an_evaluation_has_memory_for_a_block(
    deep: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, nbytes = deep
    with pytest.raises(AssertionError), counted_memory(nbytes * 2 // 3):
        expected = evaluate.evaluate_run(run)
    no_process_holds_it(monkeypatch)
    with counted_memory(nbytes * 2 // 3):
        found = evaluate.evaluate_run(run)
    assert found == expected
