"""Reading tables: forms, choices, and one clear line for everything that is wrong with a file."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pandas as pd
import pytest

from toolkit.data import sources, tables
from toolkit.data.tables import Table, read_table
from toolkit.errors import InputError, MissingPackageError

HOURS = pd.date_range("2024-01-01", periods=48, freq="h")


@pytest.fixture
def frame():
    values = np.random.default_rng(0).normal(1000.0, 1.0, (48, 3))
    return pd.DataFrame(values, columns=["a", "b", "c"]).assign(date=HOURS.astype(str))[["date", "a", "b", "c"]]


def fails(source, *words, **options):
    """Reading fails with one line that holds these words."""
    with pytest.raises(InputError) as caught:
        read_table(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"
    return message


@pytest.fixture
def csv(tmp_path):
    def write(text: str | bytes, name: str = "own.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def rows(*cells, header="date,a,b", start=0):
    """A CSV of hourly rows whose cells are given as text."""
    lines = [f"{HOURS[start + i]},{cell}" for i, cell in enumerate(cells)]
    return "\n".join([header, *lines]) + "\n"


@pytest.mark.parametrize("form", ["csv", "gz", "parquet", "frame", "indexed", "period", "polars-like", "small blocks"])
def test_every_form_reads_the_same(form, frame, tmp_path, monkeypatch):
    path = tmp_path / "own.csv"
    frame.to_csv(path, index=False)
    typed = frame.assign(date=HOURS)
    source: object = path
    if form == "gz":
        source = tmp_path / "own.csv.gz"
        source.write_bytes(gzip.compress(path.read_bytes()))
    elif form == "parquet":
        source = tmp_path / "own.parquet"
        typed.to_parquet(source)
    elif form == "frame":
        source = typed
    elif form == "indexed":
        source = typed.set_index("date").rename_axis(None)
    elif form == "period":
        source = typed.set_index("date").to_period("h")
    elif form == "polars-like":
        source = type("Frame", (), {"to_pandas": lambda self: typed})()
    elif form == "small blocks":
        monkeypatch.setattr(sources, "_BLOCK_CELLS", 1)
    table = read_table(source)
    assert table.columns == ("a", "b", "c")
    assert table.freq == "h"
    assert (table.stamps == HOURS).all()
    np.testing.assert_allclose(table.original(), frame[["a", "b", "c"]], rtol=1e-14)


def test_large_tables_are_float32_relative_to_an_offset(frame, monkeypatch):
    monkeypatch.setattr(tables, "_FLOAT64_NUMBERS", 0)
    table = read_table(frame)
    assert table.values.dtype == np.float32
    np.testing.assert_array_equal(table.offset, frame.loc[0, ["a", "b", "c"]].to_numpy(float))
    error = np.abs(table.original() - frame[["a", "b", "c"]].to_numpy())
    assert error.max() < 5e-7  # plain float32 of 1000 would be wrong by up to 3e-5


@pytest.mark.parametrize(
    ("separator", "end", "prefix"),
    [(",", "\r\n", b""), (";", "\n", b"\xef\xbb\xbf"), ("\t", "\n", b""), (",", "\r", b"")],
)
def test_dialects(csv, separator, end, prefix):
    text = rows("1,2", "3,4", "5,6").replace(",", separator).replace("\n", end)
    np.testing.assert_array_equal(read_table(csv(prefix + text.encode())).original(), [[1, 2], [3, 4], [5, 6]])


def test_missing_last_line_end_and_blank_lines(csv):
    text = rows("1,2", "3,4", "5,6").rstrip("\n")
    assert read_table(csv("\n" + text.replace("\n", "\n\n") + "\n\n")).rows == 3
    assert read_table(csv(text)).rows == 3


def test_header_of_other_bytes_and_quoted_names(csv):
    table = read_table(
        csv('date,"a, b",SWDR (W/m\xb2)\n'.encode("latin-1") + rows("1,2", "3,4").split("\n", 1)[1].encode())
    )
    assert table.columns == ("a, b", "SWDR (W/m\ufffd)")


@pytest.mark.parametrize("name", ["Date", "TIME", "timestamp", "ds", "DateTime"])
def test_time_column_by_name(csv, name):
    assert read_table(csv(rows("1,2", "3,4", header=f"{name},a,b"))).columns == ("a", "b")


def test_time_column_by_content_name_and_absence(csv):
    text = "a,when,b\n" + "\n".join(f"1,{stamp},2" for stamp in HOURS)
    assert read_table(csv(text)).columns == ("a", "b")
    assert read_table(csv(text), time="when").freq == "h"
    bare = read_table(csv("a,b\n1,2\n3,4\n"))
    assert (bare.stamps, bare.freq, bare.rows) == (None, None, 2)
    assert read_table(csv("time,b\n0.5,2\n1.0,4\n"), time="").columns == ("time", "b")
    fails(csv("a,b\n1,2\n3,4\n"), "no time column", "'h'", "data.time", freq="h")


def test_an_unnamed_column_is_an_index(csv, frame, tmp_path):
    path = tmp_path / "indexed.csv"
    frame.to_csv(path)
    assert read_table(path).columns == ("a", "b", "c")
    frame.set_index("date").rename_axis(None).to_csv(path)
    assert read_table(path).freq == "h"
    frame.set_axis(frame.index + 5).to_parquet(tmp_path / "i.parquet")
    assert read_table(tmp_path / "i.parquet").columns == ("a", "b", "c")


def test_columns_are_chosen_and_ordered(frame):
    assert read_table(frame, columns=["c", "a"]).columns == ("c", "a")
    assert read_table(frame, last="a").columns == ("b", "c", "a")
    table = read_table(frame)
    assert table.select(["c", "a"]).original()[3, 1] == frame["a"][3]
    assert table.select(table.columns) is table
    assert table.summary() == {
        "rows": 48,
        "columns": ["a", "b", "c"],
        "step": "h",
        "stamps": ["2024-01-01 00:00:00", "2024-01-02 23:00:00"],
    }


def test_text_columns_may_be_left_out(csv):
    path = csv("date,city,a\n" + "\n".join(f"{stamp},Paris,{i}" for i, stamp in enumerate(HOURS)))
    fails(path, "own.csv", "'city'", "row 1 (line 2)", "'Paris'", "data.columns=[")
    assert read_table(path, columns=["a"]).rows == 48


def test_numbers_stored_as_other_types():
    table = read_table(
        pd.DataFrame({"flag": [True, False], "text": ["1.5", "2"], "whole": pd.array([1, 2], dtype="Int64"), 3: [1, 2]})
    )
    assert table.columns == ("flag", "text", "whole", "3")
    np.testing.assert_array_equal(table.original(), [[1, 1.5, 1, 1], [0, 2, 2, 2]])


def test_bad_files(csv, tmp_path):
    fails(tmp_path / "absent.csv", "absent.csv does not exist")
    csv("x", "data.csv")
    fails(tmp_path / "dta.csv", "does not exist", "'data.csv'")
    fails(tmp_path, "is a folder")
    fails(csv(""), "own.csv is empty")
    fails(csv("date,a\n"), "own.csv has no rows")
    fails(csv(rows("1,2")), "own.csv has 1 row")
    fails(csv(b"\x00\x01binary"), "neither text nor Parquet")
    fails(
        csv(gzip.compress(rows("1,2", "3,4").encode() * 99)[:-20], "cut.csv.gz"),
        "cut.csv.gz",
        "not a complete gzip file",
    )
    fails(csv("PK", "book.xlsx"), "book.xlsx", "Export")
    fails(csv("no", "own.parquet"), "own.parquet is not a Parquet file")
    fails(csv("0.1,0.2\n0.3,0.4\n"), "no header", "0.1,0.2")
    fails(csv(rows("1,2", "3,4")[5:].replace("a,b", "2020-01-01,1.5,2")), "no header")
    fails(42, "int is not a table")


def test_bad_columns(csv, frame):
    fails(csv(rows("1,2", header="date,a,a")), "own.csv", "several columns named 'a'")
    fails(frame.set_axis(["date", "a", "b", "a"], axis=1), "several columns named 'a'")
    fails(frame.rename(columns={"a": "load"}), "no column 'laod'", "'load'", columns=["laod"])
    fails(frame, "no columns 'x', 'y'", columns=["x", "y"])
    fails(frame, "no column 'dat'", "'date'", time="dat")
    fails(frame, "'a' twice", columns=["a", "a"])
    fails(frame, "'date' is the time column", columns=["date"])
    fails(frame[["date"]], "no column of numbers")
    fails(frame.set_index(["date", "a"]), "index levels")
    table = read_table(frame)
    with pytest.raises(InputError, match=r"no target 'd'. It has 'a', 'b', 'c'"):
        table.index("d", "target")


def test_bad_cells(csv):
    fails(csv(rows("1,2", "3,x", "5,6")), "own.csv", "'b'", "row 2 (line 3)", "'x'", "is not a number", "fill=N")
    fails(csv(rows("1,2", "3,4,5")), "own.csv", "line 3", "saw 4")
    fails(csv(rows("1,2,3", "3,4,5")), "own.csv", "more cells")
    fails(csv(rows("1,2", "3,4").replace("01:00", "25:00")), "'date'", "row 2 (line 3)", "25:00")


def test_offending_rows_count_over_blocks(csv, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK_CELLS", 1)
    fails(csv(rows(*["1,2"] * 40, "1,y")), "row 41 (line 42)", "'y'")
    fails(csv(rows(*["1,2"] * 40, ",2", "1,2")), "'a'", str(HOURS[40]), "row 41 (line 42)")


def test_stamps_are_checked_only_where_asked(csv):
    doubled = rows("1,2", "3,4").rstrip() + f"\n{HOURS[1]},5,6\n"
    fails(csv(doubled), "'date'", "row 3 (line 4)", "repeats")
    loose = read_table(csv(doubled), strict=False, freq="10min")
    assert (loose.rows, loose.freq) == (3, "10min")


@pytest.mark.parametrize("hole", ["", "NaN", "inf", "-inf", "1e999"])
def test_gaps(csv, hole):
    text = rows("0,5", f"{hole},5", f"{hole},5", "3,5", f"{hole},5", "5,5")
    fails(csv(text), "'a'", "2 missing or infinite values", "2024-01-01 01:00:00", "row 2", "Set fill=2")
    fails(csv(text), "Set fill=2", fill=1)
    np.testing.assert_allclose(read_table(csv(text), fill=2).original()[:, 0], range(6))


def test_gaps_at_the_ends_and_empty_columns(csv):
    fails(
        csv(rows("1,2", "3,")),
        "'b'",
        "1 missing or infinite value from 2024-01-01 01:00:00",
        "cannot be interpolated",
        fill=9,
    )
    fails(csv(rows(",2", "3,4")), "'a'", "2024-01-01 00:00:00", fill=9)
    fails(csv(rows(",2", ",4")), "'a'", "2 missing or infinite values", fill=9)


def test_first_value_may_come_late(monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK_CELLS", 1)
    block = np.arange(40.0)[:, None] + 7
    block[:20] = np.nan
    table = Table.from_array("t", ["a"], block)
    np.testing.assert_array_equal(table.original(20), block[20:])
    assert np.isnan(table.original(0, 20)).all()


def test_sentinels_are_missing_values(csv):
    text = rows("0,5", "-9999,5", "2,5")
    assert read_table(csv(text), fill=1, sentinels=(-9999.0,)).original()[1, 0] == 1


def test_parquet_needs_its_package(csv, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"gated-toolkit\[parquet\]"):
        read_table(csv("x", "own.parquet"))
