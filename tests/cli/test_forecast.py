"""The forecasting task through its commands, from a table to a forecast in its own units."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import toolkit
from toolkit.engine.run import Run

ROOT = Path(__file__).parent.parent.parent
SMALL = (
    "model.dim=8",
    "model.mlp_dim=8",
    "model.num_heads=2",
    "model.depth=1",
    "lookback=48",
    "horizon=12",
    "epochs=2",
)


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def quietly(words) -> bytes:
    """Standard output of a process that works on one thread, as torchrun's do."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True).stdout


def command(*words) -> list[str]:
    return [sys.executable, "-m", "toolkit.cli", *map(str, words)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A small model trained on a table of the user's own, through the command line."""
    folder = tmp_path_factory.mktemp("trained")
    hours = np.arange(700)[:, None]
    values = (
        np.sin(2 * np.pi * hours / 24 + np.arange(3)) * 5 + 20 + 0.1 * np.random.default_rng(0).normal(size=(700, 3))
    )
    frame = pd.DataFrame(values, columns=["load", "temp", "wind"])
    frame.insert(0, "when", pd.date_range("2024-01-01", periods=700, freq="h"))
    frame.to_csv(folder / "own.csv", index=False)
    words = ("--data", folder / "own.csv", "--out", folder / "run", "optim.lr=3e-3", *SMALL)
    done = subprocess.run(command("train", "forecast", *words), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "report.md" in done.stdout
    assert "dlinear" in done.stdout
    return folder


def test_the_run_folder_is_complete(trained):
    run_folder = trained / "run"
    for name in (
        "config.yaml", "command.txt", "environment.json", "metrics.jsonl", "metrics.json", "log.txt", "predictions.npz",
        "report.md", "report.html", "checkpoints/best/model.safetensors", "checkpoints/best/config.json",
        "checkpoints/last/state.pt", "plots/forecast.png", "baselines/seasonal_naive/metrics.json",
    ):  # fmt: skip
        assert (run_folder / name).is_file(), name
    assert not list(run_folder.rglob(".*"))
    metrics = Run(run_folder).metrics()
    assert metrics["windows"] == {"train": 489 - 59, "val": 71 - 11, "test": 140 - 11}
    assert 0.5 < metrics["metrics"]["test"]["coverage"] <= 1
    html = (run_folder / "report.html").read_text()
    assert "data:image/png;base64" in html
    assert 'src="plots' not in html


def test_evaluate_repeats_the_run(trained, run):
    code, out, _ = run("evaluate", "forecast", "--run", trained / "run", "--json")
    assert code == 0
    stored = Run(trained / "run").metrics()["metrics"]["test"]
    assert json.loads(out)["metrics"] == pytest.approx(stored, rel=1e-6)


def test_evaluation_does_not_depend_on_the_batch_size(trained):
    one, many = (
        toolkit.evaluate("forecast", run=trained / "run", overrides={"eval_batch_size": size})["metrics"]
        for size in (1, 128)
    )
    assert one == pytest.approx(many, rel=1e-5)


def test_evaluate_on_other_data_keeps_the_scaling(trained, run, tmp_path):
    frame = pd.read_csv(trained / "own.csv").iloc[:, [0, 3, 2, 1]]  # other order of columns
    frame.to_csv(tmp_path / "other.csv", index=False)
    code, out, _ = run("evaluate", "forecast", "--run", trained / "run", "--data", tmp_path / "other.csv", "--json")
    assert code == 0
    stored = Run(trained / "run").metrics()["metrics"]["test"]
    assert json.loads(out)["metrics"]["mse"] == pytest.approx(stored["mse"], rel=1e-4)


@pytest.mark.parametrize("source", ["run", "run/checkpoints/best"])
def test_predict_writes_future_rows_in_original_units(trained, run, tmp_path, source):
    kind = "--run" if source == "run" else "--model"
    output = tmp_path / "next.csv"
    code, _, err = run("predict", "forecast", kind, trained / source, trained / "own.csv", "-o", output)
    assert code == 0, err
    forecast = pd.read_csv(output, parse_dates=[0])
    assert list(forecast.columns[:4]) == ["date", "load", "load_lower", "load_upper"]
    last = pd.read_csv(trained / "own.csv", parse_dates=["when"])["when"].iloc[-1]
    assert list(forecast["date"]) == list(pd.date_range(last, periods=13, freq="h")[1:])
    hours = np.arange(700, 712)
    assert np.abs(forecast["load"] - (20 + 5 * np.sin(2 * np.pi * hours / 24))).mean() < 3
    assert (forecast["load_lower"] <= forecast["load"]).all()
    assert output.with_suffix(".png").is_file()


def test_predict_from_a_data_frame_equals_the_model(trained):
    frame = pd.read_csv(trained / "own.csv", parse_dates=["when"])
    forecast = toolkit.predict("forecast", frame, run=trained / "run")
    pretrained = toolkit.load(trained / "run")
    scaling = json.loads((trained / "run/checkpoints/best/config.json").read_text())["data"]
    mean, std = np.array(scaling["mean"]), np.array(scaling["std"])
    x = torch.tensor((frame.iloc[-48:, 1:].to_numpy() - mean) / std, dtype=torch.float32)[None]
    with torch.inference_mode():
        expected = pretrained(x)[0].double().numpy() * std + mean
    np.testing.assert_allclose(forecast[["load", "temp", "wind"]].to_numpy(), expected, rtol=1e-5)


def test_show_run_makes_the_report_anew(trained, run):
    report = trained / "run" / "report.md"
    before = report.read_text()
    report.unlink()
    code, out, _ = run("show", "run", trained / "run")
    assert code == 0
    assert "seasonal_naive" in out
    assert report.read_text() == before


def test_target_mode_scores_one_column(trained, tmp_path):
    done = toolkit.train(
        "forecast", data=trained / "own.csv", out=tmp_path / "run", max_steps=2,
        overrides={"data": {"path": str(trained / "own.csv"), "target": "temp"}, "baselines": [], "lookback": 24,
                   "horizon": 6, "model": {"name": "dlinear"}},
    )  # fmt: skip
    card = json.loads((tmp_path / "run/checkpoints/best/config.json").read_text())
    assert card["data"]["target"] == "temp"
    assert done["metrics"]["test"]["windows"] == 140 - 5
    forecast = toolkit.predict("forecast", str(trained / "own.csv"), run=tmp_path / "run")
    assert list(forecast.columns) == ["date", "temp", "temp_lower", "temp_upper"]


def test_several_seeds_are_summarised(trained, run, tmp_path):
    words = ("--data", trained / "own.csv", "--seed", 1, "--seed", 2, "--out", tmp_path / "run", *SMALL, "epochs=1")
    code, out, err = run("train", "forecast", *words)
    assert code == 0, err
    assert "±" in out
    metrics = Run(tmp_path / "run").metrics()
    singles = [Run(tmp_path / "run" / f"s{seed}").metrics()["metrics"]["test"]["mse"] for seed in (1, 2)]
    assert metrics["metrics"]["test"]["mse"]["mean"] == pytest.approx(np.mean(singles))
    assert metrics["metrics"]["test"]["mse"]["std"] == pytest.approx(np.std(singles, ddof=1))


def losses(folder: Path) -> list[tuple]:
    return [(row["step"], row["split"], row.get("loss"), row.get("mse")) for row in Run(folder).history()]


def test_kill_and_resume_give_the_unbroken_losses(trained, tmp_path):
    words = ("--data", trained / "own.csv", *SMALL, "batch_size=4", "log_every=1", "checkpoint_minutes=0.001")
    unbroken = command("train", "forecast", *words, "baselines=[]", "--out", tmp_path / "whole")
    subprocess.run(unbroken, cwd=ROOT, check=True, capture_output=True)
    broken = command("train", "forecast", *words, "baselines=[]", "--out", tmp_path / "cut")
    process = subprocess.Popen(broken, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "cut" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 30):
        assert time.monotonic() < until
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "metrics.json").exists()
    subprocess.run([*broken, "--resume"], cwd=ROOT, check=True, capture_output=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert Run(tmp_path / "cut").metrics()["metrics"] == Run(tmp_path / "whole").metrics()["metrics"]


def test_two_processes_measure_the_same(trained):
    words = command("evaluate", "forecast", "--model", trained / "run", "--json", "--device", "cpu")
    one, two = (json.loads(quietly([*launcher, *words[1:]])) for launcher in ([sys.executable], TORCHRUN))
    assert two["metrics"]["windows"] == one["metrics"]["windows"]
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-12)


def test_two_processes_train_like_one(trained, tmp_path):
    words = ("--data", trained / "own.csv", *SMALL, "baselines=[]", "model.dropout=0.0", "log_every=1", "max_steps=5")
    subprocess.run(
        command("train", "forecast", *words, "--out", tmp_path / "one"), cwd=ROOT, check=True, capture_output=True
    )
    two = command("train", "forecast", *words, "--out", tmp_path / "two", "--device", "cpu")[1:]
    quietly([*TORCHRUN, *two])
    for (*_, one_loss, one_mse), (*_, two_loss, two_mse) in zip(
        losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True
    ):
        assert (one_loss or one_mse) == pytest.approx(two_loss or two_mse, rel=1e-4)


def edit(**columns):
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        for column, (row, value) in columns.items():
            frame[column] = frame[column].astype(object)
            frame.loc[row, column] = value
        return frame

    return change


BAD_TABLES = {
    "text": (edit(load1=(7, "n/a?")), "load1", "n/a?"),
    "missing value": (edit(load0=(300, None)), "load0", "fill=1"),
    "infinite value": (edit(load0=(300, np.inf)), "load0", "fill=1"),
    "long gap": (lambda frame: frame.assign(load2=frame["load2"].mask(frame.index // 10 == 9)), "load2", "fill=10"),
    "duplicate stamp": (edit(date=(5, "2024-01-01 04:00:00")), "date", "2024-01-01 04:00:00"),
    "unsorted": (lambda frame: frame.iloc[::-1], "date", ""),
    "irregular": (lambda frame: frame.drop(index=50), "date", ""),
    "bad stamp": (edit(date=(5, "soon")), "date", "soon"),
    "too few rows": (lambda frame: frame.iloc[:80], "80 rows", "lookback"),
    "no rows": (lambda frame: frame.iloc[:0], "own.csv", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_one_line_and_write_nothing(name, run, make_csv, tmp_path, monkeypatch):
    change, *mentioned = BAD_TABLES[name]
    path = make_csv(change=change)
    monkeypatch.chdir(tmp_path)
    code, out, err = run("train", "forecast", "--data", path)
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert "own.csv" in err
    for text in mentioned:
        assert text in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["own.csv"]


def test_fill_mends_short_gaps(run, make_csv, tmp_path):
    path = make_csv(change=edit(load0=(300, None)))
    words = ("--data", path, "--fill", 2, "--out", tmp_path / "run", "--max-steps", 1, "baselines=[]", *SMALL)
    code, _, err = run("train", "forecast", *words, "--verbose")
    assert code == 0, err
    assert "fill: 2" in err, "the settings are shown"


BAD_WORDS = {
    "missing file": (("--data", "absent.csv"), 2, "absent.csv"),
    "unknown set": (("--data", "etth9"), 2, "etth9"),
    "absent set": (("--recipe", "gateformer_traffic_96"), 3, "traffic.csv"),
    "unknown key": (("optim.lrr=1",), 2, "Did you mean 'optim.lr'"),
    "unknown option": (("--epocs", "3"), 2, "Did you mean 'epochs'"),
    "wrong type": (("epochs=many",), 2, "epochs is 'many'"),
    "unknown recipe": (("--recipe", "nonsense"), 2, "nonsense"),
    "unknown model": (("model=gatformer",), 2, "Did you mean 'gateformer'"),
    "unknown column": (("data.target=pm26",), 2, "pm2.5"),
    "unwritable folder": (("--out", "/proc/run"), 2, "/proc"),
    "indivisible heads": (("model.num_heads=3",), 2, "num_heads"),
    "no run to resume": (("--resume=absent",), 2, "absent"),
    "stray word": (("fast",), 2, "fast"),
    "unknown device": (("--device", "tpu"), 2, "tpu"),
}


@pytest.mark.parametrize("name", BAD_WORDS)
def test_bad_words_are_one_line_and_write_nothing(name, run, tmp_path, monkeypatch):
    words, expected, mentioned = BAD_WORDS[name]
    monkeypatch.chdir(tmp_path)
    code, out, err = run("train", "forecast", *words)
    assert code == expected, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert mentioned in err
    assert not list(tmp_path.iterdir())


def test_occupied_folder(run, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    code, _, err = run("train", "forecast", "--out", tmp_path)
    assert code == 2
    assert "is not empty" in err


def test_a_changed_setting_cannot_be_resumed(trained, run):
    code, _, err = run("train", "forecast", f"--resume={trained / 'run'}", "batch_size=3")
    assert code == 2
    assert "batch_size" in err


def test_damaged_checkpoints(trained, run, tmp_path):
    model = tmp_path / "model"
    best = trained / "run" / "checkpoints" / "best"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes((best / name).read_bytes())
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, err = run("predict", "forecast", "--model", model, trained / "own.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "model.safetensors is damaged" in err
    card = json.loads((model / "config.json").read_text())
    card["arguments"]["dim"] = 16
    (model / "config.json").write_text(json.dumps(card))
    weights.write_bytes((best / "model.safetensors").read_bytes())
    code, _, err = run("predict", "forecast", "--model", model, trained / "own.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "wrong shape" in err


def test_predict_needs_the_models_columns_and_rows(trained, run, make_csv):
    code, _, err = run("predict", "forecast", "--run", trained / "run", make_csv())
    assert (code, err.count("\n")) == (2, 1)
    assert "'load'" in err
    short = make_csv(rows=20, change=lambda frame: frame.set_axis(["when", "load", "temp", "wind"], axis=1))
    code, _, err = run("predict", "forecast", "--run", trained / "run", short)
    assert (code, err.count("\n")) == (2, 1)
    assert "20 rows" in err


def test_dry_run_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("train", "forecast", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["parameters"] > 0
    assert not list(tmp_path.iterdir())


def test_a_data_frame_trains_like_its_file(trained, tmp_path):
    frame = pd.read_csv(trained / "own.csv", parse_dates=["when"])
    small = {"model": {"name": "dlinear"}, "lookback": 24, "horizon": 6, "baselines": [], "max_steps": 3}
    of_frame = toolkit.train("forecast", data=frame, overrides=small, out=tmp_path / "frame")
    of_file = toolkit.train("forecast", data=trained / "own.csv", overrides=small, out=tmp_path / "file")
    assert of_frame["metrics"] == of_file["metrics"]
    again = toolkit.evaluate("forecast", run=tmp_path / "frame", data=frame)
    assert again["metrics"] == pytest.approx(of_file["metrics"]["test"], rel=1e-6)
    with pytest.raises(toolkit.errors.InputError, match="trained on a data frame"):
        toolkit.evaluate("forecast", run=tmp_path / "frame")


def test_bf16_and_accumulation(trained, tmp_path):
    words = {"model": {"name": "gateformer", "dim": 8, "mlp_dim": 8, "num_heads": 2, "depth": 1, "dropout": 0.0}}
    words |= {"lookback": 24, "horizon": 6, "baselines": [], "max_steps": 20, "batch_size": 16}
    plain, split, rounded = (
        toolkit.train("forecast", data=trained / "own.csv", overrides={**words, **extra}, out=tmp_path / name)
        for name, extra in (("plain", {}), ("split", {"accumulate": 4}), ("rounded", {"precision": "bf16"}))
    )
    mse = plain["metrics"]["test"]["mse"]
    assert split["metrics"]["test"]["mse"] == pytest.approx(mse, rel=1e-4)
    assert rounded["metrics"]["test"]["mse"] == pytest.approx(mse, rel=5e-2)


def test_legacy_protocol_drops_the_last_batch_and_says_so(trained, tmp_path):
    words = {"model": {"name": "dlinear"}, "lookback": 24, "horizon": 6, "baselines": [], "max_steps": 1}
    toolkit.train("forecast", data=trained / "own.csv", overrides={**words, "protocol": "legacy"}, out=tmp_path / "run")
    assert Run(tmp_path / "run").metrics()["metrics"]["test"]["windows"] == 128
    assert "Protocol: **legacy**" in (tmp_path / "run" / "report.md").read_text()


def test_a_full_disk_is_one_line(trained, tmp_path):
    """A limit on file sizes stands for a disk that fills up while the checkpoint is written."""
    words = command("train", "forecast", "--data", trained / "own.csv", "--quiet", "baselines=[]", "--max-steps", "2")
    script = f"ulimit -f 100; exec {shlex.join([*words, '--out', str(tmp_path / 'run')])}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "cannot write" in done.stderr
    assert not list((tmp_path / "run").rglob("checkpoints/*"))


def test_baselines_do_not_depend_on_the_models_accumulation(trained, tmp_path):
    words = {"model": {"name": "gateformer", "dim": 8, "mlp_dim": 8, "num_heads": 2, "depth": 1}, "max_steps": 10}
    words |= {"lookback": 24, "horizon": 6, "baselines": ["dlinear"]}
    found = []
    for pieces in (1, 2):
        out = tmp_path / str(pieces)
        toolkit.train("forecast", data=trained / "own.csv", overrides={**words, "accumulate": pieces}, out=out)
        found.append(Run(out / "baselines" / "dlinear").metrics()["metrics"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "mentioned"),
    [
        (("evaluate", "forecast", "horizon=6"), "'horizon' is fixed by the trained model"),
        (("evaluate", "forecast", "model.depth=3"), "'model.depth' is fixed"),
        (("evaluate", "forecast", "data.columns=[wind]"), "'data.columns' is fixed"),
        (("predict", "forecast", "OWN", "lookback=20"), "'lookback' is fixed"),
        (("predict", "forecast", "OWN", "-o", "out.png"), "Name a .csv or a .parquet file"),
        (("predict", "forecast", "MONTHLY"), "a row every MS, the model was trained on h"),
    ],
)
def test_what_a_trained_model_refuses(trained, run, tmp_path, words, mentioned):
    frame = pd.read_csv(trained / "own.csv")
    frame["when"] = pd.date_range("1950-01-01", periods=len(frame), freq="MS")
    frame.to_csv(tmp_path / "monthly.csv", index=False)
    paths = {"OWN": trained / "own.csv", "MONTHLY": tmp_path / "monthly.csv", "out.png": tmp_path / "out.png"}
    code, _, err = run(*(paths.get(word, word) for word in words), "--run", trained / "run")
    assert (code, err.count("\n")) == (2, 1), err
    assert mentioned in err


def test_predict_into_a_folder_and_beside_awkward_names(make_csv, run, tmp_path):
    path = make_csv(change=lambda frame: frame.set_axis(["ts", "date", "$a_{$", "b|c"], axis=1))
    words = (
        "--data",
        path,
        "data.time=ts",
        "model=dlinear",
        "lookback=24",
        "horizon=6",
        "baselines=[]",
        "--max-steps",
        1,
    )
    assert run("train", "forecast", *words, "--out", tmp_path / "run")[0] == 0
    code, _, err = run("predict", "forecast", "--run", tmp_path / "run", path, "-o", tmp_path)
    assert code == 0, err
    columns = pd.read_csv(tmp_path / "prediction.csv").columns
    assert list(columns[:3]) == ["time", "date", "date_lower"]


def test_a_converted_model_is_evaluated_with_the_scaling_of_the_data(run, tmp_path, make_csv):
    model = toolkit.create_model("dlinear", lookback=24, horizon=6)
    toolkit.save(model, tmp_path / "model")
    code, out, err = run("evaluate", "forecast", "--model", tmp_path / "model", "--data", make_csv(), "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["windows"] == 115
    code, _, err = run("predict", "forecast", "--model", tmp_path / "model", make_csv())
    assert (code, err.count("\n")) == (2, 1)


def test_figures_stand_only_beside_what_they_describe(tmp_path, make_csv):
    from toolkit.api import resolve

    def figures(recipe, overrides=None):
        return resolve("forecast", recipe, overrides or {}).layer()["reference"]["metrics"]

    assert figures("gateformer_etth1_96", {"seeds": [1, 2], "log_every": 1})
    assert not figures("gateformer_etth1_96", {"horizon": 48})
    assert not figures("gateformer_etth1_96", {"data": {"path": str(make_csv())}}), "another file"
    based = tmp_path / "based.yaml"
    based.write_text("recipe: gateformer_etth1_96\nmodel: {dim: 8}\n")
    assert not figures(based)
    based.write_text("recipe: gateformer_etth1_96\nseeds: [7]\n")
    assert figures(based)


def test_another_model_brings_its_own_recipe():
    from toolkit.api import resolve

    config = resolve("forecast", None, {"model": "dlinear"}).layer()
    assert (config["optim"]["lr"], config["batch_size"], config["baselines"]) == (1e-4, 32, ["seasonal_naive"])
    assert config["data"]["name"] == "beijing_pm25"
    same = resolve("forecast", "gateformer_etth1_96", {"model": {"name": "Gateformer"}}).layer()
    assert same["model"]["dim"] == 64


def test_names_stay_text_and_one_is_a_list(real_data, monkeypatch, run):
    monkeypatch.setenv("TOOLKIT_DATA", str(real_data))
    words = ("train", "forecast", "--data", "exchange", "--dry-run", "--json")
    assert json.loads(run(*words, "data.columns=[0,1]", "data.target=0")[1])["variates"] == 2
    assert json.loads(run(*words, "data.columns=OT", "baselines=dlinear")[1])["variates"] == 1


def test_an_unfinished_run_is_found_without_repeating_its_words(make_csv, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--data", make_csv(), "model=dlinear", "lookback=24", "horizon=6", "baselines=[]", "--max-steps", 2)
    assert run("train", "forecast", *words)[0] == 0
    folder = next((tmp_path / "runs" / "forecast" / "custom").iterdir())
    (folder / "metrics.json").unlink()
    code, _, err = run("train", "forecast", "--resume")
    assert code == 0
    assert "continuing runs/forecast/custom" in err
    assert (folder / "metrics.json").exists()


def test_example_inputs_fit_the_model(trained):
    from toolkit.tasks.forecast.task import Forecast

    task = Forecast(Forecast.Config.build({"model": "itransformer", "horizon": 24, "baselines": []}))
    task.build()
    with torch.no_grad():
        assert task.model(*task.example_inputs()).shape == (1, 24, 7)
