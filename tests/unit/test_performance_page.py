"""The page on speed holds what is stored, and says so where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import performance
from benchmarks.reporting import RESULTS


def test_the_page_of_this_repository_is_what_its_results_give() -> None:
    assert performance.main(["--check"]) == 0


def test_a_page_that_is_out_of_date_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "performance.md"
    text = performance.PAGE.read_text()
    figure = performance.ratios(performance.stored(RESULTS, "throughput-mlp-2.json")).splitlines()[-1]
    assert figure in text
    page.write_text(text.replace(figure, figure.replace("0", "1")))
    assert performance.main(["--check"], page) == 1
    assert "out of date" in capsys.readouterr().err
    assert performance.main([], page) == 0
    assert page.read_text() == text


def test_what_was_not_measured_is_left_empty() -> None:
    result = {
        "network": "cnn",
        "blocks": 4,
        "link_mbit": 100,
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
