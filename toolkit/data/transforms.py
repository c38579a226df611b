"""Image augmentation: the one place that knows albumentations, and timm's RandAugment.

A random transform draws from a seed that comes with each image, so that an epoch does not depend on the number of
loader processes and can be resumed anywhere.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from toolkit.config import Config
from toolkit.errors import InputError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would look for updates on the network

import albumentations as A
import cv2
from timm.data import create_transform, rand_augment_transform

FILL = 4  # pixels of padding around which "pad" crops, as a part of 32


class AugmentConfig(Config):
    """What is done to training images."""

    crop: Literal["resized", "pad", "none"] = Field(
        "resized",
        description="resized: a random part, resized; pad: a shift by up to an eighth; none: resized as a whole",
    )
    flip: bool = Field(True, description="mirror half of the images")
    color_jitter: float = Field(0.0, ge=0, description="strength of brightness, contrast and saturation changes")
    rand_augment: str | None = Field(None, description="timm's words for RandAugment, such as rand-m9-mstd0.5-inc1")
    erase: float = Field(0.0, ge=0, le=1, description="probability that a rectangle is filled with noise")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0: none")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix; 0: none")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")


class TrainTransform:
    """A random transform of one image.

    Args:
        augment: what is done.
        size: height and width of the result.
        mean, std: channel statistics for the normalisation, of values in [0, 1].

    Raises:
        InputError: words for RandAugment that timm does not know.
    """

    def __init__(self, augment: AugmentConfig, size: int, mean: tuple[float, ...], std: tuple[float, ...]):
        shift = size * FILL // 32
        geometry = {
            "resized": [A.RandomResizedCrop((size, size), scale=(0.08, 1.0), interpolation=cv2.INTER_CUBIC)],
            "pad": [
                A.Resize(size, size, interpolation=cv2.INTER_CUBIC),
                A.PadIfNeeded(size + 2 * shift, size + 2 * shift, border_mode=cv2.BORDER_CONSTANT),
                A.RandomCrop(size, size),
            ],
            "none": [A.Resize(size, size, interpolation=cv2.INTER_CUBIC)],
        }[augment.crop]
        jitter = augment.color_jitter
        self.geometry = A.Compose([*geometry, *([A.HorizontalFlip(p=0.5)] if augment.flip else [])])
        self.colour = A.Compose([A.ColorJitter(jitter, jitter, jitter, 0, p=1.0)]) if jitter else None
        self.randaugment = _randaugment(augment.rand_augment, size, mean) if augment.rand_augment else None
        erase = [A.Erasing(scale=(0.02, 1 / 3), fill="random", p=augment.erase)] if augment.erase else []
        self.finish = A.Compose([A.Normalize(mean, std), *erase])

    def __call__(self, image: NDArray[np.uint8], seed: int) -> Tensor:
        """uint8 [H, W, 3] to float32 [3, size, size]; the same seed gives the same result."""
        for number, part in enumerate((self.geometry, self.colour)):
            if part is not None:
                part.set_random_seed(seed + number)
                image = part(image=image)["image"]
        if self.randaugment is not None:
            with seeded(seed):
                image = np.asarray(self.randaugment(Image.fromarray(image)))
        self.finish.set_random_seed(seed + 2)
        return _to_tensor(self.finish(image=image)["image"])


class EvalTransform:
    """timm's transform for evaluation, the protocol of published accuracies: resize the short side, centre crop.

    Args:
        size: height and width of the result.
        mean, std: channel statistics.
        crop_pct: part of the resized image that the crop takes.
        crop_mode: ``center``, ``squash`` (resize to the size, whatever the shape) or ``border``.
        interpolation: ``bicubic``, ``bilinear``, ...
    """

    def __init__(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        crop_pct: float = 1.0,
        crop_mode: str = "center",
        interpolation: str = "bicubic",
    ):
        self.transform: Any = create_transform(
            size, mean=mean, std=std, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation
        )

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:
        """uint8 [H, W, 3] to float32 [3, size, size]."""
        return torch.as_tensor(self.transform(Image.fromarray(image)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, ``random`` and numpy's global generator draw from ``seed``; outside they stay where they were."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _randaugment(words: str, size: int, mean: tuple[float, ...]) -> Any:
    fill = {"translate_const": int(size * 0.45), "img_mean": tuple(min(255, round(255 * value)) for value in mean)}
    try:
        transform = rand_augment_transform(words, fill)
    except (AssertionError, ValueError, KeyError) as error:
        reason = f": {error}" if str(error) else ""
        raise InputError(f"augment.rand_augment is {words!r}{reason}", "Write it as rand-m9-mstd0.5-inc1") from None
    for operation in transform.ops:
        if operation.name.startswith("Posterize"):  # Pillow refuses to keep 0 bits, which timm can ask for
            operation.level_fn = partial(_at_least_one_bit, operation.level_fn)
    return transform


def _at_least_one_bit(bits_of: Callable[[float, Any], tuple[int, ...]], level: float, settings: Any) -> tuple[int, ...]:
    return (max(1, bits_of(level, settings)[0]),)


def _to_tensor(image: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
