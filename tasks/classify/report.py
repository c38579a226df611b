"""The classification part of a run's report, drawn from ``predictions.npz``."""

from __future__ import annotations

import zipfile
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from toolkit.engine.report import Section, label, markdown_table
from toolkit.engine.run import Run
from toolkit.errors import InputError
from toolkit.tasks.classify.metrics import BINS, class_accuracy

SHOWN = 16  # worst mistakes in a report
THUMBNAIL = 96  # pixels of height and width
NAMED = 25  # classes whose names fit beside a confusion matrix
GATES = 4  # gates whose maps are drawn
LISTED = 20  # pairs and classes in tables


class Mistake(NamedTuple):
    """What was predicted for an image; the greatest is the worst."""

    loss: float
    label: int
    predicted: int
    confidence: float


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture for the report, uint8 [96, 96, 3]."""
    resampling = Image.Resampling.NEAREST if max(image.shape[:2]) <= THUMBNAIL // 2 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), resampling))


def sections(run: Run) -> list[Section]:
    """The worst mistakes, accuracy by class, confusions, and calibration."""
    path = run.folder / "predictions.npz"
    try:
        with np.load(path) as stored:
            evidence = dict(stored)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is missing or damaged: {error}") from None
    parts = [_classes(evidence), _confusion(evidence)] if "confusion" in evidence else []
    parts.append(_calibration(run, evidence))
    if "examples" in evidence:
        parts.append(_gates(evidence))
    return [_mistakes(evidence), *parts] if len(evidence["mistakes"]) else parts


def _mistakes(evidence: dict[str, np.ndarray]) -> Section:
    classes, pictures = evidence["classes"], evidence["pictures"]
    columns = min(8, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.9 * rows))
    for axes in np.ravel(figure.subplots(rows, columns)):
        axes.axis("off")
    for axes, picture, (true, predicted, confidence) in zip(figure.axes, pictures, evidence["mistakes"], strict=False):
        axes.imshow(picture)
        axes.set_title(
            label(f"{classes[int(true)]}\n{classes[int(predicted)]} {confidence:.0%}"), fontsize=7, color="tab:red"
        )
    names = ", ".join(f"`{name}`" for name in evidence["names"])
    text = f"Test images with the highest loss: the true class, and below it what was predicted. They are {names}."
    return Section("Worst mistakes", text, {"mistakes": figure})


def _classes(evidence: dict[str, np.ndarray]) -> Section:
    confusion, classes = evidence["confusion"], evidence["classes"]
    accuracy = class_accuracy(torch.from_numpy(confusion)).numpy()
    order = [number for number in np.argsort(accuracy) if confusion[number].sum()]
    rows = [
        {"class": str(classes[n]), "images": int(confusion[n].sum()), "accuracy %": float(accuracy[n])}
        for n in order[:LISTED]
    ]
    what = "all classes" if len(order) <= LISTED else f"the {LISTED} worst of {len(order)} classes"
    return Section("Accuracy by class", f"{what[0].upper()}{what[1:]}, worst first.\n\n" + markdown_table(rows))


def _confusion(evidence: dict[str, np.ndarray]) -> Section:
    confusion, classes = evidence["confusion"], evidence["classes"]
    share = confusion / confusion.sum(1, keepdims=True).clip(1)
    figure = Figure(figsize=(6, 5))
    axes = figure.subplots()
    figure.colorbar(axes.imshow(share, cmap="Blues", vmin=0, vmax=1), ax=axes, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= NAMED:
        names = [label(name) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=60, ha="right", fontsize=7)
        axes.set_yticks(range(len(classes)), names, fontsize=7)
    off = confusion - np.diag(confusion.diagonal())
    pairs = [np.unravel_index(flat, off.shape) for flat in np.argsort(off, axis=None)[::-1][:10]]
    rows = [
        {"true": str(classes[t]), "predicted": str(classes[p]), "images": int(off[t, p])} for t, p in pairs if off[t, p]
    ]
    return Section("Confusions", markdown_table(rows) if rows else "No test image is confused.", {"confusion": figure})


def _calibration(run: Run, evidence: dict[str, np.ndarray]) -> Section:
    images = evidence["bin_images"]
    filled = images > 0
    confidence, right = (evidence[name][filled] / images[filled] for name in ("bin_confidence", "bin_right"))
    figure = Figure(figsize=(4.5, 3.5))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    axes.plot(confidence, right, "o-")
    axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    error = run.metrics()["metrics"]["test"]["calibration"]
    text = f"Expected calibration error over {BINS} bins: **{error:.2f} %**. Below the diagonal the model is too sure."
    return Section("Calibration", text, {"calibration": figure})


def _gates(evidence: dict[str, np.ndarray]) -> Section:
    """Test images beside the openness of some gates, from the first to the last."""
    names = [name for name in evidence if name.startswith("gate:")]
    names = [names[round(part)] for part in np.linspace(0, len(names) - 1, min(GATES, len(names)))]
    examples = evidence["examples"]
    figure = Figure(figsize=(1.6 * (1 + len(names)), 1.7 * len(examples)))
    grid = figure.subplots(len(examples), 1 + len(names), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for row, picture in enumerate(examples):
        grid[row, 0].imshow(picture)
        for column, name in enumerate(names, start=1):
            drawn = grid[row, column].imshow(evidence[name][row], cmap="viridis", vmin=0, vmax=1)
            if row == 0:
                grid[row, column].set_title(name.removeprefix("gate:").removesuffix(".mixer"), fontsize=7)
    figure.colorbar(drawn, ax=grid, shrink=0.6)
    text = "Mean of a gate over its channels, for some test images; 1 passes attention, 0 the local convolution."
    return Section("Where the gates stand open", text, {"gates": figure})
