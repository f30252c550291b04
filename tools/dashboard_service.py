"""The dashboard of the service: its queue, its calls, its process."""

from __future__ import annotations

from tools.dashboard_panel import Panel, Rows

SERVICE_ROWS: Rows = [
    (
        4,
        [
            Panel(
                "Running", "Jobs.", [('lowdimfa_coordinator_known_jobs{state="running"}', "")], kind="stat"
            ),
            Panel("Queued", "Jobs.", [('lowdimfa_coordinator_known_jobs{state="queued"}', "")], kind="stat"),
            Panel(
                "Oldest wait",
                "Of the job that has been in the queue longest.",
                [("lowdimfa_coordinator_queue_oldest_wait_seconds", "")],
                "s",
                "stat",
            ),
            Panel(
                "Cluster",
                "1 if the Ray cluster answered when it was last asked.",
                [("lowdimfa_coordinator_cluster_up", "")],
                kind="stat",
            ),
            Panel(
                "Processes scraped",
                "Of all jobs: how many answer.",
                [('sum(up{role=~"block|head|trainer"})', "")],
                kind="stat",
            ),
        ],
    ),
    (
        8,
        [
            Panel(
                "Jobs by state",
                "All that the store has.",
                [("lowdimfa_coordinator_known_jobs", "{{state}}")],
                bounds=(0, None),
            ),
            Panel(
                "Failed jobs by error",
                "Codes of docs/errors.md.",
                [("lowdimfa_coordinator_failed_jobs", "{{code}}")],
                bounds=(0, None),
            ),
        ],
    ),
    (
        8,
        [
            Panel(
                "Calls",
                "Per second, by method.",
                [
                    (
                        "sum by (method) (rate(lowdimfa_coordinator_answered_calls_total[$__rate_interval]))",
                        "{{method}}",
                    )
                ],
                "reqps",
                bounds=(0, None),
            ),
            Panel(
                "Calls by outcome",
                "Per second, by gRPC status.",
                [
                    (
                        "sum by (code) (rate(lowdimfa_coordinator_answered_calls_total[$__rate_interval]))",
                        "{{code}}",
                    )
                ],
                "reqps",
                bounds=(0, None),
            ),
            Panel(
                "Latency",
                "Of unary calls: the median and the slowest hundredth.",
                [
                    (
                        f"histogram_quantile({quantile}, sum by (le) "
                        "(rate(lowdimfa_coordinator_call_duration_seconds_bucket[$__rate_interval])))",
                        legend,
                    )
                    for quantile, legend in ((0.5, "median"), (0.99, "99 %"))
                ],
                "s",
                bounds=(0, None),
            ),
        ],
    ),
    (
        8,
        [
            Panel(
                "Open streams",
                "Watches and logs.",
                [("lowdimfa_coordinator_open_streams", "{{method}}")],
                bounds=(0, None),
            ),
            Panel(
                "Memory",
                "Of the coordinator.",
                [('process_resident_memory_bytes{job="lowdimfa-coordinator"}', "resident")],
                "bytes",
                bounds=(0, None),
            ),
            Panel(
                "Processor",
                "Cores that the coordinator uses.",
                [('rate(process_cpu_seconds_total{job="lowdimfa-coordinator"}[$__rate_interval])', "cores")],
                bounds=(0, None),
            ),
        ],
    ),
]
