"""``lowdimfa init``: a project that trains at once."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from lowdimfa.errors import InputError, ResourceError
from lowdimfa.services.cli.options import Format, FormatOption, expanded

FILES = {
    "spec.yaml": "spec.yaml",
    "model.py": "model.py",
    "data.py": "data.py",
    "test_project.py": "test_project.py",
    "README.md": "README.md",
    ".gitignore": "gitignore",
}
"""What a project begins with, and the template of each."""

_TEMPLATES = Path(__file__).with_name("templates")


def init(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", parser=expanded, help="Gets the files; a new folder, or an empty one."),
    ],
    form: FormatOption = Format.text,
) -> None:
    """Make a project: a specification, a model, data and a test, which train as they are."""
    make_project(folder)
    if form is Format.json:
        print(json.dumps({"folder": str(folder.resolve()), "files": list(FILES)}))
        return
    print(f"made {folder}: {', '.join(FILES)}")
    print("next:")
    named = f"./{folder}" if str(folder).startswith("-") else str(folder)
    print(f"  cd {shlex.quote(named)}")
    print("  lowdimfa plan spec.yaml     what each block will take")
    print("  lowdimfa train spec.yaml    train")
    print("  pytest                      check specification, model and data after a change")


def make_project(folder: Path) -> None:
    """Write the files of a project.

    Raises
    ------
    InputError
        Something is there already.
    ResourceError
        It can't be written.
    """
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(path.name for path in folder.iterdir())
        if there:
            more = f" and {len(there) - 1} more" if there[1:] else ""
            raise InputError(
                str(folder), f"a folder with {there[0]!r}{more} in it", "a new folder, or an empty one"
            )
        for name, template in FILES.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                made.append(folder / name)
                file.write((_TEMPLATES / template).read_text("utf-8"))
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(str(error.filename), "a file", "a new folder, or an empty one") from error
    except OSError as error:
        for path in made:  # so that another try finds the folder as this one did
            path.unlink(missing_ok=True)
        raise ResourceError(
            f"the project can't be written: {error.filename or folder}: {error.strerror or error}"
        ) from error
