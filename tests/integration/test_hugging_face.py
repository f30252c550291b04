"""Networks of Hugging Face in layers: what they compute, how they begin, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face import (
    AUTO,
    BERT,
    CASES,
    DECODER,
    GPT2,
    LLAMA,
    OPT,
    ROBERTA,
    Case,
    inputs,
    original,
    transformers,
)
from torch import nn

from lowdimfa.errors import InputError
from lowdimfa.layers import list_layers
from lowdimfa.models import hugging_face
from lowdimfa.models.hf.saving import save_pretrained

NO_DROPOUT = dict.fromkeys(
    (
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "attention_dropout",
        "dropout",
        "hidden_dropout",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
    ),
    0.0,
)


def made(case: Case, **changes: Any) -> Any:
    torch.manual_seed(0)
    return hugging_face(config=case.config | changes, task=case.task, layers=case.layers)


def pair(case: Case, **changes: Any) -> tuple[Any, Any]:
    case = replace(case, config=case.config | changes)
    return original(case), made(case)


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        (name, kind)
        for name, case in CASES.items()
        for kind in ("sdpa", "eager")
        if case.sdpa or kind == "eager"
        if (name, kind) != ("falcon, alibi", "eager")  # another function, and refused
    ],
)
def test_logits_are_those_of_the_original(name: str, attention: str) -> None:
    case = CASES[name]
    whole, network = pair(case, attn_implementation=attention)
    given = inputs(case)
    for mode in (False, True):
        whole.train(mode)
        network.train(mode)
        for some in ({}, *({side: given[side]} for side in case.sides), given):
            first = {key: given[key] for key in given if key in ("input_ids", "pixel_values")} | some
            torch.manual_seed(3)  # of dropout, which draws in the same order
            expected = whole(**first).logits
            torch.manual_seed(3)
            torch.testing.assert_close(network.run(**first), expected)


@pytest.mark.parametrize("name", CASES)
def test_in_bfloat16_logits_are_near_those_of_the_original(name: str) -> None:
    case = CASES[name]
    whole, network = pair(case, **NO_DROPOUT)
    with torch.autocast("cpu", torch.bfloat16):
        expected = whole(**inputs(case)).logits.float()
        found = network.run(**inputs(case)).float()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_original(name: str) -> None:
    case = CASES[name]
    whole, network = pair(case, tie_word_embeddings=False)
    whole.eval()
    network.eval()
    whole(**inputs(case)).logits.square().sum().backward()
    network.run(**inputs(case)).square().sum().backward()
    expected = {key: p.grad for key, p in whole.named_parameters() if p.grad is not None}
    layers = list(network)
    found = {key: p.grad for layer in layers for key, p in layer.named_parameters() if p.grad is not None}
    assert expected.keys() == found.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_first_weights_are_those_of_the_original_and_belong_to_one_layer(name: str) -> None:
    whole, network = pair(CASES[name])
    assert network.original_state().keys() == whole.state_dict().keys()
    for key, value in whole.state_dict().items():
        assert torch.equal(network.original_state()[key], value), key
    layers = list_layers(network)
    assert [layer.name for layer in layers] == ["embedding", *(f"layer_{i}" for i in range(3)), "output"]
    owned = [
        id(tensor) for layer in layers for tensor in (*layer.module.parameters(), *layer.module.buffers())
    ]
    assert len(owned) == len(set(owned))


@pytest.mark.parametrize("name", CASES)
def test_layers_can_be_copied_and_pickled(name: str) -> None:
    case = CASES[name]
    network = made(case).eval()
    expected = network.run(**inputs(case))
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(again.run(**inputs(case)), expected)


def test_an_output_for_each_token_is_made_position_by_position() -> None:
    for name, case in CASES.items():
        output: Any = pair(case)[1].output
        by_position = getattr(output, "by_position", False)
        assert by_position == case.task.endswith("-lm"), name
        if by_position:
            hidden = torch.randn(2, 5, 16)
            torch.testing.assert_close(output.eval()(hidden).flatten(0, 1), output(hidden.flatten(0, 1)))


def test_what_padding_holds_changes_nothing() -> None:
    for name in ("gpt2", "llama", "bert"):
        case = CASES[name]
        network, given = made(case).eval(), inputs(case)
        other = given["input_ids"].clone()
        other[given["attention_mask"] == 0] = 9
        kept = given["attention_mask"].bool()
        before, after = network.run(**given), network.run(**given | {"input_ids": other})
        torch.testing.assert_close(before[kept], after[kept])
        without = {"input_ids": given["input_ids"]}
        assert not torch.allclose(network.run(**without)[1], before[1], atol=1e-5)


def test_tied_weights_are_two_with_the_same_start_and_are_told_of() -> None:
    network = made(CASES["gpt2"])
    first, last = network.embedding.transformer.wte.weight, network.output.lm_head.weight
    assert first is not last and torch.equal(first, last)
    assert "lm_head.weight is tied to transformer.wte.weight" in network.output.notice
    assert network.config.tie_word_embeddings is False
    assert made(CASES["llama"]).output.notice == ""


def refused(message: str, **arguments: Any) -> None:
    with pytest.raises(InputError) as caught:
        hugging_face(**arguments)
    assert message in caught.value.message, caught.value.message


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("model.args: found neither config nor path", {}),
        ("model.args: found both config and path", {"config": GPT2, "path": "."}),
        ("model.args.config: found no model_type", {"config": {"n_layer": 3}}),
        ("model.args.config: found the model_type 'gpt9'", {"config": {"model_type": "gpt9"}}),
        ("model.args.config: found a configuration that gpt2 refuses", {"config": GPT2 | {"n_layer": "x"}}),
        (
            "model.args.config: found a configuration of which GPT2LMHeadModel",
            {"config": GPT2 | {"n_head": 3}},
        ),
        ("model.args.config: found no nowhere.json", {"config": "nowhere.json"}),
        (
            "model.args.config: found attn_implementation",
            {"config": GPT2 | {"attn_implementation": "flash_attention_2"}},
        ),
        (
            "model.args.config: found quantised weights",
            {"config": GPT2 | {"quantization_config": {"bits": 4}}},
        ),
        (
            "model.args.task: found 'masked-lm' with a gpt2; expected causal-lm",
            {"config": GPT2, "task": "masked-lm"},
        ),
        ("model.args.tied: found 'refuse', with lm_head.weight tied to", {"config": GPT2, "tied": "refuse"}),
        ("model.args.path: found 'nowhere', where no folder is", {"path": "nowhere"}),
        (
            "model.args.config.layerdrop: found 0.1, by which blocks are left out at random",
            {"config": OPT | {"layerdrop": 0.1}},
        ),
        ("model.args.layers: found {'before': 'x'}", {"config": GPT2, "layers": {"before": "x"}}),
        (
            "model.args.layers: found 'model.blocks', which a LlamaForCausalLM doesn't have",
            {"config": LLAMA, "layers": DECODER | {"list": "model.blocks"}},
        ),
        (
            "model.args.layers: found layers of a LlamaForCausalLM that leave out model.norm.weight",
            {"config": LLAMA, "layers": DECODER | {"after": ["lm_head"]}},
        ),
        (
            "model.args.layers: found layers that, run in order, don't compute what the LlamaForCausalLM does",
            {"config": LLAMA, "layers": DECODER | {"after": ["model.norm", "model.norm", "lm_head"]}},
        ),
        (
            "model.args.layers: found layers of a LlamaForCausalLM that don't fit together",
            {"config": LLAMA, "layers": DECODER | {"after": ["lm_head", "model.norm"]}},
        ),
    ],
)
def test_a_wrong_argument_is_refused(message: str, arguments: dict[str, Any]) -> None:
    refused(message, **arguments)


def test_a_dropout_left_out_is_refused() -> None:
    layers = {
        "before": ["bert.embeddings"],
        "list": "bert.encoder.layer",
        "after": ["bert.pooler", "classifier"],
    }
    message = "don't compute what the BertForSequenceClassification does"
    refused(message, config=BERT, task="sequence-classification", layers=layers)


@pytest.mark.parametrize("config", [GPT2, BERT], ids=["gpt2", "bert"])
def test_a_sequence_beyond_the_positions_is_refused(config: dict[str, Any]) -> None:
    network = hugging_face(config=config, task="masked-lm" if config is BERT else "causal-lm")
    with pytest.raises(InputError, match=r"positions for 24 tokens; expected room for .* sequences of 25"):
        network(torch.zeros(2, 25, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["roberta", "camembert", "xlm-roberta"])
def test_positions_that_begin_behind_that_of_padding_are_fewer(kind: str) -> None:
    network = hugging_face(config=BERT | {"model_type": kind}, task="masked-lm", layers=ROBERTA)
    assert network(torch.full((2, 22), 9)).shape == (2, 22, 50)
    with pytest.raises(InputError, match=r"positions for 22 tokens; expected room for .* sequences of 23"):
        network(torch.full((2, 23), 9))


@pytest.mark.parametrize("config", [GPT2, LLAMA, BERT], ids=["gpt2", "llama", "bert"])
@pytest.mark.parametrize("length", [5, 7])
def test_a_mask_of_another_length_is_refused(config: dict[str, Any], length: int) -> None:
    network = hugging_face(config=config, task="masked-lm" if config is BERT else "causal-lm")
    tokens, mask = torch.zeros(2, 6, dtype=torch.int64), torch.ones(2, length, dtype=torch.int64)
    with pytest.raises(InputError, match=rf"attention_mask of length {length} for sequences of 6; expected"):
        network.run(input_ids=tokens, attention_mask=mask)


def test_classes_of_sequences_need_to_tell_padding() -> None:
    with pytest.raises(InputError, match="inputs without the name 'input_ids'"):
        made(CASES["gpt2, classes"])(torch.zeros(2, 5, dtype=torch.int64))
    refused("model.args.config.pad_token_id: found none", config=GPT2, task="sequence-classification")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    original(CASES["bert"], seed=5).save_pretrained(tmp_path / "bert")  # type: ignore[operator]
    return tmp_path / "bert"


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "bert", "vit", "gemma3", "opt", "falcon, alibi", "bloom", "mpt"]
)
def test_a_folder_gives_its_weights(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    whole: Any = original(case, seed=5).eval()
    whole.bfloat16().save_pretrained(tmp_path / "saved")
    network = hugging_face(path=str(tmp_path / "saved"), task=case.task)
    assert network.training
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    torch.testing.assert_close(network.eval().run(**inputs(case)), whole.float()(**inputs(case)).logits)


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_is_what_was_in_layers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    network = made(case).eval()
    save_pretrained(network, tmp_path / "folder")
    kind = getattr(transformers, AUTO[case.task])
    # As a kind loads by itself, also where these layers have eager attention.
    whole, loading = kind.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not any(loading.values())
    given = inputs(case)
    torch.testing.assert_close(whole(**given).logits, network.run(**given))
    if case.task != "causal-lm":
        return
    tokens = given["input_ids"][:1, :4]
    written = whole.generate(tokens, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    for _ in range(5):
        tokens = torch.cat([tokens, network.run(input_ids=tokens)[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, tokens)


@pytest.mark.parametrize("change", ["adapter", "rows"])
def test_a_network_of_another_state_than_its_configurations_is_not_saved(change: str, tmp_path: Path) -> None:
    network = made(CASES["llama"])
    linear = next(module for module in network.layer_1.modules() if isinstance(module, nn.Linear))
    if change == "adapter":
        linear.lora_A = nn.Parameter(torch.zeros(2, linear.in_features))
    else:
        linear.weight = nn.Parameter(torch.cat([linear.weight.detach(), torch.zeros(1, linear.in_features)]))
    key = "lora_A" if change == "adapter" else "weight"
    with pytest.raises(
        InputError, match=rf"differs from its configuration in model\.layers\.1\.\S*{key};.*adapters"
    ):
        save_pretrained(network, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_config_file_is_as_good_as_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(GPT2))
    torch.manual_seed(0)
    network = hugging_face(config=str(file))
    assert all(map(torch.equal, network.parameters(), made(CASES["gpt2"]).parameters()))


def test_a_folder_of_other_weights_is_refused(folder: Path) -> None:
    refused("missing: bert.pooler.dense.bias", path=str(folder), task="sequence-classification")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 31}))
    refused(
        "of another shape: bert.encoder.layer.0.intermediate.dense.bias", path=str(folder), task="masked-lm"
    )
    (folder / "model.safetensors").write_bytes(b"nothing")
    refused("which can't be loaded", path=str(folder), task="masked-lm")


def test_a_folder_without_weights_or_with_pickled_ones_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused("without weights; expected model.safetensors", path=str(folder), task="masked-lm")
    torch.save({}, folder / "pytorch_model.bin")
    refused("whose weights are pickled (pytorch_model.bin)", path=str(folder), task="masked-lm")
    (folder / "config.json").unlink()
    refused("config.json (No such file or directory)", path=str(folder), task="masked-lm")


def test_code_that_a_folder_brings_is_never_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForMaskedLM": "own.Network"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('run')")
    network = hugging_face(path=str(folder), task="masked-lm")
    assert network.kind.__name__ == "BertForMaskedLM"
    assert not hasattr(network.config, "auto_map")


def test_without_the_package_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    refused("pip install 'lowdimfa[hf]'", config=GPT2)
