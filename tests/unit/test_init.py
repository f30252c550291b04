"""`lowdimfa init`: the files that it writes; `tests/e2e/test_wheel.py` trains with them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lowdimfa.errors import InputError, ResourceError
from lowdimfa.services.cli.init import FILES, init, make_project
from lowdimfa.services.spec import load_specification


def test_the_project_is_valid_and_names_its_own_files(tmp_path: Path) -> None:
    project = tmp_path / "a new" / "project"
    make_project(project)
    assert {path.name for path in project.iterdir()} == set(FILES)
    specification = load_specification(project / "spec.yaml")
    assert specification.run.storage == "runs"
    assert "/runs/" in (project / ".gitignore").read_text().splitlines()
    for name in {specification.model.factory, specification.data.factory}:
        assert f"def {name.split(':')[1]}(" in (project / f"{name.split(':')[0]}.py").read_text()


def test_every_template_is_a_file_of_the_project() -> None:
    folder = Path(load_specification.__code__.co_filename).parents[1] / "cli" / "templates"
    assert {path.name for path in folder.iterdir() if path.is_file()} == set(FILES.values())


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    make_project(tmp_path)
    assert (tmp_path / "spec.yaml").is_file()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    with pytest.raises(InputError, match=r"found a folder with '\.hidden' in it; expected a new folder"):
        make_project(tmp_path)
    with pytest.raises(InputError, match="found a file"):
        make_project(tmp_path / ".hidden")
    with pytest.raises(InputError, match="found a file"):
        make_project(tmp_path / ".hidden" / "below")
    assert [path.name for path in tmp_path.iterdir()] == [".hidden"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="can't be written"):
        make_project(tmp_path / ("x" * 300))


def test_a_try_that_fails_halfway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def full(path: Path, *args: Any) -> str:
        if path.name == "data.py":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "data.py"))
        return read(path, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", full)
        with pytest.raises(ResourceError, match=r"data\.py: No space left"):
            make_project(tmp_path)
    make_project(tmp_path)


def test_the_next_command_works_for_a_name_like_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    init(Path("-x y"))
    assert "  cd './-x y'\n" in capsys.readouterr().out
