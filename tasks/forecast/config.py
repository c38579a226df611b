"""Settings of the forecasting task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from toolkit import registry
from toolkit.config import IN_MEMORY, Config, Layer, ModelConfig
from toolkit.engine.config import TrainConfig
from toolkit.errors import InputError, nearest

SUPPLIED = (  # constructor arguments that the task takes from its own keys or from the data
    *("lookback", "horizon", "period"),
    *("num_variates", "num_marks"),
)


class DataConfig(Config):
    """Which table is forecast and how it is read and split."""

    name: str | None = Field(None, description="a named data set (`toolkit list datasets`); null: the user's own table")
    path: Path | None = Field(None, description="a CSV or Parquet file; with a name it replaces only that set's file")
    time: str | None = Field(None, description="time column of an own table; null: found by name and content")
    freq: str | None = Field(None, description="step between rows (h, 15min, D, ...); null: inferred")
    columns: list[str] | None = Field(None, description="variates to use; null: every numeric column")
    target: str | None = Field(None, description="the scored column of modes S and MS")
    split: str | None = Field(None, description="rule of the train/validation/test borders; null: the set's own")
    calendar: Literal["h", "t", "s", "d", "b", "w", "m"] | None = Field(
        None, description="the step whose calendar features a model that reads them gets; null: the table's"
    )
    cutoff: PositiveInt | None = Field(
        None, description="instead of a split: rows known before the only tested horizon (cross-validation)"
    )

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """A run is evaluated or continued from any folder."""
        return path.absolute() if path is not None and str(path) != IN_MEMORY else path

    @classmethod
    def from_scalar(cls, value: Any) -> Layer:
        text = str(value)
        if text in registry.datasets:
            return {"name": registry.datasets.entry(text).name}
        if Path(text).suffix or "/" in text or Path(text).exists():
            return {"path": text}
        known = nearest(text, registry.datasets.names())
        raise InputError(
            f"{text!r} is neither a data set nor a file", known or "`toolkit list datasets` shows all sets"
        )


class GateConfig(Config):
    """Gateformer's gates around the model (``toolkit.gate_forecaster``)."""

    enabled: bool = Field(True, description="gate=false leaves the model as it is")
    dim: PositiveInt | None = Field(None, description="channels; null: 64, or those of the model's variate tokens")
    depth: PositiveInt = Field(1, description="layers of the encoder that the model does not bring")
    num_heads: PositiveInt = Field(4, description="attention heads of that encoder")
    mlp_dim: PositiveInt | None = Field(None, description="hidden channels of its layers; null: dim")
    dropout: float = Field(0.1, ge=0, lt=1, description="rate of every dropout outside of the model")
    weights: Path | None = Field(None, description="run or model directory whose weights the model starts from")
    freeze: bool = Field(False, description="the model keeps those weights; only what is around it learns")

    @field_validator("weights")
    @classmethod
    def _absolute(cls, weights: Path | None) -> Path | None:
        """A run is continued from any folder."""
        return None if weights is None else weights.absolute()

    @classmethod
    def from_scalar(cls, value: Any) -> Layer:
        if not isinstance(value, bool):
            raise InputError(f"gate is {value!r}", "Write gate=true, or set one of its keys: gate.dim=64")
        return {"enabled": value}

    @property
    def arguments(self) -> Layer:
        """Arguments of ``gate_forecaster``."""
        return self.model_dump(exclude={"enabled", "weights"})


class ForecastConfig(TrainConfig):
    """Multivariate long-term forecasting: the last ``lookback`` rows in, the next ``horizon`` rows out."""

    task: Literal["forecast"] = Field("forecast", description="the task that these settings belong to")
    model: ModelConfig = ModelConfig(name="gateformer")
    gate: GateConfig | None = Field(None, description="gate=true: Gateformer's gates around the model; null: none")
    data: DataConfig = DataConfig(name="beijing_pm25")
    lookback: PositiveInt = Field(96, description="input rows L")
    horizon: PositiveInt = Field(96, description="forecast rows H")
    mode: Literal["M", "MS", "S"] | None = Field(
        None,
        description="M: all columns in and out; MS: all in, target out; S: target only; null: MS with a target, else M",
    )
    fill: NonNegativeInt = Field(0, description="longest gap of missing rows in an own table to fill linearly")
    protocol: Literal["standard", "legacy", "drop_last"] = Field(
        "standard",
        description="legacy drops the last incomplete test batch, as older published numbers did; drop_last that of "
        "training and validation too",
    )
    coverage: float = Field(0.9, gt=0, lt=1, description="nominal coverage of the prediction intervals")
    baselines: list[str] = Field(["seasonal_naive", "dlinear"], description="models trained beside, for the table")
    monitor: Literal["mse", "mae", "rmse"] = Field(
        "mse", description="validation metric that picks the best checkpoint"
    )

    @model_validator(mode="after")
    def _resolve(self) -> ForecastConfig:
        if self.model.name.lower() == "gated":
            raise InputError("'gated' is what gate=true makes of another model", "Write model=patchtst gate=true")
        object.__setattr__(self, "model", self.model.resolve("forecast", SUPPLIED))
        for name in self.baselines:
            registry.models.entry(name, "forecast")
        object.__setattr__(self, "gate", self.gate if self.gate and self.gate.enabled else None)
        if self.gate is not None:
            self._check_gate(self.gate)
        else:
            object.__setattr__(self, "baselines", [name for name in self.baselines if name != self.model.name])
        if self.data.name is None and self.data.path is None:
            raise InputError("no data given", "Set data=NAME or data=PATH")
        return self

    def _check_gate(self, gate: GateConfig) -> None:
        name = self.model.name
        if not hasattr(registry.models.load(name, "forecast"), "encode"):
            raise InputError(
                f"gate=true cannot be put around {name!r}: it gives no representation",
                "Choose model=patchtst, model=itransformer or model=dlinear",
            )
        if gate.freeze and gate.weights is None:
            raise InputError("gate.freeze=true would freeze random weights", "Set gate.weights=RUN, a trained model")
