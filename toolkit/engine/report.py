"""The report of a run: ``report.md`` and the same text as a self-contained ``report.html``.

Everything is made from the run folder's own files, so a report can be made again at any time
(``toolkit show run DIR``). The engine writes results, learning curves and settings; a task adds its own sections.
"""

from __future__ import annotations

import base64
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from toolkit.engine.checkpoint import write_text
from toolkit.engine.run import Run

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .75rem; border-bottom: 1px solid #d0d7de }
th { text-align: left } td { font-variant-numeric: tabular-nums } img { max-width: 100% }
pre { background: #f6f8fa; padding: 1rem; overflow-x: auto } h2 { margin-top: 2.5rem }
"""


@dataclass
class Section:
    """A part of a report: Markdown text, and figures by file name that follow it."""

    title: str
    text: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)


def write(run: Run, sections: Iterable[Section] = ()) -> Path:
    """Write plots and both forms of the report; returns the path of ``report.md``."""
    own = [_seeds(run)] if run.members() else [learning_curves(run), *sections]
    parts = [Section("Results", results_text(run)), *own, _settings(run)]
    plots = run.folder / "plots"
    plots.mkdir(exist_ok=True)
    lines = [f"# {run.config()['name']}", ""]
    for part in parts:
        lines += [f"## {part.title}", "", part.text, ""]
        for name, figure in part.figures.items():
            figure.savefig(plots / f"{name}.png", dpi=110, bbox_inches="tight")
            lines += [f"![{name.replace('_', ' ')}](plots/{name}.png)", ""]
    text = "\n".join(lines)
    write_text(run.folder / "report.md", text)
    write_text(run.folder / "report.html", _html(text, run.folder))
    return run.folder / "report.md"


def results(run: Run) -> list[dict[str, Any]]:
    """Rows of the results table: this run, its baselines, and the figures that its recipe quotes."""
    main = run.metrics()
    rows = [{"model": main["model"], "what": _measured(main), **main["metrics"]["test"]}]
    baselines: dict[str, list[dict[str, Any]]] = {}
    for member in run.members() or [run]:
        for path in sorted((member.folder / "baselines").glob("*/metrics.json")):
            baselines.setdefault(path.parent.name, []).append(Run(path.parent).metrics())
    for singles in baselines.values():
        baseline = _over_seeds(singles) if len(singles) > 1 else singles[0]
        what = _measured(baseline).replace("this run", "baseline")
        rows.append({"model": baseline["model"], "what": what, **baseline["metrics"]["test"]})
    for kind in ("published", "reference"):
        quoted = main[kind]
        if quoted["metrics"]:
            rows.append({"model": main["model"], "what": f"{kind}: {quoted['source']}", **quoted["metrics"]})
    return rows


def results_text(run: Run) -> str:
    """The results table as Markdown, with the differences to quoted figures."""
    main, rows = run.metrics(), results(run)
    test = main["metrics"]["test"]
    text = markdown_table(rows)
    for kind in ("published", "reference"):
        quoted = main[kind]
        differences = [
            f"{name} {_mean(test[name]) - value:+.4f}" for name, value in quoted["metrics"].items() if name in test
        ]
        if differences:
            text += f"\nDifference to the {kind} figures: {', '.join(differences)}.\n"
        elif quoted["source"]:
            text += f"\nNo {kind} figures: {quoted['source']}.\n"
    if main.get("protocol", "standard") != "standard":
        text += f"\nProtocol: **{main['protocol']}**, not comparable with the standard one.\n"
    return text


def summarise_seeds(run: Run) -> dict[str, Any]:
    """``metrics.json`` of a run over several seeds: mean, standard deviation (n - 1) and the single values."""
    summary = _over_seeds([member.metrics() for member in run.members()])
    run.finish(summary)
    return summary


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; a column for every key, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(show(row.get(column)).replace("|", r"\|") for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def show(value: Any) -> str:
    """A table cell: four decimals, ``mean ± std`` for several seeds."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        if value["std"] == 0 and isinstance(value["values"][0], int):
            return show(value["values"][0])
        return f"{value['mean']:.4f} ± {value['std']:.4f}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def label(text: Any) -> str:
    """Text for a plot, in which a dollar is a dollar and no formula."""
    return str(text).replace("$", r"\$")


def learning_curves(run: Run) -> Section:
    """Training loss and validation metric over updates."""
    history = run.history()
    if not history:
        return Section("Learning curves", "This model is not trained.")
    monitor = run.config()["monitor"]
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    for split, key, style in (("train", "loss", "-"), ("val", monitor, "o-")):
        points = [(row["step"], row[key]) for row in history if row["split"] == split]
        axes.plot(*zip(*points, strict=True), style, label=f"{split} {key}")
    axes.axvline(run.metrics()["best_step"], color="grey", linestyle=":", label="best checkpoint")
    axes.set(xlabel="update", ylabel="error")
    axes.legend(frameon=False)
    return Section("Learning curves", "", {"learning_curves": figure})


def _settings(run: Run) -> Section:
    environment = json.loads((run.folder / "environment.json").read_text())
    command = (run.folder / "command.txt").read_text().strip()
    text = f"```\n{command}\n```\n\n```yaml\n{(run.folder / 'config.yaml').read_text().strip()}\n```\n\n"
    return Section("Settings", text + f"```json\n{json.dumps(environment, indent=1)}\n```")


def _measured(metrics: Mapping[str, Any]) -> str:
    return f"this run, seed {metrics['seed']}" if "seed" in metrics else f"this run, seeds {metrics['seeds']}"


def _mean(value: Any) -> float:
    return value["mean"] if isinstance(value, Mapping) else value


def _over_seeds(singles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summary = {key: value for key, value in singles[0].items() if key not in ("seed", "steps", "best_step")}
    summary["seeds"] = [single["seed"] for single in singles]
    summary["seconds"] = round(sum(single["seconds"] for single in singles), 1)
    summary["metrics"] = {
        split: {name: _spread([single["metrics"][split][name] for single in singles]) for name in values}
        for split, values in singles[0]["metrics"].items()
    }
    return summary


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values), "values": values}


def _seeds(run: Run) -> Section:
    rows = []
    for member in run.members():
        metrics = member.metrics()
        rows.append({"seed": metrics["seed"], **metrics["metrics"]["test"], "best step": metrics["best_step"]})
    return Section("Seeds", markdown_table(rows))


def _html(markdown: str, folder: Path) -> str:
    """The report as one file: rendered Markdown with the plots as data URIs."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)

    def inline(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="(plots/[^"]+\.png)"', inline, body)
    title = markdown.partition("\n")[0].lstrip("# ")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}</body></html>\n'
