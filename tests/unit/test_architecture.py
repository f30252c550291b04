"""Who may import whom, read from the source: `docs/architecture.md` has the reasons."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = (
    ("lowdimfa",),
    ("lowdimfa.services.spec", "lowdimfa.services.rpc", "lowdimfa.services.monitoring"),
    ("lowdimfa.services.stream",),
    # What a run is, as plain data and files: the trainer makes it and every block reads it.
    ("lowdimfa.services.run",),
    ("lowdimfa.services.block",),
    ("lowdimfa.services.trainer", "lowdimfa.services.lab.simulation"),
    ("lowdimfa.services.coordinator", "lowdimfa.services.lab.drill"),
    ("lowdimfa.services.cli",),
)
"""From the ground up. A room may use its own modules and those of the floors below."""

LIBRARY_ONLY = {"torch", "numpy", "PIL"}
"""What `lowdimfa` may import besides itself and the standard library; all but torch for reading data."""

ABOVE = {
    "lowdimfa.services.trainer.api.DecoupledTrainer",
    "lowdimfa.services.trainer.api.Result",
}
"""What `lowdimfa` itself offers of the floors above, loaded when it is asked for."""

UNINSTALLED = {"services", "tools", "tests", "benchmarks", "examples"}
"""Folders of the repository: what is installed is all below `lowdimfa`, and these names are left to the user."""

UNSAFE = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
"""Modules that run code found in the data that they read."""


def modules(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return f"lowdimfa.{name}" if name.split(".")[0] == "services" else name


@cache
def nodes(path: Path) -> list[ast.Import | ast.ImportFrom | ast.Attribute]:
    """Return the imports and attributes of a file, wherever in it."""
    wanted = (ast.Import, ast.ImportFrom, ast.Attribute)
    return [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, wanted)
    ]


def imported(path: Path) -> list[str]:
    """Return the full name of everything that a file imports."""
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room_of(name: str) -> tuple[int, str]:
    """Return floor and room of a module, or of something in it."""
    found = [
        (len(room), floor, room)
        for floor, rooms in enumerate(FLOORS)
        for room in rooms
        if f"{name}.".startswith(f"{room}.")
    ]
    assert found, f"{name} has no place in the house"
    _, floor, room = max(found)
    return floor, room


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", modules("lowdimfa"), ids=name_of)
def test_the_library_needs_torch_alone(path: Path) -> None:
    names = imported(path)
    assert {name.split(".")[0] for name in names} <= LIBRARY_ONLY | {"lowdimfa"} | sys.stdlib_module_names
    above = {name for name in names if name.startswith("lowdimfa.services")}
    assert above <= (ABOVE if path == ROOT / "lowdimfa/__init__.py" else set())


@pytest.mark.parametrize("path", modules("services"), ids=name_of)
def test_nothing_imports_upwards(path: Path) -> None:
    name = module_name(path)
    if name in ("lowdimfa.services", "lowdimfa.services.lab"):
        return
    floor, room = room_of(name)
    for target in imported(path):
        assert target.split(".")[0] not in UNINSTALLED, f"{name} imports {target}"
        if target.split(".")[0] == "lowdimfa":
            other_floor, other_room = room_of(target)
            assert other_floor < floor or other_room == room, f"{name} imports {target}"


@pytest.mark.parametrize(
    "path", modules("lowdimfa", "services", "tools", "benchmarks", "examples"), ids=name_of
)
def test_nothing_is_unpickled(path: Path) -> None:
    names = set(imported(path))
    assert not {name.split(".")[0] for name in names} & UNSAFE
    assert "torch.load" not in names
    assert not [
        node
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr == "load" and ast.unparse(node) == "torch.load"
    ]


def test_the_library_loads_torch_when_something_of_it_is_used() -> None:
    script = (
        "import sys, lowdimfa, lowdimfa.errors; assert 'torch' not in sys.modules\n"
        "from lowdimfa import decouple, Block; assert 'torch' in sys.modules\n"
        "assert all(getattr(lowdimfa, name) is not None for name in lowdimfa.__all__)\n"
        "assert set(lowdimfa.__all__) <= set(dir(lowdimfa))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
