"""Models on disk and from elsewhere: save and load model directories, convert official checkpoints, push to a hub.

A model directory holds ``config.json`` (architecture, constructor arguments, what the task needs) and
``model.safetensors``; a run folder stands for its best checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import toolkit
from toolkit import registry
from toolkit.config import signature_config
from toolkit.data.cache import is_offline
from toolkit.engine import checkpoint
from toolkit.engine.run import Run
from toolkit.errors import DataNotFoundError, InputError

HUB = "hf-hub:"
TIMM = "timm/"  # an architecture of this prefix is created by timm


@dataclass(frozen=True)
class Pretrained:
    """A model with everything that its directory says about it."""

    model: nn.Module
    card: dict[str, Any]
    extra: dict[str, Tensor]
    folder: Path


def create_model(name: str, **arguments: Any) -> nn.Module:
    """A registered model with fresh weights.

    Raises:
        InputError: unknown name or argument, with the nearest known one.
    """
    if name.startswith(TIMM):
        from toolkit.tasks.classify.backbones import create_backbone

        return create_backbone(name.removeprefix(TIMM), **arguments)
    cls = registry.models.load(name)
    return cls(**signature_config(cls).build(arguments).model_dump())


def save(model: nn.Module, path: str | Path, **card: Any) -> Path:
    """Write a model directory.

    Args:
        model: a registered model; it keeps its constructor arguments as attributes.
        path: the directory, replaced as a whole.
        card: further entries of ``config.json``.
    """
    folder = Path(path)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / checkpoint.CARD).is_file():
        raise InputError(f"{folder} holds other files", "Choose a new folder: a model directory is replaced as a whole")
    described = registry.describe(model) | {"toolkit": toolkit.__version__} | card
    checkpoint.save(Path(path), model.state_dict(), described)
    return Path(path)


def load(source: str | Path) -> nn.Module:
    """A model, in eval mode, from a model directory, a run folder, ``hf-hub:organisation/name``, or a name of timm.

    Raises:
        InputError: nothing there, a damaged file, or weights that do not fit the described architecture.
        DataNotFoundError: weights that are not on this machine and cannot be fetched.
    """
    return load_pretrained(source).model


def is_bare_name(text: str) -> bool:
    """Whether a text names nothing on this machine or the hub, so that it can only be the name of a model."""
    return not text.startswith(HUB) and not Path(text).exists() and len(Path(text).parts) == 1


def load_pretrained(source: str | Path) -> Pretrained:
    """Like ``load``, with the directory's card and further tensors."""
    text = str(source)
    if is_bare_name(text):
        from toolkit.tasks.classify import weights

        if weights.is_name(text):
            model, card = weights.load(text)
            return Pretrained(model.eval(), card, {}, Path(text))
        if text in registry.models:
            raise InputError(f"{text} is an architecture", "Name a model directory or a run folder, which have weights")
        raise InputError(f"no model directory at {text}, nor does timm know a model of that name", weights.near(text))
    folder = _resolve(source)
    card = checkpoint.read_card(folder)
    if "pretrained_cfg" in card:  # timm's own form of a model directory
        from toolkit.tasks.classify import weights

        model, card = weights.load_folder(folder)
        return Pretrained(model.eval(), card, {}, folder)
    model = create_model(card["architecture"], **card.get("arguments", {}))
    path = folder / checkpoint.MODEL
    checkpoint.load_strictly(model, checkpoint.read_tensors(path), str(path))
    extra = checkpoint.read_tensors(folder / checkpoint.EXTRA) if (folder / checkpoint.EXTRA).exists() else {}
    return Pretrained(model.eval(), card, extra, folder)


def from_official(name: str, state: Mapping[str, Any] | str | Path, **config: Any) -> nn.Module:
    """A model of ours with the weights of an official checkpoint.

    Args:
        name: a family of ``pretrained/``.
        state: state dict (tensors or arrays), or the path of a checkpoint.
        config: sizes that the shapes do not tell, by their official or our names.

    Raises:
        InputError: every entry that is missing, unexpected or of another shape.
    """
    entry = registry.families.entry(name)
    source = str(state) if isinstance(state, str | Path) else f"the given {name} state"
    tensors = checkpoint.read_tensors(Path(state)) if isinstance(state, str | Path) else state
    arguments, converted = entry.load().convert(
        {key: torch.as_tensor(value) for key, value in tensors.items()}, **config
    )
    model = create_model(entry.card, **arguments)
    checkpoint.load_strictly(model, converted, source)
    return model.eval()


def official_card(family: str, model: nn.Module) -> dict[str, Any]:
    """What is known of a model with official weights beside its architecture, for ``config.json``."""
    if registry.families.entry(family).group != "classify":
        return {}
    from toolkit.tasks.classify import weights

    return weights.official_card(model)


def push(model: nn.Module, repository: str, private: bool = True) -> str:
    """Upload a model directory to the Hugging Face hub; returns its address. Needs a login there.

    Args:
        repository: ``organisation/name``.
    """
    import tempfile

    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = save(model, Path(folder) / "model")
        return str(api.upload_folder(repo_id=repository, folder_path=path))


def _resolve(source: str | Path) -> Path:
    """The model directory that a path, run folder or hub name stands for."""
    text = str(source)
    if text.startswith(HUB):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        name, files = text.removeprefix(HUB), ["*.json", "*.safetensors"]
        try:
            return Path(snapshot_download(name, allow_patterns=files, local_files_only=is_offline()))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            if is_offline():
                reason = "it is not on this machine, and TOOLKIT_OFFLINE or HF_HUB_OFFLINE forbids its download"
            raise DataNotFoundError(f"cannot get {text}: {reason}") from None
    folder = Path(text)
    if (folder / "config.yaml").is_file():
        best = checkpoint.existing(folder / "checkpoints" / "best")
        if members := Run(folder).members():
            raise InputError(f"{folder} holds several seeds", f"Name one of them, such as {members[0].folder}")
        if best is None:
            raise InputError(f"run {folder} has no checkpoint yet", "Continue it with --resume")
        return best
    return folder
