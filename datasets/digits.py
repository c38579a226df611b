"""Digits: 8-pixel scans of handwritten digits; comes with scikit-learn, which the toolkit needs anyway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.images import ImageSet, Samples

CARDS: dict[str, dict[str, Any]] = {
    "digits": {
        "title": "Handwritten digits, 8 x 8 pixels",
        "licence": "CC BY 4.0",
        "homepage": "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        "citation": "Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998",
        "notes": (
            "The 1,797 images of the original test set, by 13 writers, as scikit-learn carries them",
            "Every fifth image is the test set",
        ),
        "files": {},
        "images": {"train": 1438, "test": 359},
        "classes": 10,
        "size": 8,
        "mean": (0.3059, 0.3059, 0.3059),
        "std": (0.3763, 0.3763, 0.3763),
        "embedded": True,
    },
}


def read(name: str, path: Path | None = None) -> ImageSet:
    """The images as RGB, 0 to 255; ``path`` is not needed."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    grey = np.rint(loaded.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    positions = np.arange(len(images))
    whole = Samples(list(images), loaded.target.astype(np.int64), [f"digits[{position}]" for position in positions])
    test = positions % 5 == 4
    splits = {"train": whole.select(positions[~test]), "test": whole.select(positions[test])}
    return ImageSet(name, tuple(map(str, range(10))), splits)
