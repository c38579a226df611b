from __future__ import annotations

import pytest

from toolkit import registry
from toolkit.errors import InputError


def test_models_are_found_by_file():
    assert {"gateformer", "dlinear", "itransformer", "seasonal_naive"} <= set(registry.models.names(group="forecast"))
    assert registry.models.load("gateformer").__name__ == "Gateformer"


def test_names_are_matched_without_case_and_listed_in_natural_order():
    assert registry.datasets.entry("ETTh1").name == "etth1"
    names = registry.recipes.names("gateformer_etth1_*")
    assert names == [f"gateformer_etth1_{horizon}" for horizon in (96, 192, 336, 720)]


def test_a_part_of_a_name_is_a_pattern():
    assert registry.models.names("transf") == ["itransformer"]


def test_unknown_name_offers_the_nearest():
    with pytest.raises(InputError, match="unknown model 'gatformer'. Did you mean 'gateformer'"):
        registry.models.entry("gatformer")


def test_outside_models_can_be_added(monkeypatch):
    monkeypatch.setattr(registry.models, "_entries", dict(registry.models._all()))
    registry.models.add("outside", "collections:OrderedDict", "forecast")
    assert registry.models.load("outside", "forecast").__name__ == "OrderedDict"


def test_every_entry_can_be_loaded():
    for found in (registry.tasks, registry.models, registry.datasets, registry.families, registry.kernels):
        for name in found.names():
            assert found.load(name) is not None


def test_a_model_is_described_by_its_constructor_arguments():
    model = registry.models.load("dlinear")(lookback=24, horizon=6)
    described = registry.describe(model)
    assert described["architecture"] == "dlinear"
    assert described["task"] == "forecast"
    assert described["arguments"]["lookback"] == 24


def test_an_unregistered_model_is_refused():
    with pytest.raises(InputError, match="not a registered model"):
        registry.describe(object())
