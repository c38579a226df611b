"""A run is a folder: its settings, its log of numbers, its checkpoints, its report.

    config.yaml  command.txt  environment.json  metrics.jsonl  metrics.json  log.txt  predictions.npz
    tensorboard/  checkpoints/{last,best}/  plots/  report.md  report.html

It is finished when ``metrics.json`` exists. Files and folders are written aside and renamed, so what bears its name
is complete; ``metrics.jsonl`` alone grows in place and is cut back to the checkpoint's line on resume.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import toolkit
from toolkit.config import Config, read_yaml, to_yaml
from toolkit.engine.checkpoint import existing, write_text
from toolkit.errors import InputError

PACKAGES = ("torch", "numpy", "pandas", "accelerate", "timm", "triton", "safetensors")


@dataclass(frozen=True)
class Run:
    """One run folder. ``Run.create`` makes a new one, ``Run(folder)`` opens what is there."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, config: Config, device: str) -> Run:
        """Make the folder with everything that is known before the first step.

        Raises:
            InputError: the folder is not empty, or cannot be written.
        """
        check_free(folder)
        folder.mkdir(parents=True, exist_ok=True)
        program = "toolkit" if Path(sys.argv[0]).name == "__main__.py" else sys.argv[0]
        files = {
            "command.txt": shlex.join([program, *sys.argv[1:]]) + "\n",
            "environment.json": json.dumps(environment(device), indent=1) + "\n",
            "config.yaml": to_yaml(config),  # the last one: it makes the folder a run
        }
        try:
            for name, text in files.items():
                write_text(folder / name, text)
        except OSError:
            for name in files:
                (folder / name).unlink(missing_ok=True)
            raise
        return cls(folder)

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last"

    @property
    def best(self) -> Path:
        return self.folder / "checkpoints" / "best"

    @property
    def finished(self) -> bool:
        return (self.folder / "metrics.json").is_file()

    def members(self) -> list[Run]:
        """The runs of single seeds inside a run over several, in order of the seeds in its configuration."""
        seeds = self.config()["seeds"]
        return [Run(self.folder / f"s{seed}") for seed in seeds] if len(seeds) > 1 else []

    def config(self) -> dict[str, Any]:
        """The resolved configuration as stored.

        Raises:
            InputError: the folder is no run.
        """
        if not (self.folder / "config.yaml").is_file():
            raise InputError(f"{self.folder} is not a run folder: it has no config.yaml")
        return read_yaml(self.folder / "config.yaml")

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "time": round(time.time(), 3)}) + "\n")

    def logged(self) -> int:
        """Bytes of ``metrics.jsonl``, to be kept in a checkpoint."""
        path = self.folder / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def cut_log(self, size: int) -> None:
        """Forget the lines that were logged after the checkpoint from which the run goes on."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            with path.open("r+b") as file:
                file.truncate(size)

    def history(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        return [_parse(path, line) for line in path.read_text().splitlines()] if path.exists() else []

    def finish(self, metrics: Mapping[str, Any]) -> None:
        write_text(self.folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")

    def metrics(self) -> dict[str, Any]:
        """The final numbers.

        Raises:
            InputError: the run is not finished.
        """
        if not self.finished:
            raise InputError(f"{self.folder} is not finished: it has no metrics.json", "Continue it with --resume")
        return _parse(self.folder / "metrics.json", (self.folder / "metrics.json").read_text())


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged: {error}") from None


def check_free(folder: Path, hint: str = "Choose another --out") -> None:
    """Refuse an output folder that holds something, or that cannot be made; leaves nothing behind.

    Args:
        hint: what to do instead.

    Raises:
        InputError: naming the folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder", hint)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty", hint)
    folder = folder.resolve()
    parent = next(parent for parent in (folder, *folder.parents) if parent.exists())
    probe = parent / f".tmp-{folder.name}-probe"
    try:
        probe.mkdir(exist_ok=True)  # it may be left of a process that was killed
        probe.rmdir()
    except OSError as error:
        raise InputError(f"cannot write to {parent}: {error.strerror}", hint) from None


def clean(folder: Path) -> None:
    """Remove what an interrupted write left; a folder whose replacement did not happen gets its name back."""
    for old in folder.rglob(".old-*"):
        current = old.with_name(old.name.removeprefix(".old-"))
        shutil.rmtree(old) if existing(current) == current else old.rename(current)
    for aside in folder.rglob(".tmp-*"):
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()


def newest_unfinished(parent: Path, pattern: str = "*") -> Path | None:
    """The newest run without its final ``metrics.json`` among the folders that match; their names are times."""
    found = (path.parent for path in parent.glob(f"{pattern}/config.yaml")) if parent.is_dir() else ()
    runs = sorted(found, key=lambda folder: folder.name)
    return next((run for run in reversed(runs) if not Run(run).finished), None)


def environment(device: str) -> dict[str, Any]:
    """Versions, platform, device and commit: what a bug report or a comparison needs, and no host name."""
    return {
        "toolkit": toolkit.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "packages": {name: installed_version(name) for name in PACKAGES},
        "git": _git_state(),
    }


def installed_version(package: str) -> str | None:
    """Version of a distribution, or None; the metadata is asked, nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit and dirtiness of the toolkit's own checkout; None when it is installed from a wheel."""
    root = Path(toolkit.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(status.strip())}
