"""The page on speed holds what is stored, and says so where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import performance
from benchmarks.reporting import RESULTS
from benchmarks.throughput.rivals_table import OWN, rivals


def test_the_page_of_this_repository_is_what_its_results_give() -> None:
    assert performance.main(["--check"]) == 0


def test_a_page_that_is_out_of_date_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "performance.md"
    text = performance.PAGE.read_text()
    figure = performance.ratios(performance.stored(RESULTS, "throughput-mlp-2.json")).splitlines()[-1]
    assert figure in text
    page.write_text(text.replace(figure, figure.replace("1", "7")))
    assert performance.main(["--check"], page) == 1
    assert "out of date" in capsys.readouterr().err
    assert performance.main([], page) == 0
    assert page.read_text() == text


def test_what_was_not_measured_is_left_empty() -> None:
    result = {
        "network": "cnn",
        "blocks": 4,
        "link_mbit": 100,
        "latency_ms": 0.0,
        "ratio_vs_1f1b": 1.234,
        "ratio_vs_limit": None,
        "ratio_layers_vs_zero_bubble": 2.345,
        "backward_bytes_per_sample": {"lowdimfa-s1": 40.0},
    }
    header, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in performance.ratios([result]).splitlines()
    )
    plain, layers = ({name: cell for name, cell in zip(header, row, strict=True) if cell} for row in rows)
    assert plain == {"": "cnn, 4 blocks, 100 Mbit/s", "1F1B": "1.23"}
    assert layers == {"": "cnn, 4 blocks, 100 Mbit/s, error at every layer", "zero-bubble": "2.35"}


def measured(network: str, blocks: int, mbit: int | None, latency: float, **rates: float) -> dict[str, Any]:
    """Return a result in which systems had some rates, and those with a rate of 100 or more a time to a score, too."""
    named = {name.replace("_", "-").replace("--", "+"): rate for name, rate in rates.items()}
    times = {name: {"seconds": 1000 / rate} for name, rate in named.items() if rate >= 100}
    return {
        "network": network,
        "blocks": blocks,
        "link_mbit": mbit,
        "latency_ms": latency,
        "samples_per_second": named,
        "time_to_target": times | {"ddp": {"failure": "lost"}},
        "rounds": [{name: {"samples_per_second": rate} for name, rate in named.items()}],
    }


def test_one_table_has_every_rival_from_one_machine_to_slow_links() -> None:
    results = [
        measured("lm", 8, 25, 50.0, lowdimfa_s1__int8=60.0, lowdimfa_s1=50.0, powersgd=30.0, diloco=90.0),
        measured("mlp", 4, 1000, 0.0, **{"lowdimfa_s1": 300.0, "2bw": 200.0}),
        measured(
            "mlp", 4, None, 0.0, **{"lowdimfa_s1": 120.0, "single_1": 50.0, "single_2x4": 60.0, "2bw": 80.0}
        ),
    ]
    header, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in rivals(results).splitlines()
    )
    assert header == ["where", "times the samples per second of", "mlp, 4", "lm, 8"]
    assert [row[0] for row in rows if row[0]] == [
        "**one machine**",
        "**a fast cluster**: 1,000 Mbit/s",
        "**slow links**: 25 Mbit/s, 50 ms",
    ]
    assert [row[1:] for row in rows] == [
        [OWN, "s1", ""],
        ["one process", "2.00", ""],
        ["PipeDream-2BW", "1.50", ""],
        [OWN, "s1", ""],
        ["PipeDream-2BW", "1.50 (1.50)", ""],
        [OWN, "", "s1+int8"],
        ["PowerSGD", "", "2.00"],
        ["local SGD, outer step (DiLoCo)", "", "0.67"],
    ]
