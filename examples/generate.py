"""Write on from a few words with a folder that ``lowdimfa export --format hugging-face`` made."""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: str, words: str, tokens: int = 200) -> None:
    """Print the words, and so many tokens drawn after them."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    given = tokenizer(words, return_tensors="pt")
    torch.manual_seed(0)
    # BLOOM and its kin have no last position.
    most = getattr(network.config, "max_position_embeddings", tokens + given.input_ids.shape[1])
    room = min(tokens, most - given.input_ids.shape[1])
    drawn = network.generate(**given, max_new_tokens=room, do_sample=True, top_k=40)
    print(tokenizer.decode(drawn[0], skip_special_tokens=True))


if __name__ == "__main__":
    main(*sys.argv[1:3])
