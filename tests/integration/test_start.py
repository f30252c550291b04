"""Commands that train nothing start at once: they load neither torch nor Ray nor matplotlib."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from coordinator_thread import SPECIFICATION, coordinator

from lowdimfa.services.coordinator.client import Connection, CoordinatorClient

HEAVY = {"torch", "ray", "matplotlib"}
CLIENTS = {"grpc", "google", "pydantic", "cryptography", "yaml", "rich", "numpy"}
"""What some of the commands need, but not the one that says its version."""

SCRIPT = """
import json, sys
from lowdimfa.services.cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        print(json.dumps([words, end.code, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""
GROUPS = {"data": ("list", "fetch", "tokens"), "tokens": ("add", "list", "remove")}
OTHERS = (
    "init", "doctor", "train", "plan", "drill", "evaluate", "export", "report", "simulate", "serve",
    "submit", "jobs", "status", "watch", "stop", "resume", "logs", "certs",
)  # fmt: skip


def loaded(folder: Path, *commands: Sequence[str]) -> list[tuple[str, int, set[str]]]:
    """Run commands one after the other in one process, and return each with its exit code and what is loaded after it."""
    script = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    done = subprocess.run(script, cwd=folder, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[[")]
    assert len(found) == len(commands), done.stderr
    return [(" ".join(words), code, set(modules)) for words, code, modules in found]


def light(folder: Path, *commands: Sequence[str], code: int = 0) -> None:
    """Check that commands end with a code, and that none loads what takes seconds."""
    for said, ended, modules in loaded(folder, *commands):
        assert ended == code, said
        assert not modules & HEAVY, said


def test_the_version_takes_next_to_nothing(tmp_path: Path) -> None:
    ((_, code, modules),) = loaded(tmp_path, ["--version"])
    assert code == 0
    assert not modules & (HEAVY | CLIENTS)


def test_help_of_every_command(tmp_path: Path) -> None:
    groups = [
        [group, *inner, "--help"] for group, own in GROUPS.items() for inner in ((), *((c,) for c in own))
    ]
    light(tmp_path, ["--help"], *groups, *([command, "--help"] for command in OTHERS))


def test_mistyped_commands_and_options(tmp_path: Path) -> None:
    wrong = [[command, "--no-such-option"] for command in OTHERS]
    light(tmp_path, ["trian"], ["--no-such-option"], ["data", "lits"], *wrong, code=2)


def test_commands_beside_a_service(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("to be or not to be " * 9)
    light(
        tmp_path,
        ["data", "list"],
        ["data", "tokens", "words.txt", "--out", "tokens", "--vocabulary", "260"],
        ["certs", "certs"],
        ["tokens", "add", "ann", "--role", "read"],
        ["tokens", "list"],
        ["tokens", "remove", "ann"],
    )


def test_commands_that_ask_a_service(tmp_path: Path) -> None:
    with coordinator(tmp_path) as service:
        with CoordinatorClient(Connection(service.address, liveness=5.0)) as client:
            job = client.submit("mnist", SPECIFICATION, {})[0]["id"]
        asked = (["jobs"], ["status", job], ["logs", job], ["stop", job], ["resume", job], ["stop", job])
        with_address = [[*words, "--coordinator", service.address] for words in asked]
        light(tmp_path, *with_address)
        light(tmp_path, ["watch", job, "--coordinator", service.address], code=130)  # that of a stopped job


def test_nothing_that_a_specification_names_is_imported_to_check_its_arguments() -> None:
    """Not even a module that is there, with a name that begins like one of the project's."""
    script = (
        "import sys, lowdimfa.services.spec.arguments; before = set(sys.modules)\n"
        "from lowdimfa.services.spec.load import violations\n"
        "text = \"model: {factory: 'this:model', blocks: 2}\\ndata: {factory: 'torch.utils.tensorboard:x'}\\n\"\n"
        "text += \"train: {steps: 1, loss: 'torch.distributed.pipelining.stage.x'}\"\n"
        "assert violations(text) == [], violations(text)\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done
