"""Whether layers compute what the network does that they are taken from."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lowdimfa.errors import InputError, in_words
from lowdimfa.generators import reproducible
from lowdimfa.models.hf.network import HuggingFaceNetwork
from lowdimfa.models.hf.outlines import Outline, Task
from lowdimfa.models.hf.source import make

_KEY = "model.args.layers"
_SAMPLES, _TOKENS, _BLOCKS = 2, 6, 2
_LOUD = 100.0


def refuse_other_function(config: Any, outline: Outline, task: Task) -> None:
    """Compare the layers of a network of few blocks with itself, on a few tokens or images, padding included.

    Parameters
    ----------
    config, outline, task
        Of the network; only the number of its blocks is another one.

    Raises
    ------
    InputError
        The layers don't compute the same, or leave out weights.
    """
    # Whoever builds parts of the network by a mode of torch needs nothing of this one.
    with _disable_current_modes(), reproducible(0), torch.device("cpu"):
        original: Any = _made_small(config, task)
        network = HuggingFaceNetwork(original, outline, task)
        kind, owned = network.kind.__name__, set(network.original_state())
        missed = [name for name in original.state_dict() if name not in owned]
        if missed:
            found = f"layers of a {kind} that leave out {', '.join(missed[:5])}"
            raise InputError(_KEY, found, "all that the network has")
        # In training mode, so that a dropout left out shows too; both runs draw the same random numbers.
        original.train()
        network.train()
        inputs = _inputs(network.config, task)
        with torch.no_grad():
            outputs = _run_both(original, network, inputs)
            again = _run_both(original, network, inputs) if _made_loud(original, outputs[0]) else outputs
    for whole, composed in (outputs, again):
        if whole.shape != composed.shape or not torch.allclose(whole, composed, rtol=1e-3, atol=1e-5):
            raise InputError(
                _KEY,
                f"layers that, run in order, don't compute what the {kind} does",
                "all that happens to its hidden states and its output, with nothing in between",
            )


def _made_loud(original: Any, output: Tensor) -> bool:
    """Make a network's logits as large as training does, where it has an output layer: caps do nothing to small ones."""
    layer = original.get_output_embeddings()
    if layer is None:
        return False
    layer.weight.mul_(_LOUD / output.abs().max().clamp_min(torch.finfo(output.dtype).tiny))
    return True


def _run_both(original: Any, network: HuggingFaceNetwork, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    try:
        with reproducible(1):
            whole: Tensor = original(**inputs).logits
        with reproducible(1):
            return whole, network.run(**inputs)
    except InputError:
        raise
    except Exception as error:  # modules that aren't made for each other
        found = f"layers of a {network.kind.__name__} that don't fit together ({in_words(error)})"
        raise InputError(_KEY, found, "those through which its hidden states go") from error


def _made_small(config: Any, task: Task) -> Any:
    """Return the network with few blocks, or with all if a configuration says of each what it is."""
    few = deepcopy(config)
    if getattr(few, "num_hidden_layers", 0) > _BLOCKS:
        if getattr(few, "layer_types", None):
            few.layer_types = few.layer_types[:_BLOCKS]
        few.num_hidden_layers = _BLOCKS
    try:
        return make(few, task)
    except InputError:
        return make(deepcopy(config), task)


def _inputs(config: Any, task: Task) -> dict[str, Tensor]:
    if task == "image-classification":
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.randn(_SAMPLES, config.num_channels, height, width)}
    length = min(_TOKENS, getattr(config, "max_position_embeddings", _TOKENS))
    mask = torch.ones(_SAMPLES, length, dtype=torch.int64)
    mask[-1, length - 1 :] = 0
    return {"input_ids": torch.randint(config.vocab_size, (_SAMPLES, length)), "attention_mask": mask}
