"""Where in a network of Hugging Face the layers are: its embedding, its list of blocks, its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

from torch import nn

from lowdimfa.errors import InputError
from lowdimfa.models.hf.running import Ran, lists_of, order_of

Task = Literal["causal-lm", "masked-lm", "sequence-classification", "image-classification"]
Token = Literal["all", "first", "last"]

_KEY = "model.args.layers"
_FORM = (
    "{before: [names of modules], list: name of the list of blocks, after: [names of modules]}, "
    "with token: first or last where the output is of one token"
)
_HIDDEN = 3
"""Dimensions of hidden states: samples, tokens, width."""


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
    found
        Whether nobody named them.
    more
        What the network gives its blocks beside hidden states and masks, where the layers were found.
    """

    before: tuple[str, ...]
    blocks: str
    after: tuple[str, ...]
    token: Token = "all"
    found: bool = False
    more: tuple[str, ...] = ()

    @property
    def hint(self) -> str:
        """How the layers were found, where nobody named them; else empty."""
        if not self.found:
            return ""
        more = f" Its blocks are given {' and '.join(self.more)} too." if self.more else ""
        return f"The layers were found by how its modules run: {self}. Others can be named.{more}"

    def __str__(self) -> str:
        before, after = (f"[{', '.join(names)}]" for names in (self.before, self.after))
        token = "" if self.token == "all" else f", token: {self.token}"
        return f"{{before: {before}, list: {self.blocks}, after: {after}{token}}}"


def outline_of(original: nn.Module, task: Task, given: Mapping[str, Any] | None) -> Outline:
    """Return the outline that was given, or the one that the order tells in which the network's modules run.

    Raises
    ------
    InputError
        There is none, it has another form, or it names modules that the network doesn't have.
    """
    outline = _found(original, task) if given is None else _parsed(given)
    if outline is None:
        kind = str(original.config.model_type)  # type: ignore[union-attr]
        found = f"nothing, for a {kind} for {task} that has the lists {_lists(original)}"
        raise InputError(
            _KEY, found, _FORM, "Without it the layers are those that run around the one list of blocks."
        )
    _require_modules(original, outline)
    return outline


def _found(original: nn.Module, task: Task) -> Outline | None:
    """Return where the layers seem to be: what runs before the first block and after the last, not within others.

    Whether they compute all that the network does is for a comparison to tell.
    """
    ran = order_of(original, task == "image-classification")
    names = [each.name for each in ran]
    lists = {name: len(blocks) for name, blocks in lists_of(original).items() if f"{name}.0" in names}
    if len(lists) != 1:
        return None
    [(blocks, count)] = lists.items()
    expected = [f"{blocks}.{index}" for index in range(count)]
    if [name for name in names if name in expected] != expected:
        return None
    around = {blocks[:end] for end, character in enumerate(blocks) if character == "."} | {""}
    beside = [
        each.made and each.name not in around and each.name.rpartition(".")[0] in around for each in ran
    ]
    first, last = names.index(expected[0]), names.index(expected[-1])
    before = [each for each, known in zip(ran[:first], beside, strict=False) if known]
    after = [each for each, known in zip(ran[last:], beside[last:], strict=True) if known]
    if not before or not after:
        return None
    parts = [tuple(each.name for each in some) for some in (before, after)]
    given = dict.fromkeys(key for each in ran if each.name in expected for key in each.more)
    more = tuple(key for key in given if "mask" not in key)
    return Outline(parts[0], blocks, parts[1], _token(after, task), found=True, more=more)


def _token(after: list[Ran], task: Task) -> Token:
    """Return of which tokens the output is, by the dimensions of what comes in and out behind the blocks."""
    if task.endswith("-lm"):
        return "all"
    if after[-1].made == _HIDDEN:
        return "last"
    steps = pairwise((Ran("", 0, _HIDDEN), *after))
    return "first" if any(one.made > other.given > 0 for one, other in steps) else "all"


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
