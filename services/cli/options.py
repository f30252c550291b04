"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How the output is written."""

    text = "text"
    json = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", help="Lines for people, or one JSON object per line.")
]
RunDirArgument = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a run.")]
