"""Tables as data: the same columns whatever file they are in, or a refusal that names the file."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from lowdimfa.data import Dataset, table
from lowdimfa.data.splits import SubSplit
from lowdimfa.data.tables import TableSplit
from lowdimfa.errors import InputError

INPUTS = numpy.arange(60, dtype=numpy.float32).reshape(20, 3)
TARGETS = numpy.arange(20) % 3


def assert_whole(data: Dataset, tests: int) -> None:
    """Every row is in one of the splits, with its own target."""
    drawn = [(split, torch.arange(len(split))) for split in (data.train, data.test)]
    inputs, targets = (
        torch.cat([getattr(split, part)(rows) for split, rows in drawn]) for part in ("inputs", "targets")
    )
    assert len(data.test) == tests and data.task == "classification"
    order = inputs[:, 0].argsort()
    assert torch.equal(inputs[order], torch.from_numpy(INPUTS))
    assert torch.equal(targets[order], torch.from_numpy(TARGETS))


def test_who_reads_targets_alone_reads_no_inputs(tables: Path) -> None:
    data = table(str(tables / "rows.parquet"), inputs="row", test=0.2)
    whole = data.train
    while isinstance(whole, SubSplit):
        whole = whole.split
    assert isinstance(whole, TableSplit)
    assert set(whole.target_rows[[0, 1]]) == {"label"} and set(whole.input_rows[[0, 1]]) == {"row"}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    datasets, tmp_path = pytest.importorskip("datasets"), tmp_path_factory.mktemp("tables")
    columns = {name: INPUTS[:, index].tolist() for index, name in enumerate("abc")}
    columns |= {"row": INPUTS.tolist(), "label": TARGETS.tolist(), "word": [f"w{k}" for k in TARGETS]}
    columns |= {"nan": [1.0] * 19 + [float("nan")], "nans": [[1.0, float("nan")]] * 20}
    hole, day = [[1.0, None], *[[1.0, 2.0]] * 19], datetime.datetime(2020, 1, 1)
    columns |= {"hole": hole, "day": [day] * 20, "price": [Decimal("1.5")] * 20}
    columns |= {"ragged": [[1.0] * (1 + k % 2) for k in range(20)], "gap": [None, *range(19)]}
    made = datasets.Dataset.from_dict(columns)
    made = made.add_column("id", [-(2**24), 2**24 + 1, *range(18)])
    made = made.add_column("huge", [2**63, *range(19)], feature=datasets.Value("uint64"))
    datasets.disable_progress_bars()
    made.save_to_disk(str(tmp_path / "saved"))
    made.to_parquet(str(tmp_path / "rows.parquet"))
    made.remove_columns("day").to_json(str(tmp_path / "rows.jsonl"))
    made.remove_columns(["row", "ragged", "hole", "nans"]).to_csv(str(tmp_path / "rows.csv"))
    datasets.DatasetDict(train=made, test=made).save_to_disk(str(tmp_path / "two"))
    (tmp_path / "parts").mkdir()
    for part in range(2):
        made.select(range(part * 10, part * 10 + 10)).to_parquet(
            str(tmp_path / "parts" / f"{part}{('.parquet', '.PARQUET')[part]}")
        )
    (tmp_path / "parts" / ".0.parquet").write_bytes(b"of an editor")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        yield tmp_path


def test_tables_give_their_columns_whatever_file_they_are_in(tables: Path) -> None:
    for name in ("saved", "rows.parquet", "rows.jsonl", "rows.csv", "parts"):
        assert_whole(table(str(tables / name), ["a", "b", "c"], test=0.2), 4)
    path = str(tables / "rows.parquet")
    assert_whole(table(path, "row", "word", test=0.2), 4)
    assert table(path, "row", "a").task == "regression"
    ids = table(path, {"id": "id"}).train.inputs(torch.arange(18))
    assert not isinstance(ids, Tensor) and ids["id"].dtype == torch.int64
    for names, shape in ((["a"], (18, 1)), (["label"], (18, 1)), (["row"], (18, 3)), ("a", (18,))):
        read = table(path, names, "word").train.inputs(torch.arange(18))
        assert isinstance(read, Tensor) and tuple(read.shape) == shape and read.dtype == torch.float32
    named = table(path, {"ids": "row", "more": ["a", "b"]}).train.inputs(torch.tensor([0, 1]))
    assert not isinstance(named, Tensor) and {name: tuple(part.shape) for name, part in named.items()} == {
        "ids": (2, 3),
        "more": (2, 2),
    }


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("rows.parquet", "x", r"rows\.parquet: found no column 'x'; expected one of 'a', 'b'"),
        ("rows.parquet", "gap", r"rows\.parquet: found 1 rows without 'gap'; expected a value in every row"),
        ("rows.parquet", "word", r"rows\.parquet: found str in the column 'word'; expected numbers"),
        ("rows.parquet", "ragged", r"found \[1\] and \[2\] in the column 'ragged'; expected .* of one shape"),
        ("rows.parquet", ["a", "row"], r"found values of shape \[3\] in 'row', one of several"),
        (
            "rows.parquet",
            "nan",
            r"rows\.parquet: found 1 rows with NaN as 'nan'; expected a number in every row",
        ),
        ("saved", ["a", "nan"], r"saved: found 1 rows with NaN as 'nan'; expected a number in every row"),
        (
            "rows.parquet",
            "nans",
            r"found 6 gaps \(NaN\) in 6 rows of the column 'nans'; expected a number at",
        ),
        ("rows.parquet", ["id"], r"found 16777217 in the column 'id', one of those .* up to 16777216"),
        ("rows.parquet", "hole", r"rows\.parquet: found 1 gaps in the lists of 'hole'; expected a number at"),
        ("rows.parquet", "day", r"found timestamp\[us\] in the column 'day'; expected numbers"),
        ("rows.parquet", "price", r"found decimal128\(.*\) in the column 'price'; expected numbers"),
        ("rows.parquet", "huge", r"found 9223372036854775808 in the column 'huge'; expected whole .* below"),
        ("rows.parquet", ["a", "id"], r"found 16777217 in the column 'id', one of those .* up to 16777216"),
        ("two", "a", r"two: found several tables, train, test; expected the path of one"),
        ("torn.parquet", "a", r"torn\.parquet: found what datasets can't read \("),
        (".", "a", r"found files of .*\.csv, \.jsonl, \.parquet kind; expected files of one kind"),
    ],
)
def test_other_tables_are_refused(tables: Path, name: str, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        table(str(tables / name), inputs).train.inputs(torch.arange(6))
