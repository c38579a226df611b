"""The classification task: any timm model on labelled images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.data import Mixup, resolve_model_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

import toolkit
from toolkit import registry
from toolkit.config import Layer, recipe_layers
from toolkit.data.cards import ImageCard
from toolkit.data.images import ImageSet
from toolkit.data.loaders import epoch_batches, eval_batches
from toolkit.data.transforms import EvalTransform, TrainTransform
from toolkit.engine.distributed import gather_objects
from toolkit.engine.loop import evaluate, evaluation_sums
from toolkit.engine.optim import build_optimizer
from toolkit.engine.run import Run
from toolkit.errors import InputError
from toolkit.tasks.classify.backbones import create_backbone, set_size
from toolkit.tasks.classify.config import ClassifyConfig
from toolkit.tasks.classify.data import (
    Batch,
    TransformedImages,
    load_batches,
    load_images,
    measured_whole,
    numbered,
)
from toolkit.tasks.classify.gates import watching
from toolkit.tasks.classify.metrics import summarise, sums
from toolkit.tasks.classify.predict import predict_images, write_table
from toolkit.tasks.classify.report import SHOWN, Mistake, sections, thumbnail

TASK = "Classify"

SMALL = 32  # pixels up to which an image is seen whole, as the small data sets are


class Classify:
    """Images in, one of the data set's classes out.

    Args:
        config: resolved settings.
        frame: a labelled set to use instead of ``config.data``'s (``toolkit.data.images.ImageSet``).
        download: not used: no set of images has a direct link.
    """

    Config = ClassifyConfig
    default_recipe, own_data_recipe = "digits", "images"
    takes_several = True  # predicts from several inputs at once
    usable_after_training = (  # keys that `evaluate` and `predict` take
        *("data.name", "data.path", "data.image", "data.label", "data.val", "data.test", "skip_bad", "workers"),
        *("size", "crop_pct", "crop_mode", "interpolation", "mean", "std", "batch_size", "eval_batch_size", "threads"),
    )

    def __init__(self, config: ClassifyConfig, frame: ImageSet | None = None, download: bool = False):
        self.config = config
        self._frame = frame
        self.model: nn.Module
        self.trained: dict[str, Any] = {}  # classes and preprocessing of a restored model
        self._mistakes: list[Mistake] | None = None  # collected while the test images are measured

    @staticmethod
    def settings_of(card: Mapping[str, Any]) -> Layer:
        """Settings that a model directory implies: those of its training."""
        if "config" not in card:
            raise InputError(
                "this model directory does not say which classes it knows",
                "Name one of toolkit train classify, or of a published classifier from toolkit convert",
            )
        return dict(card["config"])

    def build(self) -> None:
        """Read the data, if that is not done, and make the model, with fresh weights unless ``model.pretrained``.

        Raises:
            InputError, DataNotFoundError: an unknown model or argument, or data that cannot be used.
        """
        arguments = {"num_classes": len(self.data.classes), **self._sized(), **self.config.model.arguments}
        self.model = create_backbone(self.config.model.name, pretrained=self.config.model.pretrained, **arguments)
        _ = self._train_images  # words for augmentation are checked
        self._check_size()

    def _check_size(self, resize: bool = False) -> None:
        size = self.preprocessing["size"]
        try:
            if resize:
                set_size(self.model, size)
            with torch.no_grad():
                self.model.eval()(torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.config.model.name} cannot see images of {size} pixels: {reason}", "Change size"
            ) from None

    def _sized(self) -> dict[str, Any]:
        """``img_size`` for the models that have to know it."""
        found = timm.get_pretrained_cfg(self.config.model.name, allow_unregistered=True)
        fixed = found is not None and found.fixed_input_size
        return {"img_size": self.config.size} if fixed and self.config.size is not None else {}

    def restore(self, model: nn.Module, card: Mapping[str, Any], extra: Mapping[str, Tensor]) -> None:
        """Use a trained model. Its own classes and preprocessing stay, whatever data it meets."""
        self.model, self.trained = model, dict(card["data"])
        if self.preprocessing["size"] != self.trained["preprocessing"]["size"]:
            self._check_size(resize=True)

    @cached_property
    def data(self) -> ImageSet:
        """The labelled images, read when first needed; with the classes of a restored model."""
        if not self.trained:
            return self._read[0]
        return numbered(self._read[0], self.trained["classes"], self.trained.get("labels"))

    @cached_property
    def _read(self) -> tuple[ImageSet, ImageCard | None]:
        data = self.config.data
        found, card = (self._frame, None) if self._frame is not None else load_images(data, self.config.skip_bad)
        if self.trained and (self.trained.get("published") or "train" not in found.splits):
            return measured_whole(found), card
        return found.with_holdout(data.val, data.test), card

    @cached_property
    def preprocessing(self) -> dict[str, Any]:
        """Size, channel statistics and crop that the model sees images with."""
        if self.trained:
            return self.trained["preprocessing"] | self.config.preprocessing
        own = resolve_model_data_config(self.model)
        size = self.config.size or own["input_size"][-1]
        card = None if self.config.model.pretrained else self._read[1]
        return {
            "size": size,
            "mean": list(card.mean if card else own["mean"]),
            "std": list(card.std if card else own["std"]),
            "crop_pct": 1.0 if size <= SMALL else own["crop_pct"],
            "crop_mode": "squash" if size <= SMALL else own["crop_mode"],
            "interpolation": own["interpolation"],
        } | self.config.preprocessing

    @cached_property
    def _train_images(self) -> TransformedImages:
        seen = self.preprocessing
        transform = TrainTransform(self.config.augment, seen["size"], tuple(seen["mean"]), tuple(seen["std"]))
        return TransformedImages(self.data.splits["train"], transform)

    @cached_property
    def eval_transform(self) -> EvalTransform:
        return EvalTransform(**self.preprocessing)

    def baseline(self, name: str) -> Classify:
        """The same training of another model: timm's of that name, or the one of a recipe."""
        recipe = ClassifyConfig.build(*recipe_layers(name, "classify")) if name in registry.recipes else None
        model = recipe.model.layer() if recipe else {"name": name}
        layer = {**self.config.layer(), "model": model, "name": name, "baselines": []}
        baseline = Classify(ClassifyConfig.build(layer), self._frame)
        baseline._read = self._read
        return baseline

    def summary(self) -> dict[str, Any]:
        """What ``--dry-run`` shows and ``metrics.json`` keeps beside the numbers."""
        return {
            "model": self.config.model.name,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "data": self.data.name,
            "size": self.preprocessing["size"],
            **self.data.summary(),
        }

    def optimizers(self) -> list[torch.optim.Optimizer]:
        optim, decay = self.config.optim, self.config.layer_decay
        exempt: set[str] = getattr(self.model, "no_weight_decay", set)()
        groups = (
            param_groups_layer_decay(self.model, optim.weight_decay, no_weight_decay_list=exempt, layer_decay=decay)
            if decay < 1
            else param_groups_weight_decay(self.model, optim.weight_decay, no_weight_decay_list=exempt)
        )
        return [build_optimizer(groups, optim.name, optim.lr, weight_decay=optim.weight_decay)]

    def steps_per_epoch(self) -> int:
        return math.ceil(len(self._train_images) / self.config.batch_size)

    def train_batches(self, epoch: int, start: int, rank: int, world: int) -> Iterator[tuple[Batch, float]]:
        config, pieces, count = self.config, self.config.accumulate, len(self._train_images)
        streams = [
            epoch_batches(
                count,
                config.batch_size,
                seed=config.seeds[0],
                epoch=epoch,
                start=start,
                rank=rank * pieces + piece,
                world=world * pieces,
            )
            for piece in range(pieces)
        ]
        plan = [pair for together in zip(*streams, strict=True) for pair in together]
        batches = load_batches(
            self._train_images, [indices for indices, _ in plan], config.workers, seed=(config.seeds[0], epoch)
        )
        yield from zip(batches, (weight for _, weight in plan), strict=True)

    def eval_batches(self, split: str, rank: int, world: int) -> Iterator[Batch]:
        if split not in self.data.splits:
            raise InputError(f"{self.data.name} has no {split} images", f"It has {', '.join(self.data.splits)}")
        images = TransformedImages(self.data.splits[split], self.eval_transform)
        plan = eval_batches(len(images), self.config.eval_batch_size, rank=rank, world=world)
        yield from load_batches(images, plan, self.config.workers)

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, size, size] to [B, classes]."""
        return self.model(images.to(next(self.model.parameters()).device))

    def train_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        augment = self.config.augment
        if not (augment.mixup or augment.cutmix):
            logits = self.logits(images)
            return F.cross_entropy(logits, labels.to(logits.device), label_smoothing=augment.smoothing), {}
        images, targets = self._mix(images, labels)
        logits = self.logits(images)
        return SoftTargetCrossEntropy()(logits, targets.to(logits.device)), {}

    def _mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup or cutmix of each image with another of the batch; timm's needs an even number of them."""
        augment, odd = self.config.augment, len(images) % 2
        classes = len(self.data.classes)
        mixing = Mixup(augment.mixup, augment.cutmix, label_smoothing=augment.smoothing, num_classes=classes)
        images, targets = mixing(torch.cat((images, images[:odd])), torch.cat((labels, labels[:odd])))
        return images[: len(labels)], targets[: len(labels)]

    def eval_step(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        logits = self.logits(images).float().cpu()
        if self._mistakes is not None:
            self._note_mistakes(logits, labels)
        return sums(logits, labels)

    def _note_mistakes(self, logits: Tensor, labels: Tensor) -> None:
        """Keep what was predicted for each image, to show the worst of them."""
        assert self._mistakes is not None
        confidence, predicted = logits.softmax(1).max(1)
        losses = F.cross_entropy(logits, labels, reduction="none")
        for found in zip(losses.tolist(), labels.tolist(), predicted.tolist(), confidence.tolist(), strict=True):
            self._mistakes.append(Mistake(*found))

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return summarise(sums)

    def conclude(self, run: Run, accelerator: Accelerator) -> dict[str, Any]:
        """Measure on the validation and the test images, and keep what the report draws.

        Returns:
            Metrics by split.
        """
        val = evaluate(self, "val", accelerator)
        self._mistakes = []
        totals = evaluation_sums(self, "test", accelerator)
        count, world = len(self.data.splits["test"]), accelerator.num_processes
        own = torch.cat(
            [*eval_batches(count, self.config.eval_batch_size, accelerator.process_index, world), torch.empty(0).long()]
        )
        noted = list(zip(self._mistakes, own.tolist(), strict=True))
        self._mistakes = None
        everywhere = [pair for pairs in gather_objects(noted, accelerator) for pair in pairs]
        if accelerator.is_main_process:
            np.savez_compressed(
                run.folder / "predictions.npz", allow_pickle=False, **self._evidence(totals, everywhere)
            )
        return {"val": val, "test": self.metrics(totals)}

    def _evidence(self, totals: Mapping[str, Tensor], noted: list[tuple[Mistake, int]]) -> dict[str, np.ndarray]:
        """Arrays for the report: confusion, calibration, and pictures of the worst mistakes."""
        wrong = sorted((pair for pair in noted if pair[0].label != pair[0].predicted), reverse=True)[:SHOWN]
        samples = self.data.splits["test"]
        pictures = [thumbnail(samples.image(position)) for _, position in wrong]
        return {
            "classes": np.array(self.data.classes),
            **{name: total.cpu().numpy() for name, total in totals.items() if name.startswith(("confusion", "bin_"))},
            "mistakes": np.array([(m.label, m.predicted, m.confidence) for m, _ in wrong]).reshape(-1, 3),
            "names": np.array([samples.names[position] for _, position in wrong]),
            "pictures": np.stack(pictures) if pictures else np.empty((0, 1, 1, 3), dtype=np.uint8),
            **self._examples(),
        }

    @torch.inference_mode()
    def gate_maps(self, images: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Where each gate of a backbone that has some stands open on uint8 images: by its name, ``[B, H, W]``."""
        maps: dict[str, Tensor] = {}
        with watching(self.model, maps):
            self.logits(torch.stack([self.eval_transform(image) for image in images]))
        return maps

    def _examples(self) -> dict[str, np.ndarray]:
        """A few test images and the gates' maps of them; empty for a backbone without gates."""
        samples = self.data.splits["test"]
        positions = sorted({round(part * (len(samples) - 1)) for part in (0.1, 0.4, 0.6, 0.9)})
        images = [samples.image(position) for position in positions]
        maps = {f"gate:{name}": openness.numpy() for name, openness in self.gate_maps(images).items()}
        return maps | {"examples": np.stack([thumbnail(image) for image in images])} if maps else {}

    def card(self) -> dict[str, Any]:
        arguments = {"num_classes": len(self.data.classes), **self._sized(), **self.config.model.arguments}
        return {
            "task": "classify",
            "architecture": f"timm/{self.config.model.name}",
            "arguments": arguments,
            "toolkit": toolkit.__version__,
            "data": {"classes": list(self.data.classes), "preprocessing": self.preprocessing},
            "config": self.config.layer(),
        }

    def extra_tensors(self) -> dict[str, Tensor]:
        return {}

    def predict(self, source: Any) -> pd.DataFrame:
        """Classes of images (``toolkit.tasks.classify.predict``)."""
        return predict_images(self, source)

    def write_prediction(self, prediction: pd.DataFrame, source: Any, output: Path) -> None:
        """Write a prediction as CSV."""
        write_table(prediction, output)

    report_sections = staticmethod(sections)

    input_names, output_name = ("image",), "logits"
    free_axes: ClassVar = {"image": {2: "height", 3: "width"}}  # in an exported file, where the model allows

    def example_inputs(self, batch: int = 1) -> tuple[Tensor, ...]:
        """A batch of noise in the shape that the model takes, for export and tests."""
        size = self.preprocessing["size"]
        return (torch.randn(batch, 3, size, size),)
