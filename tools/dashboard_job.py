"""The dashboard of one job: how it learns, and what its blocks do."""

from __future__ import annotations

from tools.dashboard_panel import Panel, Rows

_JOB = '{job="$job"}'


def _by_block(fold: str, numbers: str) -> tuple[str, str]:
    """Return the query of a number of each block, of whose replicas it is the sum or the largest."""
    return f"{fold} by (block) ({numbers})", "block {{block}}"


JOB_ROWS: Rows = [
    (
        4,
        [
            Panel(
                "Steps",
                "Optimiser steps done and planned.",
                [
                    (f"lowdimfa_trainer_completed_steps{_JOB}", "done"),
                    (f"lowdimfa_trainer_planned_steps{_JOB}", "planned"),
                ],
                kind="stat",
            ),
            Panel(
                "Time left",
                "At the pace of the last seconds.",
                [(f"lowdimfa_trainer_remaining_seconds{_JOB}", "")],
                "s",
                "stat",
            ),
            Panel(
                "Throughput",
                "Training samples per second.",
                [(f"lowdimfa_trainer_throughput_samples_per_second{_JOB}", "")],
                "short",
                "stat",
            ),
            Panel(
                "Tokens",
                "Training tokens that count, per second; of language models.",
                [(f"lowdimfa_trainer_throughput_tokens_per_second{_JOB}", "")],
                "short",
                "stat",
            ),
            Panel(
                "Evaluation accuracy",
                "Of the latest evaluation: of the test split, or of what data.validation holds out.",
                [(f"lowdimfa_trainer_test_accuracy_ratio{_JOB}", "")],
                "percentunit",
                "stat",
            ),
            Panel(
                "Since the last checkpoint",
                "What a failure now would cost.",
                [(f"time() - lowdimfa_trainer_checkpoint_last_success_timestamp_seconds{_JOB}", "")],
                "s",
                "stat",
            ),
        ],
    ),
    (
        8,
        [
            Panel(
                "Loss",
                "Training loss of the latest step, and of the test split.",
                [
                    (f"avg(lowdimfa_head_training_loss_value{_JOB})", "training"),
                    (f"lowdimfa_trainer_test_loss_value{_JOB}", "test"),
                ],
            ),
            Panel(
                "Accuracy",
                "Training accuracy of the latest step, and of the test split.",
                [
                    (f"avg(lowdimfa_head_training_accuracy_ratio{_JOB})", "training"),
                    (f"lowdimfa_trainer_test_accuracy_ratio{_JOB}", "test"),
                ],
                "percentunit",
                bounds=(0, 1),
            ),
            Panel(
                "Perplexity",
                "Of a language model: of the last train.log_every steps, and of the test split.",
                [
                    (f"lowdimfa_trainer_training_perplexity_value{_JOB}", "training"),
                    (f"lowdimfa_trainer_test_perplexity_value{_JOB}", "test"),
                ],
            ),
            Panel(
                "Bits per byte",
                "Of a language model, where the data tells how many bytes a token has.",
                [
                    (f"lowdimfa_trainer_training_bpb_value{_JOB}", "training"),
                    (f"lowdimfa_trainer_test_bpb_value{_JOB}", "test"),
                ],
            ),
            Panel(
                "Samples per second",
                "Whose update each block has computed.",
                [_by_block("sum", f"rate(lowdimfa_block_trained_samples_total{_JOB}[$__rate_interval])")],
                bounds=(0, None),
            ),
        ],
    ),
    (
        8,
        [
            Panel(
                "Metrics",
                "Those of train.metrics in the latest evaluation, by class where they have several values.",
                [(f"lowdimfa_trainer_test_metric_value{_JOB}", "{{metric}} {{class}}")],
            ),
            Panel(
                "Busy",
                "Share of the time that each block computes, by kind of work.",
                [
                    (
                        f"avg by (block, kind) (rate(lowdimfa_block_busy_seconds_total{_JOB}[$__rate_interval]))",
                        "block {{block}} {{kind}}",
                    )
                ],
                "percentunit",
                stacked=True,
            ),
            Panel(
                "Waiting",
                "Share of the time that each block waits, by what it waits for.",
                [
                    (
                        f"avg by (block, cause) (rate(lowdimfa_block_waiting_seconds_total{_JOB}[$__rate_interval]))",
                        "block {{block}} {{cause}}",
                    )
                ],
                "percentunit",
                stacked=True,
            ),
        ],
    ),
    (
        8,
        [
            Panel(
                "Staleness",
                "Steps by which the weights of a forward pass lag behind; of replicas the most.",
                [_by_block("max", f"lowdimfa_block_staleness_steps{_JOB}")],
                bounds=(0, None),
            ),
            Panel(
                "In flight",
                "Micro-batches that await their error; of replicas all together.",
                [_by_block("sum", f"lowdimfa_block_inflight_microbatches{_JOB}")],
                bounds=(0, None),
            ),
            Panel(
                "Alignment",
                "Angle between update and true gradient; below 90° the update descends.",
                [(f"lowdimfa_trainer_alignment_angle_degrees{_JOB}", "block {{block}}")],
                "degree",
                bounds=(0, 120),
            ),
        ],
    ),
    (
        8,
        [
            Panel(
                "Error broadcast",
                "Bytes that each block receives backward, with framing.",
                [
                    _by_block(
                        "sum",
                        'rate(lowdimfa_broadcast_wire_bytes_total{job="$job", direction="received"}[$__rate_interval])',
                    )
                ],
                "Bps",
                bounds=(0, None),
            ),
            Panel(
                "Broadcast lag",
                "Errors that the head has published and a block's connection has not taken yet; of replicas the most.",
                [
                    (
                        f"max by (subscriber) (lowdimfa_broadcast_subscriber_lag_messages{_JOB})",
                        "block {{subscriber}}",
                    )
                ],
                bounds=(0, None),
            ),
            Panel(
                "Activations and gradients",
                "Bytes that each block sends forward, and that its replicas send each other after each step.",
                [
                    (
                        "sum by (block) (rate(lowdimfa_activation_payload_bytes_total"
                        '{job="$job", direction="sent"}[$__rate_interval]))',
                        "block {{block}}",
                    ),
                    (
                        "sum by (block) (rate(lowdimfa_block_gradient_bytes_total"
                        '{job="$job", direction="sent"}[$__rate_interval]))',
                        "block {{block}}, among its replicas",
                    ),
                ],
                "Bps",
                bounds=(0, None),
            ),
        ],
    ),
    (
        6,
        [
            Panel(
                "Recoveries",
                "That began since the run did, by policy.",
                [(f"lowdimfa_trainer_job_recoveries_total{_JOB}", "{{policy}}")],
                bounds=(0, None),
            ),
            Panel(
                "Time to recover",
                "Of the latest recovery; 0 before the first.",
                [(f"lowdimfa_trainer_recovery_seconds{_JOB}", "latest")],
                "s",
                bounds=(0, None),
            ),
            Panel(
                "Time of a checkpoint",
                "Of the latest: until it was complete, and how much of that training stood still.",
                [
                    (f"lowdimfa_trainer_checkpoint_duration_seconds{_JOB}", "until complete"),
                    (f"lowdimfa_trainer_checkpoint_pause_seconds{_JOB}", "training stood"),
                ],
                "s",
                bounds=(0, None),
            ),
            Panel(
                "Failed checkpoints",
                "That could not be written, since the trainer started.",
                [(f"lowdimfa_trainer_checkpoint_failures_total{_JOB}", "failed")],
                bounds=(0, None),
            ),
        ],
    ),
]
