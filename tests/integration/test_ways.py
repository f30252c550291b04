"""The way of an activation and of an error, measured in a run in threads: few files, and those that the docs name."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from specifications import specification
from thread_fleet import thread_fleet

from lowdimfa.services.block.links import Links
from lowdimfa.services.rpc.tensors import encode
from lowdimfa.tickets import Ticket

ROOT = Path(__file__).parents[2]
FOLLOWED = Ticket(2, 0)

MOST_FILES = 14


class Way:
    """The files whose functions were given, or have returned, some bytes: as a tensor, in a frame, in a message."""

    def __init__(self, sought: bytes) -> None:
        self.files: list[str] = []
        self._sought = sought
        self._names: dict[str, str | None] = {}

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        file = self._name(frame.f_code.co_filename)
        if file is None or file in self.files or event not in ("call", "return"):
            return
        code = frame.f_code
        given = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount + 1]]
        if self._has(value) or (event == "call" and any(map(self._has, given))):
            self.files.append(file)

    def _name(self, filename: str) -> str | None:
        if filename not in self._names:
            path = Path(filename).resolve()
            ours = any(path.is_relative_to(ROOT / room) for room in ("lowdimfa", "services"))
            self._names[filename] = str(path.relative_to(ROOT)) if ours else None
        return self._names[filename]

    def _has(self, value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            return value.nbytes == len(self._sought) and bytes(encode(value)) == self._sought
        if isinstance(value, bytes | memoryview):
            return self._sought in bytes(value)
        if isinstance(value, tuple | list):
            return any(map(self._has, value))
        if is_dataclass(value) and not isinstance(value, type):
            return any(self._has(getattr(value, field.name)) for field in fields(value))
        return False


def run(folder: Path, transport: str, hook: Any = None) -> None:
    """Train a network of two blocks for four steps, with a profiling function in all its threads if there is one."""
    plain = specification("mlp", 2, placement={"transport": transport})
    threading.setprofile(hook)
    try:
        with thread_fleet(plain, folder) as fleet:
            fleet.run(0, 4)
    finally:
        threading.setprofile(None)


@pytest.fixture(scope="module")
def travelling(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the bytes of the activation and of the error of one micro-batch: the same in every run."""
    found: dict[str, bytes] = {}

    def noting(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def noted(*given: Any) -> None:
            if any(isinstance(each, Ticket) and each == FOLLOWED for each in given):
                tensor = given[-1] if isinstance(given[-1], torch.Tensor) else given[-1][0]
                found.setdefault(name, bytes(encode(tensor)))
            call(*given)

        return noted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Links, "send", noting("activation", Links.send))
        patch.setattr(Links, "publish", noting("error", Links.publish))
        run(tmp_path_factory.mktemp("seen"), "grpc")
    return found


def documented(what: str) -> list[str]:
    """Return the files that the docs name, in their order."""
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    table = page.split(f"### The way of an {what}")[1].split("\n#")[0]
    return re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)


@pytest.mark.parametrize("transport", ["grpc", "shared_memory", "torch"])
@pytest.mark.parametrize(
    ("what", "begin", "end"), [("activation", "block", "head"), ("error", "head", "feedback/rules")]
)
def test_the_way_is_short_and_the_documented_one(
    what: str, begin: str, end: str, transport: str, travelling: dict[str, bytes], tmp_path: Path
) -> None:
    way = Way(travelling[what])
    run(tmp_path, transport, way)
    files = way.files[
        way.files.index(f"lowdimfa/{begin}.py") :
    ]  # before it are the layers that make an activation
    assert files[-1] == f"lowdimfa/{end}.py", files
    assert len(files) <= MOST_FILES, files
    if transport == "grpc":
        assert files == documented(what)
