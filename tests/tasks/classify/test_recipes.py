"""The recipes for CIFAR-10: each model takes a training step on 32-pixel images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit import registry
from toolkit.config import recipe_layers
from toolkit.data.images import ImageSet, Samples
from toolkit.tasks.classify.config import ClassifyConfig
from toolkit.tasks.classify.task import Classify


def images() -> ImageSet:
    """Ten classes of 32-pixel images, three for training, one for validation and one for the test of each."""
    draws = np.random.default_rng(0)
    classes = tuple(f"class{number}" for number in range(10))
    splits = {
        split: Samples(
            list(draws.integers(0, 256, (10 * count, 32, 32, 3), dtype=np.uint8)),
            np.arange(10 * count) % 10,
            [f"{split}[{number}]" for number in range(10 * count)],
        )
        for split, count in (("train", 3), ("val", 1), ("test", 1))
    }
    return ImageSet("own", classes, splits)


@pytest.mark.parametrize("name", registry.recipes.names("cifar10_*"))
def test_a_cifar10_recipe_takes_a_training_step(name):
    torch.manual_seed(0)
    task = Classify(ClassifyConfig.build(*recipe_layers(name, "classify"), {"batch_size": 30}), images())
    task.build()
    task.model.train()
    batch, weight = next(task.train_batches(0, 0, 0, 1))
    assert batch[0].shape == (30, 3, 32, 32)
    assert weight > 0
    (optimizer,) = task.optimizers()
    losses = []
    for _ in range(3):
        loss, _ = task.train_step(batch)
        optimizer.zero_grad()
        loss.backward()
        unused = [key for key, p in task.model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert unused == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", registry.recipes.names("cifar10_*"))
def test_a_baseline_of_a_cifar10_recipe_differs_from_it_in_the_model_alone(name):
    task = Classify(ClassifyConfig.build(*recipe_layers(name, "classify")), images())
    for other in task.config.baselines:
        baseline = task.baseline(other)
        own, its = (job.config.layer() for job in (task, baseline))
        assert {key for key in own if own[key] != its.get(key)} <= {"model", "name", "baselines"}
        baseline.build()
        assert baseline.model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
