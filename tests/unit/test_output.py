"""Standard output and error of the command: nothing is lost for what could not be shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START = """
import json, logging, os, sys
from lowdimfa.services.cli.output import OutputLostError, claim_stdout, outlive, use_streams
use_streams()
"""
GOES_ON = """
outlive("it is elsewhere")
for line in range(1000):
    print("line", line)
open(sys.argv[1], "w").write("done")
"""


def run(script: str, *arguments: object, shell: str = "", **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script whose streams are the command's; ``shell`` redirects them."""
    command = [sys.executable, "-c", START + script, *map(str, arguments)]
    if shell:
        command = ["bash", "-o", "pipefail", "-c", f'"$@" {shell}', "-", *command]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(command, cwd=ROOT, env=environment | more, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
)
def test_what_an_encoding_does_not_have_is_replaced(environment: dict[str, str]) -> None:
    script = r"""
print("angle 70\u00b0")
print("angle 70\u00b0", file=sys.stderr)
logging.warning("block 0 \u2026")
"""
    done = run(script, **environment)
    assert (done.returncode, done.stdout) == (0, b"angle 70?\n")
    assert done.stderr == b"angle 70\\xb0\nWARNING:root:block 0 \\u2026\n"


def test_a_path_that_is_no_text_can_be_shown() -> None:
    done = run("print(os.fsdecode(b'gr\\xf6sse'))", PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stdout) == (0, b"gr?sse\n")


@pytest.mark.parametrize(
    ("shell", "reason"), [("| head -2", "nobody reads it"), ("> /dev/full", "there is no room for it")]
)
def test_what_outlives_its_output_says_so_once_and_goes_on(tmp_path: Path, shell: str, reason: str) -> None:
    # More than a pipe holds, so that some of it is written after the reader has gone.
    done = run(GOES_ON.replace("1000", "20000"), tmp_path / "file", shell=shell)
    assert done.returncode == 0, done
    assert (tmp_path / "file").read_text() == "done"
    note = done.stderr.decode()
    assert note.count("\n") == 1 and reason in note and note.endswith("; it is elsewhere\n")


@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2> /dev/full"])
def test_streams_that_are_closed_or_full_end_nothing(tmp_path: Path, shell: str) -> None:
    done = run(GOES_ON + 'print("more", file=sys.stderr)\n', tmp_path / "file", shell=shell)
    assert (done.returncode, (tmp_path / "file").read_text()) == (0, "done")


@pytest.mark.parametrize(("shell", "unread"), [("| true", True), ("> /dev/full", False)])
def test_what_is_there_to_show_something_ends_and_no_user_code_takes_that_for_its_own_error(
    shell: str, unread: bool
) -> None:
    script = f"""
try:
    try:
        for line in range(20000):
            print("line", line)
    except Exception:
        sys.exit("caught as an error of the user's")
except OutputLostError as error:
    sys.exit(7 if error.unread is {unread} else 8)
"""
    done = run(script, shell=shell)
    assert (done.returncode, done.stderr) == (7, b"")


def test_events_alone_go_to_a_claimed_output_and_prints_to_standard_error() -> None:
    script = r"""
events = claim_stdout()
print("of a model")
os.write(1, b"of a library\n")
events.write(json.dumps({"unit": "\u00b0"}) + "\n")
"""
    done = run(script, PYTHONIOENCODING="ascii")
    assert (done.stdout, done.stderr) == (b'{"unit": "\\u00b0"}\n', b"of a model\nof a library\n")


def test_a_note_does_not_go_through_a_progress_bar_that_leads_back_to_the_lost_output(tmp_path: Path) -> None:
    back = """
class Back:
    def write(self, text):
        sys.stdout.write(text)
        sys.stdout.flush()
    def flush(self): pass
sys.stderr = Back()
"""
    done = run(back + GOES_ON, tmp_path / "file", shell="> /dev/full")
    assert (done.returncode, (tmp_path / "file").read_text()) == (0, "done")
    assert done.stderr.endswith(b"; it is elsewhere\n")


def test_a_pipe_that_somebody_made_non_blocking_gets_everything() -> None:
    done = run("os.set_blocking(1, False)\nfor line in range(50000): print('line', line)", shell="| tail -1")
    assert (done.returncode, done.stdout) == (0, b"line 49999\n")
