"""Official ViG-H checkpoints (``hustvl/ViG``): constructor arguments; the key map stands in the model's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from toolkit.errors import InputError
from toolkit.pretrained.vig import check_against_shapes, mixer_sizes, number_of, rename_options, size_of
from toolkit.tasks.classify.vig import rename_official

MODEL = ("classify", "vig_h")

OUR_NAMES = {
    "gate_low_rank_dim": "gate_rank",
    "gate_logit_normalizer": "gate_normalizer",
    "rms_norm_eps": "norm_eps",
    "use_act_in_conv": "conv_act",
    "use_out_act": "out_act",
}
ARGUMENTS = (
    "in_chans", "num_classes", "patch_size", "dims", "depths", "num_heads", "expand_k", "gate_rank", "gate_normalizer",
    "mlp_ratio", "conv_act", "out_act", "norm_eps", "drop_path_rate",
)  # fmt: skip
PUBLISHED: dict[str, Any] = {  # options of the official code that no published model changes, and ours does not have
    "expand_v": 1.0,
    "hidden_act": "swish",
    "rope_mode": "none",
    "mlp_act_layer": "gelu",
    "patch_norm": True,
    "norm_layer": "ln2d",
    "layernorm_eps": 1e-5,
    "downsample_version": "v3",
    "patchembed_version": "v2",
    "gmlp": True,
}


def convert(state: Mapping[str, Any], **config: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Translate an official state dict of a hierarchical model.

    Args:
        state: official entries, with or without wrappers and prefixes, in their present or older names.
        config: what the shapes do not tell (``use_act_in_conv``, ``use_out_act``: off in all published models), and
            anything else that shall be checked against them, under our names or the official ones. ``dims`` may be the
            first width alone, as officially.

    Returns:
        Constructor arguments, and the state under our names. Unknown entries keep their name.
    """
    given = rename_options(config, OUR_NAMES, ARGUMENTS, PUBLISHED)
    ours = rename_official(state)
    stages = number_of(ours, "layers", 1)
    dims = [size_of(ours, f"layers.{stage}.blocks.0.norm1.weight", 0) for stage in range(stages)]
    if not dims:
        raise InputError("the checkpoint has no entry for 'layers.0'", "Is it an official ViG-H checkpoint?")
    blocks = [mixer_sizes(ours, f"layers.{stage}.blocks.0.", dim, 32) for stage, dim in enumerate(dims)]
    found = blocks[0] | {
        "dims": dims,
        "depths": [number_of(ours, f"layers.{stage}.blocks", 3) for stage in range(stages)],
        "num_heads": [block["num_heads"] for block in blocks],
        "in_chans": size_of(ours, "patch_embed.conv1.weight", 1),
        "num_classes": size_of(ours, "head.fc.weight", 0) if "head.fc.weight" in ours else 0,
    }
    ratio = given.pop("mlp_ratio", None)
    if ratio is not None:  # what the shapes say of it is one of many that round to the same channels
        found |= {"mlp_ratio": ratio, "mlp_multiple": 32}
    if isinstance(given.get("dims"), int):
        given["dims"] = [given["dims"] << stage for stage in range(stages)]
    given |= {name: list(value) for name, value in given.items() if isinstance(value, Sequence)}
    check_against_shapes(given, found)
    return given | found, ours
