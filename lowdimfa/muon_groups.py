"""Which of the parameters that an optimiser is given are Muon's, told by kinds and by names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from lowdimfa.kinds import HIDDEN, Kinds

Named = tuple[str, nn.Parameter]
Params = Iterable[nn.Parameter] | Iterable[Named] | Iterable[dict[str, Any]]
"""What torch's optimisers take: parameters, ``model.named_parameters()``, or groups of either."""


@dataclass
class Group:
    """A group of parameters as it was given, and what of it is whose.

    Attributes
    ----------
    settings
        Its own settings.
    is_named
        Whether its parameters came with their names.
    matrices, transposed
        Muon's, and whether they are stored as ``(in, out)``.
    rest
        AdamW's.
    """

    settings: dict[str, Any]
    is_named: bool = False
    matrices: list[Named] = field(default_factory=list)
    transposed: list[bool] = field(default_factory=list)
    rest: list[Named] = field(default_factory=list)

    def parts(self) -> list[dict[str, Any]]:
        """Return what torch's optimisers take for a group: of Muon's, and of AdamW's."""
        return [self._part(self.matrices), self._part(self.rest)]

    def names(self) -> list[str]:
        """Return the names of all of its parameters."""
        return [name for name, _ in (*self.matrices, *self.rest)]

    def _part(self, named: list[Named]) -> dict[str, Any]:
        part = self.settings | {"params": [one for _, one in named]}
        # Said also where there are none: torch wants names in all groups or in none.
        return part | {"param_names": [name for name, _ in named]} if self.is_named else part


def split(
    params: Params, kinds: Mapping[str, str] | None, adamw: Sequence[str], muon: Sequence[str]
) -> list[Group]:
    """Return the groups; one where none are given.

    Raises
    ------
    ValueError
        Kinds and parameters don't go together.
    """
    if kinds is None:
        raise ValueError("kinds must name what every parameter is: lowdimfa.kinds.kinds_of(model)")
    given: list[Any] = list(params)
    are_groups = any(isinstance(one, Mapping) for one in given)
    found = [Group({name: one[name] for name in one if name != "params"}) for one in given if are_groups]
    found = found or [Group({})]
    parts = [_listed(one["params"]) for one in given] if are_groups else [given]
    every = [one for part in parts for one in part]
    names = iter(_names(every, kinds, are_groups))
    are_named = any(isinstance(one, tuple) for one in every)
    for group, part in zip(found, parts, strict=True):
        group.is_named = are_named
        for each in part:
            name, one = next(names), each[1] if isinstance(each, tuple) else each
            _require_fitting(name, one, kinds[name])
            if is_muons(name, one, kinds[name], adamw, muon):
                group.matrices.append((name, one))
                group.transposed.append(kinds[name] == "transposed")
            else:
                group.rest.append((name, one))
    return found


def is_muons(name: str, one: Tensor, kind: str, adamw: Sequence[str], muon: Sequence[str]) -> bool:
    """Return whether Muon trains a parameter of that kind: a hidden layer's matrix, unless a pattern says otherwise."""
    wanted = kind in HIDDEN or (one.dim() >= 2 and is_named(name, muon))
    return wanted and not is_named(name, adamw)


def is_named(name: str, patterns: Iterable[str]) -> bool:
    """Return whether one of the patterns fits a name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def _names(given: list[Any], kinds: Mapping[str, str], are_groups: bool) -> list[str]:
    """Return the names of parameters: said beside them, or of the very objects of the model, or by their order."""
    with_names = [isinstance(one, tuple) for one in given]
    if any(with_names) and not all(with_names):
        raise ValueError("some parameters come with names, and some without: give names to all or to none")
    if any(with_names):
        names = [name for name, _ in given]
        for name in names:
            if name not in kinds:
                raise ValueError(
                    f"kinds say nothing of the parameter {name!r}: give kinds_of(model) of this model"
                )
        return names
    known = [kinds.name_of(one) for one in given] if isinstance(kinds, Kinds) else [None]
    if all(name is not None for name in known):
        return [name for name in known if name is not None]
    if any(name is not None for name in known):
        shape = tuple(given[known.index(None)].shape)
        raise ValueError(
            f"a parameter of shape {shape} isn't of the model that kinds were taken from: call kinds_of(model) after the "
            "last change to the model, such as convert()"
        )
    if are_groups:
        raise ValueError(
            "groups don't tell which parameter has which name: give kinds=lowdimfa.kinds.kinds_of(model) as it was "
            "returned, of the model that has these parameters, or groups of (name, parameter)"
        )
    if len(kinds) != len(given):
        raise ValueError(
            f"kinds name {len(kinds)} parameters, and {len(given)} are given: kinds must name what every parameter "
            "is, in order, or be lowdimfa.kinds.kinds_of(model) of the model that has them, or the parameters come "
            "with names, as from model.named_parameters()"
        )
    return list(kinds)


def _require_fitting(name: str, one: Tensor, kind: str) -> None:
    """Refuse kinds in another order than the parameters, where the shape tells."""
    if kind in HIDDEN and one.dim() < 2:
        raise ValueError(
            f"kinds say that {name!r} is a matrix, and a parameter of shape {tuple(one.shape)} is in its place: give the "
            "parameters in the order of kinds, or with their names, as model.named_parameters() does"
        )
