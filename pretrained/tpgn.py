"""Official TPGN checkpoints (``Water2sea/TPGN``): key map and constructor arguments.

No weights are published; the map serves checkpoints that were trained with the official code. Its grouped convolutions
keep all channels in one axis, channel after channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import InputError, nearest

MODEL = ("forecast", "tpgn")

PREFIX = "TPGN."
SHAPES = {  # official entry -> what its axes are, ``c`` channels, ``q`` period, ``R`` rows, ``P`` rows of the forecast
    "LNN_dim.hidden_MLP.weight": ("c d", "F", "R - 1"),
    "LNN_dim.hidden_MLP.bias": ("c d",),
    "LNN_dim.gate.weight": ("c 2d", "F + d", "1"),
    "LNN_dim.gate.bias": ("c 2d",),
    "LNN_dim.fc.weight": ("c d", "d", "R"),
    "LNN_dim.fc.bias": ("c d",),
    "s_t_p_e.fc_row.weight": ("c d", "F", "q"),
    "s_t_p_e.fc_row.bias": ("c d",),
    "s_t_p_e.fc_col.weight": ("c d", "d", "R"),
    "s_t_p_e.fc_col.bias": ("c d",),
    "fc.weight": ("c P", "2d", "1"),
    "fc.bias": ("c P",),
}

OUR_NAMES = {
    "seq_len": "lookback",
    "pred_len": "horizon",
    "enc_in": "num_variates",
    "d_model": "dim",
    "TPGN_period": "period_len",
}
ARGUMENTS = ("lookback", "horizon", "num_variates", "num_marks", "period_len", "dim", "norm")
IGNORED = {  # options of the official command line that its model does not read; of ``freq`` the shapes tell
    "freq", "dec_in", "c_out", "label_len", "embed", "n_heads", "e_layers", "d_layers", "d_ff", "moving_avg", "factor",
    "distil", "dropout", "activation", "output_attention", "do_predict", "model", "model_id", "task_id", "data",
    "root_path", "data_path", "features", "target", "checkpoints", "batch_size", "learning_rate", "lradj", "loss",
    "train_epochs", "patience", "itr", "seed", "des", "num_workers", "use_amp", "is_training",
}  # fmt: skip


def convert(state: Mapping[str, Any], **config: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Translate an official state dict.

    Args:
        state: official entries (tensors or arrays), with or without the prefix ``module.``.
        config: what the shapes do not tell (``norm``), and anything else that shall be checked against them, under our
            names or the official ones.

    Returns:
        Constructor arguments, and the state under our names. Unknown entries keep their name.

    Raises:
        InputError: a missing entry, shapes that do not fit each other, an unknown option or one that contradicts them.
    """
    state = {name.removeprefix("module."): torch.as_tensor(value) for name, value in state.items()}
    arguments = shapes_tell(state)
    for name, value in rename_config(config).items():
        if arguments.get(name, value) != value:
            raise InputError(f"{name} is given as {value}, but the checkpoint has {arguments[name]}", "Leave it out")
        arguments[name] = value
    own = {PREFIX + name for name in SHAPES}
    strangers = {name: value for name, value in state.items() if name not in own}
    return arguments, rearrange(state, arguments) | strangers


def rename_config(config: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in config.items():
        ours = OUR_NAMES.get(name, name)
        value = bool(value) if ours == "norm" else value  # official: 0 or 1
        if ours in given and given[ours] != value:
            raise InputError(f"{name} is {value}, but {ours} is {given[ours]}", "Give one of them")
        if ours in ARGUMENTS:
            given[ours] = value
        elif ours not in IGNORED:
            raise InputError(f"unknown option {name!r}", nearest(name, (*ARGUMENTS, *OUR_NAMES)))
    return given


def shapes_tell(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes that the shapes of the entries fix; every entry is held against them."""
    for name, axes in SHAPES.items():
        if PREFIX + name not in state:
            raise InputError(f"the checkpoint has no entry {PREFIX + name!r}", "Is it an official TPGN checkpoint?")
        shape = tuple(state[PREFIX + name].shape)
        if len(shape) != len(axes) or 0 in shape:
            raise InputError(f"{PREFIX + name!r} has shape {shape}", f"It should be ({', '.join(axes)})")
    dim, rows = state[PREFIX + "LNN_dim.fc.weight"].shape[1:]
    wide, features, period_len = state[PREFIX + "s_t_p_e.fc_row.weight"].shape
    channels = max(wide // dim, 1)
    sizes = {
        "1": 1, "F": features, "F + d": features + dim, "R": rows, "R - 1": rows - 1, "q": period_len, "d": dim,
        "2d": 2 * dim, "c d": channels * dim, "c 2d": channels * 2 * dim,
        "c P": max(state[PREFIX + "fc.bias"].shape[0] // channels, 1) * channels,
    }  # fmt: skip
    for name, axes in SHAPES.items():
        shape, expected = tuple(state[PREFIX + name].shape), tuple(sizes[axis] for axis in axes)
        if shape != expected:
            raise InputError(
                f"{PREFIX + name!r} has shape {shape}, the other entries ask for {expected}",
                "Is it the checkpoint of one model?",
            )
    return {
        "lookback": rows * period_len,
        "horizon": sizes["c P"] // channels * period_len,
        "num_variates": channels,
        "num_marks": features - 1,
        "period_len": period_len,
        "dim": dim,
    }


def rearrange(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The official weights in our layout: a channel axis of its own, and inputs before outputs."""
    channels, dim, features = arguments["num_variates"], arguments["dim"], arguments["num_marks"] + 1

    def weight(name: str) -> Tensor:
        """``[c * out, in, steps]`` to ``[c, steps, in, out]``."""
        return state[PREFIX + name + ".weight"].unflatten(0, (channels, -1)).permute(0, 3, 2, 1)

    def matrix(name: str) -> Tensor:
        """``[c * out, in, steps]`` to ``[c, steps * in, out]``."""
        return weight(name).flatten(1, 2)

    def bias(name: str) -> Tensor:
        return state[PREFIX + name + ".bias"].view(channels, 1, -1)

    gate, output = matrix("LNN_dim.gate"), matrix("fc")
    ours = {
        "pgn.history.weight": weight("LNN_dim.hidden_MLP").flip(1),  # theirs begins with the oldest step
        "pgn.history.bias": bias("LNN_dim.hidden_MLP").unsqueeze(1),
        "pgn.gate_input.weight": gate[:, :features],
        "pgn.gate_input.bias": bias("LNN_dim.gate"),
        "pgn.gate_history.weight": gate[:, features:],
        "row_aggregation.weight": matrix("LNN_dim.fc"),
        "row_aggregation.bias": bias("LNN_dim.fc"),
        "row_encoder.weight": matrix("s_t_p_e.fc_row"),
        "row_encoder.bias": bias("s_t_p_e.fc_row"),
        "column_encoder.weight": matrix("s_t_p_e.fc_col"),
        "column_encoder.bias": bias("s_t_p_e.fc_col"),
        "output_short.weight": output[:, :dim],
        "output_short.bias": bias("fc"),
        "output_long.weight": output[:, dim:],
    }
    return {name: value.contiguous() for name, value in ours.items()}
