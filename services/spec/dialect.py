"""The YAML of specifications: read without surprises, and written so that it reads back the same.

Where YAML 1.1, which PyYAML reads, and YAML 1.2 differ on what people write, this is not left to a guess. ``1e-3`` is a
number, as in 1.2, not a string. ``1:30`` and dates stay strings, as no key takes a time. ``012`` is refused, since it is
10 to one and 12 to the other. ``off`` and ``no`` are false, as in 1.1 (`Section` knows where a word is meant). A key that
comes twice is refused, where PyYAML would keep the last.

A text may come from anybody. So what a few characters can make large is refused before it is made: aliases that stand
for aliases, deep nesting, numbers of thousands of digits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any

import yaml

from lowdimfa.errors import InputError
from lowdimfa.services.spec.given import Given

_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)

MOST_DEPTH = 100
"""Mappings and lists within each other, aliases followed."""

MOST_ALIASED = 10_000
"""Values that aliases may add to those that are written out."""

MOST_DIGITS = 100
"""Characters of a number. Python's own time for one grows with their square, and it shows none of more than 4300."""

_INTEGER = re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)$")
_LEADING_ZERO = re.compile(r"^[-+]?0[0-9_]*[0-9]")

_LONGEST_REASON = 200
_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_REPLACED = {*_NUMBERS, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}
# Reader and writer share these: the writer quotes exactly the strings that the reader would take for numbers.
_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _require_small(node)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked here because merge keys (<<) are flattened later, and may repeat a key on purpose.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                # By value, since 1 and 0x1 are one key; only the merge key itself has none.
                value = key.value if key.tag == _MERGE else self.construct_object(key)
                if not isinstance(value, Hashable):
                    continue  # which PyYAML refuses
                if value in seen:
                    raise _refused(f"the key {key.value!r} comes twice", key)
                seen.add(value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode):
            _require_plain(node)
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
            # What PyYAML's constructors raise for a scalar that does not fit its tag, such as `!!int many`.
            raise _refused(f"a value that does not fit its tag {node.tag!r}", node) from error


def _refused(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


def _require_plain(node: yaml.ScalarNode) -> None:
    """Refuse a number that is too long or ambiguous, and text that no file can hold."""
    if node.tag in _NUMBERS and len(node.value) > MOST_DIGITS:
        raise _refused(f"a number of {len(node.value)} characters; at most {MOST_DIGITS} are allowed", node)
    if node.tag == _NUMBERS[0] and _LEADING_ZERO.match(node.value):
        raise _refused(f"{node.value} has a leading zero: leave it away, or quote it for a string", node)
    if any("\ud800" <= character <= "\udfff" for character in node.value):
        raise _refused("half of a surrogate pair, which is no character", node)


def _require_small(root: yaml.Node) -> None:
    """Refuse a document that is much larger, or deeper, than its text, because aliases stand for aliases.

    An anchor comes before its aliases: the size behind one is known when the walk, in the order of the text, meets it.
    A node that contains itself is left to pydantic, which refuses it with its place.
    """
    sizes: dict[int, tuple[int, int]] = {}

    def measure(node: yaml.Node) -> tuple[int, int]:
        """Return how many values a node stands for and how deep they are; count it as nothing while it is open."""
        if id(node) not in sizes:
            sizes[id(node)] = (0, 0)
            inner: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                inner = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                inner = node.value
            measured = [measure(part) for part in inner]
            size, depth = (
                1 + sum(size for size, _ in measured),
                1 + max((depth for _, depth in measured), default=0),
            )
            if depth > MOST_DEPTH:
                raise _refused(f"more than {MOST_DEPTH} mappings and lists within each other", node)
            if size > len(sizes) + MOST_ALIASED:
                raise _refused(f"aliases that stand for more than {MOST_ALIASED} values", node)
            sizes[id(node)] = (size, depth)
        return sizes[id(node)]

    measure(root)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Unicode's other line breaks would be folded into spaces; only double quotes escape them.
        style = '"' if set(data) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    _kind.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_representer(Given, lambda dumper, given: dumper.represent_str(repr(given)))


def read_yaml(text: str, source: str) -> Any:
    """Return the one document of a YAML text as plain Python values.

    Parameters
    ----------
    text
        The document.
    source
        What to call it in messages, such as the file's path.

    Raises
    ------
    InputError
        The text is not valid YAML, or a key comes twice in a mapping; the line is named.
    """
    try:
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise _unreadable(
            f"{source}, line {mark.line + 1}" if mark else source, str(error.problem)
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        # The last two come from PyYAML's scanner: an escape beyond Unicode, a version of thousands of digits.
        raise _unreadable(source, str(error)) from error


def _unreadable(where: str, reason: str) -> InputError:
    first = (reason.splitlines() or [""])[0]
    shown = first if len(first) <= _LONGEST_REASON else f"{first[:_LONGEST_REASON]}…"
    return InputError(where, f"YAML that can't be read ({shown})", "valid YAML")


def compose_yaml(text: str) -> yaml.Node | None:
    """Return the nodes of a text that `read_yaml` reads, with the places at which they stand."""
    return yaml.compose(text, _Loader)


def write_yaml(value: Any) -> str:
    """Return plain Python values as YAML that `read_yaml` reads back equal, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def write_inline(value: Any) -> str:
    """Return plain Python values as YAML of one line, for a place within other YAML."""
    text = yaml.dump(
        [value], Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=math.inf
    )
    return text.strip()[1:-1]
