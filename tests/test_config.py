from __future__ import annotations

import pytest
import yaml

from toolkit import registry
from toolkit.config import Config, parse_override, recipe_layers, signature_config, to_yaml
from toolkit.errors import InputError
from toolkit.tasks.forecast.config import ForecastConfig


class Part(Config):
    name: str = "a"
    size: int = 1
    rate: float = 0.1


class Whole(Config):
    part: Part = Part()
    steps: int = 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=3", {"steps": 3}),
        ("part.rate=1e-3", {"part": {"rate": "1e-3"}}),
        ("--part.size=2", {"part": {"size": 2}}),
        ("depths=[2,2,6]", {"depths": [2, 2, 6]}),
        ("skip-bad=true", {"skip_bad": True}),
        ("name=a=b", {"name": "a=b"}),
        ("empty=", {"empty": ""}),
    ],
)
def test_override_syntax(text, expected):
    assert parse_override(text) == expected


def test_layers_override_each_other():
    built = Whole.build({"steps": 1, "part": {"size": 2}}, {"part": {"rate": "1e-3"}}, {"steps": 3})
    assert (built.steps, built.part.size, built.part.rate) == (3, 2, 1e-3)


def test_a_new_name_starts_its_section_afresh():
    built = Whole.build({"part": {"name": "a", "size": 2}}, {"part": "b"})
    assert (built.part.name, built.part.size) == ("b", 1)
    same = Whole.build({"part": {"name": "a", "size": 2}}, {"part": "a"})
    assert same.part.size == 2


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"stepz": 1}, "unknown key 'stepz' for Whole. Did you mean 'steps'"),
        ({"part": {"siz": 1}}, "unknown key 'part.siz' for Whole. Did you mean 'part.size'"),
        ({"steps": "many"}, "steps is 'many' (str)"),
        ({"part": {"rate": [1]}}, "part.rate is [1] (list)"),
    ],
)
def test_mistakes_name_key_and_value(layer, message):
    with pytest.raises(InputError) as caught:
        Whole.build(layer)
    assert message in str(caught.value)


def test_model_arguments_are_checked_against_the_constructor():
    config = ForecastConfig.build({"model": {"name": "gateformer", "dim": 32}})
    assert config.model.arguments["dim"] == 32
    assert config.model.arguments["patch_len"] == 8, "defaults are filled in"
    with pytest.raises(InputError, match=r"unknown key 'model.dimm'.*'model.dim'"):
        ForecastConfig.build({"model": {"name": "gateformer", "dimm": 32}})
    with pytest.raises(InputError, match=r"model.dim is 'wide'"):
        ForecastConfig.build({"model": {"name": "gateformer", "dim": "wide"}})


def test_signature_config_has_one_field_per_argument():
    def build(size: int, rate: float = 0.5): ...

    schema = signature_config(build)
    assert schema.build({"size": 3}).model_dump() == {"size": 3, "rate": 0.5}
    with pytest.raises(InputError, match="needs a value for 'size'"):
        schema.build({})


@pytest.mark.parametrize("name", registry.recipes.names())
def test_every_recipe_is_valid_and_survives_a_round_trip(name, tmp_path):
    task = registry.recipes.entry(name).group
    config = registry.tasks.load(task).Config.build(*recipe_layers(name, task))
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(config, comments=True))
    again = registry.tasks.load(task).Config.build(*recipe_layers(path, task))
    assert again == config


def test_a_recipe_file_may_have_a_base(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: gateformer_etth1_96\nhorizon: 12\n")
    config = ForecastConfig.build(*recipe_layers(path, "forecast"))
    assert (config.name, config.horizon, config.model.arguments["dim"]) == ("mine", 12, 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "holds no settings"),
        ("a: [", "not valid YAML"),
        ("recipe: nothing_of_that_kind\n", "unknown recipe"),
    ],
)
def test_broken_recipe_files(content, message, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        recipe_layers(path, "forecast")


def test_missing_recipe_file(tmp_path):
    with pytest.raises(InputError, match="cannot read .*absent.yaml"):
        recipe_layers(tmp_path / "absent.yaml", "forecast")


def test_comments_explain_fields():
    text = to_yaml(ForecastConfig.build({}), comments=True)
    assert "# forecast rows H" in text
    assert "# learning rate" in text
    assert yaml.safe_load(text)["horizon"] == 96
