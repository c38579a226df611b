"""The classification task: configuration, batches, mixing, parameter groups, restoring."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit import api
from toolkit.data.images import ImageSet, Samples
from toolkit.errors import DataNotFoundError, InputError
from toolkit.tasks.classify.backbones import create_backbone
from toolkit.tasks.classify.config import ClassifyConfig
from toolkit.tasks.classify.task import Classify


def config(**changes) -> ClassifyConfig:
    return ClassifyConfig.build({"model": "test_convnext", "data": "digits", "size": 32, "batch_size": 8}, changes)


def images(count: int = 30, classes: tuple[str, ...] = ("a", "b", "c")) -> ImageSet:
    draws = np.random.default_rng(0)
    pictures = list(draws.integers(0, 256, (count, 20, 20, 3), dtype=np.uint8))
    labels = np.arange(count) % len(classes)
    return ImageSet("own", classes, {"train": Samples(pictures, labels, [f"own[{n}]" for n in range(count)])})


def job(frame=None, **changes) -> Classify:
    made = Classify(config(**changes), frame or images())
    made.build()
    return made


def batches(task: Classify, epoch: int = 0, start: int = 0):
    return [batch for batch, _ in task.train_batches(epoch, start, 0, 1)]


def test_an_epoch_is_a_function_of_seed_and_number():
    first, again, later = batches(job()), batches(job()), batches(job(), epoch=1)
    for (x, y), (other_x, other_y) in zip(first, again, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
    assert not torch.equal(first[0][0], later[0][0])
    resumed = batches(job(), start=1)
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(first[1:], resumed, strict=True))


def test_loading_draws_nothing_from_the_global_generator():
    task = job()
    before = torch.get_rng_state()
    batches(task)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_change_nothing():
    alone, helped = batches(job()), batches(job(workers=1))
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(alone, helped, strict=True))


@pytest.mark.parametrize("augment", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1}])
@pytest.mark.parametrize("count", [7, 8])
def test_mixed_targets_are_distributions(augment, count):
    task = job(augment=augment)
    x, y = torch.randn(count, 3, 32, 32), torch.arange(count) % 3
    mixed, targets = task._mix(x.clone(), y)
    assert mixed.shape == x.shape
    assert targets.shape == (count, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    loss, _ = task.train_step((x, y))
    assert loss.isfinite()


def test_biases_and_norms_do_not_decay_and_layers_have_their_rates():
    groups = job(optim={"weight_decay": 0.1}).optimizers()[0].param_groups
    for group in groups:
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim > 1 else 0.0)
    scales = [group["lr_scale"] for group in job(layer_decay=0.5).optimizers()[0].param_groups]
    assert max(scales) == 1
    assert min(scales) < 0.5


def test_labels_follow_the_trained_classes():
    task = Classify(config(), images(classes=("c", "a")))
    card = {"data": {"classes": ["a", "b", "c"], "preprocessing": {"size": 32}}}
    task.restore(torch.nn.Identity(), card, {})
    assert task.data.classes == ("a", "b", "c")
    assert set(task.data.splits["train"].labels.tolist()) == {0, 2}
    other = Classify(config(), images(classes=("a", "zebra")))
    other.restore(torch.nn.Identity(), card, {})
    with pytest.raises(InputError, match="'zebra', the model knows a, b, c"):
        _ = other.data


def test_small_images_are_seen_whole():
    assert job().preprocessing["crop_pct"] == 1
    assert job(size=None).preprocessing["size"] == 160  # the model's own


def test_a_fixed_input_size_reaches_the_model():
    task = job(model={"name": "test_vit", "patch_size": 8})
    assert task.model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_bad_settings():
    with pytest.raises(InputError, match=r"timm knows no model 'resnett18'. Did you mean"):
        job(model="resnett18")
    with pytest.raises(InputError, match=r"model test_convnext: .*no_such_argument"):
        job(model={"name": "test_convnext", "no_such_argument": 1})
    with pytest.raises(InputError, match=r"'cifar11' is neither.*cifar10"):
        config(data="cifar11")
    with pytest.raises(InputError, match="etth1 holds no images"):
        _ = Classify(config(data="etth1")).data
    with pytest.raises(DataNotFoundError, match=r"cifar10: no \*.parquet found"):
        _ = Classify(config(data="cifar10")).data
    with pytest.raises(InputError, match="no data given"):
        _ = Classify(config(data={"name": None})).data
    with pytest.raises(InputError, match="mean is .* at least 3 items"):
        config(mean=[0.5])
    with pytest.raises(InputError, match="timm knows no model 'resnett18'"):
        config(baselines=["resnett18"])
    assert config(monitor="loss").direction == "min"


def test_a_baseline_is_the_same_training_of_another_model():
    task = Classify(config(epochs=3, baselines=["test_vit", "digits"]), images())
    other, recipe = task.baseline("test_vit"), task.baseline("digits")
    assert other.config.model.name == "test_vit"
    assert other.config.epochs == recipe.config.epochs == 3
    assert recipe.config.name == "digits"
    assert recipe.config.baselines == []
    assert other.data is task.data


@pytest.mark.parametrize("name", ["resnet18", "hf-hub:timm/resnet18.a1_in1k"])
def test_pretrained_weights_are_not_fetched_offline(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TOOLKIT_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataNotFoundError, match="not on this machine: TOOLKIT_OFFLINE"):
        create_backbone(name, pretrained=True)


def test_cifar_is_read_whole(real_data, monkeypatch):
    if not (real_data / "cifar10").is_dir():
        pytest.skip("needs CIFAR-10: $TOOLKIT_DATA/cifar10/*.parquet")
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("TOOLKIT_DATA", str(real_data))
    data = Classify(config(data="cifar10")).data
    assert {split: len(samples) for split, samples in data.splits.items()} == {
        "test": 10000,
        "train": 45000,
        "val": 5000,
    }
    assert data.classes[3] == "cat"
    assert (np.bincount(data.splits["val"].labels) == 500).all()


def test_gate_maps_of_a_gated_backbone():
    small = {"name": "vig_h_tiny", "patch_size": 2, "dims": [16, 32], "depths": [1, 1], "num_heads": [1, 2]}
    maps = job(model=small).gate_maps([np.zeros((20, 20, 3), np.uint8)] * 2)
    assert {name: found.shape for name, found in maps.items()} == {
        "layers.0.blocks.0.mixer": (2, 16, 16),
        "layers.1.blocks.0.mixer": (2, 8, 8),
    }
    assert all(((found > 0) & (found < 1)).all() for found in maps.values())
    assert not job().gate_maps([np.zeros((20, 20, 3), np.uint8)])


def test_a_size_that_the_model_cannot_see():
    with pytest.raises(InputError, match=r"vig_tiny cannot see images of 4 pixels"):
        job(model="vig_tiny", size=4)


def test_own_images_do_not_get_the_settings_of_the_digits():
    own = api.resolve("classify", None, {"data": {"path": "photos/"}})
    assert (own.size, own.baselines, own.augment.crop, own.data.name) == (None, [], "resized", None)
    assert api.resolve("classify", None, {}).size == 16
