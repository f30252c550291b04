import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lowdimfa.services.monitoring.coordinator_metrics import CoordinatorMetrics, Reading
from lowdimfa.services.monitoring.metrics import (
    BUSY_KINDS,
    LANGUAGE,
    POLICIES,
    STATES,
    BlockMetrics,
    TrainerMetrics,
)
from lowdimfa.services.monitoring.metrics_table import METRICS
from lowdimfa.services.monitoring.targets import write_targets
from lowdimfa.services.monitoring.timeline import CAUSES
from tools import metrics_page

SUBSYSTEMS = "block|broadcast|activation|head|trainer|coordinator"
UNITS = (
    "steps|samples|seconds|bytes|messages|microbatches|failures|recoveries|epochs|samples_per_second|tokens_per_second|"
    "value|ratio|up|state|jobs|streams|calls|degrees"
)


def samples(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Return values by name and the values of the labels beyond job and block."""
    return {
        (
            sample.name,
            *(v for k, v in sample.labels.items() if k not in ("job", "block", "replica")),
        ): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def used_block() -> BlockMetrics:
    metrics = BlockMetrics("run-1", "2")
    metrics.stepped(7)
    metrics.samples(128)
    for kind in BUSY_KINDS:
        metrics.working(kind)
    for cause in CAUSES:
        metrics.waiting(cause)
    metrics.staleness(1)
    metrics.inflight(3)
    metrics.broadcast("sent", 2, 400, 440)
    metrics.broadcast("received", 1, 200, 220)
    metrics.activation("sent", 1000)
    metrics.activation("received", 2000)
    metrics.gradient("sent", 3000)
    metrics.gradient("received", 4000)
    metrics.trained(0.5, 0.875)
    metrics.lag("1", "0", lambda: 2)
    return metrics


def used_trainer() -> TrainerMetrics:
    metrics = TrainerMetrics("run-1")
    metrics.planned(100)
    metrics.progress(10, 0.5, 1234.5)
    metrics.remaining(60.0)
    metrics.evaluated(0.6, 0.75)
    metrics.language(dict.fromkeys(LANGUAGE, 1.5))
    metrics.measured({"f1": [0.5, None], "auroc": 0.75})
    metrics.aligned(0, 60.0)
    metrics.checkpointed(1_700_000_000.0, 1.5, 0.25)
    metrics.checkpoint_failed()
    metrics.recovering("rejoin")
    metrics.recovered(4.25)
    metrics.failed("peer_lost")
    return metrics


def used_coordinator() -> CoordinatorMetrics:
    metrics = CoordinatorMetrics()
    metrics.called("GetJob", "OK", 0.003)
    metrics.called("WatchJob", "CANCELLED", 100.0)
    metrics.streams("WatchJob", 1)
    metrics.read_from(lambda: Reading({"queued": 2}, {"internal": 1}, None, True, 10.0, 11.0))
    return metrics


def test_names_follow_the_pattern_and_counters_end_in_total() -> None:
    for metric in METRICS:
        pattern = rf"lowdimfa_({SUBSYSTEMS})(_[a-z]+)+_({UNITS})"
        suffix = "_total" if metric.type == "counter" else ""
        assert re.fullmatch(pattern + suffix, metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert not metric.name.endswith("_info")  # Prometheus' word for labels with a constant 1
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_prometheus_itself_finds_nothing_wrong_with_the_pages() -> None:
    for metrics in (used_block(), used_trainer(), used_coordinator()):
        page = generate_latest(metrics.registry)
        done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()


@pytest.mark.parametrize(
    ("process", "metrics"),
    [("block", used_block()), ("trainer", used_trainer()), ("coordinator", used_coordinator())],
)
def test_exposition_holds_every_metric_of_the_table_and_nothing_else(
    process: str, metrics: BlockMetrics | TrainerMetrics | CoordinatorMetrics
) -> None:
    rows = {row.name: row for row in METRICS if row.process == process}
    seen = set()
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        if family.name.startswith("process_"):
            continue  # of every process in the world
        for sample in family.samples:
            row = rows.get(sample.name) or rows[family.name]
            assert (family.type, family.documentation) == (row.type, row.help)
            assert set(sample.labels) - {"le"} == set(row.labels)
            assert sample.labels.get("job", "run-1") == "run-1"
            seen.add(row.name)
    assert seen == set(rows)


def test_the_duration_of_a_stream_is_no_latency() -> None:
    page = generate_latest(used_coordinator().registry).decode()
    assert 'call_duration_seconds_count{method="GetJob"} 1.0' in page
    assert 'call_duration_seconds_count{method="WatchJob"}' not in page
    assert 'calls_total{code="CANCELLED",method="WatchJob"} 1.0' in page


def test_each_call_reaches_its_own_sample() -> None:
    values = samples(used_block().registry)
    assert values["lowdimfa_block_applied_steps",] == 7
    assert values["lowdimfa_block_trained_samples_total",] == 128
    assert values["lowdimfa_broadcast_error_messages_total", "sent"] == 2
    assert values["lowdimfa_broadcast_payload_bytes_total", "sent"] == 400
    assert values["lowdimfa_broadcast_wire_bytes_total", "received"] == 220
    assert values["lowdimfa_activation_payload_bytes_total", "received"] == 2000
    assert values["lowdimfa_head_training_accuracy_ratio",] == 0.875
    assert values["lowdimfa_broadcast_subscriber_lag_messages", "1", "0"] == 2
    values = samples(used_trainer().registry)
    assert values["lowdimfa_trainer_completed_epochs",] == 0.5
    assert values["lowdimfa_trainer_completed_steps",] == 10
    assert values["lowdimfa_trainer_job_recoveries_total", "rejoin"] == 1
    assert values["lowdimfa_trainer_job_recoveries_total", "restart"] == 0
    assert values["lowdimfa_trainer_recovery_seconds",] == 4.25
    assert values["lowdimfa_trainer_checkpoint_failures_total",] == 1
    assert values["lowdimfa_trainer_throughput_samples_per_second",] == 1234.5
    assert values["lowdimfa_trainer_job_failures_total", "peer_lost"] == 1
    assert values["lowdimfa_trainer_alignment_angle_degrees",] == 60
    values = samples(used_coordinator().registry)
    assert values["lowdimfa_coordinator_known_jobs", "queued"] == 2
    assert values["lowdimfa_coordinator_failed_jobs", "internal"] == 1
    assert values["lowdimfa_coordinator_queue_oldest_wait_seconds",] == 0
    assert values["lowdimfa_coordinator_open_streams", "WatchJob"] == 1
    assert values["lowdimfa_coordinator_cluster_last_seen_timestamp_seconds",] == 10
    assert values["lowdimfa_coordinator_supervisor_last_round_timestamp_seconds",] == 11


def test_counters_start_at_zero_and_values_that_do_not_exist_are_absent() -> None:
    metrics = BlockMetrics("run-1", "0")
    values = samples(metrics.registry)
    assert values["lowdimfa_block_busy_seconds_total", "forward"] == 0
    assert ("lowdimfa_head_training_loss_value",) not in values
    metrics.trained(0.5, None)
    values = samples(metrics.registry)
    assert ("lowdimfa_head_training_loss_value",) in values
    assert ("lowdimfa_head_training_accuracy_ratio",) not in values
    values = samples(TrainerMetrics("run-1").registry)
    assert [values["lowdimfa_trainer_job_recoveries_total", policy] for policy in POLICIES] == [0, 0]
    assert values["lowdimfa_trainer_recovery_seconds",] == 0
    assert values["lowdimfa_trainer_checkpoint_failures_total",] == 0
    assert ("lowdimfa_trainer_completed_steps",) not in values


def test_metrics_do_not_depend_on_the_environment(tmp_path: Path) -> None:
    """A program that imports this one may be set up for the many processes of a web server."""
    folder, missing = tmp_path / "multi", tmp_path / "missing"
    folder.mkdir()
    used = (
        "from tests.integration.test_metrics import *; used_block(), used_coordinator(); print(samples({}))"
    )
    pages = [
        subprocess.run(
            [sys.executable, "-c", used.format("used_trainer().registry")],
            cwd=Path(__file__).parents[2],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for variables in (
            {},
            {"PROMETHEUS_MULTIPROC_DIR": str(folder)},
            {"PROMETHEUS_MULTIPROC_DIR": str(missing)},
            {"prometheus_multiproc_dir": str(folder)},
        )
    ]
    assert "lowdimfa_trainer_planned_steps" in pages[0] and set(pages) == {pages[0]}
    assert not list(folder.iterdir()) and not missing.exists()


def test_a_distribution_counts_up_to_its_bounds() -> None:
    metrics = CoordinatorMetrics()
    for seconds in (0.0005, 0.001, 0.0011, 7.0):
        metrics.called("GetJob", "OK", seconds)
    page = generate_latest(metrics.registry).decode()
    counts = {
        bound: float(count) for bound, count in re.findall(r'_bucket{le="(.*?)",method="GetJob"} (.*)', page)
    }
    assert counts["0.001"] == 2 and counts["0.0025"] == counts["5.0"] == 3 and counts["+Inf"] == 4
    assert 'seconds_count{method="GetJob"} 4.0' in page and 'seconds_sum{method="GetJob"} 7.0026' in page


def test_a_job_has_one_state_at_a_time() -> None:
    metrics = TrainerMetrics("run-1")
    for state in STATES:
        metrics.state(state)
        values = samples(metrics.registry)
        assert [s for s in STATES if values["lowdimfa_trainer_job_state", s]] == [state]


def test_documentation_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert metrics_page.main(["--check"]) == 0
    monkeypatch.setattr(metrics_page, "PATH", tmp_path / "metrics.md")
    assert metrics_page.main(["--check"]) == 1
    assert metrics_page.main([]) == 0
    assert metrics_page.main(["--check"]) == 0


def test_targets_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    write_targets(path, [{"address": "h:1", "job": "run-1", "role": "trainer"}])
    write_targets(path, [{"address": "h:2", "job": "run-1", "role": "head", "block": "3"}])
    labels = {"job": "run-1", "role": "head", "block": "3"}
    assert json.loads(path.read_text()) == [{"targets": ["h:2"], "labels": labels}]
    assert list(tmp_path.iterdir()) == [path]
