"""Rules and taps by name: one registry of the built-in ones, and those that users bring by import path.

A built-in rule is its file and its line here: a name is short for an import path, and the rest treats both alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from lowdimfa.errors import InputError, in_words

if TYPE_CHECKING:
    from lowdimfa.chain.rules import ChainRule
    from lowdimfa.config import FactoryConfig
    from lowdimfa.feedback.projection import PRule
    from lowdimfa.feedback.rules import QRule
    from lowdimfa.taps import Tap

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes of one kind, each by a built-in name or by its import path.

    Parameters
    ----------
    key
        Of the specification, or the argument, that names one; for messages.
    base
        Import path of the class from which all are derived.
    built_in
        Import paths by name.
    """

    def __init__(self, key: str, base: str, built_in: Mapping[str, str]) -> None:
        self.key = key
        self.built_in = built_in
        self._base = base

    def find(self, given: str | FactoryConfig) -> type[T]:
        """Return the class that a setting names.

        Raises
        ------
        InputError
            The name is unknown, the path can't be imported, or what it names isn't derived from the base class.
        """
        from lowdimfa.imports import resolve  # here, since it needs torch: who reads names alone doesn't

        name, where = (given, self.key) if isinstance(given, str) else (given.factory, f"{self.key}.factory")
        if name not in self.built_in and "." not in name and ":" not in name:
            near = get_close_matches(name, self.built_in, n=1)
            expected = f"one of {', '.join(self.built_in)}, or an import path such as 'package.module:Class'"
            raise InputError(where, repr(name), expected, f"Did you mean {near[0]!r}?" if near else "")
        found = resolve(self.built_in.get(name, name), where)
        base = resolve(self._base, where)
        if not (inspect.isclass(found) and issubclass(found, cast(type, base))):
            raise InputError(
                where,
                f"{name!r}, which isn't a class derived from lowdimfa.{base.__name__}",
                f"one of {', '.join(self.built_in)}, or the import path of such a class",
            )
        return cast(type[T], found)

    def name_of(self, kind: type[T]) -> str:
        """Return the name by which a setting asks for a class: a built-in one's own, or the import path."""
        path = f"{kind.__module__}:{kind.__qualname__}"
        return next((name for name, built_in in self.built_in.items() if built_in == path), path)

    def make(self, given: str | FactoryConfig, seed: int, *arguments: Any, **settings: Any) -> T:
        """Make an object of the class that a setting names.

        Parameters
        ----------
        given
            The setting.
        seed
            For classes that draw from the default generators: they draw the same in every process.
        arguments
            What all classes of the kind are called with.
        settings
            Of the run: those of them whose names the constructor has among its parameters, and that the arguments of
            the setting don't give, are passed too.

        Raises
        ------
        InputError
            As of `find`; or the class fails.
        """
        from lowdimfa.generators import reproducible  # here for the same reason

        kind, args = self.find(given), {} if isinstance(given, str) else deepcopy(dict(given.args))
        names = inspect.signature(kind).parameters
        filled = {name: value for name, value in settings.items() if name in names and name not in args}
        try:
            with reproducible(seed):
                return kind(*arguments, **filled, **args)
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # a user's class may fail in any way
            raise InputError(
                self.key if isinstance(given, str) else f"{self.key}.args",
                f"{args or 'no arguments'}, with which {kind.__name__} can't be made ({in_words(error)})",
                "arguments that its constructor accepts",
            ) from error


Q_RULES: Registry[QRule] = Registry(
    "feedback.q_rule",
    "lowdimfa.feedback.rules:QRule",
    {
        "readout": "lowdimfa.feedback.readout:ReadoutFeedback",
        "hebbian": "lowdimfa.feedback.rules:HebbianFeedback",
        "probed": "lowdimfa.feedback.rules:ProbedFeedback",
        "fixed": "lowdimfa.feedback.rules:QRule",
    },
)

P_RULES: Registry[PRule] = Registry(
    "feedback.p_rule",
    "lowdimfa.feedback.projection:PRule",
    {
        "fixed": "lowdimfa.feedback.projection:PRule",
        "oja": "lowdimfa.feedback.projection:OjaProjection",
    },
)

TAPS: Registry[Tap] = Registry(
    "feedback.tap",
    "lowdimfa.taps:Tap",
    {
        "identity": "lowdimfa.taps:FlatTap",
        "pooled": "lowdimfa.taps:PooledTap",
        "normalised": "lowdimfa.taps:NormalisedTap",
        "pooled-normalised": "lowdimfa.taps:PooledNormalisedTap",
    },
)

CHAIN_RULES: Registry[ChainRule] = Registry(
    "convert: rule",
    "lowdimfa.chain.rules:ChainRule",
    {
        "low-dimensional": "lowdimfa.chain.rules:LowDimensional",
        "feedback-alignment": "lowdimfa.chain.rules:FeedbackAlignment",
        "kolen-pollack": "lowdimfa.chain.rules:KolenPollack",
        "sign-symmetry": "lowdimfa.chain.rules:SignSymmetry",
        "backprop": "lowdimfa.chain.rules:ChainRule",
        "direct": "lowdimfa.chain.direct:DirectFeedback",
    },
)
