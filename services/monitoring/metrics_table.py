"""The table of metrics, from which the Prometheus objects are made and the documentation is written.

Every name reads ``lowdimfa_<subsystem>_<name>_<unit>``, where a counter's unit ends in ``_total``; what is 1 or 0
has no unit.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Process = Literal["block", "trainer", "coordinator"]

_BLOCK = ("job", "block", "replica")
_JOB = ("job",)


class Metric(NamedTuple):
    """A row of the table."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str

    @property
    def process(self) -> Process:
        """Which process serves the metric."""
        match self.name.split("_")[1]:
            case "coordinator":
                return "coordinator"
            case "trainer":
                return "trainer"
        return "block"


METRICS = (
    Metric("lowdimfa_block_applied_steps", "gauge", _BLOCK, "Optimiser steps that the block has applied."),
    Metric(
        "lowdimfa_block_trained_samples_total",
        "counter",
        _BLOCK,
        "Samples whose update the block has computed.",
    ),
    Metric(
        "lowdimfa_block_busy_seconds_total",
        "counter",
        (*_BLOCK, "kind"),
        "Time spent computing, what is under way included, by kind: forward, update, step, probe.",
    ),
    Metric(
        "lowdimfa_block_waiting_seconds_total",
        "counter",
        (*_BLOCK, "cause"),
        "Time spent waiting, what is under way included, by cause: activation, error, staleness, window, replica "
        "(gradients of another replica), data (until it is read).",
    ),
    Metric(
        "lowdimfa_block_staleness_steps",
        "gauge",
        _BLOCK,
        "Steps by which the weights of the latest forward pass lagged behind.",
    ),
    Metric(
        "lowdimfa_block_inflight_microbatches",
        "gauge",
        _BLOCK,
        "Micro-batches that have been run forward and await their error.",
    ),
    Metric(
        "lowdimfa_broadcast_error_messages_total",
        "counter",
        (*_BLOCK, "direction"),
        "Messages of the error broadcast, sent or received.",
    ),
    Metric(
        "lowdimfa_broadcast_payload_bytes_total",
        "counter",
        (*_BLOCK, "direction"),
        "Projected errors in the broadcast, without framing.",
    ),
    Metric(
        "lowdimfa_broadcast_wire_bytes_total",
        "counter",
        (*_BLOCK, "direction"),
        "Encoded messages of the error broadcast, with framing.",
    ),
    Metric(
        "lowdimfa_broadcast_subscriber_lag_messages",
        "gauge",
        (*_BLOCK, "subscriber", "subscriber_replica"),
        "Errors that the head has published and a block's connection has not taken yet; the head's alone.",
    ),
    Metric(
        "lowdimfa_activation_payload_bytes_total",
        "counter",
        (*_BLOCK, "direction"),
        "Activations sent to the next block or received from the previous one.",
    ),
    Metric(
        "lowdimfa_block_gradient_bytes_total",
        "counter",
        (*_BLOCK, "direction"),
        "Gradients and running statistics exchanged with the other replicas of the block, sent or received.",
    ),
    Metric(
        "lowdimfa_head_training_loss_value",
        "gauge",
        _BLOCK,
        "Training loss of the latest step; the head's alone.",
    ),
    Metric(
        "lowdimfa_head_training_accuracy_ratio",
        "gauge",
        _BLOCK,
        "Training accuracy of the latest step, 0 to 1; absent where the task has none.",
    ),
    Metric(
        "lowdimfa_trainer_completed_steps", "gauge", _JOB, "Optimiser steps that the whole job has completed."
    ),
    Metric("lowdimfa_trainer_planned_steps", "gauge", _JOB, "Optimiser steps that the job will run."),
    Metric(
        "lowdimfa_trainer_completed_epochs", "gauge", _JOB, "Passes over the training data, with fractions."
    ),
    Metric(
        "lowdimfa_trainer_remaining_seconds",
        "gauge",
        _JOB,
        "Time that the remaining steps will take at the pace of the steps that the throughput is of.",
    ),
    Metric(
        "lowdimfa_trainer_throughput_samples_per_second",
        "gauge",
        _JOB,
        "Training samples per second: of the last 10 seconds, or of the last 19 bursts of steps where those took longer, "
        "but from the last pause on, such as an evaluation.",
    ),
    Metric(
        "lowdimfa_trainer_throughput_tokens_per_second",
        "gauge",
        _JOB,
        "Training tokens that count, per second of the same time; language models alone.",
    ),
    Metric(
        "lowdimfa_trainer_training_perplexity_value",
        "gauge",
        _JOB,
        "Perplexity of the training tokens of the last train.log_every steps; language models alone.",
    ),
    Metric(
        "lowdimfa_trainer_training_bpb_value",
        "gauge",
        _JOB,
        "The same in bits per byte of text (bpb), where the data tells how many bytes a token has.",
    ),
    Metric(
        "lowdimfa_trainer_test_perplexity_value",
        "gauge",
        _JOB,
        "Perplexity of the latest evaluation; language models alone.",
    ),
    Metric(
        "lowdimfa_trainer_test_bpb_value",
        "gauge",
        _JOB,
        "The same in bits per byte of text (bpb), where the data tells how many bytes a token has.",
    ),
    Metric("lowdimfa_trainer_test_loss_value", "gauge", _JOB, "Loss of the latest evaluation."),
    Metric(
        "lowdimfa_trainer_test_accuracy_ratio",
        "gauge",
        _JOB,
        "Accuracy of the latest evaluation, 0 to 1; absent where the task has none.",
    ),
    Metric(
        "lowdimfa_trainer_test_metric_value",
        "gauge",
        (*_JOB, "metric", "class"),
        "A metric of train.metrics in the latest evaluation; class is empty where it is one number for all.",
    ),
    Metric(
        "lowdimfa_trainer_alignment_angle_degrees",
        "gauge",
        (*_JOB, "block"),
        "Angle between a block's update and its true gradient when it was last measured (run.alignment_every).",
    ),
    Metric(
        "lowdimfa_trainer_checkpoint_last_success_timestamp_seconds",
        "gauge",
        _JOB,
        "Unix time at which the latest checkpoint was complete.",
    ),
    Metric(
        "lowdimfa_trainer_checkpoint_duration_seconds",
        "gauge",
        _JOB,
        "Time from when the latest checkpoint fell due until it was complete.",
    ),
    Metric(
        "lowdimfa_trainer_checkpoint_pause_seconds",
        "gauge",
        _JOB,
        "Time of that for which training stood still.",
    ),
    Metric(
        "lowdimfa_trainer_checkpoint_failures_total",
        "counter",
        _JOB,
        "Checkpoints that could not be written since the trainer started.",
    ),
    Metric(
        "lowdimfa_trainer_job_recoveries_total",
        "counter",
        (*_JOB, "policy"),
        "Recoveries of the whole run that began, by policy: restart, rejoin (run.on_failure).",
    ),
    Metric(
        "lowdimfa_trainer_recovery_seconds",
        "gauge",
        _JOB,
        "Time that the run's latest recovery took; 0 before the first.",
    ),
    Metric(
        "lowdimfa_trainer_job_state",
        "gauge",
        (*_JOB, "state"),
        "1 for the job's state, 0 for the others: pending, running, recovering, finished, failed, stopped. Its "
        "process ends soon after the last three, which scrapes may miss: the coordinator knows them for good.",
    ),
    Metric(
        "lowdimfa_trainer_job_failures_total",
        "counter",
        (*_JOB, "code"),
        "Failures of the job, by the code of the error; a stop is none.",
    ),
    Metric(
        "lowdimfa_coordinator_known_jobs",
        "gauge",
        ("state",),
        "Jobs in each state: queued, starting, running, stopping, finished, failed, stopped.",
    ),
    Metric(
        "lowdimfa_coordinator_failed_jobs",
        "gauge",
        ("code",),
        "Jobs in the state failed, by the code of their error.",
    ),
    Metric(
        "lowdimfa_coordinator_queue_oldest_wait_seconds",
        "gauge",
        (),
        "How long the job that has been in the queue longest has waited; 0 when none is queued.",
    ),
    Metric(
        "lowdimfa_coordinator_answered_calls_total",
        "counter",
        ("method", "code"),
        "Calls that ended, by method and gRPC status code, without what the live page reads.",
    ),
    Metric(
        "lowdimfa_coordinator_call_duration_seconds",
        "histogram",
        ("method",),
        "How long unary calls took, the wait for the client's turn included, without what the live page reads.",
    ),
    Metric("lowdimfa_coordinator_open_streams", "gauge", ("method",), "Open streams."),
    Metric(
        "lowdimfa_coordinator_cluster_up",
        "gauge",
        (),
        "1 if the Ray cluster answered when it was last asked, 0 if not.",
    ),
    Metric(
        "lowdimfa_coordinator_cluster_last_seen_timestamp_seconds",
        "gauge",
        (),
        "Unix time at which the Ray cluster last answered; 0 before it did.",
    ),
    Metric(
        "lowdimfa_coordinator_supervisor_last_round_timestamp_seconds",
        "gauge",
        (),
        "Unix time at which the supervisor last looked after all jobs.",
    ),
)
