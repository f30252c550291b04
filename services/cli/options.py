"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lowdimfa.errors import InputError
from lowdimfa.paths import expand
from lowdimfa.services.cli.completing import settings
from lowdimfa.services.run.storage import located
from lowdimfa.services.spec.addresses import is_address


class Format(StrEnum):
    """How the output is written."""

    text = "text"
    json = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", help="Lines for people, or one JSON object per line.")
]


MOST_LIVENESS = 86_400.0
"""Seconds, a day: nothing waits longer, and gRPC's deadlines have room for it."""

BestOption = Annotated[
    bool, typer.Option("--best", help="Take the best checkpoint, of a run with run.keep_best.")
]


def expanded(text: object) -> Path:
    """Read a path option: ``~`` and variables in it are filled in, since a shell doesn't do that everywhere."""
    _require_written(text)
    if is_address(str(text)) or "://" in str(text):
        raise typer.BadParameter("an address; this has to be a path.")
    try:
        return expand(str(text))
    except ValueError as error:
        raise typer.BadParameter(f"{str(text)!r}: {error}.") from error


def placed(text: object) -> str:
    """Read where a run is kept: a folder, or an address."""
    _require_written(text)
    try:
        place = located(str(text), "RUN_DIR")
        path = "://" not in str(text) and not is_address(place)
        return str(expand(str(text))) if path else place  # as it was written, for what is printed
    except InputError as error:
        raise typer.BadParameter(error.message.partition(": ")[2]) from error


def _require_written(text: object) -> None:
    """Refuse nothing as a path, as a variable has it that isn't set: it would be the current folder."""
    if not str(text).strip():
        raise typer.BadParameter("found nothing; expected a path. The current folder is '.'.")


StorageOption = Annotated[
    str,
    typer.Option(
        envvar="LOWDIMFA_STORAGE",
        metavar="PLACE",
        parser=placed,
        help="Where runs are kept: a folder that all nodes share, or an address such as s3://bucket/runs.",
    ),
]

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="The specification, a YAML file.")]

OverridesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=settings,
        help="Replace a value, such as train.epochs=1.",
    ),
]

RunDirArgument = Annotated[
    str, typer.Argument(metavar="RUN_DIR", parser=placed, help="Directory of a run, or its address.")
]
