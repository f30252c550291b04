"""A process of a system that is measured: builds what the first line of its input says, then obeys one line at a time.

Commands: ``steps`` (run ``lead`` steps, then measure ``count``), ``evaluate``, ``matmul``, ``quit``. Each answer is one
line of JSON on standard output; an error is an answer too, and ends the process.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol, TextIO

import torch

Answer = dict[str, Any]


class Contestant(Protocol):
    """What a process does for its system."""

    def steps(self, system: str, lead: int, count: int) -> Answer:
        """Train ``lead`` steps to warm up and then ``count`` that are measured.

        The answer has ``seconds`` of the measured ones, ``cpu_seconds`` and ``steps`` of all, and bytes that this
        process sent to others in all of them: ``forward_bytes`` and ``backward_bytes``.
        """

    def evaluate(self, system: str) -> Answer:
        """Return ``accuracy`` and ``loss`` on the test split, where this process can tell, or None."""

    def close(self) -> None:
        """End connections."""


def build(configuration: Answer) -> Contestant:
    """Make what a configuration describes; modules are imported only where they are needed, to keep memory honest."""
    module, _, name = configuration["class"].partition(":")
    made: Contestant = getattr(import_module(f"benchmarks.throughput.{module}"), name)(configuration)
    return made


def obey(contestant: Contestant, message: Answer) -> Answer:
    """Carry one command out."""
    match message["do"]:
        case "steps":
            return contestant.steps(message["system"], message["lead"], message["count"])
        case "evaluate":
            return contestant.evaluate(message["system"])
        case "matmul":
            from benchmarks.throughput.local_work import matmul_rate

            return {"gflops": matmul_rate(message["rows"], message["width"], message["seconds"])}
    raise ValueError(f"no such command: {message['do']}")


@contextmanager
def answers() -> Iterator[TextIO]:
    """Give standard output as a stream of answers, and send what anything else prints to standard error."""
    with os.fdopen(os.dup(1), "w", buffering=1) as stream:
        os.dup2(2, 1)
        yield stream


def main() -> None:
    """Read a configuration, build, and obey until the input ends."""
    with answers() as stream:

        def answer(found: Answer) -> None:
            stream.write(json.dumps(found) + "\n")

        try:
            configuration = json.loads(sys.stdin.readline())
            torch.set_num_threads(configuration.get("threads", 1))
            contestant = build(configuration)
            answer({"ready": True, "pid": os.getpid()})
            for line in iter(sys.stdin.readline, ""):
                message = json.loads(line)
                if message["do"] == "quit":
                    break
                answer(obey(contestant, message))
            contestant.close()
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split())
            answer({"error": f"{type(error).__name__}: {text}"[:400]})
            os._exit(1)  # threads of a broken process group may never end


if __name__ == "__main__":
    main()
