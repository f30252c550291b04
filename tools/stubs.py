"""Generate the Python stubs of the wire protocol: ``python -m tools.stubs [--check]``.

Only this program needs grpcio-tools, and exactly the version below: stubs that it makes run with every later
grpcio and protobuf, whereas stubs made by a later version refuse the earlier protobuf versions that the
project supports.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import tempfile
from pathlib import Path

TOOLS_VERSION = "1.71.0"
ROOT = Path(__file__).resolve().parents[1]
PROTO = ROOT / "proto"
STUBS = Path("lowdimfa/services/rpc/v1")


def check_tools() -> None:
    """End the program with a message unless the right version of grpcio-tools is installed."""
    try:
        found = importlib.metadata.version("grpcio-tools")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != TOOLS_VERSION:
        sys.exit(
            f"grpcio-tools: found {found}; expected {TOOLS_VERSION}, as stubs of other versions differ. "
            f"Run 'pip install grpcio-tools=={TOOLS_VERSION}' in an environment of its own."
        )


def generate(output: Path) -> None:
    """Write the stubs of every proto file below ``output``, which takes the place of the project's root."""
    from grpc_tools import protoc  # type: ignore[import-not-found, unused-ignore]

    bundled = Path(protoc.__file__).parent / "_proto"
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    includes = [f"-I{PROTO}", f"-I{bundled}"]
    outputs = [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
        sys.exit("protoc refused the proto files; its messages are above.")


def stubs(root: Path) -> dict[str, bytes]:
    """Return name and content of every generated file below ``root``."""
    return {path.name: path.read_bytes() for path in (root / STUBS).glob("*_pb2*.py*")}


def main() -> None:
    """Generate the stubs in place, or compare those in place with fresh ones."""
    parser = argparse.ArgumentParser(prog="python -m tools.stubs", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if a fresh generation differs"
    )
    arguments = parser.parse_args()
    check_tools()
    if not arguments.check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        fresh, present = stubs(Path(directory)), stubs(ROOT)
    stale = sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))
    if stale:
        sys.exit(f"{STUBS}: {', '.join(stale)} differ from proto/. Run 'python -m tools.stubs'.")


if __name__ == "__main__":
    main()
