"""What is installed from the wheel: one package, whose name is the only one that a user's project can't have."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
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
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution from a copy of the tree: the build leaves folders there."""
    folder = tmp_path_factory.mktemp("source")
    for part in ("lowdimfa", "services", "proto", "docs", "examples", "tests"):
        shutil.copytree(
            ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for path in (ROOT / "pyproject.toml", ROOT / "MANIFEST.in", ROOT / "LICENSE", ROOT / "NOTICE"):
        shutil.copy(path, folder)
    for path in (*ROOT.glob("*.md"), *ROOT.glob("constraints*.txt")):
        shutil.copy(path, folder)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, "dist"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """Build the wheel from the source distribution alone."""
    folder = source.parents[1] / "wheel"
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
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
        "services/rpc/v1/coordinator_pb2.py", "services/monitoring/report/templates/report.html", "py.typed",
        "services/cli/templates/spec.yaml", "services/cli/templates/gitignore",
        "services/monitoring/live/static/uplot/LICENSE",
    ):  # fmt: skip
        assert f"lowdimfa/{needed}" in names, needed
    assert [name.split("/")[-1] for name in names if "/licenses/" in name] == ["LICENSE", "NOTICE"]


def test_the_source_distribution_has_what_one_reads_and_no_tests(source: Path) -> None:
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE", "NOTICE", "CHANGELOG.md", "SECURITY.md", "docs/index.md", "examples/digits_mlp.yaml",
        "proto/lowdimfa/services/rpc/v1/coordinator.proto", "lowdimfa/services/cli/main.py",
    } <= names  # fmt: skip
    assert not {name for name in names if name.split("/")[0] in ("tests", "tools", "benchmarks", "runs")}


@pytest.mark.slow
def test_a_new_project_trains_without_the_repository(tmp_path: Path, installed: Path) -> None:
    def python(*words: str) -> Outcome:
        return lowdimfa(*words, cwd=tmp_path / "mine", command=installed.with_name("python"))

    made = lowdimfa("init", "mine", cwd=tmp_path, command=installed)
    assert made.code == 0 and "made mine: spec.yaml" in made.stdout
    trained = lowdimfa("train", "spec.yaml", "--format", "json", cwd=tmp_path / "mine", command=installed)
    (finished,) = trained.of("finished")
    assert finished["blocks"] == 3 and finished["test_accuracy"] > 0.9
    checked = python("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert checked.code == 0 and "2 passed" in checked.stdout, checked
    again = lowdimfa("init", "mine", cwd=tmp_path, command=installed)
    assert again.code == 2 and "expected a new folder" in again.stderr


def test_the_doctor_names_what_would_fail(tmp_path: Path, installed: Path) -> None:
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    examined = lowdimfa(
        "doctor",
        "--format",
        "json",
        cwd=tmp_path,
        command=installed,
        TMPDIR=str(deep),
        LOWDIMFA_STORAGE="/proc/runs",
    )
    states = {event["check"]: event["state"] for event in examined.of("finding")}
    wrong = {check for check, state in states.items() if state == "problem"}
    assert {"temporary folder", "storage"} == wrong
    assert states["packages"] == states["torch and ray"] == states["loopback"] == "ok"
    assert examined.code == 5
    assert examined.stderr == "lowdimfa: 2 problems would stop a run: storage, temporary folder\n"


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
