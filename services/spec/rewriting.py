"""Change settings in the text of a specification, and leave all else of it, comments too, as it is written."""

from __future__ import annotations

from typing import Any

import yaml

from lowdimfa.services.spec.dialect import compose_yaml, read_yaml, write_inline, write_yaml
from lowdimfa.services.spec.expectations import Path
from lowdimfa.services.spec.load import Overrides, settings_of, with_setting


def rewritten(text: str, source: str, *changes: Overrides) -> str:
    """Return the text of a specification with some settings replaced or added.

    Where a text is written so that they can't be put in place (anchors, merge keys), it is written anew, without its
    comments: what is read of it counts.

    Parameters
    ----------
    text
        YAML.
    source
        What to call it in messages.
    changes
        As those of `load_specification`, in order.

    Raises
    ------
    InputError
        The text isn't YAML.
    """
    wanted, found = read_yaml(text, source), text
    for some in changes:
        settings, pairs = settings_of(some, source)
        for path, value in pairs:
            wanted = with_setting(wanted, path, value, settings)
            root = compose_yaml(found)
            if isinstance(root, yaml.MappingNode):
                found = _put(found, root, path, value)
                if _read(found) != wanted:
                    found = write_yaml(wanted)
    return found


def _read(text: str) -> Any:
    try:
        return read_yaml(text, "")
    except Exception:  # whatever the change made of the text
        return None


def _put(text: str, mapping: yaml.MappingNode, path: Path, value: Any) -> str:
    """Return the text with a value at a path below a mapping in it."""
    name, *rest = path
    key, own = next(
        ((key, own) for key, own in mapping.value if key.value == str(name)),
        (None, None),
    )
    if rest and isinstance(own, yaml.MappingNode) and own.value:
        return _put(text, own, tuple(rest), value)
    for inner in reversed(rest):
        value = {inner: value}
    if key is None or own is None:
        return _added(text, mapping, name, value)
    head = text[: key.end_mark.index] + text[key.end_mark.index : own.start_mark.index].split(":")[0]
    return f"{head}: {write_inline(value)}{text[_end(own) :]}"


def _added(text: str, mapping: yaml.MappingNode, name: str | int, value: Any) -> str:
    start = mapping.start_mark.index
    if mapping.flow_style:
        return f"{text[: start + 1]}{write_inline({name: value})[1:-1]}, {text[start + 1 :]}"
    column = mapping.start_mark.column
    if not column:
        return f"{text.rstrip()}\n{write_yaml({name: value})}"
    line = f"{' ' * column}{write_inline(name)}: {write_inline(value)}"
    end = text.find("\n", _end(mapping))
    return f"{text.rstrip()}\n{line}\n" if end < 0 else f"{text[:end]}\n{line}{text[end:]}"


def _end(node: yaml.Node) -> int:
    """Return where a node's text ends: that of a block ends with its last part, not where the next begins."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)
