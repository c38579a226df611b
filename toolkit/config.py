"""Typed configuration: defaults < recipe < file < ``key=value``, checked by pydantic.

A configuration is a frozen pydantic model; its sections are models too. Layers are plain nested dictionaries that
are combined before validation, so an error always names the key as the user would write it (``optim.lr``).
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model, model_validator
from typing_extensions import Self

from toolkit import registry
from toolkit.errors import InputError, nearest

Layer = dict[str, Any]

TEXT_KEYS = ("name", "path", "data", "model", "time", "target")  # their values are never numbers, null or mappings
IN_MEMORY = "(in memory)"  # stands for the path of data that was handed over as an object


class Config(BaseModel):
    """Base of every configuration and section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True)

    @classmethod
    def combine(cls, base: Mapping[str, Any], top: Mapping[str, Any]) -> Layer:
        """``base`` overridden by ``top``, section by section."""
        merged = dict(base)
        for key, value in top.items():
            section = _section_type(cls, key)
            if section is None or value is None:
                merged[key] = value
                continue
            value = section.from_scalar(value) if not isinstance(value, Mapping) else value
            under = merged.get(key) or {}
            under = section.from_scalar(under) if not isinstance(under, Mapping) else under
            if "name" in value and str(value["name"]).lower() != str(under.get("name")).lower():
                under = {}  # the other keys of a section belong to its name
            merged[key] = section.combine(under, value)
        return merged

    @classmethod
    def from_scalar(cls, value: Any) -> Layer:
        """The section that one bare value stands for: ``model=NAME`` sets ``model.name``."""
        return {"name": value}

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, values: Any) -> Any:
        """A single value for a field that holds a list stands for a list of one."""
        if not isinstance(values, Mapping):
            return values
        lists = {name for name, field in cls.model_fields.items() if "list[" in str(field.annotation)}
        single = (str, int, float)
        return {key: [value] if key in lists and isinstance(value, single) else value for key, value in values.items()}

    @classmethod
    def build(cls, *layers: Mapping[str, Any]) -> Self:
        """Combine layers, lowest first, and validate.

        Raises:
            InputError: the first problem, with its key and value.
        """
        merged: Layer = {}
        for layer in layers:
            merged = cls.combine(merged, layer)
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise _first_problem(cls, error) from None

    def layer(self) -> Layer:
        """This configuration as plain values, as YAML and JSON hold them."""
        return self.model_dump(mode="json")


class ModelConfig(Config):
    """The ``model`` section: an architecture's name, and its constructor arguments as further keys."""

    model_config = ConfigDict(frozen=True, extra="allow", coerce_numbers_to_str=True)

    name: str

    @property
    def arguments(self) -> Layer:
        return dict(self.model_extra or {})

    def resolve(self, task: str, given: Iterable[str]) -> ModelConfig:
        """Check the arguments against the constructor's signature and fill in its defaults.

        Args:
            task: only models of this task are looked up.
            given: constructor arguments that the task supplies itself (sizes of the data).
        """
        entry = registry.models.entry(self.name, task)
        arguments = signature_config(entry.load(), skip=given)
        schema: Any = create_model(entry.name, __base__=Config, model=(arguments, ...))  # so that errors say model.dim
        built: Any = schema.build({"model": self.arguments})
        return ModelConfig(name=entry.name, **built.model.model_dump())


def signature_config(target: Any, skip: Iterable[str] = ()) -> type[Config]:
    """A configuration class with one field per constructor argument of ``target`` (a class or function)."""
    function = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(function)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(target).parameters.items()
        if name not in set(skip)
    }
    return create_model(target.__name__, __base__=Config, **fields)


def read_yaml(path: Path) -> Layer:
    """A YAML file that holds one mapping.

    Raises:
        InputError: the file is missing, not YAML, or not a mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not valid YAML: {reason}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{path} holds no settings", "A recipe is a YAML mapping; `toolkit show recipe` prints one")
    return loaded


def recipe_layers(name_or_path: str | Path, task: str) -> list[Layer]:
    """Layers of a recipe, its bases first.

    A recipe may begin with ``recipe: BASE``, the name of a registered one. The run is called after the file unless
    the recipe sets ``name`` (as a run's own ``config.yaml`` does).
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = Path(registry.recipes.entry(str(name_or_path), task).target)
    name = path.stem
    layers: list[Layer] = []
    seen: set[Path] = set()
    while path not in seen:
        seen.add(path)
        layer = read_yaml(path)
        base = layer.pop("recipe", None)
        layers.insert(0, layer)
        if base is None:
            return [{"name": name}, *layers]
        path = Path(registry.recipes.entry(str(base), task).target)
    raise InputError(f"recipe {name!r} is based on itself through {path.name}")


def figures_owner(name_or_path: str | Path) -> str | Path:
    """The registered recipe whose published figures a recipe repeats: the one it is named after or based on."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        layer = read_yaml(path)
        for name in (layer.get("name", path.stem), layer.get("recipe")):
            if name in registry.recipes:
                return str(name)
    return name_or_path


def recipe_task(name_or_path: str | Path) -> str:
    """The task that a recipe belongs to: where it is registered, or what the file or its base says.

    Raises:
        InputError: a file that tells neither.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        return registry.recipes.entry(str(name_or_path)).group
    layer = read_yaml(path)
    if "task" in layer:
        return str(layer["task"])
    if "recipe" in layer:
        return registry.recipes.entry(str(layer["recipe"])).group
    raise InputError(f"{path} does not say its task", "Begin it with task: NAME or recipe: NAME")


def parse_override(text: str) -> Layer:
    """``"optim.lr=1e-3"`` as a nested dictionary; the value is read as YAML, but names and paths stay text."""
    key, equals, value = text.partition("=")
    key = key.strip().lstrip("-").replace("-", "_")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
        raise InputError(f"cannot read {text!r} as a setting", "Write key=value, for example optim.lr=1e-3")
    if key.rpartition(".")[2] in TEXT_KEYS:
        return nested(key, value)
    try:
        parsed = yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        parsed = value
    return nested(key, parsed)


def nested(key: str, value: Any) -> Layer:
    """``nested("a.b", 1) == {"a": {"b": 1}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def to_yaml(config: Config, comments: bool = False) -> str:
    """The configuration as YAML that can be passed back as a recipe; optionally one comment per field."""
    width = sys.maxsize if comments else 100  # a comment cannot follow a part of a text
    text = yaml.safe_dump(config.layer(), sort_keys=False, allow_unicode=True, width=width)
    if not comments:
        return text
    lines, explained = [], _explanations(config)
    section = ""
    for line in text.splitlines():
        indent, key = len(line) - len(line.lstrip()), line.strip().partition(":")[0]
        section = section if indent else key
        note = explained.get(key if indent == 0 else f"{section}.{key}") if indent <= 2 else None
        lines.append(f"{line}  # {note}" if note else line)
    return "\n".join(lines) + "\n"


def _explanations(config: Config) -> dict[str, str]:
    """Key (``optim.lr``) to what it means: from the fields, and for a model from its class's docstring."""
    notes = {name: field.description or "" for name, field in type(config).model_fields.items()}
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, ModelConfig):
            arguments = inspect.getdoc(registry.models.load(section.name)) or ""
            found = re.findall(r"^    (\w+): (.+(?:\n        .+)*)", arguments, flags=re.MULTILINE)
            notes |= {f"{name}.{argument}": " ".join(text.split()).rstrip(".") for argument, text in found}
        elif isinstance(section, Config):
            notes |= {f"{name}.{key}": field.description or "" for key, field in type(section).model_fields.items()}
    return notes


def _section_type(cls: type[BaseModel], key: str) -> type[Config] | None:
    """The section class of a field, looking through ``Section | None``."""
    field = cls.model_fields.get(key)
    options = (field.annotation, *typing.get_args(field.annotation)) if field else ()
    for option in options:
        if inspect.isclass(option) and issubclass(option, Config):
            return option
    return None


def _first_problem(cls: type[BaseModel], error: ValidationError) -> InputError:
    problem = error.errors(include_url=False)[0]
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        owner: type[BaseModel] = cls
        for part in path[:-1]:
            owner = _section_type(owner, part) or owner
        known = [".".join([*path[:-1], name]) for name in owner.model_fields]
        return InputError(
            f"unknown key {key!r} for {cls.__name__}", nearest(key, known) or f"Known: {', '.join(known)}"
        )
    if isinstance(cause := problem.get("ctx", {}).get("error"), InputError):
        return cause
    if problem["type"] == "missing":
        return InputError(f"{cls.__name__} needs a value for {key!r}")
    value = problem["input"]
    shown = f" is {value!r} ({type(value).__name__})" if not isinstance(value, Mapping) else ""
    return InputError(f"{key or cls.__name__}{shown}: {problem['msg']}")
