"""Consecutive layers of a model as one module, whose state has the names of the plain model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from lowdimfa.calling import call
from lowdimfa.encoding import Encoder, State, decode, require_storable
from lowdimfa.errors import InputError
from lowdimfa.layers import Layer
from lowdimfa.values import Value

_EXTRA_STATE = "_extra_state"
"""How the keys end under which torch keeps what ``get_extra_state`` returns."""

_TENSORS = "model/"
"""How the names of layers' tensors begin in a block's state."""

_NOTHING: Mapping[str, Tensor] = {}

_FIRST_VERSION = {"version": 1}
"""What torch notes of a module whose class says nothing of the format of its state."""


class PlainState(NamedTuple):
    """The state of some layers under the names of the plain model.

    Attributes
    ----------
    tensors
        Parameters and buffers.
    extra
        What modules return as ``get_extra_state``, and whatever else in their state dict is no tensor.
    versions
        What torch notes of the format of a module's state, by the module's name, where it isn't the first.
    """

    tensors: dict[str, Tensor]
    extra: dict[str, Any]
    versions: dict[str, Any]


class BlockModule(nn.Module):
    """Consecutive layers of a model, run in order; it shares their parameters and knows their plain names."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layer_names = tuple(layer.name for layer in layers)
        self._layers = nn.ModuleList(layer.module for layer in layers)
        self._takes = tuple(layer.takes for layer in layers)
        modules = [layer.module for layer in layers]
        self._again = {str(index) for index, one in enumerate(modules) if modules.index(one) < index}

    def parts(self, starts: Sequence[int]) -> list[BlockModule]:
        """Return modules that share the layers: each has those from one start, an index, up to the next."""
        layers = [
            Layer(takes.layer, module, takes.needed)
            for takes, module in zip(self._takes, self._layers, strict=True)
        ]
        return [BlockModule(layers[start:stop]) for start, stop in pairwise([*starts, len(layers)])]

    def named_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the layers with their names."""
        return zip(self.layer_names, self._layers, strict=True)

    def forward(self, stream: Value, side: Mapping[str, Tensor] = _NOTHING) -> Value:
        """Run the layers in order, with the data's inputs by name beside what goes from one to the next."""
        for layer, takes in zip(self._layers, self._takes, strict=True):
            stream = call(layer, takes, stream, side)
        return stream

    def named_plain_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every parameter once, with its name in the plain model."""
        for name, parameter in self.named_parameters():
            yield self._plain(name), parameter

    def named_plain_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every buffer once, with its name in the plain model."""
        for name, buffer in self.named_buffers():
            yield self._plain(name), buffer

    def plain_state(self) -> PlainState:
        """Return the block's part of the plain state dict, without copies; a tied tensor is there once."""
        # The tensors themselves, so that tied ones can be told.
        return self._plain_state(self.state_dict(keep_vars=True))

    def plain_state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of `plain_state`."""
        return self.plain_state().tensors

    def load_plain_state_dict(
        self,
        state: Mapping[str, Tensor],
        extra: Mapping[str, Any] | None = None,
        versions: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the block's part of a plain state, whose parts are those of `PlainState`; other blocks' are ignored.

        Raises
        ------
        InputError
            The state lacks something of this block, or has it in another shape.
        """
        given, versions = {**state, **(extra or {})}, versions or {}
        named = self.state_dict(keep_vars=True)
        own = self._plain_state(named)
        wanted = {**own.tensors, **own.extra}
        expected = "the state of the same model under its plain names"
        missing = [name for name in wanted if name not in given]
        if missing:
            raise InputError("model state", f"no {', '.join(missing)}", expected)
        loaded = OrderedDict((key, given[name]) for key in named if (name := self._plain(key)) in wanted)
        metadata = _metadata(named)
        formats = {
            key: versions.get(self._plain(key), dict(_FIRST_VERSION)) for key in metadata if "." in key
        }
        loaded._metadata = metadata | formats  # type: ignore[attr-defined]
        try:
            # Not strict, since a tied tensor is loaded under its first name alone.
            self.load_state_dict(loaded, strict=False)
        except RuntimeError as error:
            raise InputError("model state", str(error), expected) from error

    def _plain_state(self, named: Mapping[str, Any]) -> PlainState:
        tensors: dict[str, Tensor] = {}
        extra: dict[str, Any] = {}
        seen: set[int] = set()
        for key, value in named.items():
            if key.endswith(_EXTRA_STATE) or not isinstance(value, Tensor):
                # A layer that comes again is told once, as what is tied.
                if key.split(".", 2)[1] in self._again:
                    continue
                extra[self._plain(key)] = value
            elif id(value) not in seen:
                seen.add(id(value))
                tensors[self._plain(key)] = value.detach()
        formats = {
            key: value
            for key, value in _metadata(named).items()
            if "." in key and key.split(".", 2)[1] not in self._again
        }
        versions = {self._plain(key): value for key, value in formats.items() if value != _FIRST_VERSION}
        return PlainState(tensors, extra, versions)

    def _plain(self, key: str) -> str:
        _, index, *name = key.split(".", 2)
        return ".".join((self.layer_names[int(index)], *name))


def _metadata(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what torch notes of modules beside their state, unless a hook of theirs has made another dictionary."""
    return dict(getattr(named, "_metadata", {}))


def pack_layers(module: BlockModule) -> State:
    """Return what layers keep: tensors as ``model/<name>``, and in the scalars ``extra`` and ``versions``.

    Raises
    ------
    InputError
        A module keeps something that a checkpoint can't hold.
    """
    state, encoder = module.plain_state(), Encoder("model.factory")
    for name, value in state.tensors.items():
        require_storable(value, name, "model.factory")
    tensors = {f"{_TENSORS}{name}": value for name, value in state.tensors.items()}
    extra = {name: encoder.encode(value, "extra", name) for name, value in state.extra.items()}
    versions = {name: encoder.encode(value, "versions", name) for name, value in state.versions.items()}
    return State(tensors | encoder.tensors, {"extra": extra, "versions": versions})


def load_layers(module: BlockModule, tensors: Mapping[str, Tensor], *scalars: Mapping[str, Any]) -> None:
    """Restore what `pack_layers` returned, maybe of several blocks."""
    encoded = {name: data for part in scalars for name, data in part["extra"].items()}
    own = module.plain_state().extra.items()
    extra = {name: decode(encoded[name], tensors, value) for name, value in own if name in encoded}
    encoded = {name: data for part in scalars for name, data in part["versions"].items()}
    versions = {name: decode(data, tensors) for name, data in encoded.items()}
    plain = {
        name.removeprefix(_TENSORS): value for name, value in tensors.items() if name.startswith(_TENSORS)
    }
    module.load_plain_state_dict(plain, extra, versions)


@contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Let a forward write to copies of a module's buffers, such as batch norm's running statistics.

    The buffers themselves aren't touched: a graph that is kept for a later backward may refer to them.
    """
    originals = [
        (part, name, buffer)
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    for part, name, buffer in originals:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, name, buffer in originals:
            setattr(part, name, buffer)
