"""What is in a folder: all of it, or a refusal that names what can't be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lowdimfa.errors import InputError


def files_below(folder: Path) -> list[Path]:
    """Return the files at any depth, through links too, each folder once, in order; what is hidden is no data.

    Raises
    ------
    InputError
        A folder can't be read, or a link leads nowhere.
    """
    files, seen, linked = list[Path](), set[str](), [folder]
    # What is linked and lies in the folder too keeps the name that it has there.
    for place in linked:
        files += _walk(place, seen, linked)
    return sorted(files)


def _walk(folder: Path, seen: set[str], linked: list[Path]) -> Iterator[Path]:
    """Yield the files of a folder that wasn't seen yet, and note which others it links to."""
    if (real := os.path.realpath(folder)) in seen:
        return
    seen.add(real)
    try:
        with os.scandir(folder) as opened:
            entries = sorted(opened, key=lambda entry: entry.name)
        # What an entry is was read with it, but for links: nothing is asked about each of a million files.
        visible = [
            (Path(entry), entry.is_dir(), entry.is_file(), entry.is_symlink())
            for entry in entries
            if not entry.name.startswith(".")
        ]
    except OSError as error:
        raise InputError(str(folder), f"a folder that can't be read ({error})", "one that can") from error
    for path, is_folder, is_file, is_link in visible:
        if is_folder and is_link:
            linked.append(path)
        elif is_folder:
            yield from _walk(path, seen, linked)
        elif is_file:
            yield path
        else:
            require_target(path)


def require_target(path: Path) -> None:
    """Refuse a link that leads nowhere.

    Raises
    ------
    InputError
        It does.
    """
    if path.is_symlink() and not path.exists():
        raise InputError(str(path), "a link to nothing", "one to a file or a folder", "Mend it or delete it.")
