"""Model directories and training state on disk: safetensors and JSON, written aside and renamed.

A checkpoint is a folder: ``model.safetensors`` and ``config.json`` (a model directory that loads without the
training code), optionally ``extra.safetensors`` (tensors of the task, such as interval widths) and ``state.pt``
(optimiser, random state and position; plain tensors and numbers, read with ``weights_only=True``).
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.errors import InputError

MODEL, CARD, EXTRA, STATE = "model.safetensors", "config.json", "extra.safetensors", "state.pt"


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Write a folder aside, then put it in the place of ``path``; what bears its name is always complete.

    A folder cannot be replaced in one step: the old one is first renamed to ``.old-<name>`` (see ``existing``).
    """
    aside, old = path.with_name(f".tmp-{path.name}"), path.with_name(f".old-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in aside.iterdir():
            if file.is_file():
                _sync(file)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    aside.rename(path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that a reader never sees half of it."""
    aside = path.with_name(f".tmp-{path.name}")
    try:
        aside.write_text(text, encoding="utf-8")
        _sync(aside)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def existing(path: Path) -> Path | None:
    """The folder, or the one it was replacing when the process died, or None."""
    if path.is_dir():
        return path
    old = path.with_name(f".old-{path.name}")
    return old if old.is_dir() else None


def save(
    path: Path,
    model: Mapping[str, Tensor],
    card: Mapping[str, Any],
    extra: Mapping[str, Tensor] | None = None,
    state: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder.

    Args:
        model: the model's state dict.
        card: what ``config.json`` holds: architecture, arguments, and what the task needs to use the model.
        extra: further tensors of the task.
        state: training state, nested containers of tensors and plain values only.
    """
    weights, others = _own_memory(model), _own_memory(extra or {})
    try:
        with write_folder(path) as folder:
            save_file(weights, folder / MODEL)
            (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
            if others:
                save_file(others, folder / EXTRA)
            if state is not None:
                torch.save(state, folder / STATE)
    except (safetensors.SafetensorError, RuntimeError) as error:  # the libraries' words for a failed write
        reason = " ".join(str(error).split())
        raise InputError(f"cannot write the checkpoint {path}: {reason}", "Is the disk full?") from None


def read_card(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model directory.

    Raises:
        InputError: no such folder, or it is no model directory.
    """
    if not folder.is_dir():
        raise InputError(f"no model directory at {folder}")
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} is not a model directory: it has no {CARD}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / CARD} is damaged: {error}") from None
    if not isinstance(card, dict) or "architecture" not in card:
        raise InputError(f"{folder / CARD} describes no model: it has no 'architecture'")
    return card


def read_state(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint folder."""
    return _torch_load(folder / STATE)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file or a PyTorch checkpoint; nothing else is ever unpickled.

    A checkpoint that nests its tensors under ``state_dict``, ``model_state_dict`` or ``model`` is looked into.

    Raises:
        InputError: the file is missing, truncated, holds code, or holds no tensors.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (safetensors.SafetensorError, ValueError) as error:
            raise InputError(f"{path} is damaged or no safetensors file: {error}") from None
    loaded = _torch_load(path)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds no table of tensors but a {type(loaded).__name__}")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    return tensors


def load_strictly(module: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict, or say everything that does not fit.

    Raises:
        InputError: one line that lists missing, unexpected and wrongly shaped entries.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes))
        if names
    ]
    if problems:
        raise InputError(f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict(state)


def _torch_load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read raises below
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"no checkpoint at {path}") from None
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} is damaged, or holds pickled code, which is never run",
            "Save it again as a plain state dict or as safetensors",
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is truncated or no PyTorch checkpoint: {reason}") from None


def _own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no storage: safetensors refuses views of one buffer."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
