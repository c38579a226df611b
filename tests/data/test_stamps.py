"""Time stamps: formats, steps, futures and calendar features."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from toolkit.data.stamps import (
    CALENDAR,
    StampParser,
    calendar_features,
    calendar_kind,
    check_regular,
    future_stamps,
    infer_step,
    looks_like_stamps,
)
from toolkit.errors import InputError


def place(row: int) -> str:
    return f"row {row + 1}"


def parse(*blocks):
    parser = StampParser("own.csv: column 'date'", place)
    for block in blocks:
        parser.add(pd.Series(block, dtype=object))
    return parser.finish()


@pytest.mark.parametrize(
    ("texts", "last"),
    [
        (["2016-07-01 00:00:00", "2016-07-01 01:00:00"], "2016-07-01 01:00"),
        (["2016-07-01", "2016-07-01 01:00:00"], "2016-07-01 01:00"),  # midnight without its time
        (["1990/1/1 0:00", "1990/1/2 0:00"], "1990-01-02"),
        (["01/02/2020", "13/02/2020"], "2020-02-13"),  # only day first fits
        (["01/02/2020", "01/03/2020"], "2020-01-03"),  # both fit: month first
        ([20160701, 20160702], "2016-07-02"),
        (["2020-01-01T00:00+01:00", "2020-01-01T01:00+01:00"], "2020-01-01 00:00Z"),
    ],
)
def test_formats(texts, last):
    assert parse(texts)[-1] == pd.Timestamp(last)
    assert parse(texts[:1], texts[1:])[-1] == pd.Timestamp(last)  # in two blocks


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([["2020-01-01", "soon"]], ["row 2", "'soon'", "data.time"]),
        ([["2020-01-01"], ["2020-01-02", "2020-13-01"]], ["row 3", "'2020-13-01'"]),
        ([["2020-01-01"], [None]], ["row 2", "no time stamp"]),
        ([[1467331200, 1467334800]], ["row 1", "'1467331200'"]),
        ([["2020-01-01 00:00", "2020-01-01 01:00+01:00"]], ["offset from UTC"]),
    ],
)
def test_unreadable_stamps_are_named(blocks, words):
    with pytest.raises(InputError) as caught:
        parse(*blocks)
    assert all(word in str(caught.value) for word in ["own.csv", "'date'", *words])


def test_numbers_are_not_taken_for_stamps():
    assert looks_like_stamps(pd.Series(["2020-01-01 00:00", None]))
    assert not looks_like_stamps(pd.Series(["20200101", "20200102"]))
    assert not looks_like_stamps(pd.Series(["NW", "SE"]))
    assert not looks_like_stamps(pd.Series([1.0, 2.0]))
    assert not looks_like_stamps(pd.Series([None, None], dtype=object))


@pytest.mark.parametrize("freq", ["h", "15min", "10s", "D", "B", "W-TUE", "MS", "ME", "QS-OCT", "90min"])
def test_step_is_inferred_and_extended(freq):
    stamps = pd.date_range("2016-07-01", periods=20, freq=freq)
    found = check_regular(stamps[:12], None, "t", place)
    assert (future_stamps(stamps[:12], found, 8, 12) == stamps[12:]).all()
    assert check_regular(stamps, freq, "t", place) == freq


def test_two_stamps_have_a_step():
    assert infer_step(pd.DatetimeIndex(["2020-01-01", "2020-01-01 02:00"])) == "2h"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda s: s.delete(5),
            ["row 6", "expected 2024-01-01 05:00:00 by the step of h,", "found 2024-01-01 06:00:00", "fill=N"],
        ),
        (lambda s: s.insert(5, s[4]), ["row 6", "repeats", "2024-01-01 04:00:00"]),
        (lambda s: s[::-1], ["row 2", "2024-01-02 22:00:00 comes after 2024-01-02 23:00:00", "Sort"]),
    ],
)
def test_irregular_stamps_are_named(edit, words):
    stamps = edit(pd.date_range("2024-01-01", periods=48, freq="h"))
    with pytest.raises(InputError) as caught:
        check_regular(stamps, None, "own.csv: column 'date'", place)
    assert all(word in str(caught.value) for word in words)


def test_given_step_is_compared():
    stamps = pd.date_range("2024-01-01", periods=48, freq="h")
    with pytest.raises(InputError, match=r"row 2: expected 2024-01-01 00:15:00 by the step of 15min, found .* 01:00"):
        check_regular(stamps, "15min", "t", place)
    with pytest.raises(InputError, match="'often' is not a step"):
        check_regular(stamps, "often", "t", place)


def test_rows_are_numbered_without_stamps():
    assert list(future_stamps(None, None, 3, 10)) == [10, 11, 12]


def test_calendar_features_follow_the_protocol():
    stamps = pd.DatetimeIndex(["2018-01-01 00:00:00", "2018-12-31 23:59:59", "2018-06-15 12:30:30"])
    hour, weekday, day, dayofyear = calendar_features(stamps, "h").T
    np.testing.assert_allclose(hour, [-0.5, 0.5, 12 / 23 - 0.5], atol=1e-7)
    np.testing.assert_allclose(weekday, [-0.5, -0.5, 4 / 6 - 0.5], atol=1e-7)
    np.testing.assert_allclose(day, [-0.5, 0.5, 14 / 30 - 0.5], atol=1e-7)
    np.testing.assert_allclose(dayofyear, [-0.5, 364 / 365 - 0.5, 165 / 365 - 0.5], atol=1e-7)
    assert {kind: calendar_features(stamps, kind).shape[1] for kind in CALENDAR} == {
        "h": 4,
        "t": 5,
        "s": 6,
        "d": 3,
        "b": 3,
        "w": 2,
        "m": 1,
    }
    np.testing.assert_allclose(calendar_features(stamps, "w")[:, 1], [-0.5, -0.5, 23 / 52 - 0.5], atol=1e-7)
    np.testing.assert_allclose(calendar_features(stamps, "m")[:, 0], [-0.5, 0.5, 5 / 11 - 0.5], atol=1e-7)
    np.testing.assert_allclose(
        calendar_features(stamps, "s")[:, :2], [[-0.5] * 2, [0.5] * 2, [30 / 59 - 0.5] * 2], atol=1e-7
    )


@pytest.mark.parametrize(
    ("freq", "kind"),
    [
        ("h", "h"),
        ("2h", "h"),
        ("15min", "t"),
        ("10s", "s"),
        ("D", "d"),
        ("B", "b"),
        ("W-TUE", "w"),
        ("MS", "m"),
        ("YE", "m"),
    ],
)
def test_calendar_kind(freq, kind):
    assert calendar_kind(freq) == kind


@pytest.mark.parametrize("as_text", [True, False])
def test_stamps_across_a_change_of_the_clock_are_regular_in_utc(as_text):
    stamps = pd.date_range("2020-03-28", periods=60, freq="h", tz="Europe/Berlin")  # the clock changes on the 29th
    parser = StampParser("own.csv", str)
    parser.add(pd.Series(stamps.astype(str) if as_text else stamps))
    parsed = parser.finish()
    assert str(parsed.tz) == "UTC"
    assert check_regular(parsed, None, "own.csv", str) == "h"
    assert future_stamps(parsed, "h", 1, 60)[0] == stamps[-1] + pd.Timedelta("1h")
