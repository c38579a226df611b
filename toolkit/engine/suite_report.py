"""The tables of a suite: Markdown, CSV, JSON and a plot, all from the rows of ``toolkit.engine.suite.run_cells``."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from toolkit.engine.checkpoint import write_text
from toolkit.engine.report import label, markdown_table, show
from toolkit.engine.run import environment

if TYPE_CHECKING:
    from toolkit.engine.suite import Suite

Row = Mapping[str, Any]

COLUMNS = 3  # panels side by side


def write_results(suite: Suite, folder: Path, rows: Sequence[Row], budget: str, plot: bool = True) -> None:
    """Write ``results.md``, ``results.csv``, ``results.json`` and, which takes longest, ``results.png``."""
    document = {"title": suite.title, "metrics": list(suite.metrics), "budget": budget, "rows": list(rows)}
    write_text(folder / "results.json", json.dumps(document, indent=1, default=str) + "\n")
    write_text(folder / "results.csv", pd.DataFrame([_flat(suite, row) for row in rows]).to_csv(index=False))
    if plot:
        aside = folder / ".tmp-results.png"
        _plot(suite, rows).savefig(aside, format="png", dpi=110, bbox_inches="tight")
        aside.replace(folder / "results.png")
    write_text(folder / "results.md", _markdown(suite, rows, budget, plot))


def _flat(suite: Suite, row: Row) -> dict[str, Any]:
    """A row of the CSV: one number or word per cell; ``<metric>_std`` over several seeds."""
    flat = dict(row["labels"])
    for name in suite.metrics:
        value = row["metrics"].get(name)
        flat[name] = mean(value)
        if isinstance(value, Mapping):
            flat[f"{name}_std"] = value["std"]
    flat |= {f"quoted_{name}": row["quoted"].get(name) for name in suite.metrics}
    return flat | {key: row.get(key) for key in ("source", "steps", "seconds", "status", "error", "folder")}


def _markdown(suite: Suite, rows: Sequence[Row], budget: str, plot: bool) -> str:
    about = environment("")
    packages = about["packages"]
    lines = [f"# {suite.title}", "", *([suite.note.strip(), ""] if suite.note else []), f"Budget: {budget}", ""]
    lines += [
        f"toolkit {about['toolkit']}, torch {packages['torch']}, Python {about['python']}, {about['platform']}.",
        "",
        f"## {' / '.join(name.upper() for name in suite.metrics)} on the test span",
        "",
        markdown_table(pivot(rows, suite.metrics)),
    ]
    if plot:
        lines += ["![results](results.png)", ""]
    sources = list(dict.fromkeys(row["source"] for row in rows if row["quoted"] and row["source"]))
    lines += ["## Cells", "", markdown_table([_beside(suite, row, sources) for row in rows])]
    lines += [f"Together {sum(row.get('seconds', 0) for row in rows):.0f} s of wall clock.", ""]
    lines += [f"[{number}] {source}  " for number, source in enumerate(sources, 1)]
    if failed := [row for row in rows if row["status"] == "failed"]:
        lines += ["", "## Failed", ""]
        lines += [f"- {', '.join(map(str, row['labels'].values()))}: {row['error']}" for row in failed]
    return "\n".join(lines).rstrip() + "\n"


def pivot(rows: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """The metrics with the last label as columns and the others as rows; means over the last but one below a group."""
    table: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        *index, compared = row["labels"].values()
        table.setdefault(tuple(index), {})[str(compared)] = row
    *before, across, _ = rows[0]["labels"]
    lines: list[dict[str, Any]] = []
    for group, held in itertools.groupby(table.items(), key=lambda item: item[0][:-1]):
        entries = list(held)
        for index, found in entries:
            lines.append(dict(zip((*before, across), index, strict=True)))
            lines[-1] |= {name: _figures(row, metrics) for name, row in found.items()}
        complete = {
            name: [found[name]["metrics"] for _, found in entries]
            for name in entries[0][1]
            if all(name in found and found[name]["status"] == "done" for _, found in entries)
        }
        if len(entries) > 1 and complete:
            lines.append(dict(zip((*before, across), (*group, "mean"), strict=True)))
            lines[-1] |= {
                name: " / ".join(show(statistics.fmean(mean(one[metric]) for one in all_of)) for metric in metrics)
                for name, all_of in complete.items()
            }
    return lines


def _figures(row: Row, metrics: Sequence[str]) -> str:
    return " / ".join(show(row["metrics"][name]) for name in metrics) if row["status"] == "done" else row["status"]


def _beside(suite: Suite, row: Row, sources: Sequence[str]) -> dict[str, Any]:
    """A measured cell beside the quoted figures, with the differences."""
    line = {key: str(value) for key, value in row["labels"].items()}
    line |= {name: show(row["metrics"].get(name)) for name in suite.metrics}
    for name in suite.metrics if sources else ():
        quoted, value = row["quoted"].get(name), mean(row["metrics"].get(name))
        line[f"quoted {name}"] = show(quoted)
        line[f"{name} - quoted"] = "" if quoted is None or value is None else f"{value - quoted:+.4f}"
    if sources:
        line["source"] = f"[{sources.index(row['source']) + 1}]" if row["quoted"] else ""
    seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
    return line | {"updates": row.get("steps"), "seconds": seconds, "status": row["status"]}


def mean(value: Any) -> Any:
    """A metric's value, or its mean over seeds."""
    return value["mean"] if isinstance(value, Mapping) else value


def _plot(suite: Suite, rows: Sequence[Row]) -> Figure:
    """The first metric over the last label but one; a panel per value of the labels before it, a line per model."""
    *before, across, line = rows[0]["labels"]
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(", ".join(str(row["labels"][name]) for name in before), []).append(row)
    compared = list(dict.fromkeys(str(row["labels"][line]) for row in rows))
    wide = min(COLUMNS, len(panels))
    high = math.ceil(len(panels) / wide)
    figure = Figure(figsize=(4.2 * wide, 3.2 * high))
    grid = np.ravel(figure.subplots(high, wide, squeeze=False))
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (title, held) in zip(grid, panels.items(), strict=False):
        ticks = list(dict.fromkeys(str(row["labels"][across]) for row in held))
        for number, name in enumerate(compared):
            mine = [row for row in held if str(row["labels"][line]) == name]
            for style, values in (
                ("o-", [mean(row["metrics"].get(suite.metrics[0])) for row in mine]),
                ("x--", [row["quoted"].get(suite.metrics[0]) for row in mine]),
            ):
                places = [ticks.index(str(row["labels"][across])) for row in mine]
                points = [(x, y) for x, y in zip(places, values, strict=True) if y is not None]
                if points:
                    quoted = " (quoted)" if style == "x--" else ""
                    axes.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label(name) + quoted)
        rotation = 30 if max(map(len, ticks)) > 5 else 0
        axes.set_xticks(range(len(ticks)), [label(tick) for tick in ticks], rotation=rotation)
        axes.set(title=label(title), xlabel=across, ylabel=suite.metrics[0].upper())
    legend = {
        text: handle for axes in figure.axes for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if legend:
        figure.tight_layout()
        figure.legend(legend.values(), legend, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, frameon=False)
    return figure
