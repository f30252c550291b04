"""What Prometheus sees of a trainer, from the run's own events."""

from __future__ import annotations

from collections import Counter

from lowdimfa.errors import LowdimfaError, StoppedError
from lowdimfa.services.monitoring.exporter import Exporter, start_exporter
from lowdimfa.services.monitoring.journal import Event, Journal
from lowdimfa.services.monitoring.metrics import POLICIES, TrainerMetrics
from lowdimfa.services.run.mirror import work_dir


class TrainerWatch:
    """Serves a trainer's metrics.

    Parameters
    ----------
    job
        Name of the run.

    Attributes
    ----------
    steps_per_epoch
        Of the run, once it is planned.
    """

    def __init__(self, job: str) -> None:
        self._metrics = TrainerMetrics(job)
        self._exporter: Exporter | None = None
        self._recoveries: Counter[str] = Counter()
        self._journal: Journal | None = None
        self.steps_per_epoch = 1

    def serve(self, host: str) -> str:
        """Serve the metrics on an address of this machine; return ``host:port``."""
        self._exporter, port = start_exporter(self._metrics.registry, host)
        return f"{host}:{port}"

    def saw(self, event: Event) -> None:
        """Take in one event."""
        metrics = self._metrics
        match event["event"]:
            case "started":
                self._journal = Journal(work_dir(event["run_dir"]))
                self._recall(self._journal, event["step"])
                metrics.planned(event["steps"])
                metrics.state("running")
            case "progress":
                step = event["step"]
                metrics.progress(step, step / self.steps_per_epoch, event["samples_per_second"])
                metrics.remaining(event["eta_seconds"])
                metrics.language(event)
            case "evaluated":
                self._evaluated(event)
            case "alignment":
                self._aligned(event)
            case "checkpoint":
                metrics.checkpointed(event["time"], event["seconds"], event["pause_seconds"])
            case "checkpoint_failed":
                metrics.checkpoint_failed()
            case "recovering":
                self._count(event["policy"])
                metrics.state("recovering")
            case "recovered":
                step = event["step"]
                metrics.went_back(step, step / self.steps_per_epoch)
                if self._journal is not None:
                    self._recall(self._journal, step)
                metrics.recovered(event["seconds"])
                metrics.state("running")
            case "finished":
                metrics.state("finished")
            case "failed":
                stopped = event["code"] == StoppedError.code
                metrics.state("stopped" if stopped else "failed")
                if not stopped:
                    metrics.failed(event["code"])

    def _evaluated(self, event: Event) -> None:
        self._metrics.evaluated(event["test_loss"], event["test_accuracy"])
        self._metrics.measured(event.get("metrics", {}))
        self._metrics.language(event)

    def _aligned(self, event: Event) -> None:
        for entry in event["blocks"]:
            self._metrics.aligned(entry["block"], entry["angle_degrees"])

    def _recall(self, journal: Journal, start: int) -> None:
        """Take in what was logged before this trainer was there to see it, as its own recoveries may be.

        That is the run's recoveries, its last checkpoint, and the last of what it measured; those after the step where
        it goes on are given up.
        """
        logged: Counter[str] = Counter()
        for event in journal.read("recovering", "recovered", "checkpoint", "evaluated", "alignment"):
            match event:
                case {"event": "recovering", "policy": str() as policy}:
                    logged[policy] += 1
                case {"event": "recovered", "seconds": int() | float() as seconds}:
                    self._metrics.recovered(seconds)
                case {
                    "event": "checkpoint",
                    "step": int() as step,
                    "time": int() | float() as at,
                    "seconds": int() | float() as seconds,
                    "pause_seconds": int() | float() as pause,
                } if step <= start:
                    self._metrics.checkpointed(at, seconds, pause)
                case {"event": "evaluated", "step": int() as step, "test_loss": _, "test_accuracy": _} if (
                    step <= start
                ):
                    self._evaluated(event)
                case {"event": "alignment", "step": int() as step, "blocks": list()} if step <= start:
                    self._aligned(event)
        for policy in (logged - self._recoveries).elements():
            self._count(policy)

    def _count(self, policy: str) -> None:
        self._recoveries[policy] += 1
        if policy in POLICIES:  # another version may have had others
            self._metrics.recovering(policy)

    def close(self) -> None:
        """Stop serving."""
        if self._exporter is not None:
            self._exporter.close()


def failed(log: Journal, watch: TrainerWatch, error: LowdimfaError) -> None:
    """Record the end of a run that failed."""
    watch.saw(log.emit("failed", **error.as_event()))
