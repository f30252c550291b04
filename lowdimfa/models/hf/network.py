"""A network of Hugging Face taken apart into layers."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any, cast

from torch import Tensor, nn

from lowdimfa.models.hf.embeddings import ImageEmbedding, token_embedding
from lowdimfa.models.hf.layers import LastTokenOutput, Output, Part, TransformerBlock
from lowdimfa.models.hf.outlines import Outline, Task
from lowdimfa.models.hf.packing import looks_for_packed


class HuggingFaceNetwork(nn.Sequential):
    """The layers ``embedding``, ``layer_0``, ``layer_1``, … and ``output``, of which each can begin a block.

    Attributes
    ----------
    kind
        Class of the original network.
    config
        Its configuration.
    outline
        Where in the original its layers are.
    """

    def __init__(self, original: nn.Module, outline: Outline, task: Task) -> None:
        blocks: Any = original.get_submodule(outline.blocks)
        rotary = _rotary(original, outline)
        images = task == "image-classification"
        before = outline.before
        first: Part = ImageEmbedding(original, before) if images else token_embedding(original, before)
        first.predicts = {"causal-lm": "next", "masked-lm": "hidden"}.get(task, "")
        packed = not images and looks_for_packed(original)
        layers: OrderedDict[str, nn.Module] = OrderedDict(embedding=first)
        for index in range(len(blocks)):
            name = f"{outline.blocks}.{index}"
            layers[f"layer_{index}"] = TransformerBlock(original, name, index, rotary, packed)
        layers["output"] = (
            LastTokenOutput(original, outline.after)
            if outline.token == "last"
            else Output(original, outline.after, outline.token == "first", by_position=task.endswith("-lm"))
        )
        super().__init__(layers)
        self.kind: Any = type(original)
        self.outline = outline
        config: Any = original.config
        self.config: Any = config
        if task.endswith("-classification"):
            head = cast(Part, self[-1])
            head.labels, head.problem = config.num_labels, getattr(config, "problem_type", None)

    @property
    def folder(self) -> str | None:
        """Where its weights came from, and maybe its tokenizer; None if they were drawn."""
        return cast(Part, self[0]).folder

    def run(self, **inputs: Tensor) -> Tensor:
        """Return the output for inputs by name, of which each layer takes those that it knows."""
        last = self[-1]
        output: Tensor = last(self.hidden_states(**inputs), **_known(last, inputs))
        return output

    def hidden_states(self, **inputs: Tensor) -> Tensor:
        """Return what the last layer is given."""
        first, *others, _ = self
        x: Tensor = first(**_known(first, inputs))
        for layer in others:
            x = layer(x, **_known(layer, inputs))
        return x

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
