"""Backbones by name: the toolkit's and all of timm's."""

from __future__ import annotations

from typing import Any

import timm
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

import toolkit.tasks.classify  # noqa: F401, registers ours
from toolkit.data.cache import is_offline
from toolkit.errors import DataNotFoundError, InputError, nearest


def create_backbone(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """A model that timm creates.

    Args:
        name: one of ``timm.list_models()``, with or without the tag of its weights, or ``hf-hub:organisation/name``.
        pretrained: with the weights that timm has for the name, which may be downloaded.
        arguments: of the model, such as ``num_classes`` and ``drop_path_rate``.

    Raises:
        InputError: a name that timm does not know, an argument that the model does not take, or no weights for it.
        DataNotFoundError: weights are wanted, and the network is forbidden.
    """
    check_name(name)
    if pretrained and is_offline():
        raise DataNotFoundError(f"the weights of {name} would be downloaded, which TOOLKIT_OFFLINE forbids")
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (HfHubHTTPError, OSError) as error:
        raise DataNotFoundError(f"cannot get the weights of {name}: {' '.join(str(error).split())}") from None
    except (TypeError, AssertionError, RuntimeError) as error:
        raise InputError(f"model {name}: {' '.join(str(error).split())}") from None


def check_name(name: str) -> None:
    """Raise if timm knows no model of a name."""
    architecture = name.split(".")[0]
    if not name.startswith("hf-hub:") and not timm.is_model(architecture):
        raise InputError(f"timm knows no model {name!r}", nearest(architecture, timm.list_models()))
