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


@dataclass(frozen=True)
class Case:
    """A network, and names of inputs that it takes beside tokens or images."""

    config: dict[str, Any]
    task: Task
    sides: tuple[str, ...] = ("attention_mask", "position_ids")
    layers: dict[str, Any] | None = None
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
    "mistral": Case(LLAMA | {"model_type": "mistral", "sliding_window": 5}, "causal-lm", layers=DECODER),
    "qwen2": Case(
        LLAMA
        | {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
        },
        "causal-lm",
        layers=DECODER,
    ),
    "roberta": Case(
        BERT | {"model_type": "roberta", "max_position_embeddings": 40},
        "masked-lm",
        ("attention_mask",),
        ROBERTA,
    ),
    "distilbert": Case(
        {"model_type": "distilbert", "vocab_size": 50, "max_position_embeddings": 24, "dim": 16, "n_heads": 4}
        | {"n_layers": 3, "hidden_dim": 32},
        "masked-lm",
        ("attention_mask", "position_ids"),
        {
            "before": ["distilbert.embeddings"],
            "list": "distilbert.transformer.layer",
            "after": ["vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"],
        },
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
