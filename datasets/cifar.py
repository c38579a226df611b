"""CIFAR-10 and CIFAR-100: 32-pixel photographs of 10 or 100 kinds of things (Krizhevsky 2009)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.data.images import ImageSet, read_images

CARDS: dict[str, dict[str, Any]] = {
    "cifar10": {
        "title": "CIFAR-10: 60,000 photographs of 32 x 32 pixels in 10 classes",
        "licence": "research use with citation",
        "homepage": "https://www.cs.toronto.edu/~kriz/cifar.html",
        "citation": "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        "notes": (
            "Read from Parquet files of encoded images, of whatever names: train*.parquet and test*.parquet",
            (
                "The checksums are those of a JPEG copy (quality 75), the only one that was measured here; accuracies"
                " on it are a little below those on the lossless original, and not comparable with published ones"
            ),
        ),
        "obtain": "Fetch plain_text/*.parquet of uoft-cs/cifar10 from the Hugging Face hub",
        "files": {
            "test.parquet": {"sha256": ("41fb8de49877f930db986f85808c1386bb46a63c20bfa1401a65438974253f1e",)},
            "train-00.parquet": {"sha256": ("353b19cad5d6ec51fdb347c9fd02a3feebcfa56eb3101c67655fcbe897b992f3",)},
            "train-01.parquet": {"sha256": ("c84c4b1cef3c70443fdcf37d24edc58d8a61de922f93077d7ffda060d7ca7974",)},
            "train-02.parquet": {"sha256": ("4cebae788dddf7720ce9100b730779a7432137315a22e4a1d3b8314af3ed06b1",)},
            "train-03.parquet": {"sha256": ("6e29e82f3376e56e8fbdf2766e7bb2177a7899ddeea60c040fd08409df31effa",)},
            "train-04.parquet": {"sha256": ("e038dd0e3ed5169f0d759fa51f0f628a5f26cd54fdfda7c66d4986a0fde93679",)},
        },
        "folders": ("cifar10",),
        "images": {"train": 50000, "test": 10000},
        "classes": 10,
        "size": 32,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
    },
    "cifar100": {
        "title": "CIFAR-100: 60,000 photographs of 32 x 32 pixels in 100 classes",
        "licence": "research use with citation",
        "homepage": "https://www.cs.toronto.edu/~kriz/cifar.html",
        "citation": "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        "notes": ("Read from Parquet files of encoded images: train*.parquet and test*.parquet; no checksum is known",),
        "obtain": "Fetch cifar100/*.parquet of uoft-cs/cifar100 from the Hugging Face hub",
        "files": {},
        "folders": ("cifar100",),
        "images": {"train": 50000, "test": 10000},
        "classes": 100,
        "size": 32,
        "mean": (0.5071, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2762),
    },
}


def read(name: str, path: Path) -> ImageSet:
    """Read a folder of Parquet files with encoded images."""
    return read_images(path)
