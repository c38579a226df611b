"""Classes of the user's own images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from toolkit.data.images import decode, list_images
from toolkit.errors import InputError
from toolkit.tasks.classify.data import UNREADABLE

if TYPE_CHECKING:
    from toolkit.tasks.classify.task import Classify

BEST = 5  # classes per image
_log = logging.getLogger(__name__)


@torch.inference_mode()
def predict_images(task: Classify, source: Any) -> pd.DataFrame:
    """Classify images.

    Args:
        task: with a trained model.
        source: a path, a folder (searched through), an array uint8 [H, W, 3], or a list of these.

    Returns:
        A row per image: ``image``, ``class``, ``probability``, then the next classes as ``class_2``,
        ``probability_2``, ... up to five.

    Raises:
        InputError: no image there, or one that cannot be read; with ``skip_bad`` those are left out, with a warning.
    """
    inputs = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    images: list[Any] = []
    for given in inputs:
        found = [given] if isinstance(given, np.ndarray) else list_images(Path(given))
        if not found:
            raise InputError(f"{given} holds no image")
        images += found
    task.model.eval()
    rows = [row for image in images if (row := _classify(task, image)) is not None]
    if not rows:
        raise InputError(f"none of the {len(images)} images can be read")
    return pd.DataFrame(rows)


def _classify(task: Classify, image: Any) -> dict[str, Any] | None:
    name = "array" if isinstance(image, np.ndarray) else str(image)
    try:
        pixels = decode(image, name)
    except InputError as error:
        if not task.config.skip_bad:
            raise InputError(str(error), UNREADABLE) from None
        _log.warning("%s; left out", error)
        return None
    classes = task.trained.get("labels") or task.trained["classes"]
    probabilities = task.logits(task.eval_transform(pixels)[None])[0].float().softmax(0)
    best = probabilities.topk(min(BEST, len(classes)))
    row: dict[str, Any] = {"image": name}
    for rank, (value, number) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), start=1):
        ending = f"_{rank}" if rank > 1 else ""
        row |= {f"class{ending}": classes[number], f"probability{ending}": value}
    return row


def write_table(prediction: pd.DataFrame, output: Path) -> None:
    """Write a prediction as CSV.

    Args:
        output: the file, or a folder that gets ``prediction.csv``.

    Raises:
        InputError: the folder does not exist, or another kind of file is asked for.
    """
    output = output / "prediction.csv" if output.is_dir() else output
    if not output.parent.is_dir():
        raise InputError(f"cannot write {output}: the folder {output.parent} does not exist")
    if output.suffix != ".csv":
        raise InputError(f"cannot write {output}: its form is not known", "Name a .csv file")
    aside = output.with_name(f".tmp-{output.name}")
    prediction.to_csv(aside, index=False)
    aside.replace(output)
