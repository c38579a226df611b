"""Official ViG checkpoints (``hustvl/ViG``): constructor arguments. The key map stands in the model's file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from toolkit.errors import InputError, nearest
from toolkit.tasks.classify.vig import ViG, checkpoint_filter_fn, rename_official, swiglu_hidden

MODEL = ("classify", "vig")

OUR_NAMES = {
    "channels": "in_chans",
    "gate_low_rank_dim": "gate_rank",
    "gate_logit_normalizer": "gate_normalizer",
    "rms_norm_eps": "norm_eps",
    "use_act_in_conv": "conv_act",
    "use_out_act": "out_act",
}
ARGUMENTS = (
    "img_size", "in_chans", "num_classes", "patch_size", "embed_dim", "depth", "num_heads", "expand_k", "gate_rank",
    "gate_normalizer", "conv_act", "out_act", "init_values", "norm_eps", "drop_path_rate",
)  # fmt: skip
PUBLISHED: dict[str, Any] = {  # options of the official code that no published model changes, and ours does not have
    "expand_v": 1.0,
    "hidden_act": "swish",
    "use_out_gate": False,
    "use_swiglu": True,
    "rope_mode": "none",
    "patch_embed_version": "v2",
    "use_bias_in_patch": True,
    "use_act_in_patch": False,
    "use_bias_in_dwconv": False,
    "if_cls_token": False,
    "use_middle_cls_token": False,
    "classification_mode": "avgpool",
    "if_abs_pos_embed": True,
    "if_rc_pe": False,
    "stride": 16,
}


def convert(state: Mapping[str, Any], **config: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Translate an official state dict of a plain model.

    Args:
        state: official entries, with or without wrappers and prefixes.
        config: what the shapes do not tell (``use_act_in_conv``, ``use_out_act``: on in ViG-T only), and anything else
            that shall be checked against them, under our names or the official ones. Another ``img_size`` resizes the
            positions.

    Returns:
        Constructor arguments, and the state under our names. Unknown entries keep their name.
    """
    given = rename_options(config, OUR_NAMES, ARGUMENTS, PUBLISHED)
    ours = rename_official(state)
    dim = size_of(ours, "patch_embed.conv2.weight", 0)
    patch_size = 2 * (size_of(ours, "patch_embed.conv1.weight", 2) - 1)
    found = mixer_sizes(ours, "layers.0.", dim, mlp_multiple=256) | {
        "embed_dim": dim,
        "patch_size": patch_size,
        "depth": number_of(ours, "layers", 1),
        "in_chans": size_of(ours, "patch_embed.conv1.weight", 1),
        "num_classes": size_of(ours, "head.fc.weight", 0) if "head.fc.weight" in ours else 0,
    }
    check_against_shapes(given, found)
    tiny = dim == 192
    defaults = {
        "img_size": math.isqrt(size_of(ours, "pos_embed.weight", 1)) * patch_size,
        "conv_act": tiny,
        "out_act": tiny,
        "init_values": 1e-5 if "layers.0.ls1.gamma" in ours else None,
    }
    arguments = defaults | given | found
    return arguments, checkpoint_filter_fn(ours, ViG(**arguments, device="meta"))


def rename_options(
    config: Mapping[str, Any], names: Mapping[str, str], arguments: tuple[str, ...], published: Mapping[str, Any]
) -> dict[str, Any]:
    """Options under our names; an option that ours lacks must have its published value."""
    given: dict[str, Any] = {}
    for name, value in config.items():
        ours = names.get(name, name)
        if ours in given and given[ours] != value:
            raise InputError(f"{name} is {value}, but {ours} is {given[ours]}", "Give one of them")
        if ours in arguments:
            given[ours] = value
        elif name in published:
            if value != published[name]:
                raise InputError(f"{name} is {value}", f"Only the published {published[name]} is implemented")
        elif name != "model":
            raise InputError(f"unknown option {name!r}", nearest(name, (*arguments, *names, *published)))
    return given


def size_of(state: Mapping[str, Tensor], name: str, axis: int) -> int:
    if name not in state:
        raise InputError(f"the checkpoint has no entry for {name!r}", "Is it an official ViG checkpoint?")
    if state[name].dim() <= axis:
        raise InputError(f"{name!r} has shape {tuple(state[name].shape)}", f"It should have at least {axis + 1} axes")
    return state[name].shape[axis]


def number_of(state: Mapping[str, Tensor], table: str, position: int) -> int:
    """How many members a table of modules has."""
    return len({name.split(".")[position] for name in state if name.startswith(f"{table}.")})


def mixer_sizes(state: Mapping[str, Tensor], block: str, dim: int, mlp_multiple: int) -> dict[str, Any]:
    """What the entries of one block of width ``dim`` say about all."""
    hidden = size_of(state, f"{block}mlp.fc2.weight", 1)
    published = swiglu_hidden(dim, 4.0, mlp_multiple) == hidden
    return {
        "num_heads": dim // size_of(state, f"{block}mixer.g_norm.weight", 0),
        "expand_k": size_of(state, f"{block}mixer.attention.gk_proj.1.weight", 0) / 2 / dim,
        "gate_rank": size_of(state, f"{block}mixer.attention.gk_proj.0.weight", 0),
        "mlp_ratio": 4.0 if published else (hidden + 0.5) * 1.5 / dim,
        "mlp_multiple": mlp_multiple if published else 1,
    }


def check_against_shapes(given: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        if given.get(name, value) != value:
            raise InputError(f"{name} is given as {given[name]}, but the checkpoint has {value}", "Leave it out")
