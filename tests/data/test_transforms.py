"""Augmentation depends on its seed alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from toolkit.data.transforms import AugmentConfig, EvalTransform, TrainTransform, seeded
from toolkit.errors import InputError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
EVERYTHING = AugmentConfig(crop="pad", color_jitter=0.3, rand_augment="rand-m9-mstd0.5-inc1", erase=1.0)


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def test_a_seed_decides_all(picture):
    transform = TrainTransform(EVERYTHING, 32, MEAN, STD)
    state, numpy = random.getstate(), np.random.get_state()[1].copy()
    results = [transform(picture, seed) for seed in (1, 2, 1)]
    assert results[0].shape == (3, 32, 32)
    assert results[0].dtype == torch.float32
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[1])
    assert random.getstate() == state
    assert (np.random.get_state()[1] == numpy).all()


@pytest.mark.parametrize("crop", ["resized", "pad", "none"])
def test_every_crop_has_the_size(picture, crop):
    transform = TrainTransform(AugmentConfig(crop=crop), 24, MEAN, STD)
    assert transform(picture, 0).shape == (3, 24, 24)


def test_without_augmentation_only_values_are_normalised(picture):
    square = picture[:32, :32]
    result = TrainTransform(AugmentConfig(crop="none", flip=False), 32, MEAN, STD)(square, 0)
    expected = (torch.from_numpy(square).permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None]) / 0.2
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(EvalTransform(32, MEAN, STD)(square), expected)


def test_flips_are_half(picture):
    transform = TrainTransform(AugmentConfig(crop="none"), 32, MEAN, STD)
    plain = transform(picture, 0)
    same = sum(torch.equal(transform(picture, seed), plain) for seed in range(200))
    assert 70 < same < 130


@pytest.mark.parametrize("seed", range(30))
def test_strongest_posterising_is_allowed(picture, seed):
    TrainTransform(AugmentConfig(crop="none", rand_augment="rand-m10-n5-inc1"), 32, MEAN, STD)(picture, seed)


def test_unknown_words():
    with pytest.raises(InputError, match=r"rand_augment is 'rand-q9'.*rand-m9-mstd0.5-inc1"):
        TrainTransform(AugmentConfig(rand_augment="rand-q9"), 32, MEAN, STD)


def test_seeded_leaves_the_global_state():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    with seeded(1):
        random.random()
    assert random.random() == expected
