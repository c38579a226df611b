"""ViG and ViG-H as models of timm: sizes, layouts, features, and what a user can get wrong."""

from __future__ import annotations

import pytest
import timm
import torch

import toolkit
import toolkit.tasks.classify
from toolkit import hub
from toolkit.errors import InputError
from toolkit.pretrained import vig as official_vig
from toolkit.pretrained import vig_h as official_vig_h
from toolkit.tasks.classify.vig import HierarchicalViG, ViG, checkpoint_filter_fn

PUBLISHED = {  # parameters and entries of the official state dicts
    "vig_tiny": (5_834_536, 180),
    "vig_small": (22_615_144, 180),
    "vig_base": (89_022_184, 180),
    "vig_h_tiny": (28_600_680, 200),
    "vig_h_small": (50_051_688, 392),
    "vig_h_base": (88_904_360, 392),
}
SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5, "mlp_multiple": 8, "img_size": 64}
SMALL_H = {"dims": (12, 24), "depths": (1, 2), "num_heads": (3, 6), "num_classes": 5}


def small(family: str, **more) -> torch.nn.Module:
    torch.manual_seed(0)
    model = ViG(**SMALL | more) if family == "vig" else HierarchicalViG(**SMALL_H | more)
    return model.eval()


@pytest.fixture(params=["vig", "vig_h"])
def family(request) -> str:
    return request.param


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name):
    model = timm.create_model(name, device="meta")
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == PUBLISHED[name]


def test_registered_names_have_cards():
    for name in PUBLISHED:
        assert timm.get_pretrained_cfg(name).paper_ids == "arXiv:2405.18425"
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model("vig_tiny", pretrained=True)


@pytest.mark.parametrize("pixels", [(64, 64), (96, 80), (37, 50), (16, 130)])
def test_any_size(family, pixels):
    model = small(family)
    with torch.no_grad():
        features = model.forward_features(torch.randn(1, 3, *pixels))
        assert model(torch.randn(2, 3, *pixels)).shape == (2, 5)
    if family == "vig_h":
        halves = [-(-size // 8) for size in pixels]  # each stride of 2 rounds up
        assert features.shape == (1, *halves, 24)
    else:
        assert features.shape == (1, *((size - 7) // 8 // 2 + 1 for size in pixels), 24)


@pytest.mark.parametrize(("patch_size", "grid"), [(16, 2), (8, 4), (4, 8)])
def test_patches_of_small_images(patch_size, grid):
    model = small("vig", patch_size=patch_size, img_size=32)
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, grid, grid, 24)
    assert model.feature_info[-1]["reduction"] == patch_size


@pytest.mark.parametrize("patch_size", [4, 2, 1])
def test_patches_of_small_images_in_stages(patch_size):
    model = small("vig_h", patch_size=patch_size)
    maps = model.forward_intermediates(torch.randn(1, 3, 32, 32), intermediates_only=True)
    assert [y.shape[-1] for y in maps] == [32 // patch_size, 16 // patch_size]


def test_an_image_does_not_see_its_neighbours_in_the_batch(family):
    model, images = small(family), torch.randn(3, 3, 64, 48)
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_training_and_inference_forms_agree(family):
    """Without gradients, decays and perceptrons are computed by other operations, over tiles of tokens."""
    model, images = small(family, patch_size=4), torch.randn(2, 3, 72, 68)
    with torch.no_grad():
        inference = model(images)
    torch.testing.assert_close(inference, model(images).detach(), rtol=1e-4, atol=1e-6)


def test_tokens_see_the_whole_image_in_both_directions(family):
    model, images = small(family), torch.zeros(1, 3, 64, 64, requires_grad=True)
    features = model.forward_features(images + torch.randn(1, 3, 64, 64))
    for token in (features[0, 0, 0], features[0, -1, -1]):
        (seen,) = torch.autograd.grad(token.square().sum(), images, retain_graph=True)
        assert (seen[0].abs().amax(0)[::8, ::8] > 0).all()


def test_checkpointing_changes_no_gradient(family):
    model, images = small(family).train(), torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients)


def test_layer_scale_starts_a_block_near_the_identity():
    model = small("vig", init_values=1e-6)
    maps = model.forward_intermediates(torch.randn(1, 3, 64, 64), intermediates_only=True)
    torch.testing.assert_close(maps[0], maps[-1], rtol=1e-3, atol=1e-3)
    assert "layers.0.ls1.gamma" in model.state_dict()


def test_features_only():
    model = timm.create_model("vig_h_tiny", features_only=True, depths=(1, 1, 1, 1), dims=(12, 24, 48, 96))
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 96))
    assert [tuple(y.shape[1:]) for y in maps] == [(12, 16, 24), (24, 8, 12), (48, 4, 6), (96, 2, 3)]


def test_layer_decay_groups_rise_with_depth(family):
    from timm.models import group_parameters

    model = small(family)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    names = ["patch_embed.conv1.weight", next(iter(model.layers[0].state_dict(prefix="layers.0.")))]
    names += [next(iter(model.layers[-1].state_dict(prefix=f"layers.{len(model.layers) - 1}."))), "head.fc.weight"]
    depths = [groups[name] for name in names]
    assert depths == sorted(set(depths))


def official(family: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The official names of a model's entries, written out independently of the key map."""
    mixer = {"dwconv": "in_proj.0", "attention.qkv_proj": "qkv_proj", "attention.gk_proj": "gk_proj"}
    branch = {"norm1": "norm", "mixer": "op"} if family == "vig_h" else {"norm1": "attn_norm", "norm2": "mlp_norm"}
    branch |= {} if family == "vig_h" else {"mixer": "attn", "fc1": "gate_proj", "fc2": "down_proj"}
    stem = [("conv1", "0"), ("norm1", "2"), ("conv2", "5"), ("norm2", "7")]
    if family == "vig":
        stem = [("conv1", "proj.0"), ("norm1", "proj.1"), ("conv2", "proj.3"), ("norm2", "proj.4")]
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("patch_embed."):
            _, layer, kind = name.split(".")
            name = f"patch_embed.{dict(stem)[layer]}.{kind}"
        elif ".downsample." in name:
            _, stage, _, layer, kind = name.split(".")
            name = f"layers.{int(stage) - 1}.downsample.{ {'conv': 1, 'norm': 3}[layer] }.{kind}"
        elif name.startswith("layers."):
            for ours, theirs in mixer.items():
                name = name.replace(f"mixer.{ours}.", f"mixer.{theirs}.")
            name = ".".join(branch.get(part, part) for part in name.split("."))
            name = name.replace("layers.", "blocks.", 1) if family == "vig" else name
        else:
            name = name.replace("pos_embed.weight", "pos_embed").replace("head.fc.", "head.")
            name = f"classifier.{name}" if family == "vig_h" else name
        state[name] = value
    return state


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_ema"])
def test_official_layout_loads(family, wrapper):
    model = small(family)
    state = {f"module.{name}": value for name, value in official(family, model).items()}
    assert not set(state) & set(model.state_dict())
    filtered = checkpoint_filter_fn({wrapper: state, "epoch": 1} if wrapper else state, model)
    assert list(filtered) == list(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(filtered[name], value, rtol=0, atol=0)
    again = checkpoint_filter_fn(filtered, model)  # ours pass
    assert list(again) == list(filtered)


def test_older_names_and_convolution_shapes_load():
    model = small("vig_h")
    state = {}
    for name, value in official("vig_h", model).items():
        name = name.replace(".op.", ".self_attention.").replace("classifier.", "")
        name = name.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")
        name = name.replace(".norm.", ".ln_1.") if ".blocks." in name else name
        is_matrix = value.dim() == 2 and "head" not in name
        state[name] = value[:, :, None, None] if is_matrix else value
    model.load_state_dict(checkpoint_filter_fn(state, model))


def test_positions_of_another_grid_are_resized():
    model, larger = small("vig"), small("vig", img_size=128)
    filtered = checkpoint_filter_fn(official("vig", model), larger)
    assert filtered["pos_embed.weight"].shape == (1, 64, 24)
    larger.load_state_dict(filtered)
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(larger(image), model(image))  # which resizes them itself


def test_weights_of_a_file_reach_timm_with_other_channels_and_classes(family, tmp_path):
    model = small(family)
    path = tmp_path / "weights.pth"
    torch.save({"model": official(family, model)}, path)
    given = {**(SMALL if family == "vig" else SMALL_H), "num_classes": 7, "in_chans": 1}
    overlay = {"file": str(path), "num_classes": 5}
    name = {"vig": "vig_small", "vig_h": "vig_h_tiny"}[family]
    loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **given).eval()
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        maps = [m.forward_features(x) for m, x in ((loaded, grey), (model, grey.expand(-1, 3, -1, -1)))]
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-5)  # kernels of one channel are sums of three


def test_conversion_saves_and_loads_the_same_model(family, tmp_path):
    extra = {"conv_act": True, "out_act": True, "gate_rank": 4, "patch_size": 4}
    model = small(family, **extra)
    options = {"use_act_in_conv": True, "use_out_act": True, "patch_size": 4}
    converted = toolkit.from_official(family, official(family, model), **options)
    again = toolkit.load(hub.save(converted, tmp_path / "model"))
    image = torch.randn(1, 3, 40, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(image), model(image), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_act_in_cnov": True}, "unknown option 'use_act_in_cnov'. Did you mean 'use_act_in_conv'"),
        ({"expand_v": 2.0}, "expand_v is 2.0. Only the published 1.0"),
        ({"num_heads": 5}, "num_heads is given as 5, but the checkpoint has"),
        ({"use_out_act": True, "out_act": False}, "out_act is False, but out_act is True"),
    ],
)
def test_conversion_explains_a_wrong_option(family, options, message):
    with pytest.raises(InputError, match=message):
        toolkit.from_official(family, official(family, small(family)), **options)


def test_conversion_names_what_is_missing(family):
    state = official(family, small(family))
    convert = {"vig": official_vig, "vig_h": official_vig_h}[family].convert
    with pytest.raises(InputError, match="the checkpoint has no entry for"):
        convert({name: value for name, value in state.items() if "patch_embed" not in name})
    lost = next(name for name in state if name.endswith("l_norm.weight"))
    with pytest.raises(InputError, match=r"missing: layers\.0.*l_norm.weight"):
        toolkit.from_official(family, {name: value for name, value in state.items() if name != lost})


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (ViG, {"patch_size": 15}, "patch_size is 15. Choose an even size"),
        (ViG, {"num_heads": 5}, "192 is not divisible by num_heads 5"),
        (ViG, {"num_heads": 0}, "num_heads is 0"),
        (ViG, {"depth": 0}, "depth is 0. It must be at least 1"),
        (ViG, {"img_size": 4}, "img_size 4 is smaller than a patch of 16"),
        (HierarchicalViG, {"patch_size": 3}, "patch_size is 3. Choose 4"),
        (HierarchicalViG, {"depths": (1, 2)}, "are not of one length. Give one number per stage"),
        (HierarchicalViG, {"num_heads": (3, 6, 12, 25)}, "768 is not divisible by num_heads 25"),
    ],
)
def test_bad_arguments(cls, arguments, message):
    with pytest.raises(InputError, match=message):
        cls(**arguments, device="meta")


def test_unknown_argument_is_a_type_error(family):
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model({"vig": "vig_tiny", "vig_h": "vig_h_tiny"}[family], not_an_argument=1)


def test_bad_output_format(family):
    with pytest.raises(InputError, match="output_fmt is 'CHW'. Choose NCHW or NHWC"):
        small(family).forward_intermediates(torch.randn(1, 3, 64, 64), output_fmt="CHW")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(family, dtype):
    model, image = small(family), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        found = model.to(dtype)(image.to(dtype))
    assert found.dtype is dtype
    assert (found.float() - expected).norm() < (0.05 if dtype is torch.bfloat16 else 1e-5) * expected.norm()


def test_autocast_trains(family):
    model = small(family).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(2, 3, 64, 64)).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_export_keeps_the_numbers(family):
    model, image = small(family), torch.randn(2, 3, 64, 64)
    exported = torch.export.export(model, (image,)).module()
    torch.testing.assert_close(exported(image), model(image))


def test_compiles_in_one_graph(family):
    model, image = small(family), torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), model(image))
