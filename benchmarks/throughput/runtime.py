"""Our runtime as a contestant: engines that stay up between rounds, each in an actor of one Ray cluster."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray.exceptions import RayTaskError

from benchmarks.throughput.peers import Answer
from benchmarks.throughput.process import ROOT
from benchmarks.throughput.spans import (
    applied,
    cpu_seconds,
    handling_seconds,
    read_spans,
    shares,
    used,
)
from lowdimfa.network import StepResult
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.cluster import start_ray
from lowdimfa.services.trainer.engine import BroadcastTraffic
from lowdimfa.services.trainer.families import peak_bytes
from lowdimfa.services.trainer.ray_engine import RayEngine
from lowdimfa.services.trainer.run_dir import targets_file
from lowdimfa.services.trainer.stopping import StopRequest
from lowdimfa.services.trainer.watch import TrainerWatch

SENT = "lowdimfa_activation_payload_bytes_total{"


class EngineHost:
    """Holds one engine, as a trainer does, and runs segments of steps when asked."""

    def __init__(self, plain: dict[str, Any], run_dir: str) -> None:
        self._run_dir = Path(run_dir)
        self._run_dir.mkdir(parents=True)
        specification = parse_specification(plain, "the benchmark")
        self._plan = make_run_plan(specification)
        self._staleness = specification.train.staleness
        watch = TrainerWatch(self._run_dir.name)
        self._engine = RayEngine(self._plan, self._run_dir, UserCode(str(ROOT)), watch)
        self._pids: list[int] = self._engine.start(None)["pids"]["blocks"]
        self._offsets = [0] * len(self._pids)
        self._next = 0

    def steps(self, lead: int, count: int) -> Answer:
        """Run a segment of steps.

        A segment fills the pipeline at its beginning and drains it at its end, which a run does once per evaluation:
        the measured steps leave out ``lead`` at the one, and at the other as many as the blocks may run ahead.
        """
        tail = self._staleness + 1
        first, measured = self._next, self._next + lead
        last = measured + count + tail
        losses: list[StepResult] = []
        sent, before = self._bytes_sent(), [cpu_seconds(pid) for pid in self._pids]
        received = self._engine.traffic() if first else BroadcastTraffic()
        samples = first * self._plan.order.batch_size
        self._next = self._engine.run_steps(first, last, losses.extend, StopRequest())
        spent = [used(old, cpu_seconds(pid)) for old, pid in zip(before, self._pids, strict=True)]
        timelines = self._timelines()
        began = min(span.start for spans in timelines for span in spans)
        start = applied(timelines, measured - 1) if lead else began
        end = applied(timelines, measured + count - 1)
        traffic, samples_now = self._engine.traffic(), last * self._plan.order.batch_size
        subscribers = len(self._pids) - 1
        beside = [
            others + handling_seconds(spans) for (_, others), spans in zip(spent, timelines, strict=True)
        ]
        peaks = [peak_bytes(pid) for pid in self._pids]
        return {
            "seconds": end - start,
            "whole_seconds": max(span.end for spans in timelines for span in spans) - began,
            "cpu_seconds": sum(whole for whole, _ in spent),
            "steps": last - first,
            "forward_bytes": self._bytes_sent() - sent,
            "backward_bytes": subscribers * (traffic.payload * samples_now - received.payload * samples),
            "backward_wire_bytes": subscribers * (traffic.wire * samples_now - received.wire * samples),
            "peak_bytes": max(peaks),
            "peaks": peaks,
            "shares": [shares(spans, start, end) for spans in timelines],
            "transport_cpu_seconds": beside,
        }

    def evaluate(self) -> Answer:
        """Return accuracy and loss on the test split."""
        found = self._engine.evaluate()
        return {"accuracy": found.accuracy, "loss": found.loss}

    def close(self) -> None:
        """End the blocks."""
        self._engine.close()

    def _timelines(self) -> list[list[Any]]:
        found = []
        for block in range(len(self._pids)):
            path = self._run_dir / "timeline" / f"block-{block}.jsonl"
            spans, self._offsets[block] = read_spans(path, self._offsets[block])
            found.append(spans)
        return found

    def _bytes_sent(self) -> int:
        """Return the bytes of activations that all blocks have sent, from their own metrics."""
        targets = json.loads(targets_file(self._run_dir).read_text())
        addresses = [one["targets"][0] for one in targets if one["labels"]["role"] != "trainer"]
        try:
            return sum(_sent(address) for address in addresses)
        except OSError as error:
            ended = [str(block) for block, pid in enumerate(self._pids) if not psutil.pid_exists(pid)]
            if not ended:
                raise
            raise RuntimeError(
                f"the processes of blocks {', '.join(ended)} have ended: out of memory?"
            ) from error


def _sent(address: str) -> int:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://{address}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    values = [line.split()[-1] for line in lines if line.startswith(SENT) and 'direction="sent"' in line]
    return int(sum(map(float, values)))


def _answer(reference: Any) -> Answer:
    """Return what an engine answers, or raise what it raised: the text of Ray's own error is a traceback."""
    try:
        answer: Answer = ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
    return answer


class Runtime:
    """The process that holds the engines' Ray cluster.

    Parameters
    ----------
    configuration
        ``engines`` (specifications by name of the system, in YAML), ``folder`` for run directories, ``address`` of a Ray
        cluster or None to start one, ``blocks`` for which it needs room.
    """

    def __init__(self, configuration: Answer) -> None:
        self._disconnect = start_ray(configuration["address"], blocks=configuration["blocks"])
        host: Any = ray.remote(num_cpus=0)(EngineHost)
        folder = Path(configuration["folder"])
        self._hosts = {
            name: host.remote(yaml.safe_load(text), str(folder / name))
            for name, text in configuration["engines"].items()
        }
        for engine in self._hosts.values():
            ray.get(engine.__ray_ready__.remote())

    def steps(self, system: str, lead: int, count: int) -> Answer:
        """Run steps; see `benchmarks.throughput.worker.Contestant`."""
        return _answer(self._hosts[system].steps.remote(lead, count))

    def evaluate(self, system: str) -> Answer:
        """Return accuracy and loss on the test split."""
        return _answer(self._hosts[system].evaluate.remote())

    def close(self) -> None:
        """End all engines and the cluster."""
        ray.get([engine.close.remote() for engine in self._hosts.values()])
        self._disconnect()
