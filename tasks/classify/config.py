"""Settings of the classification task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from toolkit import registry
from toolkit.config import Config, Layer
from toolkit.data.transforms import AugmentConfig
from toolkit.engine.config import OptimConfig, TrainConfig
from toolkit.errors import InputError, nearest
from toolkit.tasks.classify.backbones import check_name

Channels = Annotated[list[float], Field(min_length=3, max_length=3)]


class TimmConfig(Config):
    """A model that timm creates: the toolkit's backbones and all of timm's."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=(), coerce_numbers_to_str=True)

    name: str = Field(description="a name of timm.list_models(), the toolkit's own included")
    pretrained: bool = Field(False, description="start from the weights that timm has for the name")

    @property
    def arguments(self) -> Layer:
        """Further arguments of the model, such as ``drop_path_rate``."""
        return dict(self.model_extra or {})


class DataConfig(Config):
    """Which images are classified."""

    name: str | None = Field(
        None, description="a named data set (`toolkit list datasets`); null: the user's own images"
    )
    path: Path | None = Field(None, description="folder with a sub-folder per class, CSV, or Parquet with image bytes")
    image: str | None = Field(None, description="CSV and Parquet: column of the image or its path; null: found by name")
    label: str | None = Field(None, description="CSV and Parquet: column of the class; null: found by name")
    val: float = Field(0.1, gt=0, lt=1, description="part of the training images held out, where there is no val split")
    test: float = Field(
        0.2, gt=0, lt=1, description="part of the training images held out, where there is no test split"
    )

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """A run is evaluated or continued from any folder."""
        return path.absolute() if path is not None else None

    @classmethod
    def from_scalar(cls, value: Any) -> Layer:
        text = str(value)
        if text in registry.datasets:
            return {"name": registry.datasets.entry(text).name}
        if "/" in text or Path(text).exists() or Path(text).suffix:
            return {"path": text}
        raise InputError(
            f"{text!r} is neither a data set nor a folder or file",
            nearest(text, registry.datasets.names()) or "`toolkit list datasets` shows all sets",
        )


class ClassifyConfig(TrainConfig):
    """Image classification with any timm model."""

    task: Literal["classify"] = Field("classify", description="the task that these settings belong to")
    model: TimmConfig
    data: DataConfig = DataConfig(name="digits")
    size: PositiveInt | None = Field(None, description="pixels of height and width that the model sees; null: its own")
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="part of a resized image that is measured, in the middle; null: the model's own"
    )
    crop_mode: Literal["center", "squash", "border"] | None = Field(
        None, description="what is not square is cut, squeezed or padded to be measured; null: the model's own"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = Field(
        None, description="how an image to be measured is resized; null: the model's own"
    )
    mean: Channels | None = Field(None, description="channel means, of values in [0, 1]; null: the model's or data's")
    std: Channels | None = Field(None, description="channel deviations; null: the model's or data's")
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig(name="adamw", lr=1e-3, weight_decay=0.05, schedule="warmup_cosine")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor of the learning rate from each layer to the one below"
    )
    batch_size: PositiveInt = Field(64, description="images per update, over all devices and accumulation steps")
    eval_batch_size: PositiveInt = Field(64, description="images per evaluation step; no metric depends on it")
    patience: PositiveInt | None = Field(None, description="epochs without improvement before stopping; null: never")
    workers: NonNegativeInt = Field(0, description="processes that decode and augment images; 0: the training process")
    skip_bad: bool = Field(False, description="leave out images that cannot be read, instead of stopping")
    baselines: list[str] = Field([], description="models trained beside in the same way: names of timm, or of recipes")
    monitor: Literal["top1", "top5", "loss"] = Field("top1", description="validation metric that picks the checkpoint")
    direction: Literal["min", "max"] = Field("max", description="min for loss, max for accuracies; follows monitor")

    @property
    def preprocessing(self) -> Layer:
        """What is set of how the model sees images."""
        keys = ("size", "mean", "std", "crop_pct", "crop_mode", "interpolation")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    @model_validator(mode="after")
    def _resolve(self) -> ClassifyConfig:
        check_name(self.model.name)
        for name in self.baselines:
            if name not in registry.recipes:
                check_name(name)
        object.__setattr__(self, "direction", "min" if self.monitor == "loss" else "max")
        return self
