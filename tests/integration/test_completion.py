"""What the tab key completes: in a real bash, and of a real service."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from coordinator_thread import SPECIFICATION, coordinator
from test_start import HEAVY, SCRIPT

from lowdimfa.services.coordinator.client import Connection, CoordinatorClient

COMMANDS = Path(sys.executable).parent
SECONDS = 60.0
"""Until a completion is shown on a busy machine; only one that never comes takes as long."""


def completed(folder: Path, *words: str, **more: str) -> tuple[list[str], set[str]]:
    """Return what bash is told to complete the last word with, and the packages that were loaded for it."""
    asked = {"COMP_WORDS": " ".join(["lowdimfa", *words]), "COMP_CWORD": str(len(words))}
    script = SCRIPT.replace("sys.argv[1:] = words", 'sys.argv = ["lowdimfa"]')
    done = subprocess.run(
        [sys.executable, "-c", script, "[[]]"],
        cwd=folder,
        env=os.environ | asked | more | {"_LOWDIMFA_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=True,
    )
    (last,) = (line for line in done.stderr.splitlines() if line.startswith("[["))
    return done.stdout.split(), set(re.findall(r'"(\w+)"', last))


def test_words_are_completed_without_torch(tmp_path: Path) -> None:
    for words, found in (
        (["t"], {"train", "tokens"}),
        (["train", "--res"], {"--resume", "--resume-step"}),
        (["train", "x.yaml", "--engine", ""], {"ray", "local"}),
        (["train", "x.yaml", "--set", "train.ep"], {"train.epochs="}),
        (["train", "x.yaml", "--set", "train.compile"], {"train.compile=", "train.compile=true", "train.compile=false"}),
        (["data", "f"], {"fetch"}),
        (["train", "x"], set()),  # then the shell completes files
    ):  # fmt: skip
        said, modules = completed(tmp_path, *words)
        assert set(said) == found, words
        assert not modules & HEAVY, words


def test_jobs_are_those_of_the_service(tmp_path: Path) -> None:
    with coordinator(tmp_path) as service:
        with CoordinatorClient(Connection(service.address, liveness=5.0)) as client:
            ids = {client.submit(name, SPECIFICATION, {})[0]["id"] for name in ("mnist", "digits")}
        (mnist,) = (each for each in ids if each.startswith("mnist"))
        for words, more in (
            (["--coordinator", service.address], {}),
            ([], {"LOWDIMFA_COORDINATOR": service.address}),
        ):
            said, modules = completed(tmp_path, "status", *words, "mni", **more)
            assert said == [mnist]
            assert not modules & HEAVY
    assert completed(tmp_path, "status", "", LOWDIMFA_COORDINATOR=service.address)[0] == []  # it is gone
    assert completed(tmp_path, "status", "", LOWDIMFA_COORDINATOR="no address")[0] == []


class Shell:
    """A bash on a terminal of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def type(self, keys: str, expected: str) -> None:
        """Press keys, and wait until the terminal shows something."""
        os.write(self._descriptor, keys.encode())
        shown, deadline = "", time.monotonic() + SECONDS
        while expected not in shown:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._descriptor], [], [], left)[0], shown
            shown += re.sub(r"\x1b\[[?\d;]*\w|\a", "", os.read(self._descriptor, 4096).decode())


@contextmanager
def bash(folder: Path) -> Iterator[Shell]:
    own, other = pty.openpty()
    places = {"PATH": f"{COMMANDS}:{os.environ['PATH']}", "HOME": str(folder), "PS1": "> ", "COLUMNS": "200"}
    process = subprocess.Popen(
        ["bash", "--noprofile", "-i"],
        cwd=folder, env=os.environ | places | {"TERM": "dumb"}, stdin=other, stdout=other, stderr=other,
        start_new_session=True,
    )  # fmt: skip
    os.close(other)
    try:
        yield Shell(own)
    finally:
        process.kill()
        process.wait()
        os.close(own)


@pytest.mark.skipif(not Path("/usr/bin/bash").exists(), reason="no bash")
def test_bash_completes_what_was_installed(tmp_path: Path) -> None:
    command = f"{shlex.quote(str(COMMANDS / 'lowdimfa'))} --install-completion"
    told = subprocess.run(
        ["bash", "-c", f"{command}; true"],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (tmp_path / ".bashrc").exists(), told
    (tmp_path / "my_spec.yaml").touch()
    with bash(tmp_path) as shell:
        shell.type("lowdimfa doc\t", "lowdimfa doctor ")
        shell.type("\x15lowdimfa train my\t", "lowdimfa train my_spec.yaml ")
        shell.type("--set feedback.fo\t", "--set feedback.form=")
        shell.type("\x15lowdimfa export runs --out\t", "--output ")
