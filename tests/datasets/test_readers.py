"""Every family's reader, on small files of its form and on the real ones where they are."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pandas as pd
import pytest

from toolkit.data import cards
from toolkit.data.cache import find, locate
from toolkit.errors import InputError

ETT = ("etth1", "etth2", "ettm1", "ettm2")
CUSTOM = ("exchange", "weather", "weather_clean", "ili", "electricity", "traffic")


def read(name, path, **options):
    return cards.reader(name).read(name, path, **options)


def numbers(rows=30, columns=3):
    return np.random.default_rng(0).normal(10, 1, (rows, columns)).round(3)


@pytest.fixture
def benchmark_csv(tmp_path):
    """A file in the benchmark's form whose OT stands first, with a repeated and a skipped stamp."""
    stamps = pd.date_range("2020-01-01", periods=30, freq="10min").to_list()
    stamps[5], stamps[20:] = stamps[4], [stamp + pd.Timedelta(hours=1) for stamp in stamps[20:]]
    frame = pd.DataFrame(numbers(), columns=["OT", "p (mbar)", "wv (m/s)"]).assign(date=stamps)
    path = tmp_path / "weather.csv"
    frame[["date", "OT", "p (mbar)", "wv (m/s)"]].to_csv(path, index=False, lineterminator="\r\n")
    return path


@pytest.mark.parametrize("name", ETT)
def test_ett_keeps_the_order(name, benchmark_csv):
    assert read(name, benchmark_csv).columns == ("OT", "p (mbar)", "wv (m/s)")


@pytest.mark.parametrize("name", CUSTOM)
def test_custom_sets_end_with_the_target_and_ignore_stamps(name, benchmark_csv):
    table = read(name, benchmark_csv)
    assert table.columns == ("p (mbar)", "wv (m/s)", "OT")
    assert table.freq == cards.card(name).freq
    np.testing.assert_allclose(table.original(), numbers()[:, [1, 2, 0]])


def test_weather_keeps_its_sentinels_and_weather_clean_fills_them(benchmark_csv):
    lines = benchmark_csv.read_text().splitlines()
    cells = lines[10].split(",")
    lines[10] = ",".join([*cells[:3], "-9999.0"])
    benchmark_csv.write_text("\n".join(lines))
    kept, clean = read("weather", benchmark_csv).original(), read("weather_clean", benchmark_csv).original()
    assert kept[9, 1] == -9999
    assert clean[9, 1] == pytest.approx((kept[8, 1] + kept[10, 1]) / 2)
    np.testing.assert_allclose(np.delete(clean, 9, 0), np.delete(kept, 9, 0))


def test_exchange_stamps(tmp_path):
    path = tmp_path / "exchange_rate.csv"
    days = [f"1990/1/{day} 0:00" for day in range(1, 31)]
    pd.DataFrame(numbers(), columns=["0", "1", "OT"]).assign(date=days)[["date", "0", "1", "OT"]].to_csv(
        path, index=False
    )
    assert read("exchange", path).stamps[-1] == pd.Timestamp("1990-01-30")


def test_solar_has_neither_header_nor_stamps(tmp_path):
    path = tmp_path / "solar_AL.txt"
    np.savetxt(path, numbers(), delimiter=",", fmt="%.3f")
    table = read("solar", path)
    assert (table.columns, table.stamps, table.rows) == (("0", "1", "2"), None, 30)
    np.testing.assert_allclose(table.original(), numbers())
    assert read("solar", path, columns=["2"]).original()[4, 0] == pytest.approx(numbers()[4, 2])
    with pytest.raises(InputError, match="solar: 'time' cannot be set"):
        read("solar", path, time="date")


@pytest.mark.parametrize("name", ["pems03", "pems04", "pems07", "pems08"])
def test_pems_reads_feature_0(name, tmp_path):
    path = tmp_path / "PEMS.npz"
    flow = np.stack([numbers(), np.zeros((30, 3))], axis=2)
    flow[3, 1, 0] = np.nan
    np.savez(path, data=flow)
    table = read(name, path)
    assert (table.columns, table.stamps) == (("0", "1", "2"), None)
    np.testing.assert_allclose(table.original(), flow[:, :, 0])
    assert read(name, path, columns=["2", "0"]).columns == ("2", "0")


def test_bad_pems_files(tmp_path):
    path = tmp_path / "PEMS.npz"
    for save in (
        lambda: path.write_text("no archive"),
        lambda: np.savez(path, other=numbers()),
        lambda: np.savez(path, data=np.array([{}], dtype=object)),
    ):
        save()
        with pytest.raises(InputError, match=r"PEMS.npz is not an .npz file with a numeric array 'data'"):
            read("pems08", path)
    np.savez(path, data=numbers())
    with pytest.raises(InputError, match=r"shape \(30, 3\)"):
        read("pems08", path)


def beijing(tmp_path, dust):
    """A file in UCI's form whose first row is hour 0 of 2010-01-01."""
    stamps = pd.date_range("2010-01-01", periods=len(dust), freq="h")
    frame = pd.DataFrame({"No": range(1, len(dust) + 1)})
    for part in ("year", "month", "day", "hour"):
        frame[part] = getattr(stamps, part)
    frame["pm2.5"], frame["DEWP"], frame["TEMP"], frame["PRES"] = dust, -20, -10, 1020
    frame["cbwd"] = ["NW", "NE", "SE", "cv"] * (len(dust) // 4)
    frame["Iws"], frame["Is"], frame["Ir"] = 1.79, 0, 0
    path = tmp_path / "beijing_pm25.csv"
    frame.to_csv(path, index=False, na_rep="NA")
    return path


def test_beijing_fills_its_gaps_and_turns_the_wind_into_numbers(tmp_path):
    dust = np.arange(48.0) * 10
    dust[:4] = np.nan  # the late beginning
    dust[10:16] = np.nan  # 6 hours: interpolated
    dust[20:27] = np.nan  # 7 hours: the last value stays
    dust[46:] = np.nan  # the end
    table = read("beijing_pm25", beijing(tmp_path, dust))
    assert table.columns == ("pm2.5", "DEWP", "TEMP", "PRES", "log1p(Iws)", "wind_east", "wind_north")
    assert (table.rows, table.stamps[0], table.freq) == (44, pd.Timestamp("2010-01-01 04:00"), "h")
    expected = np.arange(48.0) * 10
    expected[20:27], expected[46:] = 190, 450
    values = table.original()
    np.testing.assert_allclose(values[:, 0], expected[4:])
    np.testing.assert_allclose(values[:, 4], math.log1p(1.79))
    half = math.sqrt(0.5)
    np.testing.assert_allclose(values[:4, 5:], [[-half, half], [half, half], [half, -half], [0, 0]])
    assert read("beijing_pm25", tmp_path / "beijing_pm25.csv", columns=["PRES"]).columns == ("PRES",)


def test_a_file_in_another_form_is_not_beijing(benchmark_csv):
    with pytest.raises(InputError, match="has no column 'year'"):
        read("beijing_pm25", benchmark_csv)


def test_the_embedded_file_is_the_published_one():
    card = cards.card("beijing_pm25")
    table = read("beijing_pm25", find(card))
    assert (table.rows, len(table.columns)) == (card.rows, card.columns)
    assert table.stamps[0] == pd.Timestamp("2010-01-02")
    assert (np.diff(table.stamps) == np.timedelta64(1, "h")).all()
    assert np.isfinite(table.values).all()
    assert table.original(0, 2)[:, 0].tolist() == [129, 148]


@pytest.mark.parametrize("name", [*ETT, "exchange", "weather", "weather_clean", "ili"])
def test_real_files(name, real_data, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(real_data))
    card = cards.card(name)
    if locate(card) is None:
        pytest.skip(f"{card.file} is not in {real_data}")
    table = read(name, find(card))
    assert (table.rows, len(table.columns), table.freq) == (card.rows, card.columns, card.freq)
    assert table.columns[-1] == "OT"
    values = table.original()
    if name.startswith("weather"):
        assert (values == -9999).sum() == (81 if name == "weather" else 0)
    if name == "exchange":
        assert values[0].tolist() == [0.7855, 1.611, 0.861698, 0.634196, 0.211242, 0.006838, 0.525486, 0.593]


def test_hashes_are_of_uncompressed_bytes():
    card = cards.card("beijing_pm25")
    import gzip

    content = gzip.decompress(find(card).read_bytes())
    file = card.files[card.file]
    assert (hashlib.sha256(content).hexdigest(),) == file.sha256
    assert len(content) == file.bytes
