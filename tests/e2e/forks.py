"""A process that has imported the command and runs it in forks: many cases without the seconds that imports take.

Each line of its input is one case as JSON: arguments, folder, environment, and the files for standard output and
error. It answers with the exit code. `Forks` is the tests' side of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from command import DIGITS, Outcome, environment


class Forks:
    """Runs commands one after the other; a context manager.

    Parameters
    ----------
    folder
        Where the processes work and their output is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=environment(PYTHONDONTWRITEBYTECODE="1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, cwd: Path | None = None, **more: str) -> Outcome:
        """Run ``lowdimfa`` in a folder with arguments and more environment variables."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        files = [self._folder / name for name in ("stdout.txt", "stderr.txt")]
        case = {
            "arguments": [*map(str, arguments)],
            "folder": str(cwd or self._folder),
            "environment": more,
            "files": [*map(str, files)],
        }
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Outcome(code, *(file.read_text() for file in files))

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def _serve() -> None:
    import services.cli.app  # noqa: F401
    from services.cli.main import main
    from services.trainer.api import DecoupledTrainer

    DecoupledTrainer(DIGITS, engine="local").plan()  # imports what is imported late
    for line in sys.stdin:
        case = json.loads(line)
        child = os.fork()
        if child == 0:
            os.environ.update(case["environment"])
            os.chdir(case["folder"])
            sys.argv = ["lowdimfa", *case["arguments"]]
            for descriptor, path in enumerate(case["files"], start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            try:
                main()
            except SystemExit as end:  # without taking everything down, which takes a second
                sys.stdout.flush()
                os._exit(int(end.code or 0))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
