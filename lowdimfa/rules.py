"""Rules and taps by name: one registry of the built-in ones, and those that users bring by import path.

A built-in rule is its file and its line here: a name is short for an import path, and the rest treats both alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from lowdimfa.errors import InputError, LowdimfaError, in_words

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

        if not isinstance(given, str) and not hasattr(given, "factory"):
            hint = f"For this class: {self.name_of(given)!r}." if inspect.isclass(given) else ""
            raise InputError(
                self.key, repr(given), "a name, an import path, or a FactoryConfig with arguments", hint
            )
        name, where = (given, self.key) if isinstance(given, str) else (given.factory, f"{self.key}.factory")
        if isinstance(name, str) and name not in self.built_in and "." not in name and ":" not in name:
            near = get_close_matches(name, self.built_in, n=1)
            expected = f"one of {', '.join(self.built_in)}, or an import path such as 'package.module:Class'"
            raise InputError(where, repr(name), expected, f"Did you mean {near[0]!r}?" if near else "")
        found = resolve(self.built_in.get(name, name) if isinstance(name, str) else name, where)
        base = resolve(self._base, where)
        if not (inspect.isclass(found) and issubclass(found, cast(type, base))):
            raise InputError(
                where,
                f"{name!r}, which isn't a class derived from lowdimfa.{base.__name__}",
                f"one of {', '.join(self.built_in)}, or the import path of such a class",
            )
        if isinstance(getattr(found, "kept", ()), str):
            raise InputError(where, f"{name!r}, whose 'kept' is text", "a tuple of names, such as ('trace',)")
        return cast(type[T], found)

    def is_built_in(self, kind: type[T]) -> bool:
        """Return whether a class is of the registry's own modules, not one derived from it."""
        return kind.__module__ in {path.partition(":")[0] for path in self.built_in.values()}

    @contextmanager
    def trying(self, kind: type[T], what: str) -> Iterator[None]:
        """Make what a user's class raises in the body a refusal; ``what`` follows "which fails"."""
        try:
            yield
        except LowdimfaError:
            raise
        except (Exception, SystemExit) as error:  # a user's class may fail in any way
            raise InputError(
                self.key,
                f"{self.name_of(kind)!r}, which fails {what} ({in_words(error)})",
                "one that works on this network",
            ) from error

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
        names = _parameters(kind)
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


def _parameters(kind: type) -> set[str]:
    """Return the names that a constructor takes; through ``**settings`` also those of the classes it derives from."""
    found: set[str] = set()
    for one in kind.__mro__:
        if "__init__" in vars(one):
            parameters = inspect.signature(vars(one)["__init__"]).parameters.values()
            found |= {
                each.name
                for each in parameters
                if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
            }
            if all(each.kind is not each.VAR_KEYWORD for each in parameters):
                break
    return found


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
        "pca": "lowdimfa.feedback.projection:PcaProjection",
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
        "grid-normalised": "lowdimfa.grid_tap:GridNormalisedTap",
    },
)

CHAIN_RULES: Registry[ChainRule] = Registry(
    "convert: rule",
    "lowdimfa.chain.rules:ChainRule",
    {
        "low-dimensional": "lowdimfa.chain.rules:LowDimensional",
        "normative": "lowdimfa.chain.factors:Normative",
        "local": "lowdimfa.chain.factors:Local",
        "follow": "lowdimfa.chain.rules:Follow",
        "feedback-alignment": "lowdimfa.chain.rules:FeedbackAlignment",
        "kolen-pollack": "lowdimfa.chain.rules:KolenPollack",
        "sign-symmetry": "lowdimfa.chain.rules:SignSymmetry",
        "backprop": "lowdimfa.chain.rules:Backpropagation",
        "direct": "lowdimfa.chain.direct:DirectFeedback",
    },
)
