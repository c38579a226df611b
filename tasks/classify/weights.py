"""Published weights: which classes they tell apart, and how images have to look for the accuracy that is quoted.

Both come from the card that timm keeps of the weights (``pretrained_cfg``). Classes of ImageNet and its larger
relatives are named by their WordNet synsets, in the order of timm's lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.data import CustomDatasetInfo, ImageNetInfo, infer_imagenet_subset, resolve_data_config
from torch import Tensor, nn

from toolkit.errors import InputError, nearest
from toolkit.tasks.classify.backbones import FOLDER, check_name, create_backbone


def is_name(text: str) -> bool:
    """Whether timm has a model of that name, with or without a tag."""
    return timm.is_model(text.partition(".")[0])


def near(text: str) -> str:
    """A hint with names of timm that resemble a text, if any does."""
    return nearest(text.partition(".")[0], timm.list_models())


def load(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A timm model with the weights of its name, and what a model directory would say of it.

    Raises:
        InputError: no such model, no weights for it, or weights without a classifier.
        DataNotFoundError: the weights cannot be fetched.
    """
    check_name(name)
    known = timm.get_pretrained_cfg(name)
    if known is not None and known.has_weights and not known.num_classes:
        raise no_classifier(name)
    model: Any = create_backbone(name, pretrained=True)
    return model, _architecture(model) | card_of(model.pretrained_cfg)


def load_folder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The same from a folder that timm writes, or a repository on the Hugging Face hub holds: its card and weights."""
    model: Any = create_backbone(f"{FOLDER}{folder}", pretrained=True)
    return model, _architecture(model) | card_of(model.pretrained_cfg | {"tag": None})


def _architecture(model: Any) -> dict[str, Any]:
    return {"task": "classify", "architecture": f"timm/{model.pretrained_cfg['architecture']}"}


def no_classifier(name: str) -> InputError:
    return InputError(f"the weights of {name} have no classifier", "Train one with model.pretrained=true")


def card_of(weights: dict[str, Any]) -> dict[str, Any]:
    """What a model directory says of a classifier beside its architecture: classes, their labels, preprocessing.

    Args:
        weights: timm's card of them.
    """
    name = ".".join(filter(None, (weights["architecture"], weights.get("tag"))))
    if not weights["num_classes"]:
        raise no_classifier(name)
    classes, labels = names_of_classes(weights)
    seen = resolve_data_config(pretrained_cfg=weights, use_test_size=True)
    return {
        "data": {
            "published": True,  # they never saw any part of a set that they are measured on
            "classes": classes,
            "labels": labels,
            "preprocessing": {
                "size": seen["input_size"][-1],
                **{key: list(seen[key]) for key in ("mean", "std")},
                **{key: seen[key] for key in ("crop_pct", "crop_mode", "interpolation")},
            },
        },
        "config": {"model": {"name": name}, "data": {"name": None}},
    }


def names_of_classes(weights: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the classes in the order of the logits, and what people call them; numbers where the card tells none."""
    count = weights["num_classes"]
    if weights.get("label_names"):
        info: Any = CustomDatasetInfo(weights["label_names"], weights.get("label_descriptions"))
    elif subset := infer_imagenet_subset(weights):
        info = ImageNetInfo(subset)
    else:
        return [str(number) for number in range(count)], [f"class {number}" for number in range(count)]
    known = set(info.label_indices())
    names = [info.index_to_label_name(n) if n in known else str(n) for n in range(count)]
    return names, [info.label_name_to_description(name) if n in known else name for n, name in enumerate(names)]


def official_card(model: nn.Module) -> dict[str, Any]:
    """``card_of`` of a model of ours with official weights; empty for what is no published classifier."""
    if not (classes := getattr(model, "num_classes", 0)):
        return {}
    own = shapes(model)
    for name in timm.list_models(module=type(model).__module__.rpartition(".")[2]):
        published: Any = timm.create_model(name, device="meta")
        if own == shapes(published):
            card = card_of(published.pretrained_cfg | {"num_classes": classes})
            if size := getattr(model, "img_size", None):
                card["data"]["preprocessing"]["size"] = size
            return card
    return {}


def shapes(model: nn.Module) -> dict[str, Any]:
    """Shapes of the parameters, but for those that depend on the classes or on the size of the image."""
    state: dict[str, Tensor] = model.state_dict()
    return {name: tensor.shape for name, tensor in state.items() if not name.startswith(("head.fc.", "pos_embed."))}
