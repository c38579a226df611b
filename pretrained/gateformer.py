"""Official Gateformer checkpoints (``nyuolab/Gateformer``): key map and constructor arguments.

No weights are published; the map serves checkpoints that were trained with the official code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import InputError, nearest

MODEL = ("forecast", "gateformer")

PREFIXES = {
    "patch_embedding.value_embedding.": "patch_embedding.linear.",
    "head.linear.": "temporal_embedding.linear.",
    "project_embedding.value_embedding.": "global_embedding.",
    "gate_w1.": "variate_embedding.linear_a.",
    "gate_w2.": "variate_embedding.linear_b.",
    "gate_w3.": "gated_output.linear_a.",
    "gate_w4.": "gated_output.linear_b.",
    "enc_temporal.": "temporal_encoder.",
    "enc_variate.": "variate_encoder.",
    "projection.": "normalised_forecast.",
}
POSITIONS = "patch_embedding.position_embedding.pe"  # a fixed sinusoid that the model computes

OUR_NAMES = {
    "seq_len": "lookback",
    "pred_len": "horizon",
    "d_model": "dim",
    "e_layers": "depth",
    "n_heads": "num_heads",
    "d_ff": "mlp_dim",
}
ARGUMENTS = ("lookback", "horizon", "patch_len", "stride", "dim", "depth", "num_heads", "mlp_dim", "dropout")
IGNORED = {  # options of the official command line that its model does not read
    "enc_in", "dec_in", "c_out", "label_len", "embed", "freq", "activation", "factor", "d_layers", "moving_avg",
    "distil", "output_attention", "gpt_layers", "class_strategy", "use_norm", "task_name", "model", "model_id", "data",
    "root_path", "data_path", "features", "target", "inverse", "batch_size", "learning_rate", "lradj", "loss",
    "train_epochs", "patience", "itr", "seed", "des", "num_workers", "use_amp", "checkpoints", "is_training",
}  # fmt: skip


def convert(state: Mapping[str, Any], **config: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Translate an official state dict.

    Args:
        state: official entries (tensors or arrays), with or without the prefix ``module.`` and the position table.
        config: what the shapes do not tell (``num_heads``, ``stride``, ``dropout``), and anything else that shall be
            checked against them, under our names or the official ones.

    Returns:
        Constructor arguments, and the state under our names. Unknown entries keep their name.
    """
    state = {name.removeprefix("module."): torch.as_tensor(value) for name, value in state.items()}
    state.pop(POSITIONS, None)
    arguments = complete(shapes_tell(state), rename_config(config))
    return arguments, {rename(name): value for name, value in state.items()}


def rename(name: str) -> str:
    for official, ours in PREFIXES.items():
        if name.startswith(official):
            return ours + name.removeprefix(official)
    return name


def rename_config(config: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in config.items():
        ours = OUR_NAMES.get(name, name)
        if ours in given and given[ours] != value:
            raise InputError(f"{name} is {value}, but {ours} is {given[ours]}", "Give one of them")
        if ours in ARGUMENTS:
            given[ours] = value
        elif ours not in IGNORED:
            raise InputError(f"unknown option {name!r}", nearest(name, (*ARGUMENTS, *OUR_NAMES)))
    return given


def shapes_tell(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What the shapes of the entries say about the model; ``num_patches`` is no argument, but fixes the stride."""

    def size(name: str, axis: int) -> int:
        if name not in state:
            raise InputError(f"the checkpoint has no entry {name!r}", "Is it an official Gateformer checkpoint?")
        if state[name].dim() != 2:
            raise InputError(f"{name!r} has shape {tuple(state[name].shape)}", "It should be a matrix")
        return state[name].shape[axis]

    dim = size("patch_embedding.value_embedding.weight", 0)
    layers = {name.split(".")[2] for name in state if name.startswith("enc_temporal.layers.")}
    return {
        "lookback": size("project_embedding.value_embedding.weight", 1),
        "horizon": size("projection.weight", 0),
        "patch_len": size("patch_embedding.value_embedding.weight", 1),
        "dim": dim,
        "depth": len(layers),
        "mlp_dim": size("enc_temporal.layers.0.linear1.weight", 0),
        "num_patches": size("head.linear.weight", 1) // dim,
    }


def complete(shapes: dict[str, int], given: dict[str, Any]) -> dict[str, Any]:
    """Join what the shapes tell and what was given, and choose the rest."""
    num_patches = shapes.pop("num_patches")
    for name, found in shapes.items():
        if given.get(name, found) != found:
            raise InputError(f"{name} is given as {given[name]}, but the checkpoint has {found}", "Leave it out")

    lookback, patch_len = shapes["lookback"], shapes["patch_len"]
    fitting = [s for s in range(lookback + 1, 0, -1) if (lookback - patch_len) // s + 2 == num_patches]
    if "stride" in given and given["stride"] not in fitting:
        raise InputError(
            f"stride {given['stride']} does not give the {num_patches} patches of 'head.linear.weight'",
            f"Strides that do: {', '.join(map(str, fitting[:8])) or 'none'}",
        )
    if not fitting:
        raise InputError(f"no stride gives the {num_patches} patches of 'head.linear.weight'")
    defaults = {
        "stride": patch_len if patch_len in fitting else fitting[0],
        "num_heads": 4 if shapes["dim"] <= 128 else 8,  # as in all official scripts
        "dropout": 0.1,
    }
    return {**defaults, **given, **shapes}
