"""What the benchmark of throughput makes of its measurements."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks.throughput.figures import merge, order_of, ratio, summary
from benchmarks.throughput.networks import NETWORKS
from benchmarks.throughput.registry import RIVALS, configuration, stages_of, table, without_parts
from benchmarks.throughput.spans import (
    applied,
    cpu_seconds,
    handling_seconds,
    overlap,
    read_spans,
    shares,
    used,
)
from lowdimfa.errors import InputError
from lowdimfa.services.monitoring.timeline import Span, TimelineWriter
from lowdimfa.services.spec import parse_specification


@pytest.fixture(scope="module")
def command() -> ModuleType:
    """Give the command, which takes a while to import: not in each process that collects."""
    return importlib.import_module("benchmarks.throughput.__main__")


@pytest.fixture(scope="module")
def systems(command: ModuleType) -> ModuleType:
    return importlib.import_module("benchmarks.throughput.systems")


SPANS = [
    Span("forward", 0, 0, 10.0, 12.0),
    Span("send", 0, 0, 12.0, 12.5),
    Span("wait", 0, 0, 12.5, 14.5, "error"),
    Span("update", 0, 0, 15.0, 17.0),
    Span("step", 0, 0, 17.0, 18.0),
]


def rounds(**rates: list[float]) -> list[dict[str, dict[str, Any]]]:
    """Return rounds in which systems had some rates; a rate of 0 stands for a turn that failed."""
    count = len(next(iter(rates.values())))
    return [
        {
            name.replace("_", "-"): {"samples_per_second": values[turn], "peak_bytes": turn}
            for name, values in rates.items()
            if values[turn]
        }
        for turn in range(count)
    ]


def test_a_block_is_busy_when_it_does_not_wait() -> None:
    found = shares(SPANS, 12.0, 18.0)
    assert found["busy"] == pytest.approx(1 - 2.0 / 6.0)
    assert found["computing"] == pytest.approx(3.0 / 6.0)
    assert overlap(SPANS, ("forward",), 11.5, 30.0) == pytest.approx(0.5)


def test_handling_is_what_is_neither_computing_nor_waiting() -> None:
    assert handling_seconds(SPANS) == pytest.approx(1.0)  # half a second of sending, half of deciding


def test_a_step_has_ended_when_the_slowest_block_has_applied_it() -> None:
    later = [Span("step", 0, 0, 18.0, 19.5), Span("step", 1, 0, 20.0, 21.0)]
    assert applied([SPANS, later], 0) == 19.5
    with pytest.raises(ValueError, match="no step 1"):
        applied([SPANS, later], 1)


def test_a_timeline_is_read_on_from_where_it_ended(tmp_path: Path) -> None:
    writer = TimelineWriter(tmp_path / "block-0.jsonl")
    writer.record(*SPANS[0])
    writer.flush()
    first, offset = read_spans(writer.path)
    writer.record(*SPANS[2])
    writer.close()
    second, _ = read_spans(writer.path, offset)
    assert (first, second) == ([SPANS[0]], [SPANS[2]])


def test_processor_time_is_told_thread_by_thread() -> None:
    before = cpu_seconds(os.getpid())
    whole = others = 0.0
    while not whole:  # the kernel counts in hundredths of a second
        sum(range(300_000))
        whole, others = used(before, cpu_seconds(os.getpid()))
    assert 0 <= others < whole
    assert used({1: 1.0, 2: 5.0}, {1: 3.0, 2: 5.5, 3: 0.25}) == (2.75, 0.75)


def test_the_slowest_process_counts() -> None:
    answer = {
        "cpu_seconds": 1.0,
        "steps": 10,
        "forward_bytes": 25_600,
        "backward_bytes": 2_560,
        "peak_bytes": 7,
    }
    found = merge([answer | {"seconds": 2.0}, answer | {"seconds": 4.0, "peak_bytes": 9}], 8, 256, 4)
    assert found["samples_per_second"] == 512
    assert (found["forward_bytes_per_sample"], found["backward_bytes_per_sample"]) == (20, 2)
    assert found["cpu_ms_per_microbatch"] == 50
    assert (found["peak_bytes"], found["peaks"]) == (9, [7, 9])


def test_a_ratio_is_the_median_of_those_within_rounds() -> None:
    # The machine was half as fast in the second round, for all of them alike.
    measured = rounds(lowdimfa_s1=[200.0, 100.0, 210.0], a=[100.0, 50.0, 100.0], b=[80.0, 80.0, 0.0])
    assert ratio(measured, "lowdimfa-s1", ["a"]) == 2.0
    assert ratio(measured, "lowdimfa-s1", ["a", "b"]) == 2.0  # 2, 1.25, 2.1: the best of each round
    assert ratio(measured, "lowdimfa-s1", ["none"]) is None


def test_a_pipeline_is_represented_by_its_fastest_number_of_micro_batches() -> None:
    measured = rounds(lowdimfa_s1=[200.0], **{"1f1b": [100.0], "1f1bx8": [160.0], "1f1bx8+int8": [400.0]})
    assert ratio(measured, "lowdimfa-s1", ["1f1b"]) == 200 / 160
    assert ratio(measured, "lowdimfa-s1", ["1f1b+int8"]) == 0.5
    assert without_parts("zero-bubble-h1x2+int8") == ("zero-bubble-h1+int8", 2)
    assert without_parts("single-2x4") == ("single-2x4", None)
    assert configuration("1f1bx8+int8") == configuration("1f1b+int8")
    with pytest.raises(ValueError, match="ddpx2"):
        configuration("ddpx2")


def test_the_summary_has_what_is_promised_and_leaves_out_what_failed() -> None:
    measured = rounds(
        lowdimfa_s1=[300.0], **{"1f1b": [150.0], "single_2": [100.0], "single_2x4": [120.0], "limit": [400.0]}
    )
    measured[0]["lowdimfa-s1"] |= {
        "busy": [0.9, 0.95],
        "transport_cpu_ms": [1.0, 1.5],
        "backward_bytes_per_sample": 40.0,
    }
    found = summary(measured, [*measured[0], "zbv-zero-bubble"], threads=2)
    assert found["ratio_vs_1f1b"] == 2.0
    assert found["ratio_vs_single_process"] == 2.5
    assert found["ratio_vs_limit"] == 0.75
    assert found["ratio_vs_zero_bubble"] is None
    assert found["busy_fraction_min"] == 0.9
    assert found["transport_cpu_ms_per_microbatch"] == 1.5
    assert found["backward_bytes_per_sample"] == {"lowdimfa-s1": 40.0}
    assert "zbv-zero-bubble" not in found["samples_per_second"]


def test_every_round_has_every_system_once_and_another_order(systems: ModuleType) -> None:
    names = systems.all_names(2, 4)
    orders = [order_of(names, turn) for turn in range(-1, 7)]
    assert all(sorted(order) == sorted(names) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)


@pytest.mark.parametrize("world", [2, 4])
def test_all_stages_have_a_process(world: int) -> None:
    for name, rival in RIVALS.items():
        if "schedule" in rival.options:
            per_rank, layout = rival.options["per_rank"], rival.options["layout"]
            found = [stage for rank in range(world) for stage in stages_of(rank, world, per_rank, layout)]
            assert sorted(found) == list(range(world * per_rank)), name


def test_a_name_says_which_rival_and_how_its_tensors_travel(systems: ModuleType) -> None:
    assert configuration("2bw+int8") == {"class": "two_buffered:TwoBuffered", "format": "int8"}
    assert configuration("powersgd-r8")["factors"] == 8 and configuration("powersgd")["factors"] == 4
    assert configuration("single-2x4") == {
        "class": "peers:Single",
        "format": "fp32",
        "threads": 2,
        "parts": 4,
    }
    assert configuration("single-2x4-recompute")["recompute"] and configuration("1f1b-recompute")["recompute"]
    for wrong in ("ddp+int8", "2bw+int3", "single", "powersgd-h8", "diloco-h0", "gpipe-r2", "two"):
        with pytest.raises(ValueError, match=wrong.replace("+", r"\+")):
            configuration(wrong)
        assert not systems.is_known(wrong, 4, 4)
    for blocks, links in ((2, False), (4, True), (8, True), (8, False)):
        names = systems.usual_names(blocks, max(4, blocks), links)
        assert len(set(names)) == len(names)
        assert all(systems.is_known(name, blocks, max(4, blocks)) for name in names)


def test_within_a_limit_counts_the_fastest_cut_whose_peak_is(command: ModuleType) -> None:
    tables = importlib.import_module("benchmarks.memory_limit").tables
    measured = {"a": {4: (900.0, 80), 16: (700.0, 50)}, "b": {4: (1000.0, 90), 16: (650.0, 61)}}
    rows = [
        {"system": name, "parts": parts, "samples_per_second": rate, "peak_bytes": mib << 20}
        for name, cuts in measured.items()
        for parts, (rate, mib) in cuts.items()
    ]
    within, _, every = tables({"limits_mib": [40, 60, 90], "rows": rows}).partition("\n\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in within.splitlines()[2:]]
    assert cells == [["a", "–", "700 (16)", "900 (4)"], ["b", "–", "–", "1,000 (4)"]]
    assert "650, 61" in every


def test_the_help_says_what_each_system_may_do() -> None:
    words = table()
    assert all(f"{name}: " in words for name in RIVALS)
    assert words.count("delay: ") == words.count("sends ") == len(RIVALS) + 1


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("real", [False, True])
def test_specifications_are_valid_and_can_be_overridden(
    network: Any, real: bool, systems: ModuleType
) -> None:
    plain = systems.overridden(
        network.specification(2, 1, real=real), ["train.window=6", "run.timeline=false"]
    )
    found = parse_specification(plain, "a test")
    assert (found.train.staleness, found.train.window, found.run.timeline) == (1, 6, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--blocks", "two"], "numbers such as 2,4"),
        (["--blocks", "1"], "at least 2"),
        (["--networks", "vgg"], "no vgg"),
        (["--systems", "1f1b,2f2b"], "no 2f2b"),
        (["--systems", "2bw+int8,ddp+int8"], "no ddp"),
        (["--set", "train.window"], "a setting such as"),
        (["--latency-ms", "-1"], "0 or more"),
    ],
)
def test_a_wrong_command_line_says_what_was_expected(
    arguments: list[str], message: str, command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.parse(arguments)
    assert message in capsys.readouterr().err


def test_a_measurement_in_which_this_runtime_failed_is_not_stored(
    command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored: list[str] = []
    lost: dict[str, str] = {}
    result = {"not_measured": lost, "rounds": []}
    monkeypatch.setattr(command, "measure", lambda *_: result)
    monkeypatch.setattr(command, "tables", lambda _: "")
    monkeypatch.setattr(command, "write_result", lambda name, _: stored.append(name))
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["throughput", "--networks", "mlp", "--blocks", "4", "--write"])
    for failed, status in (("lowdimfa-s1", command.FAILED), ("zbv-zero-bubble", 0)):
        lost.clear()
        lost[failed] = "RuntimeError: the processes of blocks 2 have ended: out of memory?"
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == status
        assert stored == ([] if status else ["throughput-mlp-4"])
        assert ("lowdimfa-s1; nothing was stored" in capsys.readouterr().err) == bool(status)


@pytest.mark.usefixtures("command")
def test_systems_without_memory_are_refused_before_they_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measuring = importlib.import_module("benchmarks.throughput.measure")
    free = SimpleNamespace(available=1e9)
    monkeypatch.setattr(measuring.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(measuring, "place_for", None)  # nothing is started
    with pytest.raises(InputError, match=r"2 systems of 5 processes, with 1\.0 GB .* at least 1\.9 GB"):
        measuring.measure("mlp", 4, measuring.Plan(systems=("1f1b", "single-2")), tmp_path, print)
