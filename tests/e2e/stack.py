"""The service in containers, from an image of this very tree, under a name of its own; nothing stays behind."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

ROOT = Path(__file__).parents[2]
PARTS = (
    "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "NOTICE", ".dockerignore", "docker-compose.yml",
    "lowdimfa", "services", "deploy",
)  # fmt: skip
WHEELS = "deploy/docker/wheels"
T = TypeVar("T")


def run(command: Sequence[object], seconds: float, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command; one that takes too long has exit code 124."""
    words = [str(word) for word in command]
    try:
        return subprocess.run(
            words,
            env={key: value for key, value in os.environ.items() if not key.startswith("COMPOSE_")} | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(words, 127, "", f"there is no command {words[0]}")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 124, "", f"not done after {seconds:g} s")


def until(probe: Callable[[], T], seconds: float, what: str) -> T:
    """Return the first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := probe()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(0.5)
    return answer


def require_engine() -> None:
    """Skip the test where there is no engine, no Compose, or no image to build upon."""
    for command in (["docker", "version"], ["docker", "compose", "version"], ["docker", "buildx", "version"]):
        asked = run(command, 30)
        if asked.returncode:
            pytest.skip(f"'{' '.join(command)}' fails ({asked.stderr.strip()}); see .ci/docker-engine")
    recipe = (ROOT / "deploy/docker/Dockerfile").read_text("utf-8")
    services = (ROOT / "docker-compose.yml").read_text("utf-8")
    for pattern, text in ((r"^FROM (python:\S+)", recipe), (r"image: (prom/prometheus:\S+)", services)):
        found = re.search(pattern, text, re.MULTILINE)
        assert found, pattern
        if run(["docker", "image", "inspect", found[1]], 30).returncode:
            pulled = run(["docker", "pull", "--quiet", found[1]], 300)
            if pulled.returncode:
                pytest.skip(f"no image {found[1]} ({pulled.stderr.strip()}); see .ci/docker-engine")


def gather_wheels(folder: Path) -> None:
    """Fetch what the image needs, as pip on this machine finds it, so that the build needs no network."""
    wanted = run([sys.executable, ROOT / "deploy/docker/requirements.py", "s3", "hf"], 30).stdout.splitlines()
    options = ["--quiet", "--only-binary", ":all:", "--python-version", "3.11", "--dest", folder]
    fetched = run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            *options,
            "-c",
            ROOT / "constraints.txt",
            *wanted,
        ],
        600,
    )
    assert fetched.returncode == 0, fetched.stderr


class Stack:
    """A Compose project.

    Parameters
    ----------
    folder
        With the copy of the tree.
    overlays
        Files below ``deploy/compose``.
    image
        Of another project; by default one of its own.
    settings
        Further ones.
    """

    def __init__(self, folder: Path, *overlays: str, image: str = "", **settings: str) -> None:
        self.name = f"lowdimfa-test-{secrets.token_hex(4)}"
        self._own, self.image = not image, image or f"lowdimfa:{self.name}"
        self._folder = folder
        files = ("docker-compose.yml", *(f"deploy/compose/{name}" for name in overlays))
        self._settings = {
            "COMPOSE_FILE": ":".join(str(folder / name) for name in files),
            "COMPOSE_PROJECT_NAME": self.name,
            "LOWDIMFA_IMAGE": self.image,
            "PIP_NO_INDEX": "1",
            # Of the engine's choice.
            "LOWDIMFA_PORT": "0",
            "LOWDIMFA_HTTP_PORT": "0",
            "LOWDIMFA_PAGE_PORT": "0",
            "PROMETHEUS_PORT": "0",
            **settings,
        }

    def overlaid(self, *overlays: str, **settings: str) -> Stack:
        """Return another project with the same image."""
        return Stack(self._folder, *overlays, image=self.image, **settings)

    def compose(self, *arguments: object, seconds: float = 60) -> str:
        """Run ``docker compose`` and return what it printed."""
        done = self._compose(*arguments, seconds=seconds)
        assert done.returncode == 0, (
            f"docker compose {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr[-4000:]}\n"
            + self.logs()
        )
        return done.stdout.strip()

    def logs(self) -> str:
        """Return the latest lines of all containers."""
        states = self._compose("ps", "--all", seconds=30).stdout
        return states + self._compose("logs", "--no-color", "--tail", "40", seconds=30).stdout[-20_000:]

    def address(self, service: str, port: int) -> str:
        """Return where a port is published on this machine."""
        return self.compose("port", service, port)

    def down(self) -> list[str]:
        """Take everything down; return what is still there."""
        down = self._compose("down", "--volumes", "--remove-orphans", "--timeout", "30", seconds=180)
        if self._own:
            run(["docker", "image", "rm", "--force", self.image], 60)
        label = ["--quiet", "--filter", f"label=com.docker.compose.project={self.name}"]
        remains = [] if down.returncode == 0 else [f"'down' failed: {down.stderr}"]
        for kind, listing in (
            ("container", ["ps", "--all"]),
            ("volume", ["volume", "ls"]),
            ("network", ["network", "ls"]),
        ):
            remains += [f"{kind} {found}" for found in run(["docker", *listing, *label], 30).stdout.split()]
        return remains

    def _compose(self, *arguments: object, seconds: float) -> subprocess.CompletedProcess[str]:
        command = ["docker", "compose", "--project-directory", self._folder, *arguments]
        return run(command, seconds, **self._settings)


@contextmanager
def stack() -> Iterator[Stack]:
    """Give a stack of this tree, not yet built; afterwards check that nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="lowdimfa-stack-") as scratch:
        folder = Path(scratch) / "lowdimfa"
        folder.mkdir()
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(
                    ROOT / part,
                    folder / part,
                    symlinks=True,
                    ignore=shutil.ignore_patterns("__pycache__", "*.whl"),
                )
            else:
                shutil.copy(ROOT / part, folder / part)
        gather_wheels(folder / WHEELS)
        with taken_down(Stack(folder)) as project:
            yield project


@contextmanager
def taken_down(project: Stack) -> Iterator[Stack]:
    """Take a project down at the end, and check that nothing of it is left."""
    try:
        yield project
    finally:
        remains = project.down()
    assert not remains, remains
