"""Backbones by name: the toolkit's and all of timm's."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from timm.models import get_arch_pretrained_cfgs, get_deprecated_models
from timm.models._hub import download_cached_file
from torch import nn

import toolkit.tasks.classify  # noqa: F401, registers ours
from toolkit import registry
from toolkit.data.cache import is_offline
from toolkit.errors import DataNotFoundError, InputError, nearest

HUB, FOLDER = "hf-hub:", "local-dir:"  # names that say where a model is, instead of one that timm knows
FILES = ("model.safetensors", "pytorch_model.bin")  # what timm calls weights on the Hugging Face hub
FORBIDDEN = "TOOLKIT_OFFLINE or HF_HUB_OFFLINE forbids their download"
UNREADABLE = (TypeError, AssertionError, RuntimeError, ValueError, KeyError, EOFError)


def create_backbone(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """A model that timm creates.

    Args:
        name: one of ``timm.list_models()``, with or without the tag of its weights; ``hf-hub:organisation/name``, or
            ``local-dir:path`` of a folder in the same form.
        pretrained: with the weights that timm has for the name, which may be downloaded.
        arguments: of the model, such as ``num_classes`` and ``drop_path_rate``; a file of weights on this machine may
            take the place of timm's, as ``pretrained_cfg_overlay={"file": path}``.

    Raises:
        InputError: a name that timm does not know, an argument that the model does not take, or no weights for it.
        DataNotFoundError: weights are wanted that are not on this machine and cannot be fetched.
    """
    check_name(name)
    overlay = arguments.get("pretrained_cfg_overlay") or {}
    if name.startswith(HUB) and is_offline():
        raise _unreachable(name, FORBIDDEN)
    if pretrained and not overlay.get("file") and not name.startswith((HUB, FOLDER)):
        arguments["pretrained_cfg_overlay"] = overlay | weights(name)
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (HfHubHTTPError, OSError) as error:
        raise _unreachable(name, _line(error)) from None
    except (*UNREADABLE, SafetensorError, pickle.UnpicklingError) as error:
        raise InputError(f"model {name}: {_line(error)}") from None


def set_size(model: nn.Module, size: int) -> None:
    """Let a model that is made for one size of images take another; others take any."""
    if (resize := getattr(model, "set_input_size", None)) is not None:
        resize(img_size=size)


def check_name(name: str) -> None:
    """Raise if timm knows no model of a name, or no weights of its tag."""
    if name.startswith((HUB, FOLDER)):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise InputError(f"timm knows no model {name!r}", nearest(architecture, timm.list_models()))
    known = get_arch_pretrained_cfgs(architecture)
    if tag and name not in known:
        raise InputError(f"timm knows no weights {tag!r} of {architecture}", f"There are {', '.join(known) or 'none'}")


def weights(name: str) -> dict[str, Any]:
    """The file with the weights of a timm model, as an overlay of its card; downloaded unless it is on this machine.

    Raises:
        InputError: timm has none.
        DataNotFoundError: they cannot be fetched.
    """
    card = timm.get_pretrained_cfg(get_deprecated_models().get(name) or name)
    if card is None or not card.has_weights:
        raise _no_weights(name)
    file = card.file or _on_this_machine(card)
    if file is None and is_offline():
        raise _unreachable(name, FORBIDDEN)
    try:
        file = file or _download(card)
    except (HfHubHTTPError, OSError) as error:
        raise _unreachable(name, _line(error)) from None
    return {"file": str(file), "custom_load": card.custom_load}


def _on_this_machine(card: Any) -> Path | None:
    """Where an earlier download is, by any program that uses the same caches."""
    if not card.hf_hub_id:
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(card.url).name
        return path if path.is_file() else None
    for name in [card.hf_hub_filename] if card.hf_hub_filename else FILES:
        if isinstance(found := try_to_load_from_cache(card.hf_hub_id, name), str):
            return Path(found)
    return None


def _download(card: Any) -> Path:
    if not card.hf_hub_id:
        return Path(download_cached_file(card.url, check_hash=False))
    with _quiet("huggingface_hub"):
        for file in [card.hf_hub_filename] if card.hf_hub_filename else FILES:
            try:
                return Path(hf_hub_download(card.hf_hub_id, file))
            except LocalEntryNotFoundError:  # no network: the other name would only be tried in vain
                raise
            except EntryNotFoundError:
                continue
    raise OSError(f"{card.hf_hub_id} has none of {', '.join(FILES)}")


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Inside, a library logs no warnings, such as those of every attempt to reach the network."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _unreachable(name: str, reason: str) -> DataNotFoundError:
    return DataNotFoundError(
        f"the weights of {name} are not on this machine: {reason}",
        f"Once with a network, python -c \"import timm; timm.create_model('{name}', pretrained=True)\" puts them into "
        "the cache ($HF_HOME), which may be copied",
    )


def _no_weights(name: str) -> InputError:
    """What to do about a model for which timm has no weights; for one of ours, where the official ones are."""
    architecture = name.partition(".")[0]
    others = timm.list_models(f"{architecture}.*", pretrained=True)
    families = [family for family in registry.families.names(group="classify") if architecture.startswith(family)]
    card = timm.get_pretrained_cfg(name)
    if others or not families or card is None:
        return InputError(f"timm has no weights for {name}", f"It has {', '.join(others)}" if others else "")
    if card.tag == "untrained":
        return InputError(f"no weights of {name} were published", "Name a directory of weights that you trained")
    return InputError(
        f"timm has no weights for {name}",
        f"Get the official checkpoint from {card.origin_url}, turn it into a model directory (toolkit convert "
        f"{max(families, key=len)} FILE DIR), and name that directory",
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
