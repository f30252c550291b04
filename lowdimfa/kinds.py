"""What the parameters of a network are, so that an optimiser can treat hidden layers' matrices as such."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

Kind = Literal["matrix", "transposed", "embedding", "output", "feedback", "other"]
"""What a parameter is; `kinds_of` has the meanings."""

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = ("transformers.pytorch_utils", "Conv1D")
"""Module and name of GPT-2's linear layer, which isn't imported for this. Its weight is ``(in, out)``."""
HIDDEN: tuple[Kind, ...] = ("matrix", "transposed")
"""Kinds of hidden layers' matrices."""


class Kinds(dict[str, Kind]):
    """Kinds by name, which also know the parameters themselves; a copy, or one that was pickled, is a plain dictionary.

    Parameters
    ----------
    kinds
        By the name of the parameter.
    parameters
        By the same names.
    """

    def __init__(self, kinds: Mapping[str, Kind], parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(kinds)
        self._parameters = {
            id(one): (name, one) for name, one in parameters.items()
        }  # held, as are their identities

    def name_of(self, parameter: object) -> str | None:
        """Return the name of a parameter, or None if the module doesn't have this very one."""
        name, _ = self._parameters.get(id(parameter), (None, None))
        return name

    def __reduce__(self) -> tuple[type[dict[str, Kind]], tuple[dict[str, Kind]]]:
        return dict, (dict(self),)


def kinds_of(module: nn.Module, *, head: bool = True) -> Kinds:
    """Return what the parameters of a module are, by name.

    ``matrix``: the weight of a linear layer, of attention's projections, or of a convolution without groups;
    ``transposed``: one that is stored as ``(in, out)``, as those of GPT-2 by Hugging Face. ``embedding``: that of an
    embedding. ``output``: in the head, the matrix that is registered last, unless it is an embedding's too. ``other``:
    the rest, as biases, norms and learned positions. Blocks have a kind more, ``feedback``, their ``Q``.

    Parameters
    ----------
    module
        A network, or a block of one.
    head
        Whether the network's output comes from it.
    """
    found: dict[int, Kind] = {}
    matrix: Kind
    last: Tensor | None = None
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(part, nn.Embedding | nn.EmbeddingBag):
                found[id(parameter)] = "embedding"  # also where a linear layer shares it
            elif _is_matrix(part, name, parameter):
                matrix = "transposed" if _is_transposed(part) else "matrix"
                found.setdefault(id(parameter), matrix)
                last = parameter
    kinds: dict[str, Kind] = {name: found.get(id(one), "other") for name, one in module.named_parameters()}
    is_output = {
        name for name, one in module.named_parameters() if head and one is last and kinds[name] in HIDDEN
    }
    return Kinds(kinds | dict.fromkeys(is_output, "output"), dict(module.named_parameters()))


def _is_matrix(part: nn.Module, name: str, parameter: Tensor) -> bool:
    if parameter.dim() < 2 or not parameter.is_floating_point():
        return False
    if isinstance(part, nn.MultiheadAttention):
        return name.endswith("proj_weight")
    known = isinstance(part, _MATRICES) or _is_transposed(part)
    return known and name == "weight" and getattr(part, "groups", 1) == 1


def _is_transposed(part: nn.Module) -> bool:
    return any((one.__module__, one.__qualname__) == _TRANSPOSED for one in type(part).__mro__)
