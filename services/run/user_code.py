"""A user's own Python files beside the specification, on their way to every process of a run."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from lowdimfa.errors import InputError

MAX_BYTES = 2 << 20
"""Most that is sent of a user's own files."""


@dataclass(frozen=True)
class UserCode:
    """The Python files of the folder that holds the specification.

    Attributes
    ----------
    folder
        Where they lie: on the machine that submitted the run, or on storage that all processes share.
    files
        Their texts by path within the folder; empty where every process can read the folder itself.
    """

    folder: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def beside(cls, folder: Path | None, pack: bool) -> UserCode:
        """Take the Python files of a folder; ``pack`` reads them, for processes on other machines.

        Raises
        ------
        InputError
            They have more than `MAX_BYTES` in all.
        """
        if folder is None:
            return cls()
        folder = folder.resolve()
        if not pack:
            return cls(str(folder))
        paths = [
            *folder.glob("*.py"),
            *(path for init in folder.glob("*/__init__.py") for path in init.parent.rglob("*.py")),
        ]
        if sum(path.stat().st_size for path in paths) > MAX_BYTES:
            raise InputError(
                str(folder),
                f"more than {MAX_BYTES >> 20} MiB of Python files beside the specification",
                "a folder with only what the run needs",
            )
        return cls(str(folder), {str(path.relative_to(folder)): path.read_text("utf-8") for path in paths})

    def install(self) -> None:
        """Make the files importable in this process."""
        if self.folder is None:
            return
        folder = Path(self.folder)
        if self.files and not folder.is_dir():
            folder = Path(tempfile.mkdtemp(prefix="lowdimfa-user-code-"))
            for name, text in self.files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
