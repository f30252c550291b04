"""Fine-tuning: a GPT-2 that has learned one text goes on with another, in blocks of two layers each."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import Any, cast

import torch

from benchmarks.claims.settings import Update
from benchmarks.gap.networks import CONTEXT, PERPLEXITY, TOKENS, Network
from benchmarks.gap.rules import BACKPROP
from lowdimfa.data import Dataset, tokens
from lowdimfa.data.preparing import Recipe, prepare
from lowdimfa.models import hugging_face
from lowdimfa.models.hf.network import HuggingFaceNetwork
from lowdimfa.models.hf.saving import save_pretrained
from lowdimfa.paths import appearing

WIDTH, DEPTH = 128, 8
GPT2 = {
    "model_type": "gpt2",
    "n_layer": DEPTH,
    "n_embd": WIDTH,
    "n_head": 4,
    "vocab_size": TOKENS.vocabulary,
    "n_positions": CONTEXT,
    "tie_word_embeddings": False,
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
}
PRETRAINING = Update(2e-3)
FROM_SCRATCH = Network(
    "GPT-2 of 8 layers, width 128, Shakespeare in 8,192 tokens, 5.1M tokens seen",
    cast(Any, hugging_face),
    (GPT2,),
    TOKENS.label,
    samples=16_000,
    epochs=5,
    batch_size=32,
    score=PERPLEXITY,
)
"""What the weights to go on from are made by."""

_TOPICS = Path("runs/data/python-topics")
TOPICS = f"Python's reference (pydoc_data.topics) in the tokens of Shakespeare, in windows of {CONTEXT}"


def pretrained() -> HuggingFaceNetwork:
    """Return the network that goes on; it is made at the first use."""
    return hugging_face(path=str(_checkpoint()))


@dataclass(frozen=True)
class FineTuned(Network):
    """A network that goes on from weights, which decide the figures too."""

    def configuration(self) -> dict[str, Any]:
        """Return everything that decides the figures, as plain data."""
        weights = (_checkpoint() / "model.safetensors").read_bytes()
        _topics()
        text = b"".join(path.read_bytes() for path in sorted(_TOPICS.glob("*.bin")))
        digests = {"weights": weights, "text": text}
        return super().configuration() | {
            name: hashlib.sha256(one).hexdigest()[:16] for name, one in digests.items()
        }

    def dataset(self) -> Dataset:
        """Return the data, all training samples included."""
        return _topics()


NETWORK = FineTuned(
    "GPT-2 of 8 layers, width 128, trained on Shakespeare, fine-tuned on Python's reference",
    cast(Any, pretrained),
    (),
    TOPICS,
    samples=2_016,
    epochs=5,
    batch_size=32,
    score=PERPLEXITY,
)
STARTS = tuple(f"layer_{2 * block}" for block in range(1, DEPTH // 2))
"""The layers at which the second, third and fourth block begin."""


@cache
def _checkpoint() -> Path:
    """Return the folder of the weights to go on from."""
    folder = Path("runs/data/gpt2-shakespeare")
    if not folder.exists():
        from benchmarks.gap.trials import train

        trained = train(FROM_SCRATCH, BACKPROP, PRETRAINING, 0, torch.device("cpu"))
        score = trained.score(FROM_SCRATCH.dataset().test)
        print(f"{FROM_SCRATCH.label}: test perplexity {score:.2f}, kept in {folder}", file=sys.stderr)
        with appearing(folder) as made:
            save_pretrained(cast(HuggingFaceNetwork, trained.model), made)
    return folder


@cache
def _topics() -> Dataset:
    """Return the text to be learned, which every Python has with it."""
    folder = _TOPICS
    if not folder.exists():
        source = folder.with_suffix(".jsonl")
        documents = (json.dumps({"text": text}) for _, text in sorted(topics.topics.items()))
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text("\n".join(documents) + "\n")
        prepare(Recipe([os.fspath(source)], tokenizer=TOKENS.folder()), folder)
    return tokens(os.fspath(folder), CONTEXT)
