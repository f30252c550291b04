"""Which files beside a specification are sent with it, and what a job is called after it."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import pytest

from lowdimfa.errors import InputError
from lowdimfa.services.cli.jobs import default_name
from lowdimfa.services.cli.jobs_display import file_lines
from lowdimfa.services.coordinator.submissions import _NAME, _PATH
from lowdimfa.services.run.user_code import MAX_BYTES, Modules, UserCode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as people have it."""
    here = tmp_path / "project"
    for name in ("pkg/sub", "plain", "nothing/deep", ".hidden", "venv/lib", "d.py", "links"):
        (here / name).mkdir(parents=True)
    for name in ("net.py", "pkg/__init__.py", "pkg/sub/a.py", "pkg/__main__.py", "plain/m.py", "links/z.py"):
        (here / name).write_text(f"NAME = {name!r}\n")
    for name in (
        ".hidden/h.py",
        "venv/x.py",
        "venv/pyvenv.cfg",
        "nothing/data.txt",
        "train (1).py",
        "a-b.py",
    ):
        (here / name).write_text("")
    (here / "größe.py").write_text("")
    (here / ".#net.py").symlink_to("somebody@machine.123:456")
    (here / "self.py").symlink_to("self.py")
    (here / "link.py").symlink_to("net.py")
    (here / "pkg/loop").symlink_to("..")
    (here / "links/pkg").symlink_to("../pkg")
    (here / "latin.py").write_bytes("NAME = 'größe'\n".encode("latin-1"))
    (here / "unknown.py").write_text("# coding: klingon\n")
    (here / "bom.py").write_bytes(b"\xef\xbb\xbfNAME = 'bom'\r\n")
    os.mkfifo(here / "pipe.py")
    return here


def test_what_can_be_imported_is_sent_and_the_rest_is_named(folder: Path) -> None:
    beside = Modules.beside(folder)
    assert set(beside.files) == {
        "net.py", "link.py", "bom.py", "pkg/__init__.py", "pkg/__main__.py", "pkg/sub/a.py", "plain/m.py",
        "links/z.py", "links/pkg/__init__.py", "links/pkg/__main__.py", "links/pkg/sub/a.py",
    }  # fmt: skip
    assert set(beside.left_out) == {
        ".#net.py", "self.py", "d.py", "train (1).py", "a-b.py", "größe.py", "latin.py", "unknown.py", "pipe.py"
    }  # fmt: skip
    assert all(_PATH.fullmatch(path) for path in beside.files)
    assert UserCode.beside(folder, pack=True).files == beside.files
    assert UserCode.beside(folder, pack=False).files == {}
    lines = file_lines(beside, "would be sent")
    assert "would be sent net.py (16 bytes)" in lines
    assert "left out d.py: a folder" in lines
    assert "left out .#net.py: no module can be called so" in lines
    assert "left out latin.py: is not text in UTF-8, nor in an encoding that it declares" in lines


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("before", ["", "#!/usr/bin/python{}"])
def test_a_declared_encoding_arrives_as_the_text_that_it_is(
    tmp_path: Path, newline: str, before: str
) -> None:
    text = before.format(newline) + f"# -*- coding: latin-1 -*-{newline}NAME = 'größe'{newline}"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "declared_module.py").write_bytes(text.encode("latin-1"))
    files = Modules.beside(tmp_path / "here").files
    UserCode(str(tmp_path / "elsewhere"), files).install()
    try:
        assert importlib.import_module("declared_module").NAME == "größe"
    finally:
        sys.modules.pop("declared_module")
        sys.path.pop(0)


def test_what_can_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("good.py", "bad.py"):
        (tmp_path / name).write_text("")

    def read(path: Path) -> bytes:
        if path.name == "bad.py":
            raise PermissionError(13, "Permission denied", str(path))
        return b""

    monkeypatch.setattr(Path, "read_bytes", read)
    assert Modules.beside(tmp_path) == Modules(
        {"good.py": ""}, {"bad.py": "can't be read (permission denied)"}
    )


def test_too_much_is_refused_with_what_takes_the_room(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "big.py").write_bytes(b"#" * (MAX_BYTES + 1))
    (tmp_path / "small.py").write_text("")
    with pytest.raises(InputError, match=r"found 2\.0 MiB of Python files .*\(pkg 2\.0 MiB, small\.py"):
        Modules.beside(tmp_path)
    (tmp_path / "pkg" / "big.py").rename(tmp_path / "pkg" / "big file.py")
    assert set(Modules.beside(tmp_path).files) == {"small.py"}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("spec.yaml", "spec"),
        ("my spec v1.2 (neu).yaml", "my-spec-v1-2-neu"),
        ("größe.yml", "groe"),
        ("été.yaml", "ete"),
        ("_x_.yaml", "x"),
        (".yaml", "yaml"),
        ("数据.yaml", "job"),
        ("a" * 62 + " b c.yaml", "a" * 62),
        ("-rf.yaml", "rf"),
    ],
)
def test_a_job_s_default_name_is_one_that_the_service_takes(file: str, name: str) -> None:
    assert default_name(Path("some where.d") / file) == name
    assert re.fullmatch(_NAME, name)
