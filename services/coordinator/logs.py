"""What the processes of a job wrote, as the run directory keeps it."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lowdimfa.services.coordinator.unlinked import folder_in, open_file

POLL_SECONDS = 0.5
"""Pause between looks for new lines."""

LONGEST_LINE = 1 << 16
"""Bytes of a line that are shown; a program may write without ever ending one."""

CHUNK = 1 << 18

LOG = re.compile(r"(trainer|block-([0-9]{1,5})(?:-replica-([0-9]{1,5}))?)\.log")
"""Name of a file, with what a process may be called."""


class Line(NamedTuple):
    """A line, without its break, and the process that wrote it."""

    source: str
    text: str


@dataclass
class _Source:
    name: str
    run_dir: Path
    position: int = 0
    rest: bytes = b""

    def skip(self, tail: int) -> None:
        """Begin with so many of the last lines; 0 for all."""
        with self._open() as file:
            self.position = start_of_tail(file, tail) if tail else 0

    def read(self) -> list[Line]:
        """Return the whole lines that came since the last call; a very long one in pieces."""
        with self._open() as file:
            file.seek(self.position)
            data = file.read(CHUNK)
        self.position += len(data)
        *whole, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > LONGEST_LINE:
            whole.append(self.rest)
            self.rest = b""
        return [self._line(text) for text in whole]

    def end(self) -> list[Line]:
        """Return what was left without a line break."""
        rest, self.rest = self.rest, b""
        return [self._line(rest)] if rest else []

    def _open(self) -> BinaryIO:
        return open_file(self.run_dir, "logs", f"{self.name}.log")

    def _line(self, text: bytes) -> Line:
        return Line(self.name, text[:LONGEST_LINE].rstrip(b"\r").decode("utf-8", "replace"))


async def read_logs(
    run_dir: Path,
    sources: Collection[str],
    tail: int,
    follow: Callable[[], bool],
    refresh: Callable[[bool], None] = lambda going_on: None,
    threads: Executor | None = None,
) -> AsyncIterator[Line]:
    """Yield the lines of a job's processes, process by process, and then new ones as they come.

    Parameters
    ----------
    run_dir
        Of the job.
    sources
        Only these processes; empty for all.
    tail
        Only so many of the last lines of each; 0 for all.
    follow
        Asked after each look whether more is to be waited for.
    refresh
        Called before each look, with that answer, to bring what is there up to date.
    threads
        In which the storage is waited for; None for those of the event loop.
    """
    apart = partial(asyncio.get_running_loop().run_in_executor, threads)
    known: dict[str, _Source] = {}
    going_on = True
    while going_on:
        # Asked before the last look, so that what came just before the end is read.
        going_on = await asyncio.to_thread(follow)
        await apart(refresh, going_on)
        for source in await apart(_appeared, run_dir, sources, known):
            await apart(source.skip, tail)
            known[source.name] = source
        for source in known.values():
            while lines := await apart(source.read):
                for line in lines:
                    yield line
        if going_on:
            await asyncio.sleep(POLL_SECONDS)
    for source in known.values():
        for line in source.end():
            yield line


def _appeared(run_dir: Path, sources: Collection[str], known: Collection[str]) -> list[_Source]:
    """Return the processes that have a log now; what is no file has none."""
    try:
        with folder_in(run_dir, "logs") as folder, os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except OSError:
        return []
    found = [log for name in names if (log := LOG.fullmatch(name)) and log[1] not in known]
    return [_Source(log[1], run_dir) for log in sorted(found, key=_place) if not sources or log[1] in sources]


def _place(name: re.Match[str]) -> tuple[int, int]:
    """Return where a process comes in the order: the trainer, then blocks, each with its replicas."""
    _, block, replica = name.groups()
    return (-1, 0) if block is None else (int(block), int(replica or 0))


def start_of_tail(file: BinaryIO, lines: int) -> int:
    """Return where the last lines of a file begin, read from its end."""
    position = file.seek(0, os.SEEK_END)
    left = lines + 1  # the break at the end of the last line counts as one
    while position:
        size = min(CHUNK, position)
        position -= size
        file.seek(position)
        data = file.read(size)
        at = len(data)
        while (at := data.rfind(b"\n", 0, at)) >= 0:
            left -= 1
            if not left:
                return position + at + 1
    return 0
