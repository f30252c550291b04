"""The factory of networks of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import nn

from lowdimfa.building import is_rebuilding
from lowdimfa.errors import InputError
from lowdimfa.models.hf.check import refuse_other_function
from lowdimfa.models.hf.configuration import read_config, unread_keys
from lowdimfa.models.hf.layers import Part
from lowdimfa.models.hf.network import HuggingFaceNetwork
from lowdimfa.models.hf.outlines import Task, outline_of
from lowdimfa.models.hf.source import load, make, text_part


def hugging_face(
    config: dict[str, Any] | str | None = None,
    path: str | None = None,
    task: Task = "causal-lm",
    tied: Literal["untie", "refuse"] = "untie",
    layers: dict[str, Any] | None = None,
) -> HuggingFaceNetwork:
    """Return a network of Hugging Face's package ``transformers`` as layers that can be cut into blocks.

    Its embedding, every transformer block, and its output (normalisation, linear layer) are one layer each, called
    ``embedding``, ``layer_0``, …, ``output``. No hub is ever asked, and nothing is unpickled.

    Parameters
    ----------
    config
        The configuration of a network with random weights: a mapping such as ``{model_type: gpt2, n_layer: 4}``, or
        the path of a ``config.json``.
    path
        In place of it, a folder with ``config.json`` and weights as safetensors, to go on from.
    task
        What the output is for.
    tied
        What becomes of a weight that the embedding and the output share: ``untie`` gives each a copy of its own with
        the same start, ``refuse`` is an error.
    layers
        Where the order in which the network's modules run doesn't tell: ``before``, ``list`` and ``after``, names of
        the modules that the hidden states go through, and ``token`` (``first`` or ``last``) where the output is of one.

    Raises
    ------
    InputError
        The package isn't installed, the configuration or the weights don't fit, the layers aren't all that the
        network does, or weights are shared that must not be.
    """
    whole = read_config(config, path)
    settings = text_part(whole, task)
    if getattr(settings, "output_router_logits", False):
        raise InputError(
            "model.args.config.output_router_logits",
            "True",
            "False: the loss of experts of their own, which it stands for, is not computed here",
        )
    original, note = (make(settings, task), "") if path is None else load(settings, task, path)
    outline = outline_of(original, task, layers)
    # Where it is rebuilt, who drew the outline has compared, and this process has memory for a share alone.
    if not is_rebuilding():
        refuse_other_function(original, outline, task)
    network = HuggingFaceNetwork(original, outline, task)
    _untie(network, tied)
    first = cast(Part, network[0])
    first.folder = path
    # Files of the hub have keys of other times, which nobody wrote for this network.
    told = [unread_keys(settings, original) if isinstance(config, Mapping) else note]
    if settings is not whole:
        told.append(
            f"of a {whole.model_type} what it does with text is trained alone: a {settings.model_type}"
        )
    first.notice = "; ".join(filter(None, told))
    return network.train()


def _untie(network: HuggingFaceNetwork, tied: str) -> None:
    """Give layers that share a parameter a copy each."""
    owners: dict[int, tuple[int, str]] = {}
    copies: dict[int, nn.Parameter] = {}
    for index, layer in enumerate(cast(list[Part], list(network))):
        for name, parameter in layer.named_parameters(remove_duplicate=False):
            owner, first = owners.setdefault(id(parameter), (index, name))
            if owner == index:
                continue
            if tied == "refuse":
                raise InputError(
                    "model.args.tied",
                    f"'refuse', with {name} tied to {first}",
                    "a configuration with tie_word_embeddings: false, or 'untie'",
                    "Blocks share nothing, since each learns in a process of its own.",
                )
            own = copies.setdefault(id(parameter), nn.Parameter(parameter.detach().clone()))
            holder, _, last = name.rpartition(".")
            setattr(layer.get_submodule(holder), last, own)
            layer.notice = f"{name} is tied to {first}: here each learns by itself, from the same start"
    if copies:
        network.config.tie_word_embeddings = False
