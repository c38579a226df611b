"""Published weights: their classes, their settings at test time, and where they are looked for."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from timm.models._hub import save_for_hf

import toolkit
from toolkit import api, hub
from toolkit.data.images import ImageSet, Samples
from toolkit.errors import DataNotFoundError, InputError
from toolkit.tasks.classify import backbones, weights
from toolkit.tasks.classify.data import measured_whole, numbered
from toolkit.tasks.classify.metrics import summarise, sums

SYNSETS = ImageNetInfo().label_names()


def card(name: str, **changes) -> dict:
    known = timm.get_pretrained_cfg(name)
    assert known is not None
    return weights.card_of(known.to_dict() | changes)


def images(classes, splits=("train",), size: int = 20) -> ImageSet:
    pictures = [np.full((size, size, 3), number % 256, np.uint8) for number in range(len(classes))]
    samples = Samples(pictures, np.arange(len(classes)), [f"image {number}" for number in range(len(classes))])
    return ImageSet("own", tuple(classes), dict.fromkeys(splits, samples))


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """Weights of ``test_convnext`` where an earlier download would have put them, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TOOLKIT_OFFLINE", "1")
    repository = tmp_path / "models--timm--test_convnext.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    model = timm.create_model("test_convnext")
    save_file(model.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    return model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18.a1_in1k", {"size": 288, "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"}),
        ("resnet18.tv_in1k", {"size": 224, "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bilinear"}),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", {"size": 224, "crop_pct": 0.9, "mean": [0.5] * 3}),
        ("hornet_tiny_gf", {"size": 224, "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"}),
        ("hornet_large_gf_img384", {"size": 384, "crop_pct": 1.0, "crop_mode": "squash"}),
        ("vig_small", {"size": 224, "crop_pct": 0.875, "std": [0.229, 0.224, 0.225]}),
    ],
)
def test_the_card_tells_the_settings_at_test_time(name, expected):
    seen = card(name)["data"]["preprocessing"]
    assert {key: seen[key] for key in expected} == expected


def test_classes_are_synsets_in_timms_order():
    found = card("resnet18")["data"]
    assert found["classes"] == SYNSETS
    assert found["labels"][0] == "tench, Tinca tinca"
    larger = card("convnext_tiny.fb_in22k")["data"]
    assert len(larger["classes"]) == len(larger["labels"]) == 21841
    unknown = card("hornet_large_gf")["data"]
    assert unknown["classes"][-1] == "10458"
    assert unknown["labels"][-1] == "class 10458"
    own = card("resnet18", num_classes=3, label_names=["ant", "bee", "cow"])["data"]
    assert own["classes"] == own["labels"] == ["ant", "bee", "cow"]
    with pytest.raises(InputError, match="have no classifier"):
        card("resnet18", num_classes=0)


def test_a_set_may_name_classes_by_synset_label_or_number():
    labels = ImageNetInfo().label_descriptions()
    by_synset = numbered(images(["n01443537", "n01440764"]), SYNSETS, labels)
    assert by_synset.splits["train"].labels.tolist() == [1, 0]
    by_label = numbered(images(["goldfish, Carassius auratus", "n01440764"]), SYNSETS, labels)
    assert by_label.splits["train"].labels.tolist() == [1, 0]
    everything = [str(number) for number in reversed(range(1000))]
    assert numbered(images(everything, size=1), SYNSETS, labels).splits["train"].labels[:2].tolist() == [999, 998]
    for foreign in (["cat"], ["crane"], ["0", "1"]):  # there are two cranes; some numbers may be those of another set
        with pytest.raises(InputError, match=rf"class '{foreign[0]}', the model knows n01440764 \(tench, .* 997 more"):
            numbered(images(foreign), SYNSETS, labels)


@pytest.mark.parametrize(
    ("splits", "measured", "name"),
    [
        (("train",), "train", "own"),
        (("train", "val"), "val", "own (val)"),
        (("val",), "val", "own"),
        (("train", "val", "test"), "test", "own (test)"),
    ],
)
def test_weights_that_never_saw_a_set_are_measured_on_all_its_test_images(splits, measured, name):
    found = measured_whole(images(["a", "b"], splits))
    assert found.name == name
    assert found.splits["test"] is found.splits[measured]
    with pytest.raises(InputError, match="own has no images"):
        measured_whole(ImageSet("own", ("a",), {}))


def test_a_name_loads_cached_weights_without_a_network(cached):
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(toolkit.load("test_convnext.r160_in1k")(x), cached.eval()(x))
        assert torch.equal(toolkit.load("test_convnext")(x), cached(x))
    measured = api.evaluate("classify", model="test_convnext", data=images(SYNSETS[:2]), overrides={"size": 32})
    assert measured["model"] == "test_convnext.r160_in1k"
    assert measured["data"] == "own"
    assert set(measured["metrics"]) >= {"top1", "top5", "loss"}
    fine_tuned = backbones.create_backbone("test_convnext", pretrained=True, num_classes=2)
    assert torch.equal(fine_tuned.stem[0].weight, cached.stem[0].weight)


def test_weights_that_are_not_here(cached, monkeypatch):
    with pytest.raises(DataNotFoundError, match=r"weights of resnet18 are not on this machine: TOOLKIT_OFFLINE"):
        hub.load_pretrained("resnet18")
    with pytest.raises(DataNotFoundError, match=r"gcvit_base\.in1k are not on this machine"):
        hub.load_pretrained("gcvit_base.in1k")  # timm has an address of it, but it is not on the hub
    with pytest.raises(InputError, match="timm knows no weights 'a9' of resnet18. There are resnet18.a1_in1k"):
        hub.load_pretrained("resnet18.a9")
    with pytest.raises(InputError, match="have no classifier"):
        hub.load_pretrained("vit_small_patch14_dinov2.lvd142m")
    with pytest.raises(InputError, match="timm has no weights for vit_base_patch16_18x2_224"):
        hub.load_pretrained("vit_base_patch16_18x2_224")
    with pytest.raises(InputError, match="no model directory at resnett18, .* Did you mean 'resnet18'"):
        hub.load_pretrained("resnett18")
    with pytest.raises(InputError, match="gateformer is an architecture"):
        hub.load_pretrained("gateformer")
    monkeypatch.delenv("TOOLKIT_OFFLINE")

    def no_network(*args, **options):
        raise ConnectionError("no route to the hub.")

    monkeypatch.setattr(backbones, "hf_hub_download", no_network)
    with pytest.raises(DataNotFoundError, match=r"not on this machine: no route to the hub\. Once with a network"):
        hub.load_pretrained("resnet18")


def test_a_damaged_download_is_named(cached, tmp_path):
    file = next(tmp_path.glob("**/model.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="model test_convnext: "):
        hub.load_pretrained("test_convnext")


@pytest.mark.parametrize(
    ("name", "family", "home"),
    [
        ("vig_tiny", "vig", "hustvl/ViG"),
        ("vig_h_base.in1k", "vig_h", "hustvl/ViG"),
        ("hornet_large_gf", "hornet", "raoyongming/HorNet"),
    ],
)
def test_our_backbones_say_where_their_weights_are(name, family, home):
    with pytest.raises(InputError, match=rf"{home}, turn it into .*toolkit convert {family} FILE DIR"):
        hub.load_pretrained(name)


def test_what_was_never_published_says_so():
    with pytest.raises(InputError, match="no weights of hornet_base_gf_img384 were published"):
        hub.load_pretrained("hornet_base_gf_img384")


@pytest.mark.parametrize("name", ["vig_tiny", "vig_h_small", "hornet_tiny_7x7", "hornet_base_gf_img384"])
def test_an_official_model_is_recognised_by_its_shapes(name):
    model = timm.create_model(name, device="meta")
    family = name.rpartition("_")[0] if name.startswith("vig") else "hornet"
    found = hub.official_card(family, model)
    assert found["config"]["model"]["name"].partition(".")[0] == name
    assert found["data"]["preprocessing"]["size"] == (384 if "384" in name else 224)
    assert found["data"]["classes"] == SYNSETS


def test_what_is_no_published_classifier_has_no_card():
    assert not hub.official_card("vig", timm.create_model("vig_tiny", depth=1, device="meta"))
    assert not hub.official_card("hornet", timm.create_model("hornet_tiny_7x7", num_classes=0, device="meta"))
    assert not hub.official_card("gateformer", torch.nn.Identity())


def test_positions_made_for_another_size_set_the_size():
    found = hub.official_card("vig", timm.create_model("vig_tiny", img_size=256, device="meta"))
    assert found["data"]["preprocessing"]["size"] == 256


def test_folders_in_timms_own_form(tmp_path):
    model = timm.create_model("test_vit", num_classes=2).eval()
    save_for_hf(model, tmp_path / "model", model_config={"label_names": ["ant", "bee"]}, safe_serialization=True)
    found = hub.load_pretrained(tmp_path / "model")
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(found.model(x), model(x))
    assert found.card["data"]["classes"] == ["ant", "bee"]
    measured = api.evaluate("classify", model=tmp_path / "model", data=images(["bee", "ant"]))
    assert measured["metrics"]["top5"] == 100
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="No suitable checkpoints"):
        hub.load_pretrained(tmp_path / "model")


def test_a_repository_on_the_hub_is_such_a_folder(cached, tmp_path):
    repository = tmp_path / "models--someone--bees"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    model = timm.create_model("test_convnext", num_classes=2).eval()
    names = {"label_names": ["ant", "bee"]}
    save_for_hf(model, repository / "snapshots" / "abc", model_config=names, safe_serialization=True)
    found = hub.load_pretrained("hf-hub:someone/bees")
    assert found.card["data"]["classes"] == ["ant", "bee"]
    assert torch.equal(found.model.stem[0].weight, model.stem[0].weight)


def test_another_size_than_that_of_the_weights(tmp_path):
    save_for_hf(timm.create_model("test_vit", num_classes=2), tmp_path / "model", safe_serialization=True)
    job = api.restored("classify", None, tmp_path / "model", images(["0", "1"]), {"size": 96, "crop_pct": 1.0}, False)
    assert job.preprocessing["size"] == 96
    assert job.preprocessing["crop_pct"] == 1
    assert job.logits(job.example_inputs()[0]).shape == (1, 2)
    with pytest.raises(InputError, match="test_vit cannot see images of 4 pixels"):
        api.restored("classify", None, tmp_path / "model", None, {"size": 4}, False)


def test_many_classes_need_no_table_of_all_pairs():
    labels = torch.tensor([3, 20000])
    logits = torch.zeros(2, 21841)
    logits[0, 3] = logits[1, 5] = 9.0
    found = sums(logits, labels)
    assert "confusion" not in found
    assert summarise(found)["top1"] == summarise(found)["per_class"] == 50
