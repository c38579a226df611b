"""Names of tasks, models, data sets, recipes and kernels, found by file and imported on demand.

A file declares its names in a literal table that is read from the syntax tree, so listing them imports nothing:

* ``tasks/<task>/task.py``: ``TASK = "ClassName"``;
* ``tasks/<task>/<model>.py``: ``VARIANTS = {"name": "ClassOrFunction"}``;
* ``datasets/<family>.py``: ``CARDS = {"name": {...}}``;
* ``pretrained/<family>.py``: ``MODEL = ("task", "model")``;
* ``kernels/<op>/`` and ``tasks/<task>/recipes/<recipe>.yaml`` are names by themselves.

Outside packages join through the entry points ``toolkit.tasks``, ``toolkit.models`` and ``toolkit.datasets``
(``name = "module:object"``; a data set's object is its module), or by ``add``.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from toolkit.errors import InputError, nearest


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Attributes:
        target: ``"module:object"``, or a path for things that are files.
        group: the task of a model or recipe, the family of a data set.
        card: what the file's literal table says about the name.
    """

    name: str
    target: str
    group: str = ""
    card: Any = None

    def load(self) -> Any:
        module, _, attribute = self.target.partition(":")
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded


class Registry:
    """The names of one kind.

    Args:
        kind: singular, as messages say it (``"model"``).
        scan: yields the entries that the toolkit's own files declare.
        entry_point: group through which outside packages add names.
    """

    def __init__(self, kind: str, scan: Callable[[], Iterator[Entry]], entry_point: str | None = None):
        self.kind = kind
        self._scan = scan
        self._entry_point = entry_point
        self._entries: dict[str, Entry] | None = None

    def _all(self) -> dict[str, Entry]:
        if self._entries is None:
            self._entries = {entry.name: entry for entry in self._scan()}
            for point in entry_points(group=self._entry_point) if self._entry_point else ():
                self._entries.setdefault(point.name, Entry(point.name, point.value))
        return self._entries

    def add(self, name: str, target: str, group: str = "") -> None:
        """Register ``target`` (``"module:object"``) for this process."""
        self._all()[name] = Entry(name, target, group)

    def names(self, pattern: str = "*", group: str | None = None) -> list[str]:
        """Names that match a wildcard pattern, or contain it, in natural order."""
        wanted = pattern.lower() if any(mark in pattern for mark in "*?[") else f"*{pattern.lower()}*"
        found = (
            entry.name
            for entry in self._all().values()
            if fnmatch.fnmatch(entry.name.lower(), wanted) and group in (None, entry.group)
        )
        return sorted(
            found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
        )

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(known.lower() == name.lower() for known in self._all())

    def entry(self, name: str, group: str | None = None) -> Entry:
        """The entry of a name, matched without regard to case.

        Raises:
            InputError: unknown name; the message offers the nearest ones.
        """
        known = {e.name: e for e in self._all().values() if group in (None, "", e.group) or not e.group}
        for candidate, entry in known.items():
            if candidate.lower() == name.lower():
                return entry
        hint = nearest(name, known) or f"`toolkit list {self.kind.replace(' ', '')}s` shows all"
        raise InputError(f"unknown {self.kind} {name!r}", hint)

    def load(self, name: str, group: str | None = None) -> Any:
        """Import and return what the name stands for."""
        return self.entry(name, group).load()


def _folder(name: str) -> Path:
    """A content folder, beside this file (a wheel, links) or beside the package (a checkout without links)."""
    here = Path(__file__).parent
    return here / name if (here / name).is_dir() else here.parent / name


def _literal(path: Path, name: str) -> Any:
    """The literal assigned to ``name`` at the top of a file, or None; the file is not imported."""
    source = path.read_text(encoding="utf-8")
    if f"\n{name}" not in source:
        return None
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return ast.literal_eval(value)
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                return ast.literal_eval(value)
    return None


def _tasks() -> Iterator[Entry]:
    for path in sorted(_folder("tasks").glob("*/task.py")):
        name = path.parent.name
        yield Entry(name, f"toolkit.tasks.{name}.task:{_literal(path, 'TASK')}", name)


def _models() -> Iterator[Entry]:
    for path in sorted(_folder("tasks").glob("*/*.py")):
        task = path.parent.name
        for name, attribute in (_literal(path, "VARIANTS") or {}).items():
            yield Entry(name, f"toolkit.tasks.{task}.{path.stem}:{attribute}", task)


def _datasets() -> Iterator[Entry]:
    for path in sorted(_folder("datasets").glob("*.py")):
        for name, card in (_literal(path, "CARDS") or {}).items():
            yield Entry(name, f"toolkit.datasets.{path.stem}", path.stem, card)


def _recipes() -> Iterator[Entry]:
    for path in sorted(_folder("tasks").glob("*/recipes/*.yaml")):
        yield Entry(path.stem, str(path), path.parent.parent.name)


def _kernels() -> Iterator[Entry]:
    for path in sorted(_folder("kernels").glob("*/__init__.py")):
        if not path.parent.name.startswith("_"):
            yield Entry(path.parent.name, f"toolkit.kernels.{path.parent.name}:{path.parent.name}")


def _pretrained() -> Iterator[Entry]:
    for path in sorted(_folder("pretrained").glob("*.py")):
        if model := _literal(path, "MODEL"):
            yield Entry(path.stem, f"toolkit.pretrained.{path.stem}", model[0], model[1])


tasks = Registry("task", _tasks, "toolkit.tasks")
models = Registry("model", _models, "toolkit.models")
datasets = Registry("data set", _datasets, "toolkit.datasets")
recipes = Registry("recipe", _recipes)
kernels = Registry("kernel", _kernels)
families = Registry("family", _pretrained)


def describe(model: Any) -> dict[str, Any]:
    """Architecture name and constructor arguments of a model, enough to build it again.

    A model keeps each constructor argument as an attribute of the same name (as scikit-learn's estimators do); one that
    is a model itself is described in the same way.

    Raises:
        InputError: the model's class is not registered, or an argument cannot be read back.
    """
    cls = type(model)
    target = f"{cls.__module__}:{cls.__qualname__}"
    for entry in models._all().values():
        if entry.target == target:
            break
    else:
        raise InputError(
            f"{cls.__qualname__} is not a registered model", "Register it with toolkit.registry.models.add"
        )
    missing = [name for name in inspect.signature(cls).parameters if not hasattr(model, name)]
    if missing:
        raise InputError(f"{cls.__qualname__} does not keep its constructor argument {missing[0]!r}")
    arguments = {name: getattr(model, name) for name in inspect.signature(cls).parameters}
    arguments = {name: describe(value) if hasattr(value, "state_dict") else value for name, value in arguments.items()}
    return {"task": entry.group, "architecture": entry.name, "arguments": arguments}
