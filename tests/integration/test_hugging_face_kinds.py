"""What kinds of networks of Hugging Face do beside the usual, and what is told or refused of it."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face import BERT, CASES, DECODER, GPT2, LLAMA, ROBERTA, VIT, Case, inputs, original, transformers
from test_hugging_face import made, pair, refused
from torch import Tensor, nn

from lowdimfa.errors import InputError
from lowdimfa.layers import list_layers
from lowdimfa.models import hugging_face
from lowdimfa.models.hf import few, making
from lowdimfa.models.hf.embeddings import MaskedEmbedding, SummedEmbedding
from lowdimfa.models.hf.layers import TransformerBlock
from lowdimfa.models.hf.outlines import Outline
from lowdimfa.models.hf.saving import save_pretrained
from lowdimfa.models.hf.source import make
from lowdimfa.sparse import outline

NECK = ("transformer.wte", "transformer.wpe", "transformer.drop")
FOUND: dict[str, Outline] = {
    "gpt2": Outline(NECK, "transformer.h", ("transformer.ln_f", "lm_head")),
    "gpt2, classes": Outline(NECK, "transformer.h", ("transformer.ln_f", "score"), "last"),
    "llama": Outline(("model.embed_tokens",), "model.layers", ("model.norm", "lm_head")),
    "llama, classes": Outline(("model.embed_tokens",), "model.layers", ("model.norm", "score"), "last"),
    "bert": Outline(("bert.embeddings",), "bert.encoder.layer", ("cls",)),
    "bert, classes": Outline(
        ("bert.embeddings",), "bert.encoder.layer", ("bert.pooler", "dropout", "classifier")
    ),
    "vit": Outline(("vit.embeddings",), "vit.layers", ("vit.layernorm", "classifier"), "first"),
    "gpt_neox": Outline(
        ("gpt_neox.embed_in", "gpt_neox.emb_dropout"),
        "gpt_neox.layers",
        ("gpt_neox.final_layer_norm", "lm_head"),
    ),
    "distilbert": Outline(
        ("distilbert.embeddings",),
        "distilbert.transformer.layer",
        ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_where_the_layers_are_is_found_by_how_modules_run(name: str) -> None:
    network = made(CASES[name])
    # One name of GPT-NeoX's output is older than the others.
    found = replace(
        network.outline, after=tuple(n.replace("embed_out", "lm_head") for n in network.outline.after)
    )
    assert found == replace(FOUND[name], found=True)
    assert network[0].notice == ""


def test_a_search_for_layers_leaves_the_network_as_it_was() -> None:
    """Some rotary embeddings keep how long sequences were, and buffers of it."""
    long = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    long |= {"short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0], "original_max_position_embeddings": 8}
    config = CASES["phi3"].config | {"rope_parameters": long, "original_max_position_embeddings": 8}
    whole, network = pair(Case(config, "causal-lm"), attn_implementation="eager")
    given = inputs(CASES["phi3"])
    torch.testing.assert_close(network.eval().run(**given), whole.eval()(**given).logits)


def test_layers_that_were_found_and_do_not_compute_alike_are_named_in_the_refusal() -> None:
    """DistilBERT has a function between its layers, where no module runs."""
    found = "The layers were found by how its modules run: {before: [distilbert.embeddings], list: "
    refused(found, config=CASES["distilbert"].config, task="sequence-classification")


def test_what_blocks_are_given_beside_hidden_states_is_named_in_the_refusal() -> None:
    given = "The layers were found by how its modules run: .* Its blocks are given position_bias too."
    with pytest.raises(InputError, match=given):
        hugging_face(config=BERT | {"model_type": "mpnet", "max_position_embeddings": 40}, task="masked-lm")


def test_an_output_in_which_tokens_see_each_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With train.loss_chunk it would be computed of some tokens alone."""

    class Summed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.cumsum(-2))

    def with_sums(config: Any, task: Any) -> Any:
        whole: Any = make(config, task)
        whole.lm_head.__class__ = Summed
        return whole

    monkeypatch.setattr(few, "make", with_sums)
    monkeypatch.setattr(making, "make", with_sums)
    refused("found an output of a LlamaForCausalLM in which tokens see each other", config=LLAMA)


def composite(kind: str, **text: Any) -> dict[str, Any]:
    """Return the configuration of a network that sees images too, beside what its kind has for them."""
    seen = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    seen |= {"depth": 1, "num_heads": 2, "out_hidden_size": 16, "image_size": 28, "patch_size": 14}
    words = {name: value for name, value in LLAMA.items() if name != "model_type"}
    return {"model_type": kind, "text_config": words | {"head_dim": 4} | text, "vision_config": seen}


def test_of_a_network_that_takes_text_alone_too_that_part_is_trained(tmp_path: Path) -> None:
    masks = importlib.import_module("transformers.masking_utils")
    if "linear_attention" not in masks.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING:
        pytest.skip("no masks for linear attention in this version of transformers")
    heads = dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2)
    heads |= dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 4)
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    config = transformers.CONFIG_MAPPING["qwen3_5"].from_dict(
        composite("qwen3_5", layer_types=kinds, model_type="qwen3_5_text", **heads)
    )
    whole = transformers.Qwen3_5ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "whole")
    network = hugging_face(path=str(tmp_path / "whole")).eval()
    assert "of a qwen3_5 what it does with text is trained alone: a qwen3_5_text" in network[0].notice
    tokens = inputs(CASES["llama"])["input_ids"]
    torch.testing.assert_close(network.run(input_ids=tokens), whole(input_ids=tokens).logits)
    save_pretrained(network, tmp_path / "text")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    torch.testing.assert_close(again(tokens).logits, network.run(input_ids=tokens))


def test_a_network_that_takes_more_than_text_is_refused() -> None:
    more = (
        "model.args: found a gemma3, which takes more than text; expected a network of text alone, such as a"
    )
    refused(more, config=composite("gemma3"))


def test_a_network_of_several_lists_has_to_be_told_of() -> None:
    config = {"model_type": "resnet", "image_size": 32, "attn_implementation": "eager"}
    several = "found nothing, for a resnet for image-classification that has the lists resnet.encoder.stages"
    refused(several, config=config | {"depths": [1, 1], "hidden_sizes": [8, 16]}, task="image-classification")


def test_a_scale_of_logits_that_no_layer_computes_is_refused() -> None:
    """One kind multiplies by what others divide by."""
    if "hyperclovax" not in transformers.CONFIG_MAPPING:
        pytest.skip("no hyperclovax in this version of transformers")
    config = LLAMA | {"model_type": "hyperclovax", "head_dim": 4, "logits_scaling": 2.0}
    refused("don't compute what the HyperCLOVAXForCausalLM does", config=config)
    refused("between layers: logits_scaling: 2.0. The layers were found", config=config)


def test_a_cap_on_logits_is_one() -> None:
    """Logits of new weights are small, and a cap does nothing to them."""
    whole, network = pair(CASES["gemma2"], tie_word_embeddings=False)
    for output in (whole.lm_head, network.output.lm_head):
        output.weight.data.mul_(1000)
    found = network.eval().run(**inputs(CASES["gemma2"]))
    assert 0.19 < found.abs().max() <= 0.2
    torch.testing.assert_close(found, whole.eval()(**inputs(CASES["gemma2"])).logits)


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_positions_of_a_kind_that_takes_none_are_refused(name: str) -> None:
    network, tokens = made(CASES[name]), torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(InputError, match=f"'position_ids', which a {name} doesn't take"):
        network.run(input_ids=tokens, position_ids=torch.arange(4).view(1, 4))


@pytest.mark.parametrize("left_out", ["attention_mask", "position_ids", "token_type_ids"])
def test_what_comes_with_tokens_is_compared_too(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, name = (MaskedEmbedding, "opt") if left_out == "attention_mask" else (SummedEmbedding, "gpt2")
    forward = kind.forward

    def without(self: Any, input_ids: Any, **given: Any) -> Any:
        return forward(self, input_ids, **(given | {left_out: None}))

    names = inspect.signature(forward)
    monkeypatch.setattr(kind, "forward", without)
    monkeypatch.setattr(without, "__signature__", names, raising=False)
    refused("layers that, run in order, don't compute what the", config=CASES[name].config)


def test_what_is_without_padding_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of some kinds can't be without a mask, which their network makes where none is given."""
    forward = TransformerBlock.forward

    @functools.wraps(forward)
    def other(self: Any, hidden_states: Tensor, attention_mask: Any = None, position_ids: Any = None) -> Any:
        output = forward(self, hidden_states, attention_mask, position_ids)
        return output * 2 if attention_mask is None else output

    monkeypatch.setattr(TransformerBlock, "forward", other)
    refused("don't compute what the BloomForCausalLM does", config=CASES["bloom"].config)


def test_a_network_that_sees_what_it_is_to_predict_is_refused(tmp_path: Path) -> None:
    original(CASES["bert"], seed=5).save_pretrained(tmp_path)  # type: ignore[operator]
    bert = CASES["bert, decoder"].layers
    seeing = "whose tokens see those after them, with the task causal-lm; expected one that sees none"
    refused(f"a BertLMHeadModel {seeing}", config=BERT, layers=bert)
    refused(f"a BertLMHeadModel {seeing}", path=str(tmp_path), layers=bert)
    refused(f"a RobertaForCausalLM {seeing}", config=BERT | {"model_type": "roberta"}, layers=ROBERTA)


def test_blocks_that_run_several_times_are_refused() -> None:
    config = LLAMA | {"model_type": "albert", "embedding_size": 8, "num_key_value_heads": 4}
    layers = {
        "before": ["albert.embeddings", "albert.encoder.embedding_hidden_mapping_in"],
        "list": "albert.encoder.albert_layer_groups",
        "after": ["predictions"],
    }
    for shared in (1, 2):
        again = config | {"num_hidden_layers": 6, "num_hidden_groups": shared}
        refused(
            "don't compute what the AlbertForMaskedLM does", config=again, task="masked-lm", layers=layers
        )
    network = hugging_face(config=config | {"num_hidden_groups": 3}, task="masked-lm", layers=layers)
    assert len(network) == 5


def test_attention_by_which_a_network_is_another_function_is_refused() -> None:
    """As Falcon's own, which counts its bias twice: it is loaded with the other where nobody says so."""
    config = CASES["falcon"].config | {"alibi": True, "attn_implementation": "eager"}
    refused("attn_implementation: found 'eager', by which a FalconForCausalLM", config=config)


@pytest.mark.parametrize("kind", ["granite_swa", "granitemoe_swa"])
def test_rotary_embeddings_of_which_each_block_has_one_are_refused(kind: str) -> None:
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"no {kind} in this version of transformers")
    config = LLAMA | {"model_type": kind, "attn_implementation": "eager", "num_local_experts": 2}
    config |= {"num_experts_per_tok": 1, "embedding_multiplier": 1.0, "logits_scaling": 1.0}
    for last in (10.0, 0):
        several = config | {"layer_rope_theta": [10000.0, 10000.0, last]}
        refused("that, run in order, don't compute what the Granite", config=several, layers=DECODER)
    assert len(hugging_face(config=config, layers=DECODER)) == 5


def test_a_block_of_each_kind_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def noted(config: Any, task: Any) -> Any:
        made.append(config)
        return make(config, task)

    monkeypatch.setattr(few, "make", noted)
    kinds = ["full_attention"] * 4 + ["sliding_attention"]
    windows = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "layer_types": kinds}
    hugging_face(config=LLAMA | windows | {"num_hidden_layers": 5}, layers=DECODER)
    assert [config.layer_types for config in made] == [[*kinds[:2], kinds[4]]]


def test_as_many_blocks_are_compared_as_a_kind_takes_to_run() -> None:
    """Of Jamba the first with attention is the fifth, and with fewer blocks it doesn't run."""
    states = {"num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 2, "use_mamba_kernels": False}
    kinds = {"model_type": "jamba", "num_hidden_layers": 8, "attn_layer_period": 8, "attn_layer_offset": 4}
    whole, network = pair(Case(LLAMA | kinds | states | {"pad_token_id": 0}, "causal-lm"))
    given = inputs(CASES["bloom"])
    torch.testing.assert_close(network.eval().run(**given), whole.eval()(**given).logits)


def test_a_kind_of_which_nobody_sets_how_many_blocks_there_are_is_refused_for_its_layers() -> None:
    config = {"model_type": "prophetnet", "num_encoder_layers": 3, "num_decoder_layers": 3, "hidden_size": 16}
    config |= {"num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2, "vocab_size": 50}
    refused("found layers of a ProphetNetForCausalLM that leave out prophetnet.word_emb", config=config)


def test_images_of_unknown_size_are_asked_for() -> None:
    config = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    config |= {"layer_type": "basic", "num_labels": 3, "attn_implementation": "eager"}
    layers = {
        "before": ["resnet.embedder"],
        "list": "resnet.encoder.stages",
        "after": ["resnet.pooler", "classifier"],
    }
    for given in (layers, None):
        asked = "model.args.config: found no image_size"
        refused(asked, config=config, task="image-classification", layers=given)
    network = hugging_face(config=config | {"image_size": 32}, task="image-classification", layers=layers)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt", "falcon, alibi"])
def test_of_a_folder_only_the_layers_of_a_block_have_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Any = original(CASES[name], seed=5)
    whole.bfloat16().save_pretrained(tmp_path / "saved")
    compared = []
    monkeypatch.setattr(making, "refuse_other_function", lambda *given: compared.append(given))
    monkeypatch.delenv("HF_DEACTIVATE_ASYNC_LOAD", raising=False)

    def make_whole() -> Any:
        torch.manual_seed(0)
        return hugging_face(path=str(tmp_path / "saved"))

    found = outline(make_whole, smallest=256)
    assert all(p.nbytes < 256 or not p.untyped_storage().nbytes() for p in found.model.parameters())
    [layer] = found.share(["layer_1"]).build(make_whole)
    assert len(compared) == 1  # in the outline; who builds a share alone has no memory for more
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
    expected = make_whole().layer_1.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in layer.module.state_dict().items())


def test_a_loss_of_experts_is_refused() -> None:
    refused("output_router_logits", config=LLAMA | {"output_router_logits": True})


def test_a_window_that_only_the_layers_would_have_is_refused() -> None:
    """`transformers` takes any key of a configuration, and computes nothing by those that are not of its kind."""
    refused("don't compute what the LlamaForCausalLM does", config=LLAMA | {"sliding_window": 8})
    mistral = LLAMA | {"model_type": "mistral", "sliding_window": 128}
    assert len(hugging_face(config=mistral, layers=DECODER)) == 2 + LLAMA["num_hidden_layers"]


def test_tokens_that_another_vocabulary_means_end_no_text() -> None:
    named = hugging_face(config=LLAMA | {"eos_token_id": 3})
    assert (named.config.bos_token_id, named.config.eos_token_id) == (None, 3)
    assert hugging_face(config=LLAMA).config.eos_token_id is None
    assert hugging_face(config=BERT, task="masked-lm").config.pad_token_id == 0
    modern = hugging_face(config=CASES["modernbert"].config, task="masked-lm").config
    assert (modern.cls_token_id, modern.sep_token_id) == (None, None)


@pytest.mark.parametrize("given", [False, True])
def test_positions_are_looked_at_for_packed_texts_only_where_the_data_have_them(
    given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled, that look forms the whole mask in each block, in place of none."""
    masks = importlib.import_module("transformers.masking_utils")
    looked: list[int] = []
    find = masks.find_packed_sequence_indices

    def noted(*positions: Any, **named: Any) -> Any:
        looked.append(1)
        return find(*positions, **named)

    monkeypatch.setattr(masks, "find_packed_sequence_indices", noted)
    network = hugging_face(config=LLAMA)
    looked.clear()
    tokens = torch.arange(8).view(2, 4)
    positions = {"position_ids": torch.arange(4).expand(2, 4)} if given else {}
    network.run(input_ids=tokens, **positions)
    assert bool(looked) is given


@pytest.mark.parametrize(
    "name",
    [name for name, case in CASES.items() if case.task != "masked-lm" and "position_ids" in case.sides],
)
def test_packed_texts_are_kept_apart_where_the_original_does(name: str) -> None:
    same_when_packed(*pair(CASES[name]))


def test_packed_texts_of_a_kind_that_gives_its_mask_no_positions_see_each_other() -> None:
    config = LLAMA | {"model_type": "gpt_oss", "attn_implementation": "eager", "head_dim": 4}
    experts = {"sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2}
    same_when_packed(*pair(Case(config | experts, "causal-lm", layers=DECODER)))


def same_when_packed(whole: Any, network: Any) -> None:
    tokens = torch.randint(8, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12)
    given = {"input_ids": tokens, "position_ids": positions}
    expected = whole.eval()(**given, use_cache=False).logits
    torch.testing.assert_close(network.eval().run(**given), expected)


def test_another_mask_for_packed_texts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowdimfa.models.hf.network.looks_for_packed", lambda _: True)
    case = CASES["bert, decoder"]
    refused(
        "layers that keep packed texts apart otherwise than the BertLMHeadModel",
        config=case.config,
        layers=case.layers,
    )


def test_a_network_that_does_not_run_itself_is_blamed_on_its_configuration() -> None:
    """Whose head_dim fits its weights, and not its rotary embedding."""
    latent = {
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 4,
    }
    config = LLAMA | {"model_type": "deepseek_v3", "head_dim": 6, "num_key_value_heads": 4} | latent
    experts = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 9, "n_routed_experts": 4}
    refused(
        "model.args.config: found a DeepseekV3ForCausalLM that doesn't run by itself on input_ids",
        config=config | experts,
        layers=DECODER,
    )


def test_a_kind_without_sdpa_gets_eager_attention(tmp_path: Path) -> None:
    config = LLAMA | {
        "model_type": "gpt_oss",
        "head_dim": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    assert hugging_face(config=config, layers=DECODER).config._attn_implementation == "eager"
    original(Case(config, "causal-lm")).save_pretrained(tmp_path)  # type: ignore[operator]
    network = hugging_face(path=str(tmp_path), layers=DECODER)
    assert network.config._attn_implementation == "eager"
    assert hugging_face(config=LLAMA).config._attn_implementation == "sdpa"


def test_a_kind_that_insists_on_tokens_keeps_its_own() -> None:
    config = BERT | {"model_type": "modernbert-decoder", "pad_token_id": 0}
    assert len(hugging_face(config=config)) == 5


@pytest.mark.parametrize("kind", ["ibert", "canine"])
def test_an_embedding_that_is_no_table_is_refused(kind: str) -> None:
    config = BERT | {"model_type": kind, "num_hash_buckets": 8}
    layers = {"before": ["ibert.embeddings"], "list": "ibert.encoder.layer", "after": ["classifier"]}
    if kind == "canine":
        layers |= {"before": ["canine.char_embeddings"], "list": "canine.encoder.layer"}
    refused("which has no one table of tokens", config=config, task="sequence-classification", layers=layers)


def test_the_last_token_of_a_kind_without_padding_is_refused() -> None:
    config = VIT | {"model_type": "dinov2"}
    layers = {
        "before": ["dinov2.embeddings"],
        "list": "dinov2.encoder.layer",
        "after": ["dinov2.layernorm", "classifier"],
        "token": "last",
    }
    refused("pad_token_id: found none", config=config, task="image-classification", layers=layers)


def test_token_types_of_a_network_that_knows_none_are_refused() -> None:
    network, given = made(CASES["distilbert"]), inputs(CASES["distilbert"])
    with pytest.raises(InputError, match="'token_type_ids', which a distilbert doesn't know"):
        network.run(**given, token_type_ids=torch.zeros_like(given["input_ids"]))


def test_keys_that_a_kind_of_network_does_not_read_are_told_of(tmp_path: Path) -> None:
    network = hugging_face(config=GPT2 | {"n_layers": 2, "colour": "red"})
    told = "nothing in a gpt2 reads the configuration's 'colour', 'n_layers' (is 'n_layer' meant?)"
    assert network[0].notice == told
    given = {"num_labels": 3, "torch_dtype": "bfloat16", "attn_implementation": "eager", "rope_theta": 5.0}
    assert not hugging_face(config=LLAMA | given)[0].notice
    for name in ("gpt2", "bert", "vit", "mistral", "distilbert", "gemma3", "falcon, alibi"):
        assert "nothing in a" not in made(CASES[name])[0].notice
    qwen = {"model_type": "qwen2"} | {name: value for name, value in LLAMA.items() if name != "model_type"}
    layers = {"before": ["model.embed_tokens"], "list": "model.layers", "after": ["model.norm", "lm_head"]}
    assert not hugging_face(config=qwen | {"head_dim": 4}, layers=layers)[0].notice
    (tmp_path / "config.json").write_text(json.dumps(GPT2 | {"task_specific_params": {}}))
    assert not hugging_face(config=str(tmp_path / "config.json"))[0].notice


def test_heads_of_other_tasks_beside_the_weights_are_left_out_and_told_of(tmp_path: Path) -> None:
    """As BERT was published: with a pooler and an output for the next sentence."""
    config = transformers.CONFIG_MAPPING["bert"].from_dict(BERT)
    whole = transformers.BertForPreTraining(config).eval()
    whole.save_pretrained(tmp_path)
    network = hugging_face(path=str(tmp_path), task="masked-lm").eval()
    given = inputs(CASES["bert"])
    torch.testing.assert_close(network.run(**given), whole(**given).prediction_logits)
    notice = network[0].notice
    assert "a BertForMaskedLM has no bert.pooler.dense.bias, bert.pooler.dense.weight" in notice
    assert "cls.seq_relationship" in notice and notice.endswith("are left out")
    refused("missing: classifier.bias", path=str(tmp_path), task="sequence-classification")


def test_a_network_of_the_package_itself_is_pointed_to_the_factory() -> None:
    with pytest.raises(
        InputError, match=r"a GPT2LMHeadModel of transformers; expected lowdimfa\.models:hugging_face"
    ):
        list_layers(original(CASES["gpt2"]))
