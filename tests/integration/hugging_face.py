"""Small networks of Hugging Face, and inputs for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa.models.hf.outlines import Task

transformers = pytest.importorskip("transformers")

AUTO = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}
WORDS = {"vocab_size": 50, "max_position_embeddings": 24, "hidden_size": 16, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "intermediate_size": 32}
GPT2 = {"model_type": "gpt2", "n_layer": 3, "n_head": 4, "n_embd": 16, "vocab_size": 50, "n_positions": 24}
LLAMA = {"model_type": "llama", **WORDS, **HEADS, "num_key_value_heads": 2}
BERT = {"model_type": "bert", **WORDS, **HEADS}
VIT = {
    "model_type": "vit",
    **HEADS,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 5,
}
DECODER = {"before": ["model.embed_tokens"], "list": "model.layers", "after": ["model.norm", "lm_head"]}
ROBERTA = {"before": ["roberta.embeddings"], "list": "roberta.encoder.layer", "after": ["lm_head"]}
GEMMA = {"head_dim": 4}
MIXED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA3 = (
    LLAMA
    | GEMMA
    | MIXED
    | {"model_type": "gemma3_text"}
    | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    }
)
PHI = {"num_key_value_heads": 4, "embd_pdrop": 0.1, "resid_pdrop": 0.1, "pad_token_id": 0}
OPT = {"model_type": "opt", **WORDS, "num_attention_heads": 4, "ffn_dim": 32, "word_embed_proj_dim": 16}
# Older versions of the package draw a number for each block, and so other dropout than layers.
OPT |= {"dropout": 0.0}
FALCON = {"model_type": "falcon", **WORDS, "num_attention_heads": 4}
BLOOM = {"model_type": "bloom", "hidden_size": 16, "n_layer": 3, "n_head": 4, "vocab_size": 50}
BLOOM |= {"hidden_dropout": 0.1, "attention_dropout": 0.1}
MPT = {"model_type": "mpt", "d_model": 16, "n_layers": 3, "n_heads": 4, "vocab_size": 50, "max_seq_len": 24}


@dataclass(frozen=True)
class Case:
    """A network, and names of inputs that it takes beside tokens or images."""

    config: dict[str, Any]
    task: Task
    sides: tuple[str, ...] = ("attention_mask", "position_ids")
    layers: dict[str, Any] | None = None
    sdpa: bool = True
    set: dict[str, Any] = field(default_factory=dict)


_ENCODED = ("attention_mask", "position_ids", "token_type_ids")
CASES = {
    "gpt2": Case(GPT2, "causal-lm", _ENCODED),
    "gpt2, classes": Case(GPT2 | {"pad_token_id": 7, "num_labels": 3}, "sequence-classification"),
    "llama": Case(LLAMA, "causal-lm"),
    "llama, classes": Case(LLAMA | {"pad_token_id": 7, "num_labels": 3}, "sequence-classification"),
    "llama, scaled": Case(
        LLAMA
        | {
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
            "tie_word_embeddings": True,
        },
        "causal-lm",
    ),
    "bert": Case(BERT, "masked-lm", _ENCODED),
    "bert, classes": Case(BERT | {"num_labels": 3}, "sequence-classification", _ENCODED),
    "bert, decoder": Case(
        BERT | {"is_decoder": True},
        "causal-lm",
        _ENCODED,
        {"before": ["bert.embeddings"], "list": "bert.encoder.layer", "after": ["cls"]},
    ),
    "vit": Case(VIT, "image-classification", ()),
    "mistral": Case(LLAMA | {"model_type": "mistral", "sliding_window": 5}, "causal-lm"),
    "qwen2": Case(
        LLAMA
        | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        "causal-lm",
    ),
    "qwen3": Case(LLAMA | {"model_type": "qwen3", "head_dim": 8}, "causal-lm"),
    "qwen3, classes": Case(
        LLAMA | {"model_type": "qwen3", "head_dim": 8, "pad_token_id": 7, "num_labels": 3},
        "sequence-classification",
    ),
    "gemma": Case(LLAMA | GEMMA | {"model_type": "gemma"}, "causal-lm"),
    "gemma2": Case(
        LLAMA | GEMMA | {"model_type": "gemma2", "sliding_window": 5, "final_logit_softcapping": 0.2},
        "causal-lm",
        sdpa=False,
    ),
    "gemma3": Case(GEMMA3, "causal-lm"),
    "phi": Case(LLAMA | PHI | {"model_type": "phi"}, "causal-lm"),
    "phi3": Case(LLAMA | PHI | {"model_type": "phi3", "sliding_window": 5}, "causal-lm"),
    "olmo2": Case(LLAMA | {"model_type": "olmo2", "pad_token_id": 0}, "causal-lm"),
    "olmo3": Case(LLAMA | MIXED | {"model_type": "olmo3", "pad_token_id": 0}, "causal-lm"),
    "granite": Case(
        LLAMA
        | {"model_type": "granite", "embedding_multiplier": 3.0, "logits_scaling": 5.0}
        | {"residual_multiplier": 0.5, "attention_multiplier": 0.25},
        "causal-lm",
    ),
    "cohere2": Case(LLAMA | MIXED | {"model_type": "cohere2", "logit_scale": 0.5}, "causal-lm"),
    "smollm3": Case(
        LLAMA | {"model_type": "smollm3", "no_rope_layers": [1, 0, 1], "pad_token_id": 0}, "causal-lm"
    ),
    "mixtral": Case(LLAMA | {"model_type": "mixtral", "num_local_experts": 3}, "causal-lm"),
    "gpt_neox": Case(WORDS | HEADS | {"model_type": "gpt_neox", "hidden_dropout": 0.1}, "causal-lm"),
    "gpt_neo": Case(
        WORDS
        | {"model_type": "gpt_neo", "num_layers": 3, "num_heads": 4, "window_size": 4}
        | {"attention_types": [[["global", "local", "global"], 1]]},
        "causal-lm",
        _ENCODED,
        sdpa=False,
    ),
    "opt": Case(OPT, "causal-lm"),
    "opt, narrow": Case(OPT | {"word_embed_proj_dim": 8, "do_layer_norm_before": False}, "causal-lm"),
    "falcon": Case(FALCON, "causal-lm"),
    "falcon, new": Case(FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, "causal-lm"),
    "falcon, alibi": Case(
        FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "hidden_dropout": 0.1},
        "causal-lm",
    ),
    "bloom": Case(BLOOM, "causal-lm", ("attention_mask",), sdpa=False),
    "bloom, classes": Case(
        BLOOM | {"pad_token_id": 7, "num_labels": 3},
        "sequence-classification",
        ("attention_mask",),
        sdpa=False,
    ),
    "mpt": Case(MPT, "causal-lm", ("attention_mask",), sdpa=False),
    "roberta": Case(
        BERT | {"model_type": "roberta", "max_position_embeddings": 40}, "masked-lm", ("attention_mask",)
    ),
    "modernbert": Case(
        BERT
        | {"model_type": "modernbert", "local_attention": 4, "pad_token_id": 0}
        | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
        "masked-lm",
        ("attention_mask", "position_ids"),
    ),
    "distilbert": Case(
        {"model_type": "distilbert", "vocab_size": 50, "max_position_embeddings": 24, "dim": 16, "n_heads": 4}
        | {"n_layers": 3, "hidden_dim": 32},
        "masked-lm",
        ("attention_mask", "position_ids"),
    ),
}


def original(case: Case, seed: int = 0) -> nn.Module:
    """Return the network as Hugging Face makes it."""
    torch.manual_seed(seed)
    config = transformers.CONFIG_MAPPING[case.config["model_type"]].from_dict(case.config)
    made: nn.Module = getattr(transformers, AUTO[case.task]).from_config(config)
    return made


def inputs(case: Case, samples: int = 3, length: int = 12) -> dict[str, Tensor]:
    """Return inputs by name; of the last samples some tokens are padding."""
    generator = torch.Generator().manual_seed(1)
    if case.task == "image-classification":
        return {"pixel_values": torch.randn(samples, 3, 8, 8, generator=generator)}
    tokens = torch.randint(8, 50, (samples, length), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, length - 4 :] = 0
    tokens[1, length - 4 :] = 7
    given = {
        "attention_mask": mask,
        "position_ids": torch.arange(length).expand(samples, -1) + 3,
        "token_type_ids": (torch.arange(length) > 5).long().expand(samples, -1),
    }
    return {"input_ids": tokens} | {name: given[name] for name in case.sides}
