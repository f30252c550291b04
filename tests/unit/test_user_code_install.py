"""The Python files that come with a run are the ones that its processes import."""

from __future__ import annotations

import importlib
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lowdimfa import imports
from lowdimfa.errors import InputError
from lowdimfa.imports import call_factory, resolve
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


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be a program that has no folder of the user's yet, and forget afterwards what it has imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(imports, "_folders", set())
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        del sys.modules[name]


def written(folder: Path, **texts: str) -> UserCode:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    return UserCode(str(folder))


@pytest.mark.usefixtures("program")
def test_without_files_the_folder_itself_is_taken(tmp_path: Path) -> None:
    UserCode(str(tmp_path)).install()
    assert sys.path[0] == str(tmp_path)


@pytest.mark.usefixtures("program")
def test_a_module_of_another_project_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    """A notebook with a model.py, and a project with another: a run would train the notebook's."""
    for name in ("a", "b"):
        written(tmp_path / name, the_projects_model=f"def make():\n    return {name!r}\n")
    sys.path.insert(0, str(tmp_path / "a"))
    assert resolve("the_projects_model:make", "model.factory")() == "a"
    UserCode(str(tmp_path / "b")).install()
    with pytest.raises(InputError, match="whose module was imported from elsewhere"):
        resolve("the_projects_model:make", "model.factory")
    UserCode(str(tmp_path / "a")).install()
    assert resolve("the_projects_model:make", "model.factory")() == "a"


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("late", [False, True])
def test_what_a_project_imports_is_not_taken_from_another(late: bool, tmp_path: Path) -> None:
    """Two projects in one notebook whose models have other names, and each a layers.py."""
    factory = "def make():\n    from users_layers import WIDTH\n    return WIDTH\n"
    model = factory if late else f"from users_layers import WIDTH\n{factory}"
    first = written(tmp_path / "a", users_first=model, users_layers="WIDTH = 1\n")
    other = written(tmp_path / "b", users_second=model, users_layers="WIDTH = 22\n")
    alike = written(tmp_path / "c", users_third=model, users_layers="WIDTH = 1\n")
    first.install()
    assert call_factory("users_first:make", {}, "model.factory") == 1
    path = list(sys.path)
    with pytest.raises(InputError, match="'users_layers', and another of that name was imported") as caught:
        other.install()
    assert str(tmp_path / "a" / "users_layers.py") in caught.value.message
    assert sys.path == path
    first.install()
    alike.install()
    assert call_factory("users_third:make", {}, "model.factory") == 1


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("how", ["at the top", "in the factory", "by the program", "by what fails"])
def test_a_file_that_was_changed_since_it_was_imported_is_refused_until_it_is_reloaded(
    how: str, tmp_path: Path
) -> None:
    """The other processes of a run would train the new code, and `Result.model` put its weights into the old."""
    body = "from users_layers import WIDTH\n"
    broken = "raise ValueError\n" if how == "by what fails" else ""
    model = f"def make():\n    {body}    return WIDTH\n"
    code = written(
        tmp_path,
        users_model=model if how == "in the factory" else f"{body}{broken}{model}",
        users_layers="WIDTH = 1\n",
    )
    if how == "by the program":
        sys.path.insert(0, str(tmp_path))
        importlib.import_module("users_layers")
    code.install()
    if broken:
        with pytest.raises(InputError, match="fails to import"):
            call_factory("users_model:make", {}, "model.factory")
        written(tmp_path, users_model=model)
    else:
        assert call_factory("users_model:make", {}, "model.factory") == 1
    code.install()
    written(tmp_path, users_layers="WIDTH = 22\n")
    with pytest.raises(InputError, match=r"users_layers\.py: found another text .*[Rr]estart"):
        code.install()
    code.install(with_others=False)  # for the network that was trained here before
    written(tmp_path, users_layers="WIDTH = 1\n")
    code.install()
    written(tmp_path, users_layers="WIDTH = 22\n")
    importlib.reload(sys.modules["users_layers"])
    code.install()
    assert sys.modules["users_layers"].WIDTH == 22
    (tmp_path / "users_layers.py").unlink()  # what nobody can import has no other text
    code.install()


@pytest.mark.usefixtures("program")
def test_modules_that_are_the_program_s_own_or_kept_as_their_files_are_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = written(tmp_path, conftest="WIDTH = 1\n", users_layers="WIDTH = 1\n")
    inner = written(tmp_path / "tests", conftest="WIDTH = 2\n")
    sys.path[:0] = [str(tmp_path / "tests")]
    monkeypatch.delitem(sys.modules, "conftest", raising=False)
    importlib.import_module("conftest")
    for one in (code, inner, code):
        one.install()
    importlib.import_module("users_layers")
    code.install()
    written(tmp_path, users_layers="WIDTH = 22\n")
    with pytest.raises(InputError, match="another text"):
        code.install()
    reloads = SimpleNamespace(_reloader=SimpleNamespace(enabled=True))
    shell = SimpleNamespace(magics_manager=SimpleNamespace(registry={"AutoreloadMagics": reloads}))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    code.install()


@pytest.mark.usefixtures("program")
def test_a_module_is_what_it_was_when_it_was_imported_whatever_its_file_says_now(tmp_path: Path) -> None:
    """As of a network that was trained with packed files, which lie elsewhere too."""
    code = written(tmp_path / "own", users_layers="WIDTH = 1\n")
    code.install()
    importlib.import_module("users_layers")
    code.install()
    packed = written(tmp_path / "packed", users_layers="WIDTH = 1\n")
    written(tmp_path / "own", users_layers="WIDTH = 22\n")
    packed.install(with_others=False)


@pytest.mark.usefixtures("program")
def test_what_is_installed_below_the_users_folder_is_no_module_of_the_users(tmp_path: Path) -> None:
    place = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages"
    code, _ = written(tmp_path), written(place, users_library="WIDTH = 1\n")
    sys.path.append(str(place))
    code.install()
    importlib.import_module("users_library")
    code.install()
    written(place, users_library="WIDTH = 22\n")
    code.install()
