"""Labelled images from a folder, a CSV or Parquet files, decoded one at a time to RGB arrays.

* A folder: a sub-folder per class; or ``train``, ``val`` (``valid``, ``validation``) and ``test``, each with those.
* A CSV: a row per image with its path (relative to the file), its class, optionally its split.
* Parquet: image bytes in a column (plain, or with ``bytes`` and ``path``, as on the Hugging Face hub), and a class; one
  file, or a folder of files called ``train*``, ``val*``, ``test*``.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from toolkit.errors import InputError, require

Source = Path | bytes | NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2")
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
NARROW = 1000  # a side this many times the other: to resize the short one to 224 would take gigabytes
IMAGE_COLUMNS = ("image", "img", "path", "file", "filename", "file_name")
LABEL_COLUMNS = ("label", "class", "fine_label", "target", "category")


@dataclass(frozen=True)
class Samples:
    """Images that are not decoded yet, and what they show.

    Attributes:
        sources: paths, encoded bytes, or arrays uint8 [H, W, 3].
        labels: class numbers, int64.
        names: how messages and tables call each image.
    """

    sources: Sequence[Source]
    labels: NDArray[np.int64]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.sources)

    def select(self, positions: NDArray[np.int64]) -> Samples:
        """Some of the images."""
        return Samples(
            [self.sources[p] for p in positions.tolist()], self.labels[positions], [self.names[p] for p in positions]
        )

    def image(self, position: int) -> NDArray[np.uint8]:
        """One image, decoded."""
        return decode(self.sources[position], self.names[position])


@dataclass(frozen=True)
class ImageSet:
    """A labelled data set.

    Attributes:
        name: as messages call it.
        classes: names, in the order of their numbers.
        splits: ``train``, ``val`` and ``test``, or some of them.
        skipped: names of images that cannot be read and were left out.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Samples]
    skipped: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """What ``toolkit data check`` shows."""
        return {
            "classes": len(self.classes),
            "images": {split: len(samples) for split, samples in self.splits.items()},
            **({"skipped": len(self.skipped)} if self.skipped else {}),
        }

    def with_holdout(self, val: float, test: float, seed: int = 0) -> ImageSet:
        """The same set with ``val`` and ``test``: what is missing is taken from ``train``, class by class.

        Args:
            val: part of the training images that becomes ``val``.
            test: part that becomes ``test``.
            seed: of the choice, which depends on nothing else.

        Raises:
            InputError: a class is left without a training image.
        """
        splits = dict(self.splits)
        if "train" not in splits:
            raise InputError(f"{self.name} has no training images", f"It holds {', '.join(splits)}")
        for split, part in (("test", test), ("val", val)):
            if split not in splits:
                train = splits["train"]
                held = _stratified(train.labels, part, seed)
                splits[split], splits["train"] = train.select(np.flatnonzero(held)), train.select(np.flatnonzero(~held))
        for split, samples in splits.items():
            if not len(samples):
                raise InputError(
                    f"{self.name} has no {split} images", "Add images, or choose larger data.val and data.test"
                )
        for number in set(range(len(self.classes))) - set(splits["train"].labels.tolist()):
            raise InputError(f"{self.name}: class {self.classes[number]!r} has no training image")
        return replace(self, splits=splits)

    def without_unreadable(self) -> ImageSet:
        """The same set without images that cannot be decoded."""
        splits, skipped = {}, []
        for split, samples in self.splits.items():
            readable = np.array([_is_readable(samples, position) for position in range(len(samples))], dtype=bool)
            skipped += [samples.names[position] for position in np.flatnonzero(~readable).tolist()]
            splits[split] = samples.select(np.flatnonzero(readable))
        return replace(self, splits=splits, skipped=tuple(skipped))


def decode(source: Source, name: str = "") -> NDArray[np.uint8]:
    """An image as RGB, uint8 [H, W, 3], upright.

    Grey, palette, CMYK and 16-bit images are converted; transparent pixels are shown on white.

    Raises:
        InputError: the image cannot be read, has too many pixels, or is a line of them.
    """
    if isinstance(source, np.ndarray):
        return source
    label = name or (str(source) if isinstance(source, Path) else f"an image of {len(source)} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes and tags; what cannot be used raises
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if max(image.size) > NARROW * min(image.size):
                    raise InputError(f"{label} is too narrow: {image.width} by {image.height} pixels")
                image.load()
                return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError:
        raise InputError(f"{label} does not exist") from None
    except UnidentifiedImageError:
        raise InputError(f"{label} is no image, or of an unknown format") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise InputError(f"{label} is too large: it has more than {most:,} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{label} is damaged: {' '.join(str(error).split())}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits of grey
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        full = 65535 if image.mode != "F" and values.max(initial=0) > 255 else 255
        return Image.fromarray((values.clip(0, full) * (255 / full)).round().astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def read_images(path: str | Path, *, image: str | None = None, label: str | None = None) -> ImageSet:
    """Read a labelled set in one of the forms of this module.

    Args:
        path: folder, CSV or Parquet file.
        image: column with the image or its path; None: found by name.
        label: column with the class; None: found by name.

    Raises:
        InputError: nothing there, an unknown form, a missing column, a class without images.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv" and path.is_file():
        return _read_csv(path, image, label)
    if path.suffix.lower() == ".parquet" and path.is_file():
        return read_parquet(path.stem, {"train": [path]}, image, label)
    if not path.is_dir():
        reason = "is no folder, CSV or Parquet file" if path.exists() else "does not exist"
        raise InputError(f"{path} {reason}", "Give a folder with a sub-folder per class, or a CSV of paths and classes")
    files = sorted(path.glob("*.parquet"))
    if files:
        by_split: dict[str, list[Path]] = {}
        for file in files:
            by_split.setdefault(_split_of(file.stem) or "train", []).append(file)
        return read_parquet(path.name, by_split, image, label)
    return _read_folder(path)


def list_images(path: Path) -> list[Path]:
    """The image files below a folder, in order; the path itself if it is a file."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _read_folder(path: Path) -> ImageSet:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    roots = {SPLITS[p.name.lower()]: p for p in folders if p.name.lower() in SPLITS} or {"train": path}
    classes = sorted({p.name for root in roots.values() for p in root.iterdir() if _is_class(p)})
    if not classes:
        raise InputError(f"{path} has no sub-folder per class", "Or give a CSV with the columns image and label")
    splits = {}
    for split, root in roots.items():
        found = [(file, number) for number, name in enumerate(classes) for file in list_images(root / name)]
        found = [(file, number) for file, number in found if file.is_file()]
        empty = sorted(set(range(len(classes))) - {number for _, number in found})
        if empty and split == "train":
            folder = root / classes[empty[0]]
            if not folder.is_dir():
                raise InputError(f"{folder} does not exist, but other splits have that class")
            raise InputError(f"{folder} holds no image", f"Known are {', '.join(SUFFIXES)}; remove an empty folder")
        labels = np.array([number for _, number in found], dtype=np.int64)
        splits[split] = Samples([file for file, _ in found], labels, [str(file) for file, _ in found])
    return ImageSet(path.name, tuple(classes), splits)


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _read_csv(path: Path, image: str | None, label: str | None) -> ImageSet:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no CSV: {' '.join(str(error).split())}") from None
    image = _column(path, table.columns, image, IMAGE_COLUMNS, "image")
    label = _column(path, table.columns, label, LABEL_COLUMNS, "label")
    for column in (image, label):
        if (table[column] == "").any():
            row = int(np.flatnonzero(table[column] == "")[0])
            raise InputError(f"{path}: row {row + 2} has no {column}")
    files = [path.parent / name for name in table[image]]
    for row, file in enumerate(files):
        if not file.is_file():
            raise InputError(f"{path}: row {row + 2} names {file}, which does not exist")
    classes = tuple(_in_order(table[label].unique()))
    numbers = table[label].map({name: number for number, name in enumerate(classes)}).to_numpy(np.int64)
    whole = Samples(files, numbers, [str(file) for file in files])
    if "split" not in table:
        return ImageSet(path.stem, classes, {"train": whole})
    splits = {}
    for value in table["split"].unique():
        if value.lower() not in SPLITS:
            raise InputError(f"{path}: unknown split {value!r}", "There are train, val and test")
        splits[SPLITS[value.lower()]] = whole.select(np.flatnonzero(table["split"] == value))
    return ImageSet(path.stem, classes, splits)


def read_parquet(
    name: str, files: Mapping[str, Sequence[Path]], image: str | None = None, label: str | None = None
) -> ImageSet:
    """Read Parquet files with encoded images, by split; class names come from the files' metadata where it has some."""
    pyarrow = require("pyarrow", extra="parquet", purpose="Reading Parquet")
    parquet = require("pyarrow.parquet", extra="parquet", purpose="Reading Parquet")
    splits: dict[str, Samples] = {}
    classes: tuple[str, ...] = ()
    for split, paths in files.items():
        sources: list[bytes] = []
        labels: list[Any] = []
        for path in paths:
            try:
                table = parquet.read_table(path)
            except (pyarrow.ArrowException, OSError) as error:
                raise InputError(f"{path} is no Parquet file: {' '.join(str(error).split())}") from None
            image_column = _column(path, table.column_names, image, IMAGE_COLUMNS, "image")
            label_column = _column(path, table.column_names, label, LABEL_COLUMNS, "label")
            cells = table[image_column].to_pylist()
            sources += [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
            if bad := next((p for p, cell in enumerate(sources) if not isinstance(cell, bytes)), None):
                raise InputError(f"{path}: row {bad} of {image_column} holds no image bytes")
            labels += table[label_column].to_pylist()
            classes = classes or _class_names(table.schema.metadata, label_column)
        names = [f"{split}[{number}]" for number in range(len(sources))]
        splits[split] = Samples(sources, np.array(labels), names)
    if not classes:
        found = _in_order(np.unique(np.concatenate([samples.labels for samples in splits.values()])).tolist())
        classes = tuple(map(str, found))
        number = {value: position for position, value in enumerate(found)}
        splits = {
            split: replace(
                samples, labels=np.array([number[value] for value in samples.labels.tolist()], dtype=np.int64)
            )
            for split, samples in splits.items()
        }
    return ImageSet(name, classes, splits)


def _class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    features = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return tuple(features.get(column, {}).get("names", ()))


def _column(path: Path, columns: Sequence[str], wanted: str | None, known: Sequence[str], what: str) -> str:
    found = [name for name in ([wanted] if wanted else known) if name in columns]
    if not found:
        raise InputError(
            f"{path} has no column {wanted or what!r}, only {', '.join(columns)}", f"Name it with data.{what}=COLUMN"
        )
    return found[0]


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Sorted; numbers by value even where they are text."""
    texts = [str(value) for value in values]
    return sorted(values, key=lambda v: (0, int(v), "") if all(t.lstrip("-").isdigit() for t in texts) else (1, 0, v))


def _split_of(stem: str) -> str | None:
    word = stem.lower().replace("_", "-").split("-")[0]
    return SPLITS.get(word)


def _stratified(labels: NDArray[np.int64], part: float, seed: int) -> NDArray[np.bool_]:
    """Which images are held out: ``part`` of every class, at least one where it has two."""
    held, draws = np.zeros(len(labels), dtype=bool), np.random.default_rng(seed)
    for number in np.unique(labels):
        own = draws.permutation(np.flatnonzero(labels == number))
        count = round(part * len(own)) or int(len(own) > 1)
        held[own[:count]] = True
    return held


def _is_readable(samples: Samples, position: int) -> bool:
    try:
        samples.image(position)
    except InputError:
        return False
    return True
