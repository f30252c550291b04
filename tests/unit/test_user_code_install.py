"""The Python files that come with a run are the ones that its processes import."""

from __future__ import annotations

import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lowdimfa.errors import InputError
from lowdimfa.imports import resolve
from lowdimfa.services.run.user_code import UserCode, _private_folder

ASK = """
import sys, json
from lowdimfa.services.run.user_code import UserCode
UserCode(sys.argv[1], json.loads(sys.argv[2])).install()
import the_users
print(the_users.VALUE, the_users.__file__)
"""


def asked(folder: Path, files: str, place: Path) -> tuple[str, Path]:
    """Return what a new process imports, whose temporary files lie in a place."""
    found = subprocess.run(
        [sys.executable, "-c", ASK, str(folder), files],
        capture_output=True,
        text=True,
        check=True,
        env={"TMPDIR": str(place), "PATH": "/usr/bin:/bin"},
    )
    value, file = found.stdout.split()
    return value, Path(file)


def test_an_older_copy_at_the_same_path_is_passed_over(tmp_path: Path) -> None:
    here, place = tmp_path / "project", tmp_path / "temporary"
    here.mkdir()
    place.mkdir()
    (here / "the_users.py").write_text("VALUE = 1\n")
    value, file = asked(here, '{"the_users.py": "VALUE = 1\\n"}', place)
    assert (value, file.parent) == ("1", here)  # where data may lie beside it
    first = asked(here, '{"the_users.py": "VALUE = 2\\n"}', place)
    again = asked(here, '{"the_users.py": "VALUE = 2\\n"}', place)
    assert first == again and first[0] == "2" and place in first[1].parents
    first[1].unlink()  # as whoever tidies such folders does
    assert asked(here, '{"the_users.py": "VALUE = 2\\n"}', place) == first
    assert asked(tmp_path / "nowhere", '{"the_users.py": "VALUE = 3\\n"}', place)[0] == "3"
    (folder,) = place.iterdir()
    assert len(list(folder.iterdir())) == 2  # one for each set of files, however many processes there are


def test_a_folder_that_others_can_write_to_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = _private_folder()
    assert _private_folder() == own and stat.S_IMODE(own.stat().st_mode) == 0o700
    own.chmod(0o777)
    assert _private_folder() != own


def test_without_files_the_folder_itself_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    UserCode(str(tmp_path)).install()
    assert sys.path[0] == str(tmp_path)


def test_a_module_of_another_project_is_not_taken_for_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two projects with a model.py, in one notebook: the second would train the first one's model."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "the_projects_model.py").write_text(f"def make():\n    return {name!r}\n")
    try:
        UserCode(str(tmp_path / "a")).install()
        assert resolve("the_projects_model:make", "model.factory")() == "a"
        UserCode(str(tmp_path / "b")).install()
        with pytest.raises(InputError, match="whose module was imported from elsewhere"):
            resolve("the_projects_model:make", "model.factory")
        UserCode(str(tmp_path / "a")).install()
        assert resolve("the_projects_model:make", "model.factory")() == "a"
    finally:
        sys.modules.pop("the_projects_model", None)
