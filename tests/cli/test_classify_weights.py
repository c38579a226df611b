"""Published weights through the commands: a folder in the form of ImageNet, labels in words, converted checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

import toolkit.tasks.classify  # noqa: F401, registers vig_tiny with timm

NAME = "test_convnext.r160_in1k"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A cache with random weights of ``NAME``, and pictures in folders of the synsets that these predict.

    What is predicted comes from timm alone: its model, its transform, its list of synsets. Returns the cache, the
    folder of the pictures, and timm's cross-entropy.
    """
    torch.manual_seed(1)
    root, draws = tmp_path_factory.mktemp("published"), np.random.default_rng(0)
    model = timm.create_model(NAME).eval()
    torch.nn.init.normal_(model.get_classifier().weight)
    repository = root / "hub" / f"models--timm--{NAME}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_file(model.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")

    transform = create_transform(**resolve_model_data_config(model, use_test_size=True), is_training=False)
    losses = []
    for number in range(8):
        height, width = draws.integers(150, 400, 2)
        coarse = Image.fromarray(draws.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        picture = coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC)
        with torch.no_grad():
            logits = model(transform(picture)[None])
        best = logits.argmax(1)
        losses.append(torch.nn.functional.cross_entropy(logits, best).item())
        folder = root / "imagenet" / "val" / ImageNetInfo().index_to_label_name(best.item())
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number}.png")
    return root / "hub", root / "imagenet", float(np.mean(losses))


@pytest.fixture
def imagenet(published, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(published[0]))
    monkeypatch.setenv("TOOLKIT_OFFLINE", "1")
    return published[1]


@pytest.mark.parametrize("folder", ["", "val"])
def test_a_folder_of_synsets_is_measured_as_timm_does(folder, published, imagenet, run):
    assert len(list((imagenet / "val").iterdir())) > 1
    code, out, err = run("evaluate", "classify", "--model", NAME, "--data", imagenet / folder, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["model"] == NAME
    assert found["metrics"]["top1"] == found["metrics"]["top5"] == 100
    assert found["metrics"]["loss"] == pytest.approx(published[2], rel=1e-5)


def test_settings_at_test_time_can_be_set(published, imagenet, run):
    words = ("evaluate", "classify", "--model", NAME, "--data", imagenet, "--json")
    losses = [published[2]]
    for setting in ("size=64", "crop_pct=0.5", "crop_mode=squash", "interpolation=nearest", "mean=[0,0,0]"):
        code, out, err = run(*words, setting)
        assert code == 0, err
        losses.append(json.loads(out)["metrics"]["loss"])
    assert len({round(loss, 6) for loss in losses}) == 6


def test_predictions_are_labels_in_words(imagenet, run):
    folder = next((imagenet / "val").iterdir())
    code, out, err = run("predict", "classify", "--model", NAME, folder, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert len(rows) == len(list(folder.iterdir()))
    assert {row["class"] for row in rows} == {ImageNetInfo().label_name_to_description(folder.name)}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--model", NAME], 2, "no data given"),
        (["--model", NAME, "--data", "digits"], 2, "has the class '0', the model knows n01440764 (tench,"),
        (["--model", NAME, "crop_mode=squish"], 2, "crop_mode is 'squish'"),
        (["--model", NAME, "size=0"], 2, "size is 0"),
        (["--model", NAME, "lr=1"], 2, "'lr' is fixed by the trained model"),
        (["--model", NAME, "--data", "IMAGENET", "--split", "train"], 2, "has no train images"),
        (["--model", "vig_tiny", "--data", "digits"], 2, "toolkit convert vig FILE DIR"),
        (["--model", "resnet18.a2_in1k", "--data", "digits"], 3, "not on this machine"),
        (
            ["--model", "hf-hub:timm/resnet18.a2_in1k", "--data", "digits"],
            3,
            "cannot get hf-hub:timm/resnet18.a2_in1k: it is not on this",
        ),
        (["--model", "resnett18", "--data", "digits"], 2, "Did you mean"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, code, message, imagenet, run):
    found, _, err = run("evaluate", "classify", *(str(imagenet) if word == "IMAGENET" else word for word in words))
    assert found == code
    assert message in err
    assert err.count("\n") == 1


def test_a_model_of_another_task_is_refused(imagenet, run):
    code, _, err = run("predict", "forecast", "--model", NAME, "x.csv")
    assert code == 2
    assert "holds a model of the task 'classify', not 'forecast'" in err


def converted(run, folder: Path, **arguments) -> tuple[torch.nn.Module, Path]:
    """A random ViG-T, and the model directory that its checkpoint is turned into."""
    model = timm.create_model("vig_tiny", **arguments).eval()
    torch.save({"model": model.state_dict()}, folder / "vig_t.pth")
    code, _, err = run("convert", "vig", folder / "vig_t.pth", folder / "model")
    assert code == 0, err
    return model, folder / "model"


def test_a_converted_checkpoint_is_measured_with_its_card(imagenet, run, tmp_path):
    model, folder = converted(run, tmp_path)
    picture = next(imagenet.glob("val/*/*.png"))
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        probabilities = model(transform(Image.open(picture))[None])[0].softmax(0)
    code, out, err = run("predict", "classify", "--model", folder, picture, "--json")
    assert code == 0, err
    assert json.loads(out)[0]["class"] == ImageNetInfo().index_to_description(int(probabilities.argmax()))
    assert json.loads(out)[0]["probability"] == pytest.approx(probabilities.max().item(), rel=1e-4)
    code, out, err = run("evaluate", "classify", "--model", folder, "--data", imagenet, "--json")
    assert code == 0, err
    assert json.loads(out)["model"] == "vig_tiny.in1k"


def test_a_converted_backbone_without_classifier_cannot_be_measured(imagenet, run, tmp_path):
    _, folder = converted(run, tmp_path, num_classes=0)
    code, _, err = run("evaluate", "classify", "--model", folder, "--data", imagenet)
    assert code == 2
    assert "does not say which classes it knows" in err
    assert err.count("\n") == 1
