"""Files of tables: read as they are, whatever their names, sizes and neighbours, or refused with name and reason."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lowdimfa.data import Dataset, table
from lowdimfa.data.splits import SubSplit
from lowdimfa.data.tables import TableSplit
from lowdimfa.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    yield


def write(path: Path, values: Sequence[Any], labels: Sequence[Any] = (0, 1)) -> str:
    """Write rows of a value and a label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{value},{labels[row % len(labels)]}\n" for row, value in enumerate(values)]
    path.write_text("a,y\n" + "".join(lines))
    return str(path)


def whole(data: Dataset) -> TableSplit:
    split = data.train
    while isinstance(split, SubSplit):
        split = split.split
    assert isinstance(split, TableSplit)
    return split


def inputs(path: str | Path) -> list[float]:
    split = whole(table(str(path), "a", "y"))
    read = split.inputs(torch.arange(len(split)))
    assert isinstance(read, torch.Tensor)
    return read.tolist()


def test_codes_are_one_class_in_all_rows_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    lines = [f"{row},{'2A' if row < 10_000 and row % 2 else '01'}\n" for row in range(120_000)]
    path.write_text("a,y\n" + "".join(lines))
    split = whole(table(str(path), "a", "y"))
    assert split.classes == {"01": 0, "2A": 1}
    assert split.targets(torch.arange(120_000)).sum() == 5_000


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        ([0, 1], [2, 3], torch.int64),
        ([0, 1], [2.5, 3], torch.float32),
        (["True"], ["False"], torch.bool),
    ],
)
def test_a_column_has_the_type_that_fits_all_rows_of_all_files(
    first: list[Any], then: list[Any], expected: torch.dtype, tmp_path: Path
) -> None:
    write(tmp_path / "1.csv", first * 20), write(tmp_path / "2.csv", then * 20)
    split = whole(table(str(tmp_path), "a", "y"))
    read = split.inputs(torch.arange(len(split)))
    assert isinstance(read, torch.Tensor) and read.dtype == expected
    assert read.tolist() == [*first * 20, *then * 20] or expected == torch.bool


def test_codes_are_the_same_classes_in_all_files_and_in_the_test_file(tmp_path: Path) -> None:
    write(tmp_path / "all" / "1.csv", range(20), ["2A", "01"])
    write(tmp_path / "all" / "2.csv", range(20), ["01", "02"])
    data = table(str(tmp_path / "all"), "a", "y", write(tmp_path / "test.csv", range(6), ["02", "01"]))
    assert whole(data).classes == {"01": 0, "02": 1, "2A": 2}
    assert data.test.targets(torch.arange(6)).tolist() == [1, 0] * 3


def test_targets_of_another_kind_in_the_test_file_are_refused_by_its_name(tmp_path: Path) -> None:
    """The training file was named, and its numbers as classes that are none of its own."""
    numbers = write(tmp_path / "numbers.csv", range(20), ["0", "1"])
    texts = write(tmp_path / "texts.csv", range(20), ["A", "B"])
    with pytest.raises(InputError, match=r"/texts\.csv: found text in the column 'y'; expected numbers, as"):
        table(numbers, "a", "y", texts)


def test_names_are_no_patterns(tmp_path: Path) -> None:
    for name, other in (("data[1].csv", "data1.csv"), ("a*.csv", "ab.csv"), ("exp[2]/d.csv", "exp2/d.csv")):
        path = write(tmp_path / name, range(10))
        write(tmp_path / other, range(100, 110))
        assert inputs(path) == list(range(10))
    assert inputs(tmp_path / "exp[2]") == list(range(10))
    with pytest.raises(InputError, match=r"a::b\.csv: found a path with '::'"):
        inputs(write(tmp_path / "a::b.csv", range(10)))


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """By one of the same size, which an archive gives the same time."""
    path = tmp_path / "rows.csv"
    for values in (range(10, 20), range(20, 30)):
        write(path, values)
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert inputs(path) == list(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,y\n1,2,0\n2,4,1\n",
            r"rows\.csv: found what pandas can't read \(.*Expected 2 fields in line 2, saw 3",
        ),
        (
            "a,y\n\n1,0\n3,4,1\n",
            r"rows\.csv: found what pandas can't read \(.*Expected 2 fields in line 4, saw 3",
        ),
        ("a,y\n1,0\n3\n", r"rows\.csv: found 1 rows without 'y'; expected a value in every row"),
        ("", r"rows\.csv: found what pandas can't read \("),
    ],
)
def test_rows_unlike_the_header_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        inputs(tmp_path / "rows.csv")


@pytest.mark.parametrize("name", ["2.csv.gz", "more/2.csv", "more/deep/2.parquet", "2.tsv", "2.xlsx"])
def test_a_folder_is_read_whole_or_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path / "1.csv", range(10))
    (tmp_path / "README.md").write_text("what this is")
    (tmp_path / "pictures").mkdir()
    write(tmp_path / ".old" / "1.csv", range(10))
    assert inputs(tmp_path) == list(range(10))
    left = tmp_path / name
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(gzip.compress(b"a,y\n1,0\n"))
    found = Path(name).parts[0].replace(".", r"\.")
    with pytest.raises(InputError, match=f"found {found}, which would not be read; expected all tables"):
        inputs(tmp_path)


def test_files_of_unlike_columns_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "1.csv", range(10))
    (tmp_path / "2.csv").write_text("y,b\n1,0\n")
    with pytest.raises(
        InputError, match=r"2\.csv: found the columns 'y', 'b'; expected 'a', 'y', as in 1\.csv"
    ):
        inputs(tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_files_of_unlike_types_are_refused(kind: str, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    for name, values in (("1", ["2A", "01"]), ("2", [1, 2])):
        file = tmp_path / f"{name}.{kind}"
        if kind == "parquet":
            parquet.write_table(pyarrow.table({"a": [0, 1], "y": values}), file)
        else:
            file.write_text("".join(json.dumps({"a": 0, "y": value}) + "\n" for value in values))
    with pytest.raises(InputError, match=r"found int64 in the column 'y'; expected string, as in 1\."):
        inputs(tmp_path)


def test_values_of_several_types_in_a_file_of_json_lines_are_refused(tmp_path: Path) -> None:
    """Though they begin only after what the library reads at once."""
    long = [json.dumps({"a": 0, "y": "01", "more": "x" * 100_000})] * 120
    (tmp_path / "rows.jsonl").write_text("\n".join([*long, json.dumps({"a": 0, "y": 1})]))
    with pytest.raises(InputError, match=r"rows\.jsonl: found values of several types in the column 'y'"):
        inputs(tmp_path / "rows.jsonl")


def test_links_that_lead_back_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "1.csv", range(10))
    for name in "abcdefgh":
        (tmp_path / "rows" / "sub").mkdir(exist_ok=True)
        (tmp_path / "rows" / "sub" / name).symlink_to(tmp_path / "rows" / "sub", target_is_directory=True)
    assert inputs(tmp_path / "rows") == [*range(10)]


def test_shards_may_be_empty_or_have_their_columns_in_another_order(tmp_path: Path) -> None:
    write(tmp_path / "csv" / "1.csv", range(10)), write(tmp_path / "csv" / "2.csv", [])
    (tmp_path / "csv" / "3.csv").write_text("y,a\n1,10\n")
    assert inputs(tmp_path / "csv") == [*range(11)]
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "1.jsonl").write_text("")
    with pytest.raises(InputError, match="found nothing; expected rows"):
        inputs(tmp_path / "json")
    for number, value in ((2, 1), (3, 1.5)):
        row = json.dumps({"a": value, "y": 0}) + "\n"
        (tmp_path / "json" / f"{number}.jsonl").write_text(20 * row)
    assert inputs(tmp_path / "json") == [*20 * [1.0], *20 * [1.5]]
    (tmp_path / "json" / "4.jsonl").write_text(json.dumps({"a": "1", "y": 0}) + "\n")
    with pytest.raises(InputError, match=r"4\.jsonl: found string in the column 'a'"):
        inputs(tmp_path / "json")


def test_no_table_is_told_to_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    counted: list[bool] = []
    monkeypatch.setattr(
        "datasets.load.increase_load_count",
        lambda name: counted.append(datasets.config.HF_UPDATE_DOWNLOAD_COUNTS),
    )
    before = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    assert inputs(write(tmp_path / "1.csv", range(10))) == [*range(10)]
    assert counted and not any(counted)
    assert before == datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
