"""The YAML of specifications: read without surprises, and written so that it reads back the same.

Two things differ from PyYAML's safe YAML 1.1. ``1e-3`` is a number, as in YAML 1.2, not a string. Dates stay
strings, as no key takes one. A key that comes twice is refused, where PyYAML would keep the last.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from lowdimfa.errors import InputError

_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_REPLACED = {"tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
# Reader and writer share these: the writer quotes exactly the strings that the reader would take for numbers.
_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked here because merge keys (<<) are flattened later, and may repeat a key on purpose.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} comes twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            # What PyYAML's constructors raise for a scalar that does not fit its tag, such as `!!int many`.
            raise yaml.constructor.ConstructorError(
                problem=f"a value that does not fit its tag {node.tag!r}", problem_mark=node.start_mark
            ) from error


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


_Dumper.add_representer(str, _Dumper.represent_str)


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
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise InputError(where, f"YAML that can't be read ({error.problem})", "valid YAML") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(source, f"YAML that can't be read ({reason})", "valid YAML") from error


def write_yaml(value: Any) -> str:
    """Return plain Python values as YAML that `read_yaml` reads back equal, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
