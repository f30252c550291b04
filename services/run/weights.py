"""What a network begins with beside what its factory made: weights of a file, and parameters that stay as they are."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowdimfa.encoding import same_bits
from lowdimfa.errors import InputError, in_words, some_of
from lowdimfa.partitioning import BlockPlan, Layer
from lowdimfa.paths import expand
from lowdimfa.services.run.tensor_files import KEY, TensorFiles
from lowdimfa.services.spec import Specification
from lowdimfa.services.spec.weights import WeightsSection

NO_BLOCK = -1
"""In place of a block's index, where a network has no memory for its weights."""


class Origin(NamedTuple):
    """Where a run's weights came from: its trainer says it to its blocks, which must find the same.

    Attributes
    ----------
    path
        Absolute.
    digest
        See `TensorFiles`.
    """

    path: str
    digest: str


class Weights:
    """The weights that a specification names.

    Parameters
    ----------
    section
        What it says of them.
    origin
        What the trainer found, where this is another process of the run.

    Raises
    ------
    InputError
        There are none, or not those of the trainer.
    """

    def __init__(self, section: WeightsSection, origin: Origin | None = None) -> None:
        self._section = section
        self._files = TensorFiles(_absolute(section.path) if origin is None else Path(origin.path))
        self.origin = Origin(str(self._files.path), self._files.digest)
        if origin is not None and self.origin != origin:
            raise InputError(
                KEY,
                f"other contents of {origin.path} on {socket.gethostname()} than the trainer's",
                "the same files, by the same path, on every node of the run",
            )

    @classmethod
    def of(cls, specification: Specification, origin: Origin | None = None) -> Weights | None:
        """Return the weights of a run that begins, or None if it begins with what the factory makes."""
        section = specification.model.weights_section
        return None if section is None else cls(section, origin)

    def load(self, blocks: Sequence[BlockPlan], own: int | None = None) -> None:
        """Give layers their weights.

        Parameters
        ----------
        blocks
            The whole network: all of its names are looked at.
        own
            Index of the one block whose weights are read; None is all, and `NO_BLOCK` none.

        Raises
        ------
        InputError
            Something is missing, left over, or of another shape or type; or a layer doesn't take it.
        """
        layers = [layer for block in blocks for layer in block.layers]
        taken = self._fitting({name: value for layer in layers for name, value in _state(layer)})
        for block in blocks:
            for layer in block.layers if own in (None, block.index) else ():
                self._load(layer, taken)

    def load_alone(self, block: BlockPlan) -> None:
        """Give a block its weights where no other block has layers: the trainer has looked at the names of all.

        Raises
        ------
        InputError
            A layer doesn't take them.
        """
        wanted = {name for layer in block.layers for name, _ in _state(layer)}
        taken = {
            name for name in wanted & self._files.entries.keys() if not _fits(name, self._section.missing)
        }
        for layer in block.layers:
            self._load(layer, taken)

    def _fitting(self, wanted: dict[str, Tensor]) -> set[str]:
        """Return the names to take from the files, once it is sure that these are the model's."""
        section, found = self._section, self._files.entries
        for pattern in section.missing:
            if not any(fnmatchcase(name, pattern) for name in wanted):
                raise unused(f"{KEY}.missing", pattern, list(wanted))
        new = {name for name in wanted if _fits(name, section.missing)}
        taken = (wanted.keys() & found.keys()) - new
        # One of the names of a tied tensor is enough.
        there = {id(wanted[name]) for name in taken | new}
        missing = [name for name, value in wanted.items() if id(value) not in there]
        left = [name for name in found if name not in wanted and not _fits(name, section.unexpected)]
        if missing:
            raise InputError(
                KEY,
                f"{self._files.path} without {some_of(missing)}{f'; it has {some_of(left)}' if left else ''}",
                f"the model's {len(wanted)} tensors under its plain names",
                f"What may begin as the factory makes it goes to {KEY}.missing, such as the layer of new classes.",
            )
        if left:
            raise InputError(
                KEY,
                f"{some_of(left)} in {self._files.path}",
                f"nothing but the model's {len(wanted)} tensors",
                f"What isn't needed goes to {KEY}.unexpected.",
            )
        for name in sorted(taken):
            self._require_alike(name, wanted[name])
        self._require_tied(wanted, taken)
        return taken

    def _require_alike(self, name: str, wanted: Tensor) -> None:
        entry = self._files.entries[name]
        exact = entry.dtype == wanted.dtype or (
            isinstance(entry.dtype, torch.dtype)
            and entry.dtype.is_floating_point
            and wanted.is_floating_point()
            and torch.promote_types(entry.dtype, wanted.dtype) == wanted.dtype
        )
        if entry.shape != tuple(wanted.shape) or not exact:
            raise InputError(
                KEY,
                f"{name} of shape {entry.shape} and type {_word(entry.dtype)} in {entry.file}",
                f"shape {tuple(wanted.shape)} and type {_word(wanted.dtype)}, as in the model, or one that it can hold",
                f"Name it in {KEY}.missing if it is to begin as the factory makes it.",
            )

    def _require_tied(self, wanted: dict[str, Tensor], taken: set[str]) -> None:
        first: dict[int, str] = {}
        for name in (name for name in wanted if name in taken):
            other = first.setdefault(id(wanted[name]), name)
            if other != name:
                values = self._files.read([name, other])
                if not same_bits(values[name], values[other]):
                    raise InputError(
                        KEY, f"{other} and {name} with different values", "the same, as the model ties them"
                    )

    def _load(self, layer: Layer, taken: set[str]) -> None:
        own = [name for name, _ in _state(layer) if name in taken]
        values = {name.removeprefix(f"{layer.name}."): v for name, v in self._files.read(own).items()}
        try:
            layer.module.load_state_dict(values, strict=False)
        except Exception as error:  # modules of the user's own may load their state in any way
            raise InputError(
                KEY,
                f"layer {layer.name!r} that doesn't take its weights ({in_words(error)})",
                "one that does",
            ) from error


def located(specification: Specification) -> Specification:
    """Return the specification with an absolute path of the weights, as seen from here.

    Raises
    ------
    InputError
        The path names a variable that is not set.
    """
    section = specification.model.weights_section
    if section is None:
        return specification
    weights = section.model_copy(update={"path": str(_absolute(section.path))})
    model = specification.model.model_copy(update={"weights": weights})
    return specification.model_copy(update={"model": model})


def _absolute(path: str) -> Path:
    try:
        return expand(path).absolute()
    except ValueError as error:
        raise InputError(KEY, f"{path!r} ({error})", "a path") from error


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters of a model whose names fit a pattern.

    Parameters
    ----------
    model
        As the factory made it; its lazy layers may not have their weights yet.
    patterns
        Of names in the plain model, as shells have them: ``*`` is any number of characters, dots among them.

    Raises
    ------
    InputError
        A pattern fits no parameter.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        fitting = [parameter for name, parameter in named if fnmatchcase(name, pattern)]
        if not fitting:
            raise unused("model.frozen", pattern, [name for name, _ in named])
        for parameter in fitting:
            parameter.requires_grad = False


def unused(key: str, pattern: str, names: Sequence[str]) -> InputError:
    """Return what to raise for a pattern that fits none of the names."""
    some = ", ".join(map(repr, names[:3])) or "none at all"
    return InputError(
        key,
        f"the pattern {pattern!r}, which fits none of the model's names",
        f"patterns of names in the plain model, such as {some}",
    )


def _state(layer: Layer) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a layer's state under the names of the plain model; tied ones under each of theirs."""
    for key, value in layer.module.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and not key.endswith("_extra_state"):
            yield f"{layer.name}.{key}", value


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _word(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")
