"""The classification task through its commands, from a folder of images to their classes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import toolkit
from toolkit.engine.run import Run

ROOT = Path(__file__).parent.parent.parent
SMALL = ("model=test_convnext", "size=32", "batch_size=16", "augment.crop=none", "augment.flip=false", "optim.lr=3e-3")


def command(*words) -> list[str]:
    return [sys.executable, "-m", "toolkit.cli", *map(str, words)]


def run_process(*words) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command(*words), cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    """Pictures with a bright upper or lower half."""
    root, draws = tmp_path_factory.mktemp("pets"), np.random.default_rng(0)
    for name, rows in (("sky", slice(0, 10)), ("sea", slice(10, 20))):
        (root / name).mkdir()
        for number in range(30):
            picture = draws.integers(0, 90, (20, 24, 3), dtype=np.uint8)
            picture[rows] += 120
            Image.fromarray(picture).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(pets, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run_process(
        "train", "classify", "--data", pets, "--out", folder, "epochs=6", "baselines=[test_vit]", "log_every=1", *SMALL
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_a_folder_of_images_is_learnt(trained):
    metrics = Run(trained).metrics()
    assert metrics["images"] == {"train": 44, "test": 12, "val": 4}
    assert metrics["metrics"]["test"]["top1"] > 90
    assert (trained / "baselines" / "test_vit" / "metrics.json").is_file()
    report = (trained / "report.md").read_text()
    assert "Accuracy by class" in report
    assert "Calibration" in report


def test_evaluate_and_predict_agree_with_the_run(trained, pets, run, tmp_path):
    measured = json.loads(run("evaluate", "classify", "--run", trained, "--json")[1])
    stored = Run(trained).metrics()["metrics"]["test"]
    assert measured["metrics"] == pytest.approx(stored)
    code, _, err = run(
        "predict", "classify", "--run", trained, pets / "sky" / "0.png", pets / "sea", "-o", tmp_path / "p.csv"
    )
    assert code == 0, err
    rows = pd.read_csv(tmp_path / "p.csv")
    assert len(rows) == 31
    assert (rows["class"] == ["sky"] + ["sea"] * 30).mean() > 0.9
    assert rows["probability"].between(0.5, 1).all()


def test_the_model_directory_loads_in_python(trained):
    import torch

    model = toolkit.load(trained)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 2)


def test_damaged_images_stop_or_are_left_out(trained, pets, run, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "good.png").write_bytes((pets / "sky" / "1.png").read_bytes())
    (folder / "bad.png").write_bytes((pets / "sky" / "1.png").read_bytes()[:100])
    code, out, err = run("predict", "classify", "--run", trained, folder)
    assert code == 2
    assert err.count("\n") == 1
    assert "bad.png is damaged" in err
    code, out, err = run("predict", "classify", "--run", trained, folder, "--skip-bad")
    assert code == 0
    assert out.count("\n") == 2
    code, _, err = run("predict", "classify", "--run", trained, folder / "absent.png")
    assert code == 2
    assert "absent.png does not exist" in err


def test_training_on_damaged_images(pets, run, tmp_path):
    folder = tmp_path / "mixed"
    for name in ("sky", "sea"):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            (folder / name / f"{number}.png").write_bytes((pets / name / f"{number}.png").read_bytes())
    (folder / "sky" / "5.png").write_bytes((pets / "sky" / "5.png").read_bytes()[:100])
    words = ("train", "classify", "--data", folder, "--out", tmp_path / "run", "max_steps=1", *SMALL)
    code, _, err = run(*words, "batch_size=64")
    assert code == 2
    assert "5.png is damaged" in err
    assert not (tmp_path / "run").exists()
    code, _, err = run(*words, "--skip-bad")
    assert code == 0, err
    assert Run(tmp_path / "run").metrics()["skipped"] == 1


@pytest.fixture
def with_splits(pets, tmp_path) -> Path:
    """The pictures as a folder of splits."""
    root = tmp_path / "splits"
    for split, numbers in {"train": range(8), "val": range(8, 10), "test": range(10, 13)}.items():
        for name in ("sky", "sea"):
            (root / split / name).mkdir(parents=True)
            for number in numbers:
                (root / split / name / f"{number}.png").write_bytes((pets / name / f"{number}.png").read_bytes())
    return root


def commands(data: Path, trained: Path, out: Path) -> dict[str, tuple]:
    """The three commands that read images, the training with all of them in one batch."""
    return {
        "train": ("train", "classify", "--data", data, "--out", out, "max_steps=1", *SMALL, "batch_size=64"),
        "evaluate": ("evaluate", "classify", "--run", trained, "--data", data, "--split", "train"),
        "predict": ("predict", "classify", "--run", trained, data),
    }


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_odd_but_whole_images_are_used(command, trained, pets, with_splits, run, tmp_path):
    picture = Image.open(pets / "sky" / "1.png")
    odd = {
        "cmyk.jpg": picture.convert("CMYK"),
        "sixteen.png": Image.fromarray(np.full((9, 9), 40_000, np.uint16)),
        "alpha.png": picture.convert("RGBA"),
        "grey.png": picture.convert("L"),
        "two.tif": picture.convert("1"),
        "tiny.png": picture.crop((0, 0, 1, 1)),
        "large.png": picture.resize((3000, 2000)),
    }
    for name, image in odd.items():
        image.save(with_splits / "train" / "sky" / name)
    code, out, err = run(*commands(with_splits, trained, tmp_path / "run")[command])
    assert code == 0, err
    if command == "predict":
        assert all(name in out for name in odd)


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut.png", "is damaged: "),
        ("text.jpg", "is no image, or of an unknown format"),
        ("empty.png", "is no image, or of an unknown format"),
        ("narrow.png", "is too narrow: 2001 by 2 pixels"),
        ("huge.png", "is too large: it has more than 20,000 pixels"),
    ],
)
def test_bad_images_are_one_line_or_left_out(
    command, kind, message, trained, pets, with_splits, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    bad, whole = with_splits / "train" / "sky" / kind, (pets / "sky" / "1.png").read_bytes()
    if kind in ("narrow.png", "huge.png"):
        Image.new("L", {"narrow.png": (2001, 2), "huge.png": (200, 201)}[kind]).save(bad)
    else:
        bad.write_bytes({"cut.png": whole[:100], "text.jpg": b"not an image", "empty.png": b""}[kind])
    words = commands(with_splits, trained, tmp_path / "run")[command]
    code, _, err = run(*words)
    assert code == 2
    assert f"{kind} {message}" in err
    assert err.rstrip().endswith("--skip-bad")
    assert err.splitlines()[-1].startswith("error: ")
    assert command == "train" or err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    code, out, err = run(*words, "--skip-bad")
    assert code == 0, err
    if command == "predict":
        assert kind not in out


def test_a_bad_image_in_a_process_of_the_loader_is_one_line(trained, with_splits, run):
    (with_splits / "test" / "sky" / "bad.png").write_bytes(b"not an image")
    code, _, err = run("evaluate", "classify", "--run", trained, "--data", with_splits, "workers=1")
    assert code == 2
    assert err.count("\n") == 1
    assert "bad.png is no image" in err


def test_a_folder_without_training_images_is_measured(trained, with_splits, run, tmp_path):
    (with_splits / "test").rename(tmp_path / "test")
    (tmp_path / "own").mkdir()
    (tmp_path / "test").rename(tmp_path / "own" / "test")
    code, out, err = run("evaluate", "classify", "--run", trained, "--data", tmp_path / "own", "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["top1"] > 50
    code, _, err = run("evaluate", "classify", "--run", trained, "--data", tmp_path / "own", "--split", "val")
    assert code == 2
    assert "own has no val images. It has test" in err


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_class_without_training_images(command, trained, with_splits, run, tmp_path):
    (with_splits / "train" / "ant").mkdir()
    words = commands(with_splits, trained, tmp_path / "run")[command]
    code, _, err = run(*words)
    assert code == 2
    assert "ant holds no image" in err
    assert err.count("\n") == 1
    (with_splits / "train" / "ant").rename(with_splits / "val" / "bee")
    code, _, err = run(*words)
    assert code == 2
    assert "bee does not exist, but other splits have that class" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "no/such/folder"], "does not exist"),
        (["model=resnett18"], "Did you mean"),
        (["augment.crops=pad"], "augment.crop"),
        (["model=test_convnext", "model.widht=3"], "widht"),
    ],
)
def test_bad_words(words, message, run, tmp_path):
    code, _, err = run("train", "classify", "--out", tmp_path / "run", *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_other_classes_than_the_models(trained, pets, run, tmp_path):
    (tmp_path / "zebras" / "zebra").mkdir(parents=True)
    for number in range(5):
        (tmp_path / "zebras" / "zebra" / f"{number}.png").write_bytes((pets / "sky" / "1.png").read_bytes())
    code, _, err = run("evaluate", "classify", "--run", trained, "--data", tmp_path / "zebras")
    assert code == 2
    assert "zebra" in err


def test_kill_and_resume_give_the_unbroken_losses(pets, tmp_path):
    words = ("train", "classify", "--data", pets, "epochs=3", "batch_size=4", "log_every=1", "checkpoint_minutes=0.001")
    words = (*words, "model=test_convnext", "size=32", "augment.mixup=0.8", "optim.ema=0.9")
    assert run_process(*words, "--out", tmp_path / "whole").returncode == 0
    process = subprocess.Popen(
        command(*words, "--out", tmp_path / "cut"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log, until = tmp_path / "cut" / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 14):
        assert time.monotonic() < until
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run_process(*words, "--out", tmp_path / "cut", "--resume").returncode == 0
    histories = [
        [{key: value for key, value in row.items() if key != "time"} for row in Run(tmp_path / name).history()]
        for name in ("whole", "cut")
    ]
    assert histories[0] == histories[1]
