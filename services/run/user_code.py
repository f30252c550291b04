"""A user's own Python files beside the specification, on their way to every process of a run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import stat
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lowdimfa.errors import InputError

MAX_BYTES = 2 << 20
"""Most that is sent of a user's own files."""

_CODING = re.compile(r"^([ \t\f]*#.*?coding[:=][ \t]*)[-\w.]+", re.ASCII)
"""A comment that declares a file's encoding, as PEP 263 has it."""


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
        return cls(str(folder), Modules.beside(folder).files if pack else {})

    def install(self, with_others: bool = True) -> None:
        """Make the files importable in this process: those that came, where the folder here is not the same.

        Another machine may have an older copy at the same path. Where it has the same files, and maybe others, their own
        folder is taken, which may have data beside them.

        Parameters
        ----------
        with_others
            Whether other processes will import them too, and must get the same.

        Raises
        ------
        InputError
            This process has imported one of them with another text that those don't have, or another module of its name.
        """
        from lowdimfa.imports import import_from  # here, since it needs torch: who sends files doesn't

        if self.folder is None:
            return
        folder = Path(self.folder)
        if self.files and not self._are_in(folder):
            folder = self._unpacked()
        import_from(folder, with_others)

    def _are_in(self, folder: Path) -> bool:
        try:
            return folder.is_dir() and self.files.items() <= Modules.beside(folder).files.items()
        except InputError:  # more than travels
            return False

    def _unpacked(self) -> Path:
        """Return a folder of this user's with the files, one for all processes that have the same."""
        digest = hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()[:16]
        folder = _private_folder() / digest
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if (
                not path.is_file() or path.read_text("utf-8") != text
            ):  # others may write the same at this moment
                part = path.with_name(f".{secrets.token_hex(4)}.partial")
                part.write_text(text, "utf-8")
                part.replace(path)
        return folder


def _private_folder() -> Path:
    """Return a folder to which nobody else can write: what is in it gets imported."""
    folder = Path(tempfile.gettempdir()) / f"lowdimfa-user-code-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if private else Path(tempfile.mkdtemp(prefix="lowdimfa-user-code-"))


@dataclass(frozen=True)
class Modules:
    """What can be imported of the Python files in a folder: modules, and packages with or without ``__init__.py``.

    Attributes
    ----------
    files
        Their texts by path within the folder.
    left_out
        Of files that no ``import`` finds or that can't be read, the reason by path.
    """

    files: dict[str, str]
    left_out: dict[str, str]

    @classmethod
    def beside(cls, folder: Path) -> Modules:
        """Read a folder. Hidden folders, virtual environments and folders without Python files are passed over.

        Raises
        ------
        InputError
            The files have more than `MAX_BYTES` in all.
        """
        left_out: dict[str, str] = {}
        paths = list(_modules(folder, folder, (), left_out))
        _require_small(folder, paths)
        files = {}
        for path in paths:
            name = path.relative_to(folder).as_posix()
            try:
                files[name] = _source(path)
            except (OSError, SyntaxError, UnicodeDecodeError, LookupError) as error:
                left_out[name] = _why_unreadable(error)
        return cls(files, dict(sorted(left_out.items())))


def _modules(folder: Path, top: Path, above: tuple[Path, ...], left_out: dict[str, str]) -> Iterator[Path]:
    """Yield the files of a folder that can be imported, then those of its folders."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        left_out[folder.relative_to(top).as_posix()] = _why_unreadable(error)
        return
    python = [path for path in entries if path.suffix == ".py"]
    if folder != top and (not python or (folder / "pyvenv.cfg").exists()):
        return
    for path in python:
        reason = _why_not_importable(path)
        if reason:
            left_out[path.relative_to(top).as_posix()] = reason
        else:
            yield path
    above = (*above, folder.resolve())
    for path in entries:
        # A link may lead to a folder that it lies in.
        if path.name.isidentifier() and path.is_dir() and path.resolve() not in above:
            yield from _modules(path, top, above, left_out)


def _why_not_importable(path: Path) -> str:
    if not path.stem.isidentifier():
        return "no module can be called so"
    if not path.name.isascii():
        return "its name has letters beyond ASCII, which not every machine can keep"
    if path.is_file():
        return ""
    return "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no file"


def _require_small(folder: Path, paths: list[Path]) -> None:
    sizes: Counter[str] = Counter()
    for path in paths:
        with suppress(OSError):  # what can't be read is left out later
            sizes[path.relative_to(folder).parts[0]] += path.stat().st_size
    if sizes.total() > MAX_BYTES:
        most = ", ".join(f"{name} {size / (1 << 20):.1f} MiB" for name, size in sizes.most_common(3))
        raise InputError(
            str(folder),
            f"{sizes.total() / (1 << 20):.1f} MiB of Python files beside the specification ({most})",
            f"at most {MAX_BYTES >> 20} MiB",
            "Put the specification into a folder with only what the run needs.",
        )


def _source(path: Path) -> str:
    """Return a file as Python reads it; it is written as UTF-8 elsewhere, so that is what it says of itself."""
    content = path.read_bytes()
    encoding, first = tokenize.detect_encoding(io.BytesIO(content).readline)
    text = io.TextIOWrapper(io.BytesIO(content), encoding).read()
    if encoding.startswith("utf-8"):
        return text
    lines = text.split("\n")
    for number in range(len(first)):  # the declaration is the last line that had to be read
        lines[number] = _CODING.sub(r"\1utf-8", lines[number])
    return "\n".join(lines)


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"can't be read ({(error.strerror or str(error)).lower()})"
    return "is not text in UTF-8, nor in an encoding that it declares"
