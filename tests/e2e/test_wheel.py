"""What is installed from the wheel: one package, whose name is the only one that a user's project can't have."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from command import Outcome, lowdimfa
from forks import Forks
from service import service

ROOT = Path(__file__).parents[2]
PARTS = {
    "services": "from torch import nn\n"
    "def make_model():\n"
    "    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))\n",
    "proto": "import torch\n"
    "from services.parts import make_model\n"  # packages of one's own know each other
    "def make_data():\n"
    "    inputs = torch.randn(128, 8, generator=torch.Generator().manual_seed(1))\n"
    "    return inputs[:96], inputs[:96, :4].argmax(1), inputs[96:], inputs[96:, :4].argmax(1)\n",
    "tests": "from torch.nn import functional as F\n"
    "def loss(outputs, targets):\n"
    "    return F.cross_entropy(outputs, targets)\n",
    "benchmarks": "import torch\n"
    "def optimizer(parameters, lr):\n"
    "    return torch.optim.SGD(parameters, lr=lr)\n",
}
SPECIFICATION = {
    "model": {"factory": "services.parts:make_model", "blocks": 2},
    "data": {"factory": "proto.parts:make_data"},
    "train": {
        "epochs": 2,
        "batch_size": 16,
        "log_every": 1,
        "loss": "tests.parts:loss",
        "optimizer": {"factory": "benchmarks.parts:optimizer", "args": {"lr": 0.1}},
    },
}


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the tree: the build leaves folders there."""
    folder = tmp_path_factory.mktemp("wheel")
    for part in ("lowdimfa", "services"):
        shutil.copytree(
            ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, folder)
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist", folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command, from the wheel, in an environment that has the libraries it needs but not this tree."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    ours = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    # A line of a .pth file adds the folder, but not what its own .pth files add: the editable installation.
    Path(ours, "libraries.pth").write_text(sysconfig.get_path("purelib"))
    pip("--python", folder / "bin/python", "install", "--quiet", "--no-deps", "--no-index", wheel)
    return folder / "bin" / "lowdimfa"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in PARTS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "parts.py").write_text(text)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPECIFICATION))
    return tmp_path


def course(outcome: Outcome) -> list[float]:
    """Return every loss that a run told, and its last."""
    assert outcome.code == 0, outcome
    return [event["loss"] for event in outcome.of("progress")] + [outcome.of("finished")[0]["test_loss"]]


def test_one_top_level_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (top_level,) = (name for name in names if name.endswith("/top_level.txt"))
        assert archive.read(top_level).decode().split() == ["lowdimfa"]
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"lowdimfa"}
    for needed in (
        "services/rpc/v1/coordinator_pb2.py",
        "services/monitoring/report/templates",
        "services/monitoring/live/static/uplot/LICENSE",
        "py.typed",
    ):
        assert any(name.startswith(f"lowdimfa/{needed}") for name in names), needed


@pytest.mark.slow
def test_a_project_whose_packages_are_called_as_ours_are(
    project: Path, installed: Path, forks: Forks
) -> None:
    command = ("train", "spec.yaml", "--format", "json", "--run-dir")
    local = lowdimfa(*command, project / "local", "--engine", "local", cwd=project, command=installed)
    on_ray = lowdimfa(*command, project / "ray", cwd=project, command=installed)
    with service(project, forks, command=installed) as running:
        as_job = lowdimfa(
            "submit", "spec.yaml", "--watch", "--format", "json",
            cwd=project, command=installed, LOWDIMFA_COORDINATOR=running.address,
        )  # fmt: skip
    assert len(course(local)) > 2
    assert course(on_ray) == course(local)
    assert course(as_job) == course(local)
