"""What Prometheus sees of a trainer, from the run's own events."""

from __future__ import annotations

from services.monitoring.exporter import Exporter, start_exporter
from services.monitoring.metrics import TrainerMetrics
from services.trainer.events import Event


class TrainerWatch:
    """Serves a trainer's metrics.

    Parameters
    ----------
    job
        Name of the run.
    """

    def __init__(self, job: str) -> None:
        self._metrics = TrainerMetrics(job)
        self._exporter: Exporter | None = None

    def serve(self, host: str) -> str:
        """Serve the metrics on an address of this machine; return ``host:port``."""
        self._exporter, port = start_exporter(self._metrics.registry, host)
        return f"{host}:{port}"

    def saw(self, event: Event) -> None:
        """Take in one event."""
        metrics = self._metrics
        match event["event"]:
            case "started":
                metrics.planned(event["steps"])
                metrics.state("running")
            case "progress":
                metrics.progress(event["step"], event["epoch"], event["samples_per_second"])
            case "evaluated":
                metrics.evaluated(event["test_loss"], event["test_accuracy"])
            case "alignment":
                for entry in event["blocks"]:
                    metrics.aligned(entry["block"], entry["angle_degrees"])
            case "checkpoint":
                metrics.checkpointed(event["time"], event["seconds"])
            case "finished":
                metrics.state("finished")
            case "failed":
                metrics.state("failed")
                metrics.failed(event["code"])

    def close(self) -> None:
        """Stop serving."""
        if self._exporter is not None:
            self._exporter.close()
