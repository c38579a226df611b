"""A suite: many runs in one folder, and one table of them beside quoted figures.

    suite.yaml  results.md  results.csv  results.json  results.png  <cell>/…

A cell is an ordinary run folder (``toolkit.engine.run``) or any folder with such a ``metrics.json``. The tables are
written anew after every cell, the plot at the end. A suite that was stopped, however hard, goes on in its folder:
finished cells stay, an unfinished run continues from its checkpoint. A cell that fails is reported and does not stop
the others.
"""

from __future__ import annotations

import json
import re
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from toolkit.config import Layer, read_yaml
from toolkit.engine.checkpoint import write_folder
from toolkit.engine.log import Log
from toolkit.engine.run import Run, check_free, clean
from toolkit.engine.suite_report import write_results
from toolkit.errors import InputError, ToolkitError, nearest


@dataclass(frozen=True)
class Cell:
    """One run of a suite.

    Attributes:
        labels: what tells the cell from the others: columns of the table, the compared one (``model``) last.
        recipe: of the run; None: the task's default.
        settings: above the recipe's.
        quoted: figures to stand beside the measured ones, by metric.
        source: where they come from.
        fitted: name of the cell whose trained model is measured here; None: the cell trains its own.
    """

    labels: Mapping[str, Any]
    recipe: str | None = None
    settings: Layer = field(default_factory=dict)
    quoted: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    fitted: str | None = None

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        return "-".join(re.sub(r"[^\w.]+", "_", str(value)) for value in self.labels.values())


@dataclass(frozen=True)
class Suite:
    """What is run and how it is shown.

    Attributes:
        title: heading of the table.
        cells: in the order in which they are run and listed; all have the same labels.
        metrics: names of the test metrics that are shown.
        note: Markdown below the heading.
    """

    title: str
    cells: Sequence[Cell]
    metrics: Sequence[str]
    note: str = ""

    def __post_init__(self) -> None:
        if not self.cells:
            raise InputError("the suite has no cells")
        names = [cell.name for cell in self.cells]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise InputError(f"two cells of the suite would share the folder {repeated[0]}", "Rename one of them")

    def select(self, only: Mapping[str, Sequence[Any]]) -> list[Cell]:
        """The cells whose labels are among the wanted ones.

        Args:
            only: label to wanted values, compared as text without regard to case; an empty list wants all.

        Raises:
            InputError: a label or value that the suite does not have.
        """
        cells = list(self.cells)
        for label, wanted in only.items():
            if not wanted:
                continue
            known = {str(cell.labels.get(label, "")).lower() for cell in self.cells} - {""}
            for value in wanted:
                if str(value).lower() not in known:
                    raise InputError(
                        f"the suite has no {label} {value!r}",
                        nearest(str(value), known) or f"It has {', '.join(sorted(known)) or 'none'}",
                    )
            texts = {str(value).lower() for value in wanted}
            cells = [cell for cell in cells if str(cell.labels[label]).lower() in texts]
        if not cells:
            raise InputError("no cell of the suite has all of these labels", "Widen the selection")
        return cells


@contextmanager
def claimed(folder: Path, settings: Layer) -> Iterator[None]:
    """Inside, this process alone works in a suite's folder, which is made or continued.

    Args:
        settings: what all cells share; stored as ``suite.yaml``.

    Raises:
        InputError: the folder holds something else, was started with other settings, or is in use.
    """
    wanted = json.loads(json.dumps(settings, default=str))
    if (folder / "suite.yaml").is_file():
        stored = read_yaml(folder / "suite.yaml")
        for key in {**stored, **wanted}:
            if stored.get(key) != wanted.get(key):
                raise InputError(
                    f"{folder} was started with {key}={stored.get(key)}, now it is {wanted.get(key)}",
                    "Continue with the same settings, or choose another --out",
                )
    else:
        check_free(folder)
        with write_folder(folder) as aside:
            (aside / "suite.yaml").write_text(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder} is in use by another process", "Wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


def run_cells(
    suite: Suite, chosen: Sequence[Cell], folder: Path, measure: Callable[[Cell, Path], Any], log: Log, budget: str
) -> list[dict[str, Any]]:
    """Measure what is not measured yet, cell by cell, and keep the tables up to date.

    Args:
        chosen: the cells to run; others of the suite are shown if an earlier call finished them.
        folder: of the suite, claimed.
        measure: trains or evaluates a cell in its folder, or goes on there, up to its ``metrics.json``.
        budget: words for how long the cells were trained, for the table.

    Returns:
        One row per cell that was chosen or is finished: ``labels``, ``status`` (``done``, ``failed`` or ``not run``),
        ``metrics``, ``quoted``, ``source``, ``steps``, ``seconds``, ``protocol``, ``error`` and ``folder``.
    """
    clean(folder)
    errors: dict[str, str] = {}
    names = {cell.name for cell in chosen}
    shown = [cell for cell in suite.cells if cell.name in names or Run(folder / cell.name).finished]
    shown_suite = replace(suite, cells=shown)
    for number, cell in enumerate(chosen, 1):
        if _complete(Run(folder / cell.name)):
            continue
        log.say(f"cell {number} of {len(chosen)}: {', '.join(map(str, cell.labels.values()))}")
        try:
            _mend(folder / cell.name)
            measure(cell, folder / cell.name)
        except Exception as error:
            errors[cell.name] = _one_line(error)
            log.say(f"failed: {errors[cell.name]}")
            if not isinstance(error, ToolkitError):
                with (folder / "errors.txt").open("a", encoding="utf-8") as file:
                    file.write(f"{cell.name}\n{''.join(traceback.format_exception(error))}\n")
        write_results(shown_suite, folder, _rows(shown_suite, folder, errors), budget, plot=False)
    rows = _rows(shown_suite, folder, errors)
    write_results(shown_suite, folder, rows, budget)
    return rows


def _complete(run: Run) -> bool:
    """Whether a cell is measured and, if it was trained here, reported."""
    return run.finished and ((run.folder / "report.md").exists() or not (run.folder / "config.yaml").exists())


def _mend(folder: Path) -> None:
    """Make a cell continuable: a run that died before its settings were written is begun anew."""
    for begun in list(folder.rglob("command.txt")):
        if begun.exists() and not (begun.parent / "config.yaml").exists():
            shutil.rmtree(begun.parent)


def _rows(suite: Suite, folder: Path, errors: Mapping[str, str]) -> list[dict[str, Any]]:
    rows = []
    for cell in suite.cells:
        run = Run(folder / cell.name)
        row: dict[str, Any] = {"labels": dict(cell.labels), "status": "not run", "metrics": {}}
        row |= {"quoted": dict(cell.quoted), "source": cell.source, "folder": cell.name}
        if run.finished:
            measured = run.metrics()
            test = measured["metrics"]["test"]
            row |= {"status": "done", "metrics": {name: test[name] for name in suite.metrics if name in test}}
            row |= {key: measured[key] for key in ("steps", "seconds", "protocol", "seeds") if key in measured}
        if cell.name in errors:
            row |= {"status": "failed", "error": errors[cell.name]}
        rows.append(row)
    return rows


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ToolkitError) else f"{type(error).__name__}: {text}"
