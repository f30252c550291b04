"""The notebook runs as a person runs it, by a kernel that has nothing but this package and its own tools."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
PINS = Path(__file__).with_name("notebook-constraints.txt")
RUN = """
import json, sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
print(nbformat.writes(notebook))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """Return an interpreter that has what this one has, and a kernel for notebooks; it is made once."""
    folder = ROOT / ".venv-notebook"
    with FileLock(f"{folder}.lock", timeout=300):
        mark = folder / hashlib.sha256(PINS.read_bytes() + sys.executable.encode()).hexdigest()[:12]
        if not mark.exists():
            venv.create(folder, with_pip=True, clear=True)
            command = [
                folder / "bin/python",
                "-m",
                "pip",
                "install",
                "--quiet",
                "-c",
                ROOT / "constraints.txt",
            ]
            done = subprocess.run([*command, "-r", PINS], capture_output=True, text=True, timeout=280)
            if done.returncode:
                pytest.skip(f"the environment for notebooks can't be made: {done.stderr.strip()[-300:]}")
            (own,) = folder.glob("lib/python*/site-packages")
            ours = [str(ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))]
            (own / "ours.pth").write_text("".join(f"{entry}\n" for entry in ours))
            mark.touch()
    return folder / "bin" / "python"


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_the_notebook_trains_what_its_cells_define(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-c", RUN, NOTEBOOK, tmp_path], capture_output=True, text=True, timeout=280, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [output for cell in json.loads(done.stdout)["cells"] for output in cell.get("outputs", ())]
    text = "".join("".join(output.get("text", "")) for output in outputs)
    assert "<object Sequential> <object tuple>" in text
    assert text.count("step ") == 12
    found = re.search(r"accuracy (\d\.\d+), before training (\d\.\d+)", text)
    assert found and float(found[1]) > 0.85 and float(found[2]) < 0.3, text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    told = ["".join(output["text"]) for output in outputs if output.get("name") == "stderr"]
    assert all("ipywidgets" in text for text in told), told  # which Ray would like to have
