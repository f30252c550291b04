"""Whether layers compute what the network does that they are taken from."""

from __future__ import annotations

import inspect
from contextlib import suppress
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lowdimfa.errors import InputError, in_words, some_of
from lowdimfa.generators import reproducible
from lowdimfa.models.hf.few import inputs_of, made_small
from lowdimfa.models.hf.network import HuggingFaceNetwork
from lowdimfa.models.hf.outlines import Outline, Task
from lowdimfa.models.hf.source import make

_KEY = "model.args.layers"
_SCALES = (
    "embedding_multiplier",
    "embedding_multiplier_scale",
    "final_logit_softcapping",
    "lm_head_multiplier",
    "logit_scale",
    "logits_scaling",
    "mup_width_multiplier",
    "scale_emb",
)
_LOUD, _ROUNDING = 100.0, 1e-5


def refuse_other_function(original: Any, outline: Outline, task: Task) -> None:
    """Compare the layers of a network of few blocks with itself, on a few tokens, with padding and without, or images.

    Parameters
    ----------
    original, outline, task
        Of the network; what is compared is one of each kind of its blocks, with weights of its own.

    Raises
    ------
    InputError
        The layers don't compute the same, or leave out weights; or a network that is to predict the next token sees it.
    """
    _refuse_left_out_blocks(original.config)
    # Whoever builds parts of the network by a mode of torch needs nothing of this one.
    with _disable_current_modes(), reproducible(0), torch.device("cpu"):
        small: Any = made_small(original, outline, task)
        network = HuggingFaceNetwork(small, outline, task)
        kind, owned = network.kind.__name__, set(network.original_state())
        missed = [name for name in small.state_dict() if name not in owned]
        if missed:
            found = f"layers of a {kind} that leave out {some_of(missed)}"
            raise InputError(_KEY, found, "all that the network has", outline.hint)
        # In training mode, so that a dropout left out shows too; both runs draw the same random numbers.
        small.train()
        network.train()
        inputs = inputs_of(network.config, task)
        with torch.no_grad():
            outputs = _run_both(small, network, inputs)
            without = _run_both(small, network, _without_padding(inputs))
            if task == "causal-lm":
                _refuse_foresight(small.eval(), inputs["input_ids"])
                small.train()
            _make_loud(small, outputs[0])
            again = _run_both(small, network, inputs | _sides(small, network, inputs))
            _refuse_unlike(network, outputs, without, again)
            _refuse_other_packing(small, network, task)
            if task.endswith("-lm"):
                _refuse_mixed_tokens(network.eval(), inputs)
            _refuse_other_attention(small.eval(), task, inputs)


def _refuse_mixed_tokens(network: HuggingFaceNetwork, inputs: dict[str, Tensor]) -> None:
    """Refuse an output in which tokens see each other: where the loss is computed in chunks, it gets some alone."""
    hidden, output = network.hidden_states(**inputs), network[-1]
    with suppress(Exception):  # of modules that count on samples and tokens
        if _alike(output(hidden).flatten(0, 1), output(hidden.flatten(0, 1))):
            return
    found = f"an output of a {network.kind.__name__} in which tokens see each other"
    raise InputError(_KEY, found, "one that is made token by token", network.outline.hint)


def _refuse_other_attention(original: Any, task: Task, inputs: dict[str, Tensor]) -> None:
    """Refuse attention by which a network is another function than by what it is loaded with where nobody says so."""
    chosen, usual = original.config._attn_implementation, "sdpa"
    if chosen == usual or not original._supports_sdpa:
        return
    whole = _without_padding(inputs)
    config = deepcopy(original.config)
    config._attn_implementation = usual
    loaded: Any = make(config, task).eval()
    loaded.load_state_dict(original.state_dict())
    if not _alike(original(**whole).logits, loaded(**whole).logits):
        found = f"{chosen!r}, by which a {type(original).__name__} computes something else than by {usual!r}"
        raise InputError(
            "model.args.config.attn_implementation", found, f"{usual!r}, with which it is loaded"
        )


def _without_padding(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if name != "attention_mask"}


def _refuse_left_out_blocks(config: Any) -> None:
    """Refuse a network that leaves out blocks at random, which a comparison sees when it does."""
    for name, value in vars(config).items():
        if name.endswith("layerdrop") and value:
            found = f"{value}, by which blocks are left out at random"
            raise InputError(f"model.args.config.{name}", found, "0: here each runs at each step")


def _sides(original: Any, network: HuggingFaceNetwork, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return positions and types of tokens, where both the network and its layers take them."""
    tokens = inputs.get("input_ids")
    if tokens is None:
        return {}
    places = torch.arange(tokens.shape[1])
    types = places % min(2, getattr(network.config, "type_vocab_size", 2) or 1)
    given = {"position_ids": places.roll(1).expand_as(tokens), "token_type_ids": types.expand_as(tokens)}
    first: Any = network[0]
    taken = set(inspect.signature(original.forward).parameters)
    if not first.has_types:
        taken.discard("token_type_ids")
    return {name: value for name, value in given.items() if name in taken}


def _refuse_unlike(network: HuggingFaceNetwork, *pairs: tuple[Tensor, Tensor]) -> None:
    if all(_alike(whole, composed) for whole, composed in pairs):
        return
    window = getattr(network.config, "sliding_window", None)
    raise InputError(
        _KEY,
        f"layers that, run in order, don't compute what the {network.kind.__name__} does"
        + (f" (with a sliding_window of {window}, which not every kind has)" if window else ""),
        "all that happens to its hidden states and its output, with nothing in between",
        " ".join(filter(None, (_likely_causes(network.config), network.outline.hint))),
    )


def _likely_causes(config: Any) -> str:
    """Return what of a configuration scales or caps values between the layers, where that is set."""
    found = [
        f"{name}: {value}" for name in _SCALES if (value := getattr(config, name, None)) not in (None, 1)
    ]
    return (
        f"Its configuration scales or caps values, which may be between layers: {', '.join(found)}."
        if found
        else ""
    )


def _alike(whole: Tensor, composed: Tensor) -> bool:
    return whole.shape == composed.shape and torch.allclose(whole, composed, rtol=1e-3, atol=1e-5)


def _refuse_other_packing(original: Any, network: HuggingFaceNetwork, task: Task) -> None:
    """Refuse layers that keep texts of one sequence apart by positions that begin again, or don't, unlike the network."""
    takes = inspect.signature(original.forward).parameters
    if task == "image-classification" or not {"position_ids", "use_cache"} <= set(takes):
        return
    tokens = inputs_of(network.config, task)["input_ids"]
    half = tokens.shape[1] // 2
    positions = torch.cat([torch.arange(half), torch.arange(tokens.shape[1] - half)]).expand_as(tokens)
    # With a cache, as text is generated, it doesn't look for packed texts.
    pair = _run_both(original, network, {"input_ids": tokens, "position_ids": positions}, use_cache=False)
    if not _alike(*pair):
        found = f"layers that keep packed texts apart otherwise than the {network.kind.__name__}"
        expected = "one attention mask in both, for position_ids that begin again"
        raise InputError(_KEY, found, expected, network.outline.hint)


def _refuse_foresight(original: Any, tokens: Tensor) -> None:
    """Refuse a network whose logits depend on later tokens: it would learn to copy what it is to predict."""
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % original.config.vocab_size
    before, after = (original(input_ids=given).logits[:, :-1] for given in (tokens, other))
    if (before - after).norm() > _ROUNDING * before.norm():
        raise InputError(
            "model.args.config",
            f"a {type(original).__name__} whose tokens see those after them, with the task causal-lm",
            "one that sees none of what it is to predict: is_decoder: true for BERT and its kin",
            "With model.args.path, set it in the folder's config.json. A network that sees both sides is for masked-lm.",
        )


def _make_loud(original: Any, output: Tensor) -> None:
    """Make a network's logits as large as training does, where it has an output layer: caps do nothing to small ones."""
    layer = original.get_output_embeddings()
    if layer is not None:
        layer.weight.mul_(_LOUD / output.abs().max().clamp_min(torch.finfo(output.dtype).tiny))


def _run_both(
    original: Any, network: HuggingFaceNetwork, inputs: dict[str, Tensor], **options: bool
) -> tuple[Tensor, Tensor]:
    try:
        with reproducible(1):
            whole: Tensor = original(**inputs, **options).logits
    except Exception as error:  # what its configuration doesn't tell, or an input of another form
        found = (
            f"a {network.kind.__name__} that doesn't run by itself on {', '.join(inputs)} ({in_words(error)})"
        )
        raise InputError("model.args.config", found, "a configuration with which it does") from error
    try:
        with reproducible(1):
            return whole, network.run(**inputs)
    except InputError:
        raise
    except Exception as error:  # modules that aren't made for each other
        found = f"layers of a {network.kind.__name__} that don't fit together ({in_words(error)})"
        expected = "those through which its hidden states go"
        raise InputError(_KEY, found, expected, network.outline.hint) from error
