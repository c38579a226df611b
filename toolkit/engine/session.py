"""A training session: which folder, which seeds, baselines first, the model, its test figures, the report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from toolkit.config import Layer
from toolkit.engine import loop, report
from toolkit.engine.config import TrainConfig
from toolkit.engine.distributed import make_accelerator
from toolkit.engine.log import Log
from toolkit.engine.run import Run, newest_unfinished
from toolkit.engine.threads import cpu_threads
from toolkit.errors import InputError

MakeJob = Callable[[Any], Any]  # a configuration to a task


def train_seeds(make: MakeJob, config: TrainConfig, run: Run, device: str, log: Log) -> None:
    """Train one seed in the run's folder, or several in ``s<seed>/`` below it with a summary above them.

    Bad input is found before anything is written: the first seed's data and model are made first.
    """
    accelerator, fresh = make_accelerator(config, device), not run.folder.exists()
    job = build(make(config.model_copy(update={"seeds": config.seeds[:1]})))
    log.say(f"device: {accelerator.device}; folder: {run.folder}")
    try:
        if len(config.seeds) == 1:
            _train_one(job, run, device, log)
        else:
            _train_several(make, config, run, device, log)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, InputError) and fresh and not any(run.folder.rglob("checkpoints")):
            if accelerator.is_main_process:  # a file that could not be read: as if it had been found before the start
                shutil.rmtree(run.folder, ignore_errors=True)
        else:
            log.say(f"stopped; go on with --resume {run.folder}")
        raise


def _train_several(make: MakeJob, config: TrainConfig, run: Run, device: str, log: Log) -> None:
    _create(config, run, make_accelerator(config, device))
    for seed in config.seeds:
        log.say(f"seed {seed}")
        job = make(config.model_copy(update={"seeds": [seed]}))
        _train_one(job, Run(run.folder / f"s{seed}"), device, log)
    accelerator = make_accelerator(config, device)
    if accelerator.is_main_process:
        report.summarise_seeds(run)
        report.write(run)
    accelerator.wait_for_everyone()


def _train_one(job: Any, run: Run, device: str, log: Log) -> None:
    """One run in one folder: baselines, the model, its test figures, the report."""
    if not run.finished:
        _create(job.config, run, make_accelerator(job.config, device))
        for name in getattr(job.config, "baselines", ()):
            log.say(f"baseline {name}")
            _train_one(job.baseline(name), Run(run.folder / "baselines" / name), device, log)
    accelerator = make_accelerator(job.config, device)  # its precision and accumulation are the job's own
    log.to_file(run.folder / "log.txt")
    try:
        if not run.finished:
            metrics = _measured(job, run, accelerator, log)
            if accelerator.is_main_process:
                loop.save_model(job, run)
                run.finish(metrics)
        if accelerator.is_main_process and not (run.folder / "report.md").exists():
            write_report(type(job), run)
    except (Exception, KeyboardInterrupt) as error:
        log.record_exception(error)
        raise
    finally:
        log.to_file(None)
    accelerator.wait_for_everyone()


def _measured(job: Any, run: Run, accelerator: Accelerator, log: Log) -> dict[str, Any]:
    """Train the job's model; the content of ``metrics.json``."""
    started = time.perf_counter()
    build(job)
    summary = job.summary()
    log.say("; ".join(f"{name} {_shown(value)}" for name, value in summary.items()))
    with cpu_threads(job, accelerator.device):
        progress = loop.fit(job, run, accelerator, log)
        measured = job.conclude(run, accelerator)
    return {
        **summary,
        "seed": job.config.seeds[0],
        "steps": progress.step,
        "best_step": progress.best_step,
        "seconds": round(time.perf_counter() - started, 1),
        "metrics": measured,
        "published": job.config.published.model_dump(),
        "reference": job.config.reference.model_dump(),
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def build(job: Any) -> Any:
    """Data and fresh weights, drawn from the job's seed."""
    loop.seed_everything(job.config.seeds[0])
    job.build()
    return job


def _create(config: TrainConfig, run: Run, accelerator: Accelerator) -> None:
    """Make the run folder, unless it is there to be continued."""
    if accelerator.is_main_process and not (run.folder / "config.yaml").exists():
        Run.create(run.folder, config, str(accelerator.device))
    accelerator.wait_for_everyone()


def write_report(task: Any, run: Run) -> Path:
    """The report of a finished run, with the task's own sections."""
    return report.write(run, () if run.members() else task.report_sections(run))


def folder_to_resume(resume: str | Path | bool, out: Path | None, parent: Path, pattern: str) -> Path | None:
    """The run folder to continue, or None for a new run.

    Args:
        pattern: the runs below ``parent`` among which ``resume=True`` takes the newest unfinished one.
    """
    if not resume:
        return None
    if not isinstance(resume, bool):
        if not (Path(resume) / "config.yaml").is_file():
            raise InputError(f"there is no run to resume at {resume}")
        return Path(resume)
    if out is not None:
        return out if (out / "config.yaml").is_file() else None
    return newest_unfinished(parent, pattern)


def stored_config(cls: Any, run: Run, settings: Layer, wanted: TrainConfig | None) -> Any:
    """The stored configuration of a run to be continued; a setting that differs from it is an error."""
    stored = cls.Config.build(run.config())
    wanted = wanted or cls.Config.build(run.config(), settings)
    for key, value in stored.layer().items():
        if key not in ("published", "reference") and (other := wanted.layer()[key]) != value:
            raise InputError(
                f"{run.folder} was started with {key}={value}, now it is {other}",
                "Continue with the same settings, or start a new run",
            )
    return stored
