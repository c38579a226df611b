"""Long tables: recognised, pivoted, and refused with one clear line."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from toolkit.data.tables import read_table
from toolkit.errors import InputError

TIMES = pd.date_range("2024-01-01", periods=30, freq="h")


def long_table() -> pd.DataFrame:
    """Two series, ``east`` from 0 and ``7`` from 100 on, both rising by one an hour."""
    parts = [
        pd.DataFrame({"unique_id": name, "ds": TIMES, "y": start + np.arange(30.0)})
        for name, start in (("east", 0), (7, 100))
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("form", ["frame", "index", "csv", "gz", "parquet", "shuffled", "with a row index"])
def test_every_form_gives_the_wide_table(form, tmp_path):
    frame = long_table()
    source = {"frame": frame, "index": frame.set_index("unique_id"), "shuffled": frame.sample(frac=1, random_state=3)}
    if form in source:
        table = read_table(source[form])
    else:
        path = tmp_path / {"gz": "long.csv.gz", "parquet": "long.parquet"}.get(form, "long.csv")
        if form == "parquet":
            pytest.importorskip("pyarrow")
            frame.astype({"unique_id": str}).to_parquet(path)
        else:
            frame.to_csv(path, index=form == "with a row index")
        table = read_table(path)
    assert table.long
    assert set(table.columns) == {"east", "7"}
    assert table.freq == "h"
    assert list(table.stamps) == list(TIMES)
    np.testing.assert_array_equal(table.select(["east", "7"]).original(), np.arange(30.0)[:, None] + [0, 100])


def test_columns_choose_series_and_a_wide_table_is_not_long():
    assert read_table(long_table(), columns=["7"]).columns == ("7",)
    wide = long_table().pivot(index="ds", columns="unique_id", values="y").rename(columns=str)
    assert not read_table(wide).long


def test_a_missing_row_inside_is_a_gap_that_fill_mends():
    frame = long_table().drop(index=[40])
    with pytest.raises(InputError, match=r"column '7' has 1 missing .* from 2024-01-01 10:00:00.*fill=1"):
        read_table(frame)
    np.testing.assert_allclose(read_table(frame, fill=1).original(9, 12)[:, 1], [109, 110, 111])


def without(column: str):
    return lambda frame: frame.drop(columns=column)


def replaced(column: str, row: int, value):
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value
        return frame

    return change


BAD = {
    "repeated": (lambda frame: pd.concat([frame, frame.iloc[[3]]]), "row 61", "repeats unique_id 'east'"),
    "no values": (without("y"), "no 'y'"),
    "no times": (without("ds"), "no 'ds'"),
    "another column": (lambda frame: frame.assign(price=1.0), "'price'"),
    "no number": (replaced("y", 40, "many"), "row 41", "'many' is not a number"),
    "no name": (replaced("unique_id", 4, None), "row 5", "no unique_id"),
    "no time": (replaced("ds", 4, None), "row 5", "no time stamp"),
    "no date": (lambda frame: frame.astype({"ds": str}).replace("2024-01-01 03:00:00", "soon"), "'soon' is not a date"),
    "later start": (lambda frame: frame.drop(index=[30, 31]), "'7' spans", "Keep the rows from 2024-01-01 02:00:00"),
    "earlier end": (lambda frame: frame.drop(index=[29]), "'east' spans", "to 2024-01-02 04:00:00"),
    "no overlap": (lambda frame: frame.iloc[[*range(5), *range(50, 60)]], "do not overlap"),
    "a gap of all": (lambda frame: frame[frame["ds"] != TIMES[7]], "expected 2024-01-01 07:00:00"),
    "no rows": (lambda frame: frame.iloc[:0], "has no rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_long_tables_are_one_line(name, tmp_path):
    change, *mentioned = BAD[name]
    change(long_table()).to_csv(tmp_path / "long.csv", index=False)
    with pytest.raises(InputError) as caught:
        read_table(tmp_path / "long.csv")
    message = str(caught.value)
    assert "\n" not in message
    assert "long.csv" in message
    for text in mentioned:
        assert text in message
