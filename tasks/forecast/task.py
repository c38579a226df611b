"""The forecasting task: data and model from a configuration, loss, steps, intervals and predictions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

import toolkit
from toolkit import registry
from toolkit.config import IN_MEMORY, Layer, recipe_layers
from toolkit.data.loaders import epoch_batches, eval_batches
from toolkit.data.stamps import CALENDAR, calendar_kind
from toolkit.engine.loop import evaluate, evaluation_sums
from toolkit.engine.optim import build_optimizer
from toolkit.engine.run import Run
from toolkit.errors import InputError
from toolkit.tasks.forecast.config import SUPPLIED, ForecastConfig, GateConfig
from toolkit.tasks.forecast.crossval_run import CrossValidation
from toolkit.tasks.forecast.data import ForecastData, load_data
from toolkit.tasks.forecast.gated import gate_forecaster, load_host
from toolkit.tasks.forecast.gates import watching
from toolkit.tasks.forecast.intervals import calibrate
from toolkit.tasks.forecast.metrics import error_sums, summarise
from toolkit.tasks.forecast.predict import check_step, model_inputs, predict_table, write_table
from toolkit.tasks.forecast.report import sections
from toolkit.tasks.forecast.suite import load_suite

TASK = "Forecast"

Batch = tuple[Tensor, Tensor, Tensor | None]

SHARED_WITH_BASELINES = ("data", "lookback", "horizon", "mode", "fill", "protocol", "coverage", "seeds", "max_steps")


class Forecast:
    """The last ``lookback`` rows of a table in, the next ``horizon`` rows out.

    Args:
        config: resolved settings.
        frame: a data frame to use instead of ``config.data``'s file.
        download: whether a named set may be fetched.
    """

    Config = ForecastConfig
    default_recipe = own_data_recipe = "gateformer_beijing_pm25"
    takes_several = False  # predicts from one table
    usable_after_training = (  # keys that `evaluate` and `predict` take
        *("data.name", "data.path", "data.time", "data.freq", "data.split", "data.cutoff", "fill", "protocol"),
        *("batch_size", "eval_batch_size", "threads"),
    )

    def __init__(self, config: ForecastConfig, frame: Any = None, download: bool = False):
        self.config = config
        self.frame, self.download = frame, download
        self.model: nn.Module
        self.trained: dict[str, Any] = {}  # columns and scaling of a restored model
        self.half_width: Tensor | None = None  # (H, D) standardised, of the prediction intervals
        self._openness: dict[str, Tensor] = {}
        self._legacy_batch = config.batch_size  # what protocols that drop windows cut evaluation to multiples of

    @staticmethod
    def settings_of(card: Mapping[str, Any]) -> Layer:
        """Settings that a model directory implies: those of its training, or for a converted one its sizes."""
        if "config" in card:
            return dict(card["config"])
        sizes = {name: card["arguments"][name] for name in ("lookback", "horizon")}
        model, gate = card, None
        if card["architecture"] == "gated":
            model = card["arguments"]["host"]
            gate = {name: value for name, value in card["arguments"].items() if name in GateConfig.model_fields}
        own = {name: value for name, value in model["arguments"].items() if name not in SUPPLIED}
        return {"model": {"name": model["architecture"], **own}, "gate": gate, **sizes}

    def build(self) -> None:
        """Read the data, if that is not done, and make the model with fresh weights.

        Raises:
            InputError, DataNotFoundError: the data cannot be used.
        """
        data, cls = self.data, self._model_class()
        for split in data.splits:
            self._num_windows(split)
        period = data.season if data.season <= self.config.lookback else 1  # 1 where no whole season fits
        sizes = {"lookback": self.config.lookback, "horizon": self.config.horizon, "period": period}
        sizes |= {"num_variates": len(data.columns), "num_marks": 0 if data.marks is None else data.marks.shape[1]}
        supplied = {name: sizes[name] for name in inspect.signature(cls).parameters if name in sizes}
        self.model = cls(**supplied, **self.config.model.arguments)
        if (gate := self.config.gate) is not None:
            if gate.weights is not None:
                load_host(self.model, self.config.model.name, gate.weights)
            self.model = gate_forecaster(self.model, **gate.arguments)

    def restore(self, model: nn.Module, card: Mapping[str, Any], extra: Mapping[str, Tensor]) -> None:
        """Use a trained model. Its own columns and scaling stay, whatever data it meets."""
        self.model, self.trained, self.half_width = model, card.get("data", {}), extra.get("half_width")

    @cached_property
    def data(self) -> ForecastData:
        """The table and its windows, read when first needed; in the scaling of a restored model."""
        config, section = self.config, self.config.data
        if self.frame is None and section.path == Path(IN_MEMORY):
            raise InputError("this model was trained on a data frame, which is not stored", "Pass data=...")
        named = self.frame is None and section.name is not None
        columns = section.columns
        if self.trained and (not named or section.path is not None):
            columns = self.trained["columns"]
        data = load_data(
            section.name if named else section.path if self.frame is None else self.frame,
            path=section.path if named else None,
            time=section.time,
            columns=columns,
            target=section.target,
            freq=section.freq,
            split=section.split,
            cutoff=section.cutoff,
            lookback=config.lookback,
            horizon=config.horizon,
            mode=config.mode,
            fill=config.fill,
            marks=self.marks,
            download=self.download,
        )
        return _in_scaling(data, self.trained) if self.trained else data

    @property
    def marks(self) -> bool | str:
        """Whether the model reads calendar features, or their kind if a setting fixes it."""
        wanted = getattr(self._model_class(), "uses_marks", False)
        return wanted and (self.config.data.calendar or wanted)

    def _num_windows(self, split: str) -> int:
        """Windows of a split that the protocol keeps; an error where that is none."""
        count, size = self.data.num_windows(split), self.config.batch_size if split == "train" else self._legacy_batch
        if self.config.protocol == "drop_last" or (self.config.protocol == "legacy" and split == "test"):
            if count < size:
                raise InputError(
                    f"protocol={self.config.protocol} drops all {count} windows of the {split} split: "
                    f"a batch takes {size}",
                    "Lower batch_size, or keep all windows with protocol=standard",
                )
            count -= count % size
        return count

    def _model_class(self) -> type[nn.Module]:
        return registry.models.load(self.config.model.name, "forecast")

    def baseline(self, name: str) -> Forecast:
        """The same task on the same data with the recipe of a baseline."""
        shared = {key: value for key, value in self.config.layer().items() if key in SHARED_WITH_BASELINES}
        config = ForecastConfig.build(*recipe_layers(name, "forecast"), shared, {"name": name, "baselines": []})
        baseline = Forecast(config, self.frame, self.download)
        baseline._legacy_batch = self._legacy_batch
        return baseline

    def summary(self) -> dict[str, Any]:
        """What ``--dry-run`` shows and ``metrics.json`` keeps beside the numbers."""
        return {
            "model": self.config.model.name + (" + gate" if self.config.gate else ""),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "data": self.data.name,
            "variates": len(self.data.columns),
            "windows": {split: self._num_windows(split) for split in ("train", "val", "test")},
            "protocol": self.config.protocol,
        }

    def optimizers(self) -> list[torch.optim.Optimizer]:
        if not any(True for _ in self.model.parameters()):
            return []
        optim = self.config.optim
        return [build_optimizer(self.model, optim.name, optim.lr, weight_decay=optim.weight_decay)]

    def steps_per_epoch(self) -> int:
        return math.ceil(self._num_windows("train") / self.config.batch_size)

    def train_batches(self, epoch: int, start: int, rank: int, world: int) -> Iterator[tuple[Batch, float]]:
        config, pieces = self.config, self.config.accumulate
        streams = [
            epoch_batches(
                self.data.num_windows("train"),
                config.batch_size,
                seed=config.seeds[0],
                epoch=epoch,
                start=start,
                rank=rank * pieces + piece,
                world=world * pieces,
            )
            for piece in range(pieces)
        ]
        for together in islice(zip(*streams, strict=True), self.steps_per_epoch() - start):
            for indices, weight in together:
                yield self.data.batch("train", indices), weight

    def eval_batches(self, split: str, rank: int, world: int) -> Iterator[Batch]:
        for indices in eval_batches(self._num_windows(split), self.config.eval_batch_size, rank=rank, world=world):
            yield self.data.batch(split, indices)

    def forecast(self, x: Tensor, marks: Tensor | None) -> Tensor:
        """(B, L, D) standardised rows to the (B, H, D) that are scored (D = 1 with a single target)."""
        device = next((parameter.device for parameter in self.model.parameters()), x.device)
        return self.scored(self.model(*(part.to(device) for part in model_inputs(x, marks))))

    def scored(self, rows: Tensor) -> Tensor:
        """The columns of (B, T, D) that are scored."""
        target = self.data.target
        return rows if target is None else rows[..., target : target + 1]

    def train_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x, y, marks = batch
        forecast = self.forecast(x, marks)
        return F.mse_loss(forecast, y.to(forecast.device)), {}

    def eval_step(self, batch: Batch) -> dict[str, Tensor]:
        x, y, marks = batch
        self._openness.clear()
        forecast = self.forecast(x, marks).float().cpu()
        sums = error_sums(forecast, y) | {f"gate:{name}": value for name, value in self._openness.items()}
        if self.half_width is not None:
            sums["inside"] = ((forecast - y).abs() <= self.half_width).double().sum(0)
        return sums

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        values = summarise(sums)
        if "inside" in sums:
            values["coverage"] = (sums["inside"].mean() / sums["windows"]).item()
        return values

    def conclude(self, run: Run, accelerator: Accelerator) -> dict[str, Any]:
        """Calibrate the intervals, measure on the test span and keep what the report draws.

        Returns:
            Metrics by split.
        """
        self.half_width = calibrate(self)
        val = evaluate(self, "val", accelerator)
        with watching(self.model, self._openness):
            sums = evaluation_sums(self, "test", accelerator)
        test = self.metrics(sums)
        if accelerator.is_main_process:
            np.savez_compressed(run.folder / "predictions.npz", allow_pickle=False, **self.evidence(sums))
        return {"val": val, "test": test}

    def card(self) -> dict[str, Any]:
        data = self.data
        scaling = {
            "columns": list(data.columns),
            "mean": data.mean.tolist(),
            "std": data.std.tolist(),
            "freq": data.freq,
            "target": None if data.target is None else data.columns[data.target],
        }
        described = registry.describe(self.model)
        return described | {"toolkit": toolkit.__version__, "data": scaling, "config": self.config.layer()}

    def extra_tensors(self) -> dict[str, Tensor]:
        return {} if self.half_width is None else {"half_width": self.half_width}

    def evidence(self, sums: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Arrays for the report: errors by step, gates, and a few forecasts in original units."""
        windows = sums["windows"].item()
        evidence = {
            "mse_by_step": (sums["squared"].mean(1) / windows).cpu().numpy(),
            "mae_by_step": (sums["absolute"].mean(1) / windows).cpu().numpy(),
            "coverage_by_step": (sums["inside"].mean(1) / windows).cpu().numpy(),
            "columns": np.array(self.data.outputs),
            "variates": np.array(self.data.columns),
        }
        for name, value in sums.items():
            if name.startswith("gate:"):
                evidence[name] = (value / windows).cpu().numpy()
        count = self.data.num_windows("test")
        chosen = torch.tensor(sorted({count // 6, count // 2, 5 * count // 6}))
        x, y, marks = self.data.batch("test", chosen)
        with torch.inference_mode():
            forecast = self.forecast(x, marks).float().cpu()
        assert self.half_width is not None
        for name, values in (
            ("past", self.scored(x)),
            ("truth", y),
            ("forecast", forecast),
            ("lower", forecast - self.half_width),
            ("upper", forecast + self.half_width),
        ):
            evidence[name] = self.data.inverse(values)
        return evidence

    def predict(self, source: Any) -> pd.DataFrame:
        """Forecast the rows that follow a table (``toolkit.tasks.forecast.predict``)."""
        return predict_table(self, source)

    def write_prediction(self, prediction: pd.DataFrame, source: Any, output: Path) -> None:
        """Write a prediction as CSV or Parquet with a plot beside it."""
        write_table(self, prediction, source, output)

    report_sections = staticmethod(sections)
    suite = staticmethod(load_suite)
    cross_validation = CrossValidation

    input_names, output_name = ("past", "marks"), "forecast"
    free_axes: ClassVar = {"past": {2: "variates"}}  # in an exported file, where the model allows

    def example_inputs(self, batch: int = 1) -> tuple[Tensor, ...]:
        """A batch of noise in the shapes that the model takes, for export and tests."""
        columns, freq = (
            (self.trained["columns"], self.trained["freq"]) if self.trained else (self.data.columns, self.data.freq)
        )
        past = torch.randn(batch, self.config.lookback, getattr(self.model, "num_variates", len(columns)))
        kind = self.marks if isinstance(self.marks, str) else calendar_kind(freq) if self.marks and freq else None
        features = getattr(self.model, "num_marks", len(CALENDAR[kind]) if kind else 0)
        return (past, torch.rand(batch, self.config.lookback, features) - 0.5) if features else (past,)


def _in_scaling(data: ForecastData, trained: Mapping[str, Any]) -> ForecastData:
    """The same rows, standardised as a trained model expects them."""
    if list(data.columns) != trained["columns"]:
        raise InputError(f"the model was trained on {trained['columns']}, {data.name} has {list(data.columns)}")
    check_step(data.name, data.freq, trained["freq"])
    mean, std = np.array(trained["mean"]), np.array(trained["std"])
    slope, shift = torch.from_numpy(data.std / std), torch.from_numpy((data.mean - mean) / std)
    return replace(data, values=(data.values.double() * slope + shift).float(), mean=mean, std=std)
