"""Who may import whom, read from the source: `docs/architecture.md` has the reasons."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import lowdimfa

ROOT = Path(__file__).parents[2]
FLOORS = (
    ("lowdimfa",),
    ("lowdimfa.services.spec", "lowdimfa.services.rpc", "lowdimfa.services.monitoring"),
    ("lowdimfa.services.stream",),
    # What a run is, as plain data and files: the trainer makes it and every block reads it.
    ("lowdimfa.services.run",),
    ("lowdimfa.services.block",),
    ("lowdimfa.services.recovery", "lowdimfa.services.callbacks"),
    ("lowdimfa.services.trainer", "lowdimfa.services.lab.simulation"),
    ("lowdimfa.services.coordinator", "lowdimfa.services.lab.drill", "lowdimfa.services.lab.tuning"),
    ("lowdimfa.services.cli",),
)
"""From the ground up. A room may use its own modules and those of the floors below."""

LIBRARY_ONLY = {"torch", "numpy", "PIL"}
"""What `lowdimfa` may import besides itself and the standard library; all but torch for reading data."""

ABOVE = {
    "lowdimfa.services.callbacks.early_stopping.EarlyStopping",
    "lowdimfa.services.callbacks.mlflow.MLflow",
    "lowdimfa.services.callbacks.tensorboard.TensorBoard",
    "lowdimfa.services.callbacks.wandb.WandB",
    "lowdimfa.services.trainer.api.DecoupledTrainer",
    "lowdimfa.services.trainer.results.Result",
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


def test_the_library_needs_torch_alone() -> None:
    for path in modules("lowdimfa"):
        names = imported(path)
        known = LIBRARY_ONLY | {"lowdimfa"} | sys.stdlib_module_names
        assert {name.split(".")[0] for name in names} <= known, path
        above = {name for name in names if name.startswith("lowdimfa.services")}
        assert above <= (ABOVE if path == ROOT / "lowdimfa/__init__.py" else set()), path


def test_nothing_imports_upwards() -> None:
    for path in modules("services"):
        name = module_name(path)
        if name in ("lowdimfa.services", "lowdimfa.services.lab"):
            continue
        floor, room = room_of(name)
        for target in imported(path):
            assert target.split(".")[0] not in UNINSTALLED, f"{name} imports {target}"
            if target.split(".")[0] == "lowdimfa":
                other_floor, other_room = room_of(target)
                assert other_floor < floor or other_room == room, f"{name} imports {target}"


def test_what_runs_in_every_training_knows_nothing_of_injected_faults() -> None:
    for path in modules("services/block"):
        if path.name not in ("actor.py", "faults.py"):  # which puts them around a worker, and where
            assert not [name for name in imported(path) if ".faults" in name or name.endswith("Fault")], path


def test_what_decides_on_recoveries_asks_no_clock_and_touches_nothing() -> None:
    for path in modules("services/recovery"):
        outside = {name.split(".")[0] for name in imported(path)} - {"lowdimfa"}
        assert outside <= {"__future__", "collections", "dataclasses", "typing"}, path


def test_nothing_is_unpickled() -> None:
    for path in modules("lowdimfa", "services", "tools", "benchmarks", "examples"):
        names = set(imported(path))
        assert not {name.split(".")[0] for name in names} & UNSAFE, path
        assert "torch.load" not in names, path
        attributes = [node for node in nodes(path) if isinstance(node, ast.Attribute) and node.attr == "load"]
        assert "torch.load" not in map(ast.unparse, attributes), path


def test_the_library_loads_torch_when_something_of_it_is_used() -> None:
    script = "import sys, lowdimfa, lowdimfa.errors; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert all(getattr(lowdimfa, name) is not None for name in lowdimfa.__all__)
    assert set(lowdimfa.__all__) <= set(dir(lowdimfa))


def test_the_way_of_a_job_is_drawn_with_files_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [
        line
        for line in text.split("## The way of a job\n")[1].split("\n## ")[0].splitlines()
        if ".py`" in line
    ]
    steps = [row for row in rows if row.startswith("|")]
    named = re.findall(r"`([\w/]+\.py)`", "\n".join(rows))
    assert named and len(steps) <= 30
    assert [name for name in named if not (ROOT / name).is_file()] == []
