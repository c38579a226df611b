"""Official HorNet checkpoints (``raoyongming/HorNet``): constructor arguments; the model's file has the key map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import InputError, nearest
from toolkit.tasks.classify.hornet import HorNet, checkpoint_filter_fn

MODEL = ("classify", "hornet")

GIVEN = ("scale", "drop_rate", "drop_path_rate", "layer_scale_init_value", "filter_sizes")
IGNORED = {"head_init_scale", "uniform_init", "block"}  # options of the official constructor for training from scratch


def convert(state: Mapping[str, Any], **config: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Translate an official state dict, of a classifier or of a backbone for dense prediction.

    Args:
        state: official entries (tensors or arrays), with or without wrappers and prefixes; of a detector or segmenter
            only the backbone is taken.
        config: what the shapes do not tell (``scale``, 1/3 in all published models; rates), ``filter_sizes`` to resize
            the global filters, and anything else that shall be checked against the shapes.

    Returns:
        Constructor arguments, and the state under our names. Unknown entries keep their name.

    Raises:
        InputError: an entry that tells a size is missing, an unknown option or one that contradicts the shapes.
    """
    renamed = checkpoint_filter_fn(state, torch.nn.Module())
    renamed = {name: torch.as_tensor(value) for name, value in renamed.items()}
    arguments = shapes_tell(renamed)
    for name, value in config.items():
        value = tuple(tuple(v) if isinstance(v, list) else v for v in value) if isinstance(value, list) else value
        if name in IGNORED:
            continue
        if name not in arguments and name not in GIVEN:
            raise InputError(f"unknown option {name!r}", nearest(name, (*arguments, *GIVEN, *IGNORED)))
        if name not in GIVEN and arguments[name] != value:
            raise InputError(f"{name} is given as {value}, but the checkpoint has {arguments[name]}", "Leave it out")
        arguments[name] = value
    with torch.device("meta"):
        model = HorNet(**arguments)
    return arguments, checkpoint_filter_fn(renamed, model)


def shapes_tell(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments that follow from the shapes of a renamed state."""

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise InputError(f"the checkpoint has no entry {name!r}", "Is it an official HorNet checkpoint?")
        return state[name].shape

    def count(prefix: str) -> int:
        """How many numbers follow ``prefix`` in the names."""
        start = len(prefix)
        return len({name[start:].split(".")[0] for name in state if name.startswith(prefix)})

    stages = range(count("stages."))
    first = [f"stages.{i}.blocks.0." for i in stages]
    filters = [state.get(f"{name}gnconv.dwconv.complex_weight") for name in first]
    dims = tuple(shape(f"{name}norm1.weight")[0] for name in first)
    if not dims:
        raise InputError(
            "the checkpoint has no entry 'stages.0.0.norm1.weight'", "Is it an official HorNet checkpoint?"
        )
    return {
        "in_chans": shape("stem.0.weight")[1],
        "patch_size": shape("stem.0.weight")[2],
        "num_classes": shape("head.fc.weight")[0] if "head.fc.weight" in state else 0,
        "depths": tuple(count(f"stages.{i}.blocks.") for i in stages),
        "dims": dims,
        "orders": tuple(count(f"{name}gnconv.pws.") + 1 for name in first),
        "filter_sizes": tuple(None if found is None else tuple(found.shape[1:3]) for found in filters),
        "mlp_ratio": shape(f"{first[0]}mlp.fc1.weight")[0] / dims[0],
        "layer_scale_init_value": 1e-6 if f"{first[0]}gamma1" in state else 0.0,
        "level_norms": "norms.0.weight" in state,
    }
