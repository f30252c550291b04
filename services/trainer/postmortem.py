"""What is kept of blocks that were lost: where they stood, and every block's last words."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import ray

from lowdimfa.errors import LowdimfaError, ResourceError
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.run.disk import replace_text
from lowdimfa.services.run.process_log import log_file
from lowdimfa.services.trainer.run_dir import postmortem_file
from lowdimfa.services.trainer.worker_calls import answers
from lowdimfa.services.trainer.worker_group import Connected, WorkerGroup

TAIL_LINES = 60
"""Lines of a block's log that stand for the last words of one that gives no answer."""

ANSWER_SECONDS = 5.0
"""Longest wait for last words; a block that can't say them by then doesn't."""

_TAIL_BYTES = 16384


def show_stacks(connected: Connected, workers: set[int]) -> None:
    """Have blocks on this machine print where each of their threads stands, into their logs, whatever they do."""
    here = ray.get_runtime_context().get_node_id()
    for number in workers:
        pid = connected.pids[number]
        if connected.nodes[number] == here and _is_block(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)  # `faulthandler` of the block, which needs no lock of Python's
                time.sleep(0.1)  # it is killed next, and has nobody to tell when it is done


def write_postmortem(run_dir: Path, group: WorkerGroup, loss: LowdimfaError) -> None:
    """Ask every block for its last words and write them down; where there is no room for them, no file is left."""
    words = answers(group.ask(BlockWorker.last_words), min(ANSWER_SECONDS, group.liveness / 4))
    parts = [f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}: the run ends: {loss.message}"]
    for worker in group.workers:
        log = log_file(run_dir, group.topology.file_stem(worker.seat))
        said = str(words[worker.number]) if worker.number in words else _tail(log)
        parts.append(f"===== {worker.name} =====\n{said}")
    file = postmortem_file(run_dir)
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)  # of an earlier part of the run
    with contextlib.suppress(ResourceError):
        replace_text(file, "\n\n".join(parts) + "\n", "the last words can't be kept")


def _is_block(pid: int) -> bool:
    """Whether a process is still the block that it was: its number may be another's by now."""
    with contextlib.suppress(OSError):
        return b"ray::Block" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    except OSError as error:
        return f"no answer, and its log can't be read: {error}"
    return "\n".join([f"no answer; the end of {log}:", *lines])
