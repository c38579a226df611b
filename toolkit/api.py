"""One Python function per command. ``toolkit.train("forecast", recipe="gateformer_etth1_96")`` is
``toolkit train forecast --recipe gateformer_etth1_96``; the command line only parses and prints.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from toolkit import hub, registry
from toolkit.config import IN_MEMORY, Layer, figures_owner, recipe_layers, recipe_task, signature_config, to_yaml
from toolkit.data import cache
from toolkit.data.cards import ImageCard
from toolkit.data.cards import card as data_card
from toolkit.data.images import read_images
from toolkit.data.tables import read_table
from toolkit.engine import loop, report, session
from toolkit.engine.checkpoint import write_folder
from toolkit.engine.config import TrainConfig
from toolkit.engine.distributed import gather_objects, make_accelerator
from toolkit.engine.log import Log
from toolkit.engine.run import Run, check_free, clean, installed_version
from toolkit.engine.run import environment as run_environment
from toolkit.errors import InputError
from toolkit.kernels._common import aot as kernels_aot
from toolkit.kernels._common import backends
from toolkit.kernels._common import bench as kernels_bench

# Keys that do not change what is measured: a recipe's published figures stay beside a run that overrides only these.
NEUTRAL = {
    "name",
    "seeds",
    "baselines",
    "eval_batch_size",
    "accumulate",
    "log_every",
    "checkpoint_minutes",
    "coverage",
    "threads",
}


def resolve(task: str, recipe: str | Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a run: defaults < recipe < file < overrides.

    Without a recipe the task's default one counts, or where other data is given the one for such data but for its data
    section, and what the recipe of another model sets. The figures that a recipe quotes are dropped where anything
    else is measured.
    """
    cls = registry.tasks.load(task)
    overrides = cls.Config.combine({}, overrides)
    other_data = recipe is None and bool({"name", "path"} & set(overrides.get("data") or {}))
    base = recipe or (cls.own_data_recipe if other_data else cls.default_recipe)
    layers = recipe_layers(base, task)
    plain = cls.Config.build(*recipe_layers(figures_owner(base), task))
    if recipe is None:
        if other_data:
            layers = [{key: value for key, value in layer.items() if key != "data"} for layer in layers]
        model = (overrides.get("model") or {}).get("name", plain.layer()["model"]["name"])
        if model != plain.layer()["model"]["name"] and model in registry.recipes:
            layers += recipe_layers(model, task)
    wanted = cls.Config.build(*layers, overrides)
    changed = [
        key
        for key, value in wanted.layer().items()
        if key not in NEUTRAL and _but_path(value) != _but_path(plain.layer()[key])
    ]
    if not _is_the_named_file(wanted):
        changed.append("the file of the data set")
    if not changed:
        return wanted
    note = {"metrics": {}, "source": f"this run changes {', '.join(changed)} of the recipe"}
    name = {"name": "custom"} if recipe is None else {}
    return cls.Config.build(*layers, {"published": note, "reference": note} | name, overrides)


def train(
    task: str,
    recipe: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    data: Any = None,
    seeds: Sequence[int] = (),
    device: str = "auto",
    out: str | Path | None = None,
    resume: str | Path | bool = False,
    dry_run: bool = False,
    max_steps: int | None = None,
    download: bool = False,
    log: Log | None = None,
) -> dict[str, Any]:
    """Train, evaluate and report.

    Args:
        task: a name of ``toolkit list tasks``.
        recipe: a name of ``toolkit list recipes``, or a YAML file; None: the task's default.
        overrides: settings above the recipe's, nested: ``{"optim": {"lr": 1e-3}}``.
        data: a data set's name, a path, or an object that the task accepts, such as a data frame.
        seeds: one run each; several are summarised as mean ± std. Default: the recipe's.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        out: run folder; default ``runs/<task>/<recipe>/<time>``.
        resume: a run folder to continue, or True for the newest unfinished one of this task and recipe.
        dry_run: check configuration, data and output folder, and return the summary without training.
        max_steps: stop after this many updates.
        download: a named data set may be fetched.
        log: where progress is told; default: nowhere.

    Returns:
        The content of ``metrics.json``, and ``folder``.

    Raises:
        ToolkitError: one line that says what is wrong; nothing is written for bad input.
        KeyboardInterrupt: after Ctrl-C, with the state saved.
    """
    cls = registry.tasks.load(task)
    settings: Layer = dict(overrides or {})
    frame = None
    if isinstance(data, str | Path):
        settings = cls.Config.combine(settings, {"data": str(data)})
    elif data is not None:
        frame, settings = data, cls.Config.combine(settings, {"data": {"path": IN_MEMORY}})
    if seeds:
        settings["seeds"] = list(seeds)
    if max_steps is not None:
        settings["max_steps"] = max_steps
    config = resolve(task, recipe, settings)
    accelerator = make_accelerator(config, device)
    log = (log or Log(quiet=True)).of_process(accelerator.is_main_process)

    parent = Path("runs") / task
    pattern = f"{config.name}/*" if recipe or settings else "*/*"
    folder = session.folder_to_resume(resume, Path(out) if out else None, parent, pattern)
    if folder is not None:
        config = session.stored_config(cls, Run(folder), settings, config if recipe else None)
        log.say(f"continuing {folder}")
    else:
        if resume:
            log.say("no unfinished run found, starting a new one")
        stamp = gather_objects(datetime.now().strftime("%Y%m%d-%H%M%S"), accelerator)[0]
        folder = Path(out) if out else parent / config.name / stamp
        if accelerator.is_main_process:
            check_free(folder, "Choose another --out, or continue the run in it with --resume")

    make = partial(cls, frame=frame, download=download)
    if dry_run:
        job = session.build(make(config))
        return {**job.summary(), "device": str(accelerator.device), "seeds": config.seeds, "folder": str(folder)}
    log.detail(to_yaml(config))
    if accelerator.is_main_process:
        clean(folder)
    accelerator.wait_for_everyone()
    session.train_seeds(make, config, Run(folder), device, log)
    return Run(folder).metrics() | {"folder": str(folder)}


def evaluate(
    task: str,
    *,
    run: str | Path | None = None,
    model: str | Path | None = None,
    data: Any = None,
    split: str = "test",
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    download: bool = False,
) -> dict[str, Any]:
    """Metrics of a trained model on a split.

    Args:
        run, model: a run folder, or a model directory or the name of published weights; one of them.
        data: other data than the model was trained on; the model's own scaling stays.
        split: ``train``, ``val`` or ``test``.
        overrides: further settings of the task.
        out: folder that gets ``metrics.json``; default: nothing is written.

    Returns:
        Task, model, data, split and ``metrics``.
    """
    if split not in ("train", "val", "test"):
        raise InputError(f"unknown split {split!r}", "There are train, val and test")
    if out:
        check_free(Path(out))
    job = restored(task, run, model, data, overrides, download)
    accelerator = make_accelerator(job.config, device)
    job.model.to(accelerator.device)
    measured = {
        "task": task,
        "model": job.config.model.name,
        "data": job.data.name,
        "split": split,
        "metrics": loop.evaluate(job, split, accelerator),
    }
    if out and accelerator.is_main_process:
        with write_folder(Path(out)) as folder:
            (folder / "metrics.json").write_text(json.dumps(measured, indent=1) + "\n")
    return measured


def predict(
    task: str,
    inputs: Any,
    *,
    run: str | Path | None = None,
    model: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
) -> Any:
    """Apply a trained model to the user's input.

    Args:
        inputs: what the task predicts from; for a forecast a table whose last rows are used.
        run, model: a run folder, or a model directory or the name of published weights; one of them.
        output: file that gets the prediction (and a plot beside it); default: nothing is written.

    Returns:
        The prediction as the task gives it; for a forecast a data frame.
    """
    job = restored(task, run, model, None, overrides, False)
    prediction = job.predict(inputs)
    if output is not None:
        job.write_prediction(prediction, inputs, Path(output))
    return prediction


def results(run: str | Path) -> list[dict[str, Any]]:
    """Rows of a finished run's results table; its report is made anew from its folder.

    Raises:
        InputError: no run folder, or the run is not finished.
    """
    folder = Run(Path(run))
    task = folder.config().get("task", "")
    folder.metrics()
    session.write_report(registry.tasks.load(task), folder)
    rows = [{"run": folder.folder.name, **row} for row in report.results(folder)]
    return [{key: report.show(value) for key, value in row.items()} for row in rows]


def show(kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """What is known of a ``recipe``, ``model`` or ``dataset``: as text for people, and as plain values."""
    if kind == "recipe":
        task = recipe_task(name)
        config = registry.tasks.load(task).Config.build(*recipe_layers(name, task))
        return to_yaml(config, comments=True), config.layer()
    if kind == "model":
        entry = registry.models.entry(name)
        fields = signature_config(entry.load()).model_fields
        arguments = {key: "required" if field.is_required() else field.default for key, field in fields.items()}
        return inspect.getdoc(entry.load()) or "", {"name": entry.name, "task": entry.group, "arguments": arguments}
    card = data_card(name).model_dump(mode="json", exclude={"package"})
    return yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100), card


def dataset(action: str, name: str | None = None) -> dict[str, Any]:
    """Get, check or find data sets.

    Args:
        action: ``get`` downloads what may be downloaded and verifies it; ``check`` verifies a named set, or reads a
            table of the user's own and says what it holds; ``path`` says where a set or the searched folders are.
    """
    if name is None:
        if action != "path":
            raise InputError(f"toolkit data {action} needs a data set", "`toolkit list datasets` shows all")
        return {"TOOLKIT_DATA": cache.user_dir() or "(not set)", "cache": cache.cache_dir()}
    if action == "check" and name not in registry.datasets:
        return (read_images if Path(name).is_dir() else read_table)(name).summary()
    card, module = data_card(name), registry.datasets.load(name)
    if isinstance(card, ImageCard):
        folder = None if card.embedded else cache.find_folder(card)
        return {"folder": str(folder or "embedded")} | (
            {} if action == "path" else module.read(card.name, folder).summary()
        )
    paths = {file: cache.find(card, file, download=action == "get") for file in card.files}
    if action == "path":
        return {file: str(path) for file, path in paths.items()}
    table = module.read(card.name, next(iter(paths.values())))
    return {**{file: str(path) for file, path in paths.items()}, **table.summary()}


def doctor() -> dict[str, dict[str, str]]:
    """Versions, devices, folders and optional pieces of this installation."""
    environment = run_environment("")
    optional = {"pyarrow": "parquet", "triton": "triton", "onnxscript": "export"}
    opencv = [name for name in ("opencv-python", "opencv-contrib-python") if installed_version(name)]
    return {
        "versions": {
            "toolkit": environment["toolkit"],
            "python": environment["python"],
            "platform": environment["platform"],
            **{name: found or "missing" for name, found in environment["packages"].items()},
        },
        "devices": {
            "cpu": f"{torch.get_num_threads()} threads",
            **{f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())},
            **({"mps": "available"} if torch.backends.mps.is_available() else {}),
        },
        "kernels": {
            "cpu": "plain PyTorch",
            "cuda": f"plain PyTorch: {hinder}" if (hinder := backends.why_no_triton("cuda")) else "Triton",
            backends.VARIABLE: os.environ.get(backends.VARIABLE, "auto"),
        },
        "folders": {key: str(value) for key, value in dataset("path").items()},
        "optional": {
            package: installed_version(package) or f'missing: pip install "gated-toolkit[{extra}]"'
            for package, extra in optional.items()
        },
        **({"problems": dict.fromkeys(opencv, "overwrites opencv-python-headless: uninstall it")} if opencv else {}),
    }


def convert(family: str, file: str | Path, out: str | Path, **config: Any) -> Path:
    """Turn an official checkpoint into a model directory.

    Args:
        family: a name of ``pretrained/``.
        config: sizes that the shapes do not tell, by their official or our names.
    """
    target = Path(out)
    check_free(target, "Choose another folder")
    model = hub.from_official(family, file, **config)
    return hub.save(model, target, source=f"converted from {Path(file).name}", **hub.official_card(family, model))


def bench(kind: str, name: str | None = None, *, repeats: int = 9, aot: bool = False) -> list[dict[str, Any]]:
    """Measure operators on the CPU, or compile their Triton kernels without a GPU.

    Args:
        kind: ``kernels``.
        name: one operator; default: all that have a benchmark, or Triton kernels.
        repeats: pairs of runs per comparison.
        aot: compile for sm_80, sm_90 and gfx942 instead of measuring.

    Returns:
        Rows as of ``toolkit.kernels._common.bench.run``, or ``aot.check``; with ``wrong``: whether results differ from
        the exact ones, or a compiled kernel fails.
    """
    if kind != "kernels":
        raise InputError(f"unknown kind {kind!r}", "There is: kernels")
    if aot:
        return [row | {"wrong": row["status"] != "ok"} for row in kernels_aot.check(name)]
    return [row | {"wrong": "ratio" not in row} for row in kernels_bench.run(name, repeats)]


def restored(task: str, run: Any, model: Any, data: Any, overrides: Any, download: bool) -> Any:
    """A task around a trained model, with the settings it was trained with."""
    if (run is None) == (model is None):
        raise InputError("name the trained model by one of --run and --model")
    pretrained = hub.load_pretrained(run if run is not None else model)
    found = pretrained.card.get("task")
    if found != task:
        raise InputError(f"{pretrained.folder} holds a model of the task {found!r}, not {task!r}")
    cls = registry.tasks.load(task)
    given = cls.Config.combine(overrides or {}, {"data": str(data)} if isinstance(data, str | Path) else {})
    fixed = sorted(
        key for key in _keys(given) if not any(key.startswith(usable) for usable in cls.usable_after_training)
    )
    if fixed:
        raise InputError(
            f"{fixed[0]!r} is fixed by the trained model", f"Free are {', '.join(cls.usable_after_training)}"
        )
    config = cls.Config.build(cls.settings_of(pretrained.card), given)
    job = cls(config, None if isinstance(data, str | Path) else data, download)
    job.restore(pretrained.model, pretrained.card, pretrained.extra)
    return job


def _keys(layer: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of a nested layer."""
    nested = [_keys(v, f"{prefix}{k}.") if isinstance(v, Mapping) else [prefix + k] for k, v in layer.items()]
    return [key for keys in nested for key in keys]


def _is_the_named_file(config: TrainConfig) -> bool:
    """Whether a path that replaces a named set's file leads to that same file, as far as its checksum is known."""
    section = config.layer().get("data") or {}
    if not section.get("name") or not section.get("path") or not Path(section["path"]).is_file():
        return True
    card = data_card(section["name"])
    known = card.files[card.file].sha256
    return not known or cache.sha256(Path(section["path"])) in known


def _but_path(section: Any) -> Any:
    """A section without the path of its file: a path replaces the file and nothing else."""
    return {key: value for key, value in section.items() if key != "path"} if isinstance(section, dict) else section
