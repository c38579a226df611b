"""Every golden case of HorNet: gnConvs, blocks, necks, dense-prediction backbones, classifiers with all stages."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import golden
import pytest
import torch
from families import FOLDER, golden_cases
from torch import Tensor

from toolkit.blocks.conv import GnConv
from toolkit.blocks.pyramid import FusionConv, HorFPN
from toolkit.pretrained.hornet import convert
from toolkit.tasks.classify.hornet import HorNet, HorNetBlock, rename

TOLERANCE = 1e-4


def number(value: Any) -> float:
    return float(Fraction(value)) if isinstance(value, str) else float(value or 1)


def spatial(state: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    """What the filter of a gnConv is: ``kernel_size`` and ``filter_size``."""
    filters = state.get(f"{prefix}dwconv.complex_weight")
    kernel = state[f"{prefix}dwconv.weight" if filters is None else f"{prefix}dwconv.dw.weight"]
    return {"kernel_size": kernel.shape[-1], "filter_size": None if filters is None else tuple(filters.shape[1:3])}


Outputs = Callable[[], dict[str, Tensor]]


def gnconv(case: golden.Case) -> Outputs:
    config, state = case.config, tensors(case)
    leave = state.get("proj_out.weight")
    module = GnConv(
        state["proj_in.weight"].shape[1],
        config["dim"],
        config["order"],
        scale=number(config.get("scale")),
        out_dim=None if leave is None else leave.shape[0],
        proj_out=leave is not None,
        **spatial(state, ""),
    )
    module.load_state_dict(state)
    x = torch.from_numpy(case.input("x"))
    module.eval()

    def outputs() -> dict[str, Tensor]:
        filter_in = module.proj_in(x)[:, module.parts[0] :]
        return {"out": module(x), "filter_in": filter_in, "filter_out": module.dwconv(filter_in)}

    return outputs


def fusion_conv(case: golden.Case) -> Outputs:
    config, state = case.config, tensors(case)
    arguments = {"activation": config.get("act") is not None, "norm": config.get("norm") is not None}
    module = FusionConv(
        config["in_channels"],
        config["out_channels"],
        config["order"],
        dim_ratio=config.get("dim_ratio", 1),
        proj_out="proj_out.weight" in state,
        **spatial(state, ""),
        **arguments,
    ).eval()
    module.load_state_dict({key if key.startswith("bn.") else f"gnconv.{key}": value for key, value in state.items()})
    return lambda: {"out": module(torch.from_numpy(case.input("x")))}


def block(case: golden.Case) -> Outputs:
    config, state = case.config, tensors(case)
    module = HorNetBlock(
        config["dim"],
        config["order"],
        scale=number(config.get("scale")),
        filter_size=spatial(state, "gnconv.")["filter_size"],
        drop_path=config.get("drop_path", 0),
        layer_scale_init_value=1.0 if "gamma1" in state else 0.0,
    ).eval()
    ours = {rename(f"stages.0.0.{key}").removeprefix("stages.0.blocks.0."): value for key, value in state.items()}
    module.load_state_dict(ours)
    return lambda: {"out": module(torch.from_numpy(case.input("x")))}


def neck(case: golden.Case) -> Outputs:
    config, state = case.config, tensors(case)
    module = HorFPN(
        config["in_channels"],
        config["out_channels"],
        num_outs=config["num_outs"],
        order=config["order"],
        **spatial(state, "fpn_convs.0."),
    ).eval()
    module.load_state_dict({key.replace(".conv.", "."): value for key, value in state.items()})
    levels = [torch.from_numpy(case.input(name)) for name in sorted(case.spec["inputs"])]
    return lambda: {f"p{i + 2}": level for i, level in enumerate(module(levels))}


def backbone(case: golden.Case) -> Outputs:
    """A classifier with all its stages, or the maps of a dense-prediction backbone."""
    config = case.config
    arguments, state = convert(case.state(), **{key: number(config[key]) for key in ("scale",) if key in config})
    model = HorNet(**arguments).eval()
    model.load_state_dict(state)
    image = torch.from_numpy(case.input("image"))
    if model.level_norms:
        indices = config.get("out_indices", range(len(model.stages)))

        def maps() -> dict[str, Tensor]:
            levels = model.forward_intermediates(image, list(indices), norm=True, intermediates_only=True)
            return {f"level{i}": level for i, level in zip(indices, levels, strict=True)}

        return maps

    seen: dict[str, Tensor] = {}
    for output in set(case.golden) - {"logits", "pooled_norm"}:
        hook = lambda _module, _inputs, value, output=output: seen.update({output: value})  # noqa: E731
        model.get_submodule(module_name(output)).register_forward_hook(hook)

    def outputs() -> dict[str, Tensor]:
        features = model.forward_features(image)
        pooled = model.forward_head(features, pre_logits=True)
        return seen | {"logits": model.forward_head(features), "pooled_norm": pooled}

    return outputs


def module_name(output: str) -> str:
    """``stage0_block1`` and ``stages.0.1.gnconv`` as our modules."""
    output = re.sub(r"^stage(\d+)", r"stages.\1", output).replace("_block", ".")
    return rename(f"{output}.").removesuffix(".")


def tensors(case: golden.Case) -> dict[str, Tensor]:
    return {key: torch.as_tensor(value) for key, value in case.state().items()}


def build(case: golden.Case) -> Outputs:
    if "model" in case.config:
        return backbone(case)
    kind = case.config["module"]
    if kind == "Block":
        return block(case)
    if kind.startswith("HorFPN"):
        return neck(case)
    return fusion_conv(case) if kind.startswith("GNConvModule") else gnconv(case)


@pytest.mark.parametrize("name", golden_cases("hornet"))
def test_hornet(name: str) -> None:
    case = golden.load(name, FOLDER)
    outputs = build(case)
    for grad in (False, True):  # inference has a path of its own
        with torch.set_grad_enabled(grad):
            found = outputs()
        for output in case.golden:
            case.check(output, found[output].detach(), TOLERANCE)
