"""Every golden case of ViG and ViG-H: models and blocks in the official layout, and the resize of positions."""

from __future__ import annotations

import golden
import pytest
import torch
from families import FOLDER, golden_cases
from torch import Tensor, nn

from toolkit.pretrained import vig, vig_h
from toolkit.tasks.classify.vig import HierarchicalViG, ViG, checkpoint_filter_fn
from toolkit.tasks.classify.vig_layers import resize_positions

TOLERANCE = 1e-4


def model_of(state: dict, config: dict) -> nn.Module:
    """The model with the weights of an official state dict, as ``toolkit.from_official`` builds it."""
    family, cls = (vig_h, HierarchicalViG) if "dims" in config or "dim" in config else (vig, ViG)
    arguments, converted = family.convert(state, **config)
    model = cls(**arguments).eval()
    model.load_state_dict(converted)
    return model


def block_of(state: dict, config: dict) -> nn.Module:
    """One block of the official code: the first of a model of one stage and one block."""
    hierarchical = config["module"] == "one ViG-H block"
    prefix = "layers.0.blocks.0." if hierarchical else "blocks.0."
    dim = config["dim"] if hierarchical else config["embed_dim"]
    common = {
        "num_heads": [config["num_heads"]] if hierarchical else config["num_heads"],
        "expand_k": config["expand_k"],
        "gate_rank": config["gate_low_rank_dim"],
        "gate_normalizer": config["gate_logit_normalizer"],
        "norm_eps": config["rms_norm_eps"],
        "conv_act": config.get("use_act_in_conv", False),
        "out_act": config.get("use_out_act", False),
    }
    hidden = next(value for name, value in state.items() if name.endswith(("fc2.weight", "down_proj.weight"))).shape[1]
    common |= {"mlp_ratio": (hidden + 0.5) * 1.5 / dim, "mlp_multiple": 1}
    model = HierarchicalViG(dims=[dim], depths=[1], **common) if hierarchical else ViG(embed_dim=dim, depth=1, **common)
    block = model.layers[0].blocks[0] if hierarchical else model.layers[0]
    converted = checkpoint_filter_fn({prefix + name: value for name, value in state.items()}, model)
    ours = "layers.0.blocks.0." if hierarchical else "layers.0."
    block.load_state_dict({name.removeprefix(ours): value for name, value in converted.items()})
    return block.eval()


def place_of(output: str, hierarchical: bool) -> str:
    """Our sub-module whose result an output of the official code is."""
    if output == "embed":
        return "pos_embed"  # where ViG-H has none, it passes the patches on
    if output.startswith("stage"):
        return f"layers.{output.removeprefix('stage')}"
    if output.startswith("block"):
        number, _, part = output.removeprefix("block").partition(".")
        return f"layers.{number}.mixer" if part else f"layers.{number}"
    assert hierarchical, output
    return output.replace(".op", ".mixer")


def run_model(case: golden.Case, state: dict) -> dict[str, Tensor]:
    model = model_of(state, case.config)
    hierarchical = isinstance(model, HierarchicalViG)
    maps: dict[str, Tensor] = {}
    for output in set(case.golden) - {"pooled", "logits"}:
        module = model.get_submodule(place_of(output, hierarchical))
        module.register_forward_hook(lambda _module, _args, value, output=output: maps.update({output: value}))
    (image,) = (torch.from_numpy(case.input(name)) for name in case.spec["inputs"])
    features = model.forward_features(image)
    outputs = {name: as_official(value, hierarchical) for name, value in maps.items()}
    pooled, logits = model.forward_head(features, pre_logits=True), model.forward_head(features)
    return outputs | {"pooled": pooled, "logits": logits}


def as_official(x: Tensor, hierarchical: bool) -> Tensor:
    """A channels-last map as ViG-H's channels-first one, or as ViG's tokens."""
    return x.permute(0, 3, 1, 2) if hierarchical else x.flatten(1, 2)


def run_block(case: golden.Case, state: dict) -> dict[str, Tensor]:
    hierarchical = case.config["module"] == "one ViG-H block"
    block = block_of(state, case.config)
    x = torch.from_numpy(case.input("x"))
    grid = x.permute(0, 2, 3, 1) if hierarchical else x.unflatten(1, case.config["grid"])
    results = {"op" if hierarchical else "attn": block.mixer(block.norm1(grid)), "out": block(grid)}
    return {name: as_official(value, hierarchical) for name, value in results.items()}


def run_resize(case: golden.Case) -> dict[str, Tensor]:
    positions = torch.from_numpy(case.input("pos_embed"))
    sizes = {name: tuple(int(side) for side in name.split("x")) for name in case.golden}
    return {name: resize_positions(positions, tuple(case.config["source_grid"]), *size) for name, size in sizes.items()}


@pytest.mark.parametrize("name", golden_cases("vig"))
def test_vig(name: str) -> None:
    case = golden.load(name, FOLDER)
    state = {key: torch.from_numpy(value) for key, value in case.state().items()}
    with torch.no_grad():
        if "function" in case.config:
            outputs = run_resize(case)
        elif "module" in case.config:
            outputs = run_block(case, state)
        else:
            outputs = run_model(case, state)
    for output in case.golden:
        case.check(output, outputs[output], TOLERANCE)
