"""Run a coverage-guided fuzzer on one decoder: ``python -m tests.fuzz.run TARGET --seconds 600``.

The fuzzer works in a process of its own, which a hard crash may take along. What it finds lies in the folder of
``--findings``, one input each, and is listed at the end; the exit code is 1 then. ``--keep`` takes what reaches new
lines into the corpus that the tests run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_INPUTS = 48
"""Files of one target's corpus."""

_ENGINE_OPTIONS = (
    "-max_len=4096",
    "-timeout=30",
    "-rss_limit_mb=4096",
    "-print_final_stats=1",
    "-verbosity=1",
)
_SHARE_OF_BYTES = 0.25
"""Of the changes are of bytes, without regard for structure."""


def main() -> int:
    """Fuzz, print a summary as JSON, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("target", nargs="?", default="")
    parser.add_argument("--list", action="store_true", help="print the names of the targets and do nothing")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--findings", type=Path, help="default: a folder in that for temporary files")
    parser.add_argument(
        "--keep", action="store_true", help="take inputs that reach new lines into the corpus"
    )
    parser.add_argument("--engine", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        from tests.fuzz.targets import TARGETS

        print(*TARGETS)
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("the fuzzer needs atheris: pip install -c constraints.txt -e '.[dev,fuzz]'", file=sys.stderr)
        return 2
    if options.engine:
        return fuzz(options.target, options.engine, options.seconds)
    return supervise(options)


def supervise(options: argparse.Namespace) -> int:
    """Run the fuzzer in a child, and say what came of it."""
    from tests.fuzz.cover import CORPUS, corpus, fewest, line_coverage
    from tests.fuzz.targets import TARGETS

    if options.target not in TARGETS:
        print(f"no target {options.target!r}; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    target = TARGETS[options.target]
    with tempfile.TemporaryDirectory(prefix="lowdimfa-fuzz-") as temporary:
        work = Path(temporary)
        for name in ("inputs", "findings", "tmp"):
            (work / name).mkdir()
        for data in [*target.seeds(), *corpus(options.target).values()]:
            (work / "inputs" / _name(data)).write_bytes(data)
        command = [sys.executable, "-m", "tests.fuzz.run", options.target, f"--seconds={options.seconds}"]
        child = subprocess.run(
            [*command, f"--engine={work}"],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(work / "tmp")},
            stderr=-1,
        )
        log = child.stderr.decode(errors="replace")
        inputs = [path.read_bytes() for path in (work / "inputs").iterdir()]
        found = {path.name: path.read_bytes() for path in (work / "findings").iterdir()}
    findings = options.findings or Path(tempfile.gettempdir()) / "lowdimfa-findings"
    (findings / options.target).mkdir(parents=True, exist_ok=True)
    for name, data in found.items():
        (findings / options.target / name).write_bytes(data)
    if options.keep:
        folder = CORPUS / options.target
        folder.mkdir(parents=True, exist_ok=True)
        kept = {_name(data): data for data in fewest(target, inputs, MOST_INPUTS)}
        for path in folder.iterdir():
            path.unlink()
        for name, data in kept.items():
            (folder / name).write_bytes(data)
    reached, lines = line_coverage(target, inputs)
    summary = {
        "target": options.target,
        "executions": _stat(log, "number_of_executed_units"),
        "seconds": options.seconds,
        "coverage_points": int((re.findall(r" cov: (\d+)", log) or ["0"])[-1]),
        "inputs": len(inputs),
        "lines_reached": reached,
        "lines": lines,
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10,
        "findings": sorted(found),
        "exit": child.returncode,
    }
    sys.stderr.write("".join(line for line in log.splitlines(True) if line.startswith("FINDING")))
    if child.returncode:
        sys.stderr.write(log[-4000:])
    print(json.dumps(summary))
    return 1 if found or child.returncode else 0


def fuzz(name: str, work: Path, seconds: int) -> int:
    """Fuzz in this process, which ends with it; new inputs and findings are written to the folder as they come."""
    import atheris

    with atheris.instrument_imports(include=["lowdimfa", "yaml"]):
        from tests.fuzz.guard import Finding, guarded
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    next(target.seeds())  # what is set up once is set up before memory is counted
    known: set[str] = set()

    def one(data: bytes) -> None:
        try:
            guarded(target.decode, data)
        except Finding as finding:
            place = _place(finding)
            if place not in known:
                known.add(place)
                (work / "findings" / _name(data)).write_bytes(data)
                print(f"FINDING {_name(data)} {place}: {finding}", file=sys.stderr, flush=True)

    def change(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() >= _SHARE_OF_BYTES:
            changed: bytes | None = data
            for _ in range(draw.choice((1, 1, 2, 4))):
                changed = target.mutate(changed, draw) if changed is not None else None
            if changed is not None and len(changed) <= most:
                return changed
        return bytes(atheris.Mutate(data, most))

    arguments = [
        sys.argv[0],
        *_ENGINE_OPTIONS,
        f"-max_total_time={seconds}",
        f"-artifact_prefix={work}/findings/",
    ]
    if target.tokens:
        words = ("".join(f"\\x{byte:02x}" for byte in token) for token in target.tokens)
        (work / "tokens").write_text("".join(f'"{word}"\n' for word in words))
        arguments.append(f"-dict={work / 'tokens'}")
    atheris.Setup([*arguments, str(work / "inputs")], one, custom_mutator=change)
    atheris.Fuzz()
    return 0


def _place(finding: BaseException) -> str:
    """Say where in the project an exception came from: findings of one place count once."""
    cause = finding.__cause__
    if cause is None:
        return re.sub(r"\d[\d.]*", "N", str(finding))[:60]
    frames = [
        frame
        for frame in traceback.extract_tb(cause.__traceback__)
        if str(ROOT / "lowdimfa") in frame.filename
    ]
    last = frames[-1] if frames else traceback.extract_tb(cause.__traceback__)[-1]
    return f"{type(cause).__name__} at {Path(last.filename).name}:{last.lineno}"


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _stat(log: str, name: str) -> int:
    found = re.findall(rf"stat::{name}:\s*(\d+)", log)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
