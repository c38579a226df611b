"""Splits, standardisation and windows of the protocol, and the way from a table to a forecast's input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from toolkit.data import cards, tables
from toolkit.data.tables import Table, read_table
from toolkit.errors import DataNotFoundError, InputError
from toolkit.tasks.forecast.data import future_input, load_data, num_windows, season_of, split_borders

ROOT = Path(__file__).parents[3]

# The protocol's tables of window counts: set, look-back, {horizon: (train, validation, test)}.
COUNTS = {
    ("etth1", 96): {
        96: (8449, 2785, 2785), 192: (8353, 2689, 2689), 336: (8209, 2545, 2545), 720: (7825, 2161, 2161),
    },
    ("ettm2", 96): {
        96: (34369, 11425, 11425), 192: (34273, 11329, 11329), 336: (34129, 11185, 11185), 720: (33745, 10801, 10801),
    },
    ("exchange", 96): {96: (5120, 665, 1422), 192: (5024, 569, 1326), 336: (4880, 425, 1182), 720: (4496, 41, 798)},
    ("weather", 96): {
        96: (36696, 5175, 10444), 192: (36600, 5079, 10348), 336: (36456, 4935, 10204), 720: (36072, 4551, 9820),
    },
    ("electricity", 96): {
        96: (18221, 2537, 5165), 192: (18125, 2441, 5069), 336: (17981, 2297, 4925), 720: (17597, 1913, 4541),
    },
    ("traffic", 96): {
        96: (12089, 1661, 3413), 192: (11993, 1565, 3317), 336: (11849, 1421, 3173), 720: (11465, 1037, 2789),
    },
    ("solar", 96): {
        96: (36601, 5161, 10417), 192: (36505, 5065, 10321), 336: (36361, 4921, 10177), 720: (35977, 4537, 9793),
    },
    ("pems03", 96): {
        3: (15626, 5144, 5144), 6: (15623, 5141, 5141), 12: (15617, 5135, 5135), 24: (15605, 5123, 5123),
        48: (15581, 5099, 5099), 96: (15533, 5051, 5051),
    },
    ("pems04", 96): {
        3: (10097, 3300, 3301), 6: (10094, 3297, 3298), 12: (10088, 3291, 3292), 24: (10076, 3279, 3280),
        48: (10052, 3255, 3256), 96: (10004, 3207, 3208),
    },
    ("pems07", 96): {
        3: (16836, 5547, 5547), 6: (16833, 5544, 5544), 12: (16827, 5538, 5538), 24: (16815, 5526, 5526),
        48: (16791, 5502, 5502), 96: (16743, 5454, 5454),
    },
    ("pems08", 96): {
        3: (10615, 3473, 3474), 6: (10612, 3470, 3471), 12: (10606, 3464, 3465), 24: (10594, 3452, 3453),
        48: (10570, 3428, 3429), 96: (10522, 3380, 3381),
    },
    ("ili", 36): {24: (617, 74, 170), 36: (605, 62, 158), 48: (593, 50, 146), 60: (581, 38, 134)},
}  # fmt: skip
TPGN = {168: (10117, 3317, 3317), 336: (9949, 3149, 3149), 720: (9565, 2765, 2765), 1440: (8845, 2045, 2045)}


def counts(rule, rows, lookback, horizon):
    borders = split_borders(rule, rows, lookback)
    return tuple(num_windows(stop - start, lookback, horizon) for start, stop in borders.values())


@pytest.mark.parametrize(("name", "lookback"), COUNTS)
def test_window_counts_of_the_protocol(name, lookback):
    card = cards.card(name)
    for horizon, expected in COUNTS[name, lookback].items():
        assert counts(card.split, card.rows, lookback, horizon) == expected


def test_window_counts_of_tpgn():
    for horizon, expected in TPGN.items():
        assert counts("ratio_6_2_2", 17_420, 168, horizon) == expected


def test_splits_are_named():
    with pytest.raises(InputError, match="'ratio_7_1_2'"):
        split_borders("ratio_712", 100, 1)
    with pytest.raises(InputError, match=r"ett_hour needs 14400 rows, there are 600"):
        split_borders("ett_hour", 600, 96)


@pytest.fixture
def pressures(tmp_path):
    """1,000 hours of a large level that varies little, a counter, a sparse column and a constant."""
    draws = np.random.default_rng(0)
    values = np.column_stack(
        [
            101_325 + draws.normal(0, 0.5, 1000).round(2),
            np.arange(1000) + 1e7,
            draws.exponential(2, 1000) * (draws.random(1000) < 0.1),
            np.full(1000, 0.1),
        ]
    )
    frame = pd.DataFrame(values, columns=["pressure", "counter", "rain", "flat"])
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=1000, freq="h"))
    path = tmp_path / "own.csv"
    frame.to_csv(path, index=False)
    return path, values


@pytest.mark.parametrize("limit", [1 << 21, 0], ids=["float64", "float32"])
def test_standardisation_is_that_of_scikit_learn(pressures, monkeypatch, limit):
    monkeypatch.setattr(tables, "_FLOAT64_NUMBERS", limit)
    path, values = pressures
    data = load_data(path, lookback=24, horizon=12)
    scaler = StandardScaler().fit(values[:700])
    exact = 1e-9 if limit else 1e-7
    np.testing.assert_allclose(data.mean, scaler.mean_, rtol=exact)
    np.testing.assert_allclose(data.std, scaler.scale_, rtol=exact)
    np.testing.assert_allclose(data.values, scaler.transform(values), atol=2e-6)
    assert data.values.dtype == torch.float32
    assert data.std[3] == 1
    np.testing.assert_allclose(data.inverse(data.values), values, rtol=1e-7, atol=1e-6)


def test_windows_are_views_of_the_rows(pressures):
    data = load_data(pressures[0], lookback=24, horizon=12, marks=True)
    assert data.splits == {"train": (0, 700), "val": (676, 800), "test": (776, 1000)}
    for split, (start, stop) in data.splits.items():
        last = data.num_windows(split) - 1
        x, y, marks = data.batch(split, torch.tensor([0, last, 3]))
        assert (x.shape, y.shape, marks.shape) == ((3, 24, 4), (3, 12, 4), (3, 36, 4))
        torch.testing.assert_close(x[2], data.values[start + 3 : start + 27])
        torch.testing.assert_close(y[1], data.values[stop - 12 : stop])
        torch.testing.assert_close(marks[0], data.marks[start : start + 36])
    first = data.batch("val", torch.tensor([0]))[1]
    torch.testing.assert_close(first[0], data.values[700:712])  # targets never come from another split


def test_modes(make_csv):
    path = make_csv()
    options = {"lookback": 48, "horizon": 24}
    many = load_data(path, **options)
    assert (many.target, many.outputs) == (None, ("load0", "load1", "load2"))
    scored = load_data(path, target="load1", **options)
    assert (scored.target, scored.outputs, scored.values.shape[1]) == (1, ("load1",), 3)
    x, y, _ = scored.batch("test", torch.arange(2))
    assert (x.shape, y.shape) == ((2, 48, 3), (2, 24, 1))
    np.testing.assert_allclose(scored.inverse(y), many.inverse(many.batch("test", torch.arange(2))[1])[..., 1:2])
    single = load_data(path, target="load1", mode="S", **options)
    assert (single.columns, single.target, single.batch("val", torch.arange(1))[0].shape) == (("load1",), 0, (1, 48, 1))
    assert load_data(path, target="load1", mode="M", **options).target is None
    for mode in ("S", "MS"):
        with pytest.raises(InputError, match=r"mode M?S scores one column of own.csv. Name it with data.target"):
            load_data(path, mode=mode, **options)
    with pytest.raises(InputError, match=r"no target column 'laod1'. Did you mean 'load"):
        load_data(path, target="laod1", **options)
    with pytest.raises(InputError, match="unknown mode 'SM'"):
        load_data(path, mode="SM", **options)


def test_named_sets_with_another_file(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(14_400, 3)), columns=["HUFL", "OT", "MUFL"])
    frame.insert(0, "date", pd.date_range("2016-07-01", periods=14_400, freq="h"))
    path = tmp_path / "like_ett.csv"
    frame.to_csv(path, index=False)
    data = load_data("ETTh1", path=path, lookback=96, horizon=96, mode="MS")
    assert data.columns == ("HUFL", "OT", "MUFL")
    assert (data.outputs, data.season, data.freq) == (("OT",), 24, "h")
    assert [data.num_windows(split) for split in data.splits] == [8449, 2785, 2785]
    frame[:600].to_csv(path, index=False)
    with pytest.raises(InputError, match=r"ett_hour needs 14400 rows"):
        load_data("etth1", path=path, lookback=96, horizon=96)
    frame.to_csv(path, index=False)
    with pytest.raises(InputError, match=r"A horizon of at most 2880 fits$"):  # fixed borders: more rows do not help
        load_data("etth1", path=path, lookback=96, horizon=5000)
    frame[:600].to_csv(path, index=False)
    assert load_data("etth1", path=path, split="ratio_7_1_2", lookback=24, horizon=24).splits["train"] == (0, 420)


def test_unknown_sources():
    with pytest.raises(InputError, match=r"'eth1' is neither a data set nor a file. Did you mean 'etth1'"):
        load_data("eth1", lookback=1, horizon=1)
    with pytest.raises(InputError, match=r"absent.csv does not exist"):
        load_data("absent.csv", lookback=1, horizon=1)
    with pytest.raises(DataNotFoundError, match="toolkit data get etth1"):
        load_data("etth1", lookback=1, horizon=1)


def test_too_few_rows_name_the_numbers(make_csv):
    path = make_csv(rows=200)
    with pytest.raises(InputError) as caught:
        load_data(path, lookback=96, horizon=96)
    message = str(caught.value)
    for word in (
        "own.csv",
        "200 rows",
        "lookback=96",
        "horizon=96",
        "a window takes 192",
        "the val split has 116 rows",
        "A horizon of at most 20 fits",
    ):
        assert word in message
    enough = int(message.split("at least ")[-1].split()[0])
    assert min(counts("ratio_7_1_2", enough, 96, 96)) == 1
    assert min(counts("ratio_7_1_2", enough - 1, 96, 96)) < 1
    assert load_data(path, lookback=96, horizon=20).num_windows("val") == 1
    with pytest.raises(InputError, match=r"Use a shorter look-back, or give at least"):
        load_data(path, lookback=300, horizon=96)
    with pytest.raises(InputError, match=r"horizon=100000.*or give at least 999991 rows"):
        load_data(path, lookback=96, horizon=100_000)


def test_pems_fills_missing_values_inside_each_split(tmp_path):
    flow = np.random.default_rng(0).normal(50, 5, (100, 2, 1))
    flow[58:63, 0], flow[99, 1] = np.nan, np.nan  # a gap over the border at row 60, and one at the end
    path = tmp_path / "PEMS08.npz"
    np.savez(path, data=flow)
    data = load_data("pems08", path=path, lookback=4, horizon=2)
    assert data.splits == {"train": (0, 60), "val": (60, 80), "test": (80, 100)}
    np.testing.assert_allclose(data.mean, np.nanmean(flow[:60, :, 0], axis=0))
    values = data.inverse(data.values)
    np.testing.assert_allclose(values[58:60, 0], flow[57, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(values[60:63, 0], flow[63, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(values[99, 1], flow[98, 1, 0], rtol=1e-6)
    assert data.marks is None


def test_the_default_set_loads():
    data = load_data("beijing_pm25", lookback=96, horizon=96, marks=True)
    assert [data.num_windows(split) for split in data.splits] == [30_468, 4_286, 8_665]
    assert data.values.shape == (43_800, 7)
    assert data.marks.shape == (43_800, 4)
    assert load_data("beijing_pm25", lookback=96, horizon=96, columns="pm2.5").columns == ("pm2.5",)
    assert load_data("beijing_pm25", lookback=96, horizon=96, marks="t").marks.shape == (43_800, 5)
    with pytest.raises(InputError, match="unknown kind"):
        load_data("beijing_pm25", lookback=96, horizon=96, marks="x")


@pytest.mark.parametrize(
    ("freq", "season"),
    [("h", 24), ("15min", 96), ("10min", 144), ("D", 7), ("B", 5), ("W-TUE", 52), ("MS", 12), (None, 1)],
)
def test_natural_seasons(freq, season):
    assert season_of(freq) == season


def test_future_input(make_csv):
    data = load_data(make_csv(), lookback=48, horizon=24, marks=True)
    table = read_table(make_csv(name="new.csv", change=lambda frame: frame[frame.columns[::-1]].assign(other=1.0)))
    options = {"columns": data.columns, "mean": data.mean, "std": data.std, "lookback": 48, "horizon": 24}
    future = future_input(table, **options, marks=True)
    torch.testing.assert_close(future.x[0], data.values[-48:])
    assert future.stamps[0] == data.stamps[-1] + pd.Timedelta(hours=1)
    assert len(future.stamps) == 24
    torch.testing.assert_close(future.marks[0, :48], data.marks[-48:])
    assert future.marks.shape == (1, 72, 4)
    with pytest.raises(InputError, match=r"new.csv has no columns 'x', 'y'"):
        future_input(table, **{**options, "columns": ["load0", "x", "y"]})
    with pytest.raises(InputError, match=r"new.csv has 600 rows, the model looks back 601"):
        future_input(table, **{**options, "lookback": 601})
    bare = Table.from_array("bare", data.columns, table.select(data.columns).original())
    assert list(future_input(bare, **options, marks=True).stamps[[0, -1]]) == [600, 623]


@pytest.mark.parametrize("name", ["etth1", "etth2", "ettm1", "ettm2", "exchange", "weather", "ili"])
def test_real_sets_are_scaled_as_the_protocol_does(name, real_data, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(real_data))
    lookback, horizon = (36, 24) if name == "ili" else (96, 96)
    try:
        data = load_data(name, lookback=lookback, horizon=horizon)
    except DataNotFoundError as error:
        pytest.skip(str(error))
    expected = COUNTS.get((name, lookback), {}).get(horizon)
    assert expected is None or tuple(data.num_windows(split) for split in data.splits) == expected
    file = next(iter(cards.card(name).files))
    path = next(p for p in sorted(real_data.glob(f"*/{file}*")))
    raw = pd.read_csv(path)[list(data.columns)].to_numpy()
    scaler = StandardScaler().fit(raw[: data.splits["train"][1]])
    np.testing.assert_allclose(data.mean, scaler.mean_, rtol=1e-9)
    np.testing.assert_allclose(data.std, scaler.scale_, rtol=1e-9)
    np.testing.assert_allclose(data.values, scaler.transform(raw).astype(np.float32), rtol=2e-6, atol=1e-7)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux: reads the peak from /proc")
def test_reading_needs_little_more_than_the_table(tmp_path):
    """A tenth of Electricity; the fixed part weighs more than in the whole, so the limit is not the benchmark's 1.5."""
    script = ROOT / "benchmarks" / "forecast_memory.py"
    command = [sys.executable, str(script), "--rows", "8000", "--sources", "csv", "--json", str(tmp_path / "m.json")]
    subprocess.run(command, check=False, capture_output=True, timeout=120)
    result = json.loads((tmp_path / "m.json").read_text())
    assert result["data_path"]["csv"]["total"] < result["table_bytes"] + 25e6
