"""Where in a network of Hugging Face the layers are: its embedding, its list of blocks, its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from lowdimfa.errors import InputError

Task = Literal["causal-lm", "masked-lm", "sequence-classification", "image-classification"]
Token = Literal["all", "first", "last"]

_KEY = "model.args.layers"
_FORM = (
    "{before: [names of modules], list: name of the list of blocks, after: [names of modules]}, "
    "with token: first or last where the output is of one token"
)


@dataclass(frozen=True)
class Outline:
    """Dotted names of the modules that make up a network, in the order in which they run.

    Attributes
    ----------
    before
        What makes the first hidden states of tokens or pixels.
    blocks
        An `nn.ModuleList` of transformer blocks.
    after
        What makes the output of the last hidden states.
    token
        Of which tokens the output is.
    """

    before: tuple[str, ...]
    blocks: str
    after: tuple[str, ...]
    token: Token = "all"


_GPT2_INPUT = ("transformer.wte", "transformer.wpe", "transformer.drop")
_OUTLINES: dict[tuple[str, Task], Outline] = {
    ("gpt2", "causal-lm"): Outline(_GPT2_INPUT, "transformer.h", ("transformer.ln_f", "lm_head")),
    ("gpt2", "sequence-classification"): Outline(
        _GPT2_INPUT, "transformer.h", ("transformer.ln_f", "score"), "last"
    ),
    ("llama", "causal-lm"): Outline(("model.embed_tokens",), "model.layers", ("model.norm", "lm_head")),
    ("llama", "sequence-classification"): Outline(
        ("model.embed_tokens",), "model.layers", ("model.norm", "score"), "last"
    ),
    ("bert", "masked-lm"): Outline(("bert.embeddings",), "bert.encoder.layer", ("cls",)),
    ("bert", "sequence-classification"): Outline(
        ("bert.embeddings",), "bert.encoder.layer", ("bert.pooler", "dropout", "classifier")
    ),
    ("vit", "image-classification"): Outline(
        ("vit.embeddings",), "vit.layers", ("vit.layernorm", "classifier"), "first"
    ),
}


def outline_of(original: nn.Module, task: Task, given: Mapping[str, Any] | None) -> Outline:
    """Return the outline that was given, or the known one of this kind of network.

    Raises
    ------
    InputError
        There is none, it has another form, or it names modules that the network doesn't have.
    """
    kind = str(original.config.model_type)  # type: ignore[union-attr]
    outline = _OUTLINES.get((kind, task)) if given is None else _parsed(given)
    if outline is None:
        known = ", ".join(sorted({known for known, _ in _OUTLINES}))
        found = f"nothing, for a {kind} for {task} that has the lists {_lists(original)}"
        raise InputError(
            _KEY, found, _FORM, f"Without it the layers of {known} are known, each for its usual tasks."
        )
    _require_modules(original, outline)
    return outline


def _parsed(given: Mapping[str, Any]) -> Outline:
    names = {"before", "list", "after"}
    token = given.get("token", "all")
    lists = [given.get(key) for key in ("before", "after")]
    fits = (
        names <= set(given) <= names | {"token"}
        and isinstance(given["list"], str)
        and all(isinstance(each, list | tuple) and each for each in lists)
        and all(isinstance(name, str) for each in lists for name in cast(list[Any], each))
        and token in ("all", "first", "last")
    )
    if not fits:
        raise InputError(_KEY, repr(dict(given)), _FORM)
    return Outline(tuple(given["before"]), given["list"], tuple(given["after"]), token)


def _require_modules(original: nn.Module, outline: Outline) -> None:
    modules = dict(original.named_modules())
    kind = type(original).__name__
    for name in (*outline.before, outline.blocks, *outline.after):
        if name not in modules:
            near = ", ".join(name for name, _ in original.named_modules() if name.count(".") <= 1 and name)
            raise InputError(_KEY, f"{name!r}, which a {kind} doesn't have", f"names such as {near}")
    blocks = modules[outline.blocks]
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        found = f"{outline.blocks!r}, a {type(blocks).__name__}"
        raise InputError(_KEY, found, f"the name of a list of blocks: {_lists(original)}")


def _lists(original: nn.Module) -> str:
    found = [
        f"{name} ({len(module)} of {type(module[0]).__name__})"
        for name, module in original.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    return ", ".join(found) or "no nn.ModuleList"
