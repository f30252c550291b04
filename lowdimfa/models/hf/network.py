"""A network of Hugging Face taken apart into layers."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from lowdimfa.errors import InputError, in_words
from lowdimfa.generators import reproducible
from lowdimfa.models.hf.layers import (
    GPT2Embedding,
    ImageEmbedding,
    LastTokenOutput,
    Output,
    Part,
    PositionedEmbedding,
    TokenEmbedding,
    TransformerBlock,
)
from lowdimfa.models.hf.outlines import Outline, Task

_SAMPLES, _TOKENS = 2, 6


class HuggingFaceNetwork(nn.Sequential):
    """The layers ``embedding``, ``layer_0``, ``layer_1``, … and ``output``, of which each can begin a block.

    Attributes
    ----------
    kind
        Class of the original network.
    config
        Its configuration.
    folder
        Where its weights came from, and maybe its tokenizer; None if they were drawn.
    """

    def __init__(self, original: nn.Module, outline: Outline, task: Task) -> None:
        blocks: Any = original.get_submodule(outline.blocks)
        rotary = _rotary(original, outline)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            embedding=_embedding(original, outline.before, task)
        )
        for index in range(len(blocks)):
            name = f"{outline.blocks}.{index}"
            layers[f"layer_{index}"] = TransformerBlock(original, name, index, rotary)
        layers["output"] = (
            LastTokenOutput(original, outline.after)
            if outline.token == "last"
            else Output(original, outline.after, outline.token == "first")
        )
        super().__init__(layers)
        self.kind: Any = type(original)
        self.config: Any = original.config
        self.folder: str | None = None

    def run(self, **inputs: Tensor) -> Tensor:
        """Return the output for inputs by name, of which each layer takes those that it knows."""
        first, *others = self
        x = first(**_known(first, inputs))
        for layer in others:
            x = layer(x, **_known(layer, inputs))
        output: Tensor = x
        return output

    def original_state(self) -> dict[str, Tensor]:
        """Return the state under the names of the original network, without copies."""
        return {name: value for layer in self for name, value in layer.state_dict().items()}


def _known(layer: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    names = inspect.signature(layer.forward).parameters
    return {name: value for name, value in inputs.items() if name in names}


def _rotary(original: nn.Module, outline: Outline) -> str | None:
    """Return the name of what rotates queries and keys by position, beside the list of blocks."""
    name = ".".join([*outline.blocks.split(".")[:-1], "rotary_emb"])
    return name if name in dict(original.named_modules()) else None


def _embedding(original: Any, names: tuple[str, ...], task: Task) -> Part:
    if task == "image-classification":
        return ImageEmbedding(original, names)
    if original.config.model_type == "gpt2":
        return GPT2Embedding(original, names)
    takes = inspect.signature(original.get_submodule(names[0]).forward).parameters
    return (PositionedEmbedding if "position_ids" in takes else TokenEmbedding)(original, names)


def refuse_other_function(original: nn.Module, network: HuggingFaceNetwork, task: Task) -> None:
    """Compare the layers with the network that they were taken from, on a few tokens or images, padding included.

    Raises
    ------
    InputError
        They don't compute the same, or leave out weights.
    """
    kind = network.kind.__name__
    owned = set(network.original_state())
    missed = [name for name in original.state_dict() if name not in owned]
    if missed:
        found = f"layers of a {kind} that leave out {', '.join(missed[:5])}"
        raise InputError("model.args.layers", found, "all that the network has")
    if any(parameter.is_meta for parameter in original.parameters()):
        return
    inputs = _inputs(network.config, task)
    original.train()  # so that a dropout left out shows too; both runs draw the same random numbers
    network.train()
    try:
        with torch.no_grad(), reproducible(0):
            whole = original(**inputs).logits
        with torch.no_grad(), reproducible(0):
            composed = network.run(**inputs)
    except InputError:
        raise
    except Exception as error:  # modules that aren't made for each other
        found = f"layers of a {kind} that don't fit together ({in_words(error)})"
        raise InputError("model.args.layers", found, "those through which its hidden states go") from error
    if whole.shape != composed.shape or not torch.allclose(whole, composed, rtol=1e-3, atol=1e-5):
        raise InputError(
            "model.args.layers",
            f"layers that, run in order, don't compute what the {kind} does",
            "all that happens to its hidden states, with nothing in between",
        )


def _inputs(config: Any, task: Task) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if task == "image-classification":
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return {
            "pixel_values": torch.randn(_SAMPLES, config.num_channels, height, width, generator=generator)
        }
    length = min(_TOKENS, getattr(config, "max_position_embeddings", _TOKENS))
    tokens = torch.randint(config.vocab_size, (_SAMPLES, length), generator=generator)
    mask = torch.ones_like(tokens)
    mask[-1, length - 1 :] = 0
    return {"input_ids": tokens, "attention_mask": mask}
