"""HorNet backbones: sizes, the official layout, timm's ways, the inference path."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from timm.layers import create_feature_extractor
from timm.models._manipulate import group_parameters

import toolkit
import toolkit.tasks.classify
from toolkit.blocks import conv
from toolkit.errors import InputError
from toolkit.pretrained.hornet import convert
from toolkit.tasks.classify.hornet import HorNet, checkpoint_filter_fn

PARAMETERS = {  # with 1000 classes; entries of the state
    "hornet_tiny_7x7": (22_409_512, 560),
    "hornet_tiny_gf": (22_991_848, 640),
    "hornet_small_7x7": (49_528_264, 560),
    "hornet_small_gf": (50_401_768, 640),
    "hornet_base_7x7": (87_256_680, 560),
    "hornet_base_gf": (88_421_352, 640),
    "hornet_base_gf_img384": (92_099_560, 640),
    "hornet_large_7x7": (194_542_504, 560),
    "hornet_large_gf": (196_289_512, 640),
    "hornet_large_gf_img384": (201_806_824, 640),
}
SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64), "num_classes": 10}
FILTERS = (None, None, (4, 3), (2, 2))  # of 64 pixels


def small(**changes) -> HorNet:
    model = HorNet(**{**SMALL, "layer_scale_init_value": 0.5, **changes}).eval()
    for parameter in model.parameters():  # so that every branch counts
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def official(model: HorNet) -> dict[str, torch.Tensor]:
    """The model's state under the official names."""
    pairs = [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
        (r"\.mlp\.fc", ".pwconv"),
        (r"^norms\.", "norm"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ]
    state = {}
    for key, value in model.state_dict().items():
        for pattern, theirs in pairs:
            key = re.sub(pattern, theirs, key)
        state[key] = value
    return state


def test_parameters_are_those_of_the_published_models():
    assert timm.list_models("hornet*") == sorted(PARAMETERS)
    for name, (parameters, entries) in PARAMETERS.items():
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=1000)
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters, name
        assert len(model.state_dict()) == entries, name


def test_classifiers_of_imagenet_22k_and_the_384_variants():
    with torch.device("meta"):
        model = timm.create_model("hornet_large_gf_img384")
    assert model.get_classifier().out_features == model.pretrained_cfg["num_classes"] > 10458
    assert model.pretrained_cfg["input_size"] == (3, 384, 384)
    assert model.pretrained_cfg["crop_mode"] == "squash"
    with pytest.raises(RuntimeError, match="pretrained"):
        timm.create_model("hornet_tiny_7x7", pretrained=True)


@pytest.mark.parametrize("filter_sizes", [None, FILTERS])
@pytest.mark.parametrize("size", [(64, 64), (75, 41), (128, 96), (32, 32)])
def test_any_size_alike_with_and_without_gradients(filter_sizes, size):
    model, image = small(filter_sizes=filter_sizes), torch.randn(2, 3, *size)
    trained = model(image)
    with torch.no_grad():
        inferred = model(image)
        last = model.forward_features(image)
    assert trained.shape == (2, 10)
    assert last.shape[2:] == (size[0] // 4 // 8, size[1] // 4 // 8)
    assert torch.isfinite(trained).all()
    torch.testing.assert_close(inferred, trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"layer_scale_init_value": 0.0}, {"drop_path_rate": 0.3}])
@pytest.mark.parametrize("small_products", [0, conv.SMALL])
def test_blocks_infer_tile_by_tile_and_leave_their_input_alone(changes, small_products, monkeypatch):
    monkeypatch.setattr(conv, "TILE", 7)
    monkeypatch.setattr(conv, "SMALL", small_products)
    model = small(filter_sizes=FILTERS, **changes)
    for stage, size in zip(model.stages, (9, 6, 4, 2), strict=True):
        block, x = stage.blocks[0], torch.randn(2, stage.blocks[0].norm2.weight.numel(), size, size + 1)
        x = x.to(memory_format=torch.channels_last)
        before = x.clone()
        with torch.inference_mode():
            y = block(x)
        assert torch.equal(x, before)
        torch.testing.assert_close(y, block(x), rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            assert block(x[:0]).shape == (0, *x.shape[1:])


def test_branches_are_dropped_in_training_without_gradients_too():
    block, x = small(drop_path_rate=0.5).stages[3].blocks[0], torch.randn(32, 64, 2, 2)
    with torch.no_grad():
        kept, dropped = block(x), block.train()(x)
    assert not torch.allclose(kept, dropped)


def test_layers_of_a_block_that_are_watched_or_replaced_are_called():
    block, x = small().stages[1].blocks[0], torch.randn(1, 16, 4, 4)
    seen = []
    watched = [block.norm1, block.gnconv.pws[1], block.gnconv, block.norm2, block.mlp.fc1, block.mlp.act, block.mlp]
    with torch.no_grad():
        expected = block(x)
        for layer in watched:
            handle = layer.register_forward_hook(lambda module, _inputs, _output: seen.append(module))
            torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
            handle.remove()
        assert seen == watched
        block.mlp.act = torch.nn.GELU("tanh")
        torch.testing.assert_close(block(x), block.train()(x), rtol=1e-5, atol=1e-5)
        block.eval().mlp.fc2 = torch.nn.Sequential(block.mlp.fc2, torch.nn.Tanh())
        torch.testing.assert_close(block(x), block.train()(x), rtol=1e-5, atol=1e-5)


def test_an_ensemble_infers_by_vmap():
    models, image = [small(), small()], torch.randn(1, 3, 64, 64)
    parameters, buffers = torch.func.stack_module_state(models)
    with torch.no_grad():
        together = torch.func.vmap(
            lambda p, b: torch.func.functional_call(models[0], (p, b), (image,)), randomness="error"
        )(parameters, buffers)
        for logits, model in zip(together, models, strict=True):
            torch.testing.assert_close(logits, model(image), rtol=1e-4, atol=1e-4)


def test_one_image_does_not_feel_the_others():
    model, images = small(filter_sizes=FILTERS), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)


def test_stems_for_small_images():
    model = small(patch_size=1)
    with torch.no_grad():
        assert model.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 64, 4, 4)
    assert [info["reduction"] for info in model.feature_info] == [1, 2, 4, 8]


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_the_official_layout_and_back(wrap, prefix):
    model = small(filter_sizes=FILTERS)
    state = wrap({prefix + key: value for key, value in official(model).items()})
    loaded = HorNet(**SMALL, filter_sizes=FILTERS)
    loaded.load_state_dict(checkpoint_filter_fn(state, loaded))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(image), model(image))


def test_files_of_ours_pass():
    model = small()
    state = checkpoint_filter_fn(model.state_dict(), model)
    assert list(state) == list(model.state_dict())


def test_of_a_detector_only_the_backbone_is_taken():
    model = small()
    state = {f"backbone.{key}": value for key, value in official(model).items()} | {"neck.weight": torch.zeros(1)}
    assert set(checkpoint_filter_fn({"state_dict": state}, model)) == set(model.state_dict())


def test_a_filter_resized_at_loading_is_that_resized_at_every_forward():
    """Section 6 of the official loaders: the 224 model at 384 is the 384 model with the resized checkpoint."""
    model = small(filter_sizes=FILTERS)
    larger = HorNet(**SMALL, filter_sizes=(None, None, (8, 5), (4, 3))).eval()
    larger.load_state_dict(checkpoint_filter_fn({"model": official(model)}, larger))
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(larger(image), model(image))


def test_from_official_reads_all_sizes_from_the_shapes():
    for changes in ({"filter_sizes": FILTERS}, {"layer_scale_init_value": 0.0, "patch_size": 2, "in_chans": 1}):
        model = small(**changes)
        image = torch.randn(1, model.in_chans, 64, 64)
        loaded = toolkit.from_official("hornet", official(model))
        assert [block.gnconv.order for block in loaded.stages[2].blocks] == [4, 4]
        with torch.no_grad():
            assert torch.equal(loaded(image), model(image))


def test_from_official_says_what_does_not_fit():
    state = official(small())
    with pytest.raises(InputError, match="dims is given as .* Leave it out"):
        convert(state, dims=(1, 2, 3, 4))
    with pytest.raises(InputError, match="unknown option 'scal'.*scale"):
        convert(state, scal=1.0)
    with pytest.raises(InputError, match="Is it an official HorNet checkpoint"):
        convert({"weight": torch.zeros(1)})
    del state["stages.2.1.norm1.weight"]
    with pytest.raises(InputError, match="missing: stages.2.blocks.1.norm1.weight"):
        toolkit.from_official("hornet", state)


@pytest.mark.parametrize("filter_sizes", [None, FILTERS])
def test_checkpointed_gradients_are_the_same(filter_sizes):
    model, image = small(filter_sizes=filter_sizes).train(), torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(image).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_drop_path_rises_over_the_blocks():
    model = HorNet(**SMALL, drop_path_rate=0.4)
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    torch.manual_seed(0)
    image = torch.randn(4, 3, 64, 64)
    model = small(drop_path_rate=0.4).train()
    assert not torch.equal(model(image), model(image))


def test_dense_prediction_gives_every_level_its_norm():
    model = timm.create_model(
        "hornet_tiny_gf", features_only=True, level_norms=True, out_indices=(1, 3), depths=(1, 1, 1, 1)
    )
    image = torch.randn(1, 3, 96, 64)
    maps = model(image)
    assert [tuple(level.shape[1:]) for level in maps] == [(128, 12, 8), (512, 3, 2)]
    for level in maps:
        assert level.mean(1).abs().max() < 1e-4
        torch.testing.assert_close(level.var(1, unbiased=False), torch.ones_like(level[:, 0]), atol=0.05, rtol=0)
    bare = timm.create_model("hornet_tiny_gf", features_only=True, depths=(1, 1, 1, 1))
    assert bare.feature_info.channels() == [64, 128, 256, 512]
    assert not any("norms" in name for name in bare.state_dict())


def test_a_dense_backbone_loads_its_official_layout():
    model = small(level_norms=True, filter_sizes=FILTERS)
    assert not any(name.startswith("head") for name in model.state_dict())
    loaded = toolkit.from_official("hornet", {f"backbone.{key}": value for key, value in official(model).items()})
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for mine, theirs in zip(*(m.forward_intermediates(image, norm=True)[1] for m in (model, loaded)), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("prune_norm", [False, True])
def test_pruned_models_give_the_same_maps(prune_norm):
    model, image = small(level_norms=True), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole = model.forward_intermediates(image, [0, 1], norm=not prune_norm, intermediates_only=True)
        assert model.prune_intermediate_layers([0, 1], prune_norm=prune_norm) == [0, 1]
        pruned = model.forward_intermediates(image, [0, 1], norm=True, intermediates_only=True)
    assert len(model.stages) == 2
    assert len([name for name in model.state_dict() if name.startswith("norms.")]) == (0 if prune_norm else 4)
    for mine, theirs in zip(whole, pruned, strict=True):
        assert torch.equal(mine, theirs)


def test_layer_decay_groups_are_the_published_ones():
    model = HorNet(dims=(8, 16, 32, 64), num_classes=10)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    expected = {
        "stem.0.weight": 0,
        "stages.0.blocks.1.gamma1": 1,
        "stages.1.downsample.1.weight": 2,
        "stages.1.blocks.2.norm1.weight": 2,
        "stages.2.downsample.0.weight": 3,
        "stages.2.blocks.1.gamma1": 3,
        "stages.2.blocks.2.gamma1": 4,
        "stages.2.blocks.15.gamma1": 10,
        "stages.2.blocks.17.gamma1": 11,
        "stages.3.downsample.0.weight": 12,
        "stages.3.blocks.1.gamma1": 12,
        "head.norm.weight": 13,
        "head.fc.weight": 13,
    }
    assert {name: groups[name] for name in expected} == expected
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse["stages.3.downsample.1.bias"] == coarse["stem.1.weight"] == 0
    assert (coarse["stages.3.blocks.1.gamma2"], coarse["head.fc.bias"]) == (4, 5)
    assert len(group_parameters(model, model.group_matcher(blockwise=True))) == 1 + 25 + 1


def test_a_pytorch_compiler_and_exporter_take_it():
    model, image = small(filter_sizes=FILTERS), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        exported = torch.export.export(model, (image,)).module()(image)
        compiled = torch.compile(model, backend="eager", fullgraph=True)(image)
    torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, timm's users have it
@pytest.mark.parametrize("filter_sizes", [None, FILTERS])
def test_scripted_and_symbolically_traced(filter_sizes):
    model, image = small(filter_sizes=filter_sizes), torch.randn(1, 3, 64, 64)
    extract = create_feature_extractor(model, ["stages.1.blocks.0.gnconv", "head.fc"])
    with torch.no_grad():
        expected = model(image)
        maps = extract(image)
        assert maps["stages.1.blocks.0.gnconv"].shape == (1, 16, 8, 8)
        assert torch.equal(maps["head.fc"], expected)
        torch.testing.assert_close(torch.jit.script(model)(image), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.jit.script(extract)(image)["head.fc"], expected, rtol=1e-4, atol=1e-4)


def test_half_precision_stays():
    model = small(filter_sizes=FILTERS).bfloat16()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64).bfloat16()).dtype is torch.bfloat16
    model, image = small(filter_sizes=FILTERS), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(image)).all()


def test_saved_and_loaded(tmp_path):
    from toolkit import hub

    model, image = small(filter_sizes=FILTERS), torch.randn(1, 3, 64, 64)
    loaded = hub.load(hub.save(model, tmp_path / "model"))
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims": (8, 16, 32)}, r"dims \(8, 16, 32\) are for 3 stages, depths for 4"),
        ({"filter_sizes": (None, (4, 3))}, "filter_sizes .* are for 2 stages, depths for 4"),
        ({"dims": (8, 16, 32, 8)}, "dim 8 is too small for order 5"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0. It must be at least 0 and below 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        HorNet(**arguments)
    with pytest.raises(TypeError, match="no_such"):
        timm.create_model("hornet_tiny_7x7", no_such=1)


def test_timm_loads_an_official_file_into_other_heads_and_channels(tmp_path):
    sizes = {"depths": SMALL["depths"], "dims": SMALL["dims"]}
    source = small(num_classes=1000)
    torch.save({"model": official(source), "epoch": 3}, tmp_path / "official.pth")
    given = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "official.pth")}, **sizes}
    image = torch.randn(1, 1, 64, 64)

    model = timm.create_model("hornet_tiny_7x7", in_chans=1, num_classes=5, **given).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_features(image), source.forward_features(image.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-3
        )
        assert model(image).shape == (1, 5)
        assert torch.equal(
            timm.create_model("hornet_tiny_7x7", **given).eval()(image.expand(-1, 3, -1, -1)),
            source(image.expand(-1, 3, -1, -1)),
        )
    dense = timm.create_model("hornet_tiny_7x7", features_only=True, level_norms=True, **given).eval()
    assert torch.equal(dense.model.stem[0].weight, source.stem[0].weight)


@pytest.mark.filterwarnings("ignore")  # of the tracer, about checks of shapes
def test_double_precision_and_traces_agree():
    model, image = small(filter_sizes=FILTERS), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        traced = torch.jit.trace(model, image)
        torch.testing.assert_close(traced(image), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.double()(image.double()).float(), expected, rtol=1e-3, atol=1e-3)
