"""Fetching: what is refused, what is read from an archive, and what a person is told."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lowdimfa.data import SOURCES, Source, fetch, mnist
from lowdimfa.data.fetching import read_archive
from lowdimfa.data.sources import Package, data_folder, missing_files, read_file
from lowdimfa.errors import InputError, ResourceError
from lowdimfa.services.cli.data import app

CONTENT = b"some data\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def tar_archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    package = Package("npm", "made@1.0.0", "package/data")
    made = Source("made", (1, 1), "1", "1", "npm package made", 0.1, package, {"values": SHA256})
    monkeypatch.setitem(SOURCES, "made", made)
    return made


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Stand in for the client: it 'downloads' a tar archive with these members."""
    members = {"package/data/values": CONTENT, "package/install.js": b"never"}
    monkeypatch.setattr(
        "lowdimfa.data.fetching._run", lambda command, folder: tar_archive(folder / "made-1.0.0.tgz", members)
    )
    return members


def refuse_download(command: list[str], folder: Path) -> None:
    raise AssertionError(f"downloaded with {command}")


def test_fetch_puts_only_the_checked_files_in_place(
    source: Source, registry: dict[str, bytes], tmp_path: Path
) -> None:
    folder = fetch("made", str(tmp_path))
    assert folder == tmp_path / "made"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["values"]
    assert read_file(source, "values", str(tmp_path)) == CONTENT


@pytest.mark.usefixtures("source")
def test_fetch_refuses_other_contents_and_leaves_nothing(registry: dict[str, bytes], tmp_path: Path) -> None:
    registry["package/data/values"] = b"other data\n"
    with pytest.raises(InputError, match="SHA-256"):
        fetch("made", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("registry")
def test_fetch_refuses_another_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = Package("npm", "made@1.0.0", "package/data", "0" * 64)
    made = Source("made", (1, 1), "1", "1", "npm package made", 0.1, package, {"values": SHA256})
    monkeypatch.setitem(SOURCES, "made", made)
    with pytest.raises(InputError, match=r"made-1\.0\.0\.tgz.*SHA-256"):
        fetch("made", str(tmp_path))


@pytest.mark.parametrize("compressed", [False, True])
def test_files_put_there_by_hand_need_no_download(
    compressed: bool, source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lowdimfa.data.fetching._run", refuse_download)
    folder = data_folder(source, str(tmp_path))
    folder.mkdir()
    file = folder / ("values.gz" if compressed else "values")
    file.write_bytes(gzip.compress(CONTENT) if compressed else CONTENT)
    assert fetch("made", str(tmp_path)) == folder
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(InputError, match=r"values.*(SHA-256|damaged)"):
        fetch("made", str(tmp_path))
    with pytest.raises(InputError, match="delete it"):
        read_file(source, "values", str(tmp_path))


def test_paths_in_an_archive_never_become_paths_on_disk(
    source: Source, registry: dict[str, bytes], tmp_path: Path
) -> None:
    registry |= {"../escaped": b"x", f"{tmp_path}/escaped": b"x", "package/data/../../escaped": b"x"}
    root = tmp_path / "inner" / "root"
    fetch("made", str(root))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["values"]
    assert missing_files(source, root / "made") == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_special_files_do_not_count(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "made.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("package/data/values")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(InputError, match="no file package/data/values"):
        read_archive(path, "package/data", ["values"])


def test_wheels_are_read_as_zip_archives(tmp_path: Path) -> None:
    path = tmp_path / "made-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("made/data/values", CONTENT)
        archive.writestr("../escaped", b"x")
    assert read_archive(path, "made/data", ["values"]) == {"values": CONTENT}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_debian_packages_are_read_without_installing(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: made\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
        "Description: made\n"
    )
    (tree / "usr/share/made").mkdir(parents=True)
    (tree / "usr/share/made/values.gz").write_bytes(gzip.compress(CONTENT))
    archive = tmp_path / "made.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", tree, archive], check=True, capture_output=True
    )
    contents = read_archive(archive, "usr/share/made", ["values"])
    assert gzip.decompress(contents["values.gz"]) == CONTENT


@pytest.mark.parametrize("name", ["made.whl", "made.tgz"])
def test_a_damaged_archive_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not an archive")
    with pytest.raises(InputError, match="can't be read"):
        read_archive(tmp_path / name, "package", ["values"])


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
def test_a_missing_client_is_told_with_the_way_by_hand(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError) as caught:
        fetch(name, str(tmp_path))
    package = SOURCES[name].package
    assert package is not None
    for part in (package.client, package.name, str(tmp_path / name), "train-images-idx3-ubyte", "by hand"):
        assert part in caught.value.message


@pytest.mark.usefixtures("source")
def test_what_the_client_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(command: list[str], folder: Path) -> None:
        raise subprocess.CalledProcessError(
            1, command, stderr="npm warn old\nnpm error code ECONNREFUSED\nbye\n"
        )

    monkeypatch.setattr("lowdimfa.data.fetching._run", fail)
    with pytest.raises(ResourceError, match="ECONNREFUSED"):
        fetch("made", str(tmp_path))


def test_missing_data_names_folder_files_and_command(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        mnist(str(tmp_path))
    for part in (
        str(tmp_path / "mnist"),
        "t10k-labels-idx1-ubyte",
        "lowdimfa data fetch mnist --root",
        "by hand",
    ):
        assert part in caught.value.message


def test_data_folder_follows_argument_then_environment(
    source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOWDIMFA_DATA", str(tmp_path / "environment"))
    assert data_folder(source, str(tmp_path / "given")) == tmp_path / "given" / "made"
    assert data_folder(source) == tmp_path / "environment" / "made"
    monkeypatch.delenv("LOWDIMFA_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder(source) == tmp_path / ".cache" / "lowdimfa" / "data" / "made"


def test_every_source_with_a_package_has_checksums() -> None:
    for source in SOURCES.values():
        assert (source.package is None) == (not source.files)
        assert all(len(checksum) == 64 for checksum in source.files.values())


def test_list_as_text_and_json(tmp_path: Path) -> None:
    runner = CliRunner()
    text = runner.invoke(app, ["list", "--root", str(tmp_path)])
    assert text.exit_code == 0 and all(name in text.output for name in SOURCES)
    listed = json.loads(runner.invoke(app, ["list", "--root", str(tmp_path), "--format", "json"]).output)
    present = {entry["name"]: entry["present"] for entry in listed}
    assert present["digits"] and not present["mnist"]


@pytest.mark.parametrize("compressed", [False, True])
def test_list_says_which_files_are_damaged(compressed: bool, source: Source, tmp_path: Path) -> None:
    folder = data_folder(source, str(tmp_path))
    folder.mkdir()
    file = folder / ("values.gz" if compressed else "values")

    def listed(content: bytes) -> tuple[dict[str, Any], str]:
        file.write_bytes(content)
        command = ["list", "--root", str(tmp_path)]
        described = json.loads(CliRunner().invoke(app, [*command, "--format", "json"]).output)
        lines = CliRunner().invoke(app, command).output.splitlines()
        entry = next(entry for entry in described if entry["name"] == "made")
        return entry, next(line for line in lines if line.startswith("made")).split("npm package made")[
            1
        ].strip()

    intact = gzip.compress(CONTENT) if compressed else CONTENT
    changed = CONTENT.replace(b"data", b"date")  # of the same size
    entry, shown = listed(intact)
    assert (entry["present"], entry["damaged"], shown) == (True, [], "yes")
    for content in (gzip.compress(changed) if compressed else changed, intact[:-3], b""):
        entry, shown = listed(content)
        assert (entry["present"], entry["damaged"], shown) == (False, [file.name], f"damaged: {file.name}")


@pytest.mark.usefixtures("source", "registry")
def test_fetch_command(tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["fetch", "made", "digits", "--root", str(tmp_path), "--format", "json"])
    first, second = (json.loads(line) for line in result.output.splitlines())
    assert first == {"name": "made", "folder": str(tmp_path / "made"), "files": ["values"]}
    assert second["files"] == []
    assert isinstance(runner.invoke(app, ["fetch", "nothing"]).exception, InputError)
