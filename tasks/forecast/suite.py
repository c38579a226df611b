"""Suites of forecasting runs: every (model, data set, horizon) of a YAML file as a cell with its quoted figures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from pydantic import Field, PositiveInt

from toolkit import registry
from toolkit.config import Config, Layer, read_yaml, recipe_layers
from toolkit.engine.suite import Cell, Suite
from toolkit.errors import InputError, nearest
from toolkit.tasks.forecast.config import ForecastConfig

SUITES = Path(__file__).parent / "suites"
METRICS = ("mse", "mae")
RECIPES = ("{model}_{data}_{horizon}", "{model}_{data}", "{model}")
"""Recipes of a cell, the first one that is registered counts."""


class ModelEntry(Config):
    """A model of a suite."""

    recipe: str | None = Field(None, description="recipe of all its cells; null: the most special one by RECIPES")
    settings: Layer = Field({}, description="settings above the recipe's")


class DataEntry(Config):
    """A data set of a suite."""

    path: str | None = Field(None, description="a table of your own, beside the suite's file; null: a named data set")
    horizons: list[PositiveInt] | None = Field(None, description="instead of the suite's")
    models: list[str] | None = Field(None, description="those of the suite's that fit; null: all")
    settings: Layer = Field({}, description="settings above the suite's")


class Quoted(Config):
    """Figures of a table to stand beside."""

    source: str = Field(description="where they stand")
    figures: dict[str, dict[str, dict[int, tuple[float, float]]]] = Field(
        description="model: data: horizon: [MSE, MAE]"
    )


class SuiteFile(Config):
    """What a suite's YAML file holds."""

    title: str = Field(description="heading of the table")
    note: str = Field("", description="Markdown below it: what must be known to read the table")
    settings: Layer = Field({}, description="settings of every cell, above its recipe's")
    horizons: list[PositiveInt] = Field(description="forecast rows")
    data: dict[str, DataEntry | None] = Field(description="data sets by name")
    models: dict[str, ModelEntry | None] = Field(description="models by name")
    quoted: Quoted | None = Field(None, description="a table to stand beside; null: only what the recipes quote")


def load_suite(name_or_file: str | Path) -> Suite:
    """A suite of ``tasks/forecast/suites`` by name, or a YAML file of the same form.

    A cell is called by model, data and horizon. Figures of the file come first; else those that the cell's own recipe
    quotes stand beside it.

    Raises:
        InputError: no such suite, or a file that is none; names the file.
    """
    path = Path(name_or_file)
    if path.suffix not in (".yaml", ".yml"):
        known = sorted(found.stem for found in SUITES.glob("*.yaml"))
        if str(name_or_file) not in known:
            raise InputError(
                f"unknown suite {str(name_or_file)!r}",
                nearest(str(name_or_file), known) or f"There are {', '.join(known)}, or name a YAML file",
            )
        path = SUITES / f"{name_or_file}.yaml"
    try:
        spec = SuiteFile.build(read_yaml(path))
        return Suite(spec.title, tuple(_cells(spec, path.parent)), METRICS, spec.note)
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _cells(spec: SuiteFile, folder: Path) -> Iterator[Cell]:
    for model, by_data in spec.quoted.figures.items() if spec.quoted else ():
        for name, known in ((model, list(spec.models)), *((data, list(spec.data)) for data in by_data)):
            if name not in known:
                raise InputError(f"quoted.figures has {name!r}, which the suite does not have", nearest(name, known))
    for data, held in spec.data.items():
        entry = held or DataEntry()
        if unknown := [name for name in entry.models or () if name not in spec.models]:
            raise InputError(f"data.{data}.models names {unknown[0]!r}, which the suite does not have")
        for horizon, model in product(entry.horizons or spec.horizons, spec.models):
            if entry.models is None or model in entry.models:
                yield _cell(spec, folder, data, entry, horizon, model)


def _cell(spec: SuiteFile, folder: Path, data: str, entry: DataEntry, horizon: int, model: str) -> Cell:
    own = spec.models[model] or ModelEntry()
    names = {"model": model, "data": data, "horizon": horizon}
    candidates = [pattern.format(**names) for pattern in RECIPES]
    recipe = own.recipe or next((name for name in candidates if name in registry.recipes), model)
    source: Layer = {"name": data} if entry.path is None else {"path": str(folder / entry.path)}
    settings: Layer = {}
    for layer in (spec.settings, entry.settings, own.settings, {"data": source, "horizon": horizon}):
        settings = ForecastConfig.combine(settings, layer)
    figures = spec.quoted.figures.get(model, {}).get(data, {}).get(horizon) if spec.quoted else None
    if spec.quoted and figures:
        quoted, where = dict(zip(METRICS, figures, strict=True)), spec.quoted.source
    else:
        quoted, where = _of_recipe(recipe, data, horizon)
    return Cell({"data": data, "horizon": horizon, "model": model}, recipe, settings, quoted, where)


def _of_recipe(recipe: str, data: str, horizon: int) -> tuple[dict[str, float], str]:
    """What a recipe quotes, if it is about this data set and horizon."""
    config = ForecastConfig.build(*recipe_layers(recipe, "forecast"))
    if config.data.name == data and config.horizon == horizon:
        for figures in (config.published, config.reference):
            if figures.metrics:
                return dict(figures.metrics), figures.source
    return {}, ""
