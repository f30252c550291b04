"""What the processes of a job report to Prometheus; `metrics_table` lists every metric.

A process has a registry of its own. Counters start at zero, so that rates are right from the start; losses,
accuracies, progress and checkpoints appear when they have a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property

from prometheus_client import CollectorRegistry

from lowdimfa.services.monitoring.metrics_table import METRICS, Process
from lowdimfa.services.monitoring.numbers import Number, Numbers
from lowdimfa.services.monitoring.timeline import CAUSES

BUSY_KINDS = ("forward", "update", "step", "probe")
"""The work that counts as busy."""

DIRECTIONS = ("sent", "received")

POLICIES = ("restart", "rejoin")
"""How a job recovers."""

LANGUAGE = {
    "tokens_per_second": "throughput_tokens_per_second",
    "perplexity": "training_perplexity_value",
    "bits_per_byte": "training_bpb_value",
    "test_perplexity": "test_perplexity_value",
    "test_bits_per_byte": "test_bpb_value",
}
"""By field of an event, the trainer's metric that shows it."""

OF_A_COURSE = tuple(f"lowdimfa_trainer_{what}" for what in ("remaining_", "training_", "test_", "alignment_"))
"""How the names of what is known of a run's present course begin; a recovery that goes back begins another."""

STATES = ("pending", "running", "recovering", "finished", "failed", "stopped")
"""The states of a job."""


class _Metrics:
    """The metrics of one process in a registry of their own, with the labels that all of them share."""

    def __init__(self, process: Process, **labels: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = labels
        self._numbers = Numbers(row for row in METRICS if row.process == process)
        self.registry.register(self._numbers)

    def _number(self, name: str, **labels: str) -> Number:
        return self._numbers.number(name, **self._labels, **labels)


class BlockMetrics(_Metrics):
    """What one block reports; labels are bound once, so that a call costs less than a microsecond per metric.

    Parameters
    ----------
    job
        Name of the run.
    block
        Index of the block.
    replica
        Rank of the replica of the block.
    """

    def __init__(self, job: str, block: str, replica: str = "0") -> None:
        super().__init__("block", job=job, block=block, replica=replica)
        self._samples = self._number("lowdimfa_block_trained_samples_total")
        self._busy = {k: self._number("lowdimfa_block_busy_seconds_total", kind=k) for k in BUSY_KINDS}
        self._waiting = {c: self._number("lowdimfa_block_waiting_seconds_total", cause=c) for c in CAUSES}
        self._messages = self._both("lowdimfa_broadcast_error_messages_total")
        self._payload = self._both("lowdimfa_broadcast_payload_bytes_total")
        self._wire = self._both("lowdimfa_broadcast_wire_bytes_total")
        self._activations = self._both("lowdimfa_activation_payload_bytes_total")
        self._gradients = self._both("lowdimfa_block_gradient_bytes_total")
        self._step = self._number("lowdimfa_block_applied_steps")
        self._staleness = self._number("lowdimfa_block_staleness_steps")
        self._inflight = self._number("lowdimfa_block_inflight_microbatches")
        self._growing: Number | None = None

    def _both(self, name: str) -> dict[str, Number]:
        return {direction: self._number(name, direction=direction) for direction in DIRECTIONS}

    def stepped(self, steps: int) -> None:
        """Set how many optimiser steps the block has applied."""
        self._step.set(steps)

    def samples(self, count: int) -> None:
        """Add samples whose update was computed."""
        self._samples.inc(count)

    def working(self, kind: str) -> None:
        """Count time from now on as computing of a kind in `BUSY_KINDS`."""
        self._count_into(self._busy[kind])

    def waiting(self, cause: str) -> None:
        """Count time from now on as waiting for a cause in `CAUSES`."""
        self._count_into(self._waiting[cause])

    def idle(self) -> None:
        """Count time from now on as neither."""
        self._count_into(None)

    def _count_into(self, number: Number | None) -> None:
        if self._growing is not None:
            self._growing.stop()
        self._growing = number
        if number is not None:
            number.start()

    def staleness(self, steps: int) -> None:
        """Set by how many steps the weights of a forward pass lagged."""
        self._staleness.set(steps)

    def inflight(self, microbatches: int) -> None:
        """Set how many micro-batches await their error."""
        self._inflight.set(microbatches)

    def broadcast(self, direction: str, messages: int, payload: int, wire: int) -> None:
        """Add broadcast messages, ``sent`` or ``received``, with their payload and encoded bytes."""
        self._messages[direction].inc(messages)
        self._payload[direction].inc(payload)
        self._wire[direction].inc(wire)

    def lag(self, block: str, replica: str, read: Callable[[], float]) -> None:
        """Name the source of a subscriber's lag, which is read at every scrape; only the head calls this."""
        name = "lowdimfa_broadcast_subscriber_lag_messages"
        self._number(name, subscriber=block, subscriber_replica=replica).set_function(read)

    def activation(self, direction: str, payload: int) -> None:
        """Add bytes of activations, ``sent`` or ``received``."""
        self._activations[direction].inc(payload)

    def gradient(self, direction: str, payload: int) -> None:
        """Add bytes of what replicas of the block exchange after a step, ``sent`` or ``received``."""
        self._gradients[direction].inc(payload)

    def trained(self, loss: float, accuracy: float | None) -> None:
        """Set the training loss and accuracy; only the head calls this."""
        self._loss.set(loss)
        if accuracy is not None:
            self._accuracy.set(accuracy)

    @cached_property
    def _loss(self) -> Number:
        return self._number("lowdimfa_head_training_loss_value")

    @cached_property
    def _accuracy(self) -> Number:
        return self._number("lowdimfa_head_training_accuracy_ratio")


class TrainerMetrics(_Metrics):
    """What the trainer of a job reports.

    Parameters
    ----------
    job
        Name of the run.
    """

    def __init__(self, job: str) -> None:
        super().__init__("trainer", job=job)
        self._recoveries = {
            policy: self._number("lowdimfa_trainer_job_recoveries_total", policy=policy)
            for policy in POLICIES
        }
        self._recovery = self._number("lowdimfa_trainer_recovery_seconds")
        self._unwritten = self._number("lowdimfa_trainer_checkpoint_failures_total")
        self.state("pending")

    def planned(self, steps: int) -> None:
        """Set how many optimiser steps the job will run."""
        self._number("lowdimfa_trainer_planned_steps").set(steps)

    def progress(self, step: int, epochs: float, samples_per_second: float) -> None:
        """Set how far the job has come and how fast it is."""
        self._completed(step, epochs)
        self._number("lowdimfa_trainer_throughput_samples_per_second").set(samples_per_second)

    def remaining(self, seconds: float | None) -> None:
        """Set how long the job will take yet, if that is known."""
        self._number("lowdimfa_trainer_remaining_seconds").set(math.nan if seconds is None else seconds)

    def language(self, numbers: Mapping[str, float | None]) -> None:
        """Set what says how well a language model does: of `LANGUAGE`, what there is."""
        for field, name in LANGUAGE.items():
            value = numbers.get(field)
            if value is not None:
                self._number(f"lowdimfa_trainer_{name}").set(value)

    def evaluated(self, loss: float, accuracy: float | None) -> None:
        """Set the result of an evaluation."""
        self._number("lowdimfa_trainer_test_loss_value").set(loss)
        if accuracy is not None:
            self._number("lowdimfa_trainer_test_accuracy_ratio").set(accuracy)

    def measured(self, metrics: Mapping[str, float | list[float | None] | None]) -> None:
        """Set the metrics of the user's own; what isn't finite is not a number."""
        for name, value in metrics.items():
            classes = enumerate(value) if isinstance(value, list) else [("", value)]
            for index, number in classes:
                labels = {"metric": name, "class": str(index)}
                self._number("lowdimfa_trainer_test_metric_value", **labels).set(
                    math.nan if number is None else number
                )

    def aligned(self, block: int, angle_degrees: float) -> None:
        """Set the angle between a block's update and its true gradient."""
        self._number("lowdimfa_trainer_alignment_angle_degrees", block=str(block)).set(angle_degrees)

    def checkpointed(self, timestamp: float, duration: float, pause: float) -> None:
        """Set when the latest checkpoint was complete (unix seconds), how long it took and training stood (seconds)."""
        self._number("lowdimfa_trainer_checkpoint_last_success_timestamp_seconds").set(timestamp)
        self._number("lowdimfa_trainer_checkpoint_duration_seconds").set(duration)
        self._number("lowdimfa_trainer_checkpoint_pause_seconds").set(pause)

    def checkpoint_failed(self) -> None:
        """Count a checkpoint that could not be written."""
        self._unwritten.inc()

    def recovering(self, policy: str) -> None:
        """Count a recovery that begins, by one of `POLICIES`."""
        self._recoveries[policy].inc()

    def recovered(self, duration: float) -> None:
        """Set how long the latest recovery took (seconds)."""
        self._recovery.set(duration)

    def went_back(self, step: int, epochs: float) -> None:
        """Set how far the job has come where a recovery made that less, and forget what was measured on the way."""
        self._completed(step, epochs)
        self._numbers.forget(OF_A_COURSE)

    def _completed(self, step: int, epochs: float) -> None:
        self._number("lowdimfa_trainer_completed_steps").set(step)
        self._number("lowdimfa_trainer_completed_epochs").set(epochs)

    def state(self, current: str) -> None:
        """Set the job's state, one of `STATES`."""
        for state in STATES:
            self._number("lowdimfa_trainer_job_state", state=state).set(state == current)

    def failed(self, code: str) -> None:
        """Count a failure under the code of its error."""
        self._number("lowdimfa_trainer_job_failures_total", code=code).inc()
