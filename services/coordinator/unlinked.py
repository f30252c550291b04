"""Files in run directories, where jobs' own code may put links: none is followed, whatever the coordinator may read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lowdimfa.services.monitoring.line_file import open_regular


@contextmanager
def folder_in(run_dir: Path, *names: str, make: bool = False) -> Iterator[int]:
    """Open a folder of a run directory, each of ``names`` in the one before; yield its descriptor, for ``dir_fd``.

    Parameters
    ----------
    run_dir, names
        Of which none may be a link; where ``run_dir`` lies is the operator's.
    make
        Whether to make those that aren't there.

    Raises
    ------
    NotADirectoryError
        One is a link or a file.
    OSError
        One can't be opened.
    """
    with ExitStack() as stack:
        folder: int | None = None
        for name in (str(run_dir), *names):
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=folder)
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            stack.callback(os.close, folder)
        assert folder is not None
        yield folder


def open_file(run_dir: Path, folder: str, name: str) -> BinaryIO:
    """Open a file to read.

    Raises
    ------
    OSError
        It is a link, or no file: one that nobody writes to would never end.
    """
    with folder_in(run_dir, folder) as descriptor:
        return os.fdopen(open_regular(name, follow=False, folder=descriptor), "rb")


def write_file(run_dir: Path, path: Path, text: str) -> None:
    """Write a text file in place of whatever has its name, which is there whole or not at all.

    Parameters
    ----------
    run_dir, path
        The file's place is ``path`` in ``run_dir``; folders are made.
    text
        What it holds.

    Raises
    ------
    OSError
        A folder on the way is a link or a file, a folder has the file's name, or it can't be written.
    """
    with folder_in(run_dir, *path.parts[:-1], make=True) as folder:
        scratch = ".lowdimfa.partial"
        with suppress(FileNotFoundError):  # left by a coordinator that was killed
            os.unlink(scratch, dir_fd=folder)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(scratch, path.name, src_dir_fd=folder, dst_dir_fd=folder)
