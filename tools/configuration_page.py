"""Make the reference of the specification, and the settings that a shell completes, from its schema.

``python -m tools.configuration_page [--check]``
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowdimfa.services.spec.expectations import ROOT, Schema, describe, keys, resolved

REFERENCE = Path(__file__).parents[1] / "docs" / "configuration.md"
SETTINGS = Path(__file__).parents[1] / "services" / "cli" / "setting_words.py"

_INTRODUCTION = """\
<!-- Made by `python -m tools.configuration_page` from services/spec and lowdimfa/config.py: change it there. -->
# Configuration

A run is defined by one YAML file, its specification. `model`, `data` and `train` are required; every other
section may be left out, and so may every key that has a default. The smallest one:

```yaml
model:
  factory: lowdimfa.models:mlp
  args: {in_features: 64, width: 128, depth: 3, classes: 10}
  blocks: 4
data:
  factory: lowdimfa.data:digits
train:
  epochs: 10
```

The folder `examples` has one for each model and data set that comes with the project, and one that brings its
own.

## Factories

Models, data, optimisers, schedules, losses and rules are named by import path, `package.module:name` or
`package.module.name`, and called with their `args`. Beside installed packages, modules in the folder of the
specification can be named. `args` are free-form: whatever the factory takes, as plain YAML.

## Muon

`lowdimfa.muon:Muon` trains the matrices of hidden layers by Muon (with the steps of `torch.optim.Muon`, on processors in
single precision) and everything else by AdamW, in every form of feedback:

```yaml
train:
  optimizer:
    factory: lowdimfa.muon:Muon
    args: {lr: 0.002, adamw: ["0.*"]}
  scheduler:
    factory: torch.optim.lr_scheduler.OneCycleLR
    args: {max_lr: 0.002}
```

Muon's are the weights of linear layers (also of Hugging Face's `Conv1D`, of which GPT-2 is made), of attention's
projections and of convolutions without groups, whose kernels it takes as matrices `(out, rest)`. AdamW's are, as
Muon's authors advise, embeddings and the output layer (the last matrix of the network), and biases, norms,
positions, recurrent layers and whatever else isn't known to be a matrix; feedback weights `Q` too, as they are a
readout's last layer. `adamw` and `muon` name what shall be otherwise, by patterns of names in the plain model (`*.Q`
for feedback weights). A pattern that fits nothing is refused, and so is a Muon that finds no matrix in any block.

Both have one rate, on which every schedule acts: steps of a matrix are scaled to the size of AdamW's.
`adjust_lr_fn: original` leaves Muon's own scale, for rates of about 0.02; `adamw_scale: 0.1` then gives AdamW a tenth of
it. A schedule that cycles the momentum, as `OneCycleLR` does, cycles AdamW's alone.

An optimiser of your own that has a parameter `kinds` is given one too: names and kinds of its parameters, in their
order, as `lowdimfa.kinds.kinds_of` returns them.

## Overrides

`--set a.b=value` replaces one setting, or adds it. It may be given more than once, reaches into `args`, and
takes any YAML value:

```
--set train.batch_size=256 --set model.args.channels=[16,32] --set train.per_block.0.grad_clip=1.0
--set train.epochs=null --set train.steps=100
```

## What is refused

Unknown keys, keys that come twice, values of another type (`"3"` is not an integer, and neither is `true`),
and settings that don't go together. The message names file and key, what was found and what was expected.

The YAML is that of PyYAML, version 1.1, without its traps: `1e-3` is a number, `1:30` and dates are strings, and
a number with a leading zero such as `012` is refused, as it may mean 10 or 12. `yes`, `no`, `on` and `off` are
`true` and `false`, and the word itself where a setting has it, as `run.metrics: off`. Inside `args` quote such a
word if a string is meant.

## Paths

`run.storage` may begin with `~` and may name variables of the environment, as `$HOME/runs` or `${SCRATCH}/runs`.
One that isn't set is refused.
"""


def render_reference() -> str:
    """Return the reference, Markdown with a table for each section."""
    parts = [_INTRODUCTION]
    for section, schema in ROOT["properties"].items():
        rows = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in _rows(schema, ""))
        purpose = resolved(schema)["description"]
        parts.append(f"## `{section}`\n\n{purpose}\n\n{_HEADER}\n{rows}\n")
    return "\n".join(parts)


def render_settings() -> str:
    """Return a module with ``key=`` and ``key=value`` for each key: values are those to choose from, or the default."""
    words = "\n".join(
        word for section in ROOT["properties"] for word in _words(ROOT["properties"][section], section)
    )
    return f'{_MODULE}WORDS = """\\\n{words}\n"""\n'


_MODULE = '''\
"""What may follow ``--set``; made by `python -m tools.configuration_page` from services/spec: change it there."""

from __future__ import annotations

'''


_PLAIN = re.compile(r"[\w.+-]+")
"""A value that no shell takes apart."""


def _words(section: Schema, prefix: str) -> Iterator[str]:
    for name, schema in resolved(section)["properties"].items():
        key = f"{prefix}.{name}"
        if keys(schema):
            alternatives = [branch for branch in schema.get("anyOf", ()) if branch.get("type") == "string"]
            if alternatives:
                yield f"{key}="
                yield from (f"{key}={value}" for branch in alternatives for value in branch.get("enum", ()))
            yield from _words(schema, key)
            continue
        values = list(dict.fromkeys(_values(schema)))
        if not values and schema.get("default") is not None:
            values = [_inline(schema["default"])]
        yield f"{key}="
        yield from (f"{key}={value}" for value in values if _PLAIN.fullmatch(value))


def _values(schema: Schema) -> Iterator[str]:
    """Yield the values to choose from, where these are all that there are, or all but null."""
    for branch in map(resolved, schema.get("anyOf", [schema])):
        if "enum" in branch or "const" in branch:
            yield from map(_inline, branch.get("enum", [branch.get("const")]))
        elif branch.get("type") == "boolean":
            yield from ("true", "false")
        elif branch.get("type") != "null":
            return


_HEADER = "| key | type | default | meaning |\n| --- | --- | --- | --- |"


def _rows(section: Schema, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning of each key of a section, nested keys after their parent."""
    section = resolved(section)
    for name, schema in section["properties"].items():
        default = "required" if name in section.get("required", ()) else f"`{_inline(schema['default'])}`"
        yield f"`{prefix}{name}`", describe(schema), default, schema["description"]
        if keys(schema):
            yield from _rows(schema, f"{prefix}{name}.")
        items = schema.get("additionalProperties", {})
        if keys(items):
            yield from _rows(items, f"{prefix}{name}.<index>.")
        if keys(schema.get("items", {})):
            yield from _rows(schema["items"], f"{prefix}{name}[].")


def _inline(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write both files, or with ``--check`` say whether they are up to date; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.configuration_page", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    check, code = parser.parse_args().check, 0
    for path, text in ((REFERENCE, render_reference()), (SETTINGS, render_settings())):
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path.name} is out of date: run python -m tools.configuration_page", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
