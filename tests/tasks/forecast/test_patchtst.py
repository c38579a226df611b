"""PatchTST against its definition from PyTorch's own parts."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.errors import InputError
from toolkit.tasks.forecast.patchtst import PatchTST

SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "num_heads": 4, "mlp_dim": 24, "patch_len": 8, "stride": 4}


def small(lookback: int = 48, horizon: int = 12, **options: Any) -> PatchTST:
    torch.manual_seed(0)
    return PatchTST(lookback, horizon, **{**SMALL, **options})


def by_definition(model: PatchTST, x: Tensor) -> Tensor:
    """The paper's steps, one series after the other where they are separate, without dropout, in training mode."""
    num_patches = (model.lookback - model.patch_len) // model.stride + 2
    mean, std = x.mean(1, keepdim=True), (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    series = ((x - mean) / std).transpose(1, 2).reshape(-1, model.lookback)
    padded = F.pad(series[:, None], (0, model.stride), mode="replicate")[:, 0]
    patches = torch.stack(
        [padded[:, start : start + model.patch_len] for start in range(0, num_patches * model.stride, model.stride)], 1
    )
    tokens = patches @ model.embedding.weight.T + model.embedding.bias + model.position
    for layer in model.layers:
        attention = nn.MultiheadAttention(model.dim, model.num_heads, batch_first=True)
        attention.load_state_dict(layer.self_attn.state_dict())
        for branch, norm in (
            (lambda t, a=attention: a(t, t, t, need_weights=False)[0], layer.norm1),
            (lambda t, m=layer: m.linear2(F.gelu(m.linear1(t))), layer.norm2),
        ):
            tokens = tokens + branch(tokens)
            centre, spread = tokens.mean((0, 1)), tokens.var((0, 1), unbiased=False)
            tokens = (tokens - centre) / (spread + norm.eps).sqrt() * norm.weight + norm.bias
    flat = torch.stack([sequence.T.reshape(-1) for sequence in tokens])  # channel-major
    forecast = model.projection(flat).view(len(x), -1, model.horizon).transpose(1, 2)
    return forecast * std + mean


@pytest.mark.parametrize("options", [{}, {"patch_len": 7, "stride": 5}, {"lookback": 9, "patch_len": 9, "stride": 1}])
def test_as_defined(options: dict[str, Any]) -> None:
    model = small(**{"dropout": 0.0, **options})
    for layer in model.layers:  # so that they matter
        nn.init.normal_(layer.norm1.weight)
        nn.init.normal_(layer.norm2.bias)
    x = torch.randn(3, model.lookback, 5) * 4 + 2
    torch.testing.assert_close(model(x), by_definition(model, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batch", "variates"), [(1, 1), (3, 7)])
def test_shapes_and_kept_arguments(batch: int, variates: int) -> None:
    model = small()
    assert model(torch.randn(batch, 48, variates)).shape == (batch, 12, variates)
    assert model.encode(torch.randn(5, 48)).shape == (5, 12, 16)
    rebuilt = PatchTST(**{name: getattr(model, name) for name in inspect.signature(PatchTST).parameters})
    rebuilt.load_state_dict(model.state_dict())


def test_variates_are_separate() -> None:
    model, x = small().eval(), torch.randn(2, 48, 4)
    other = x.clone()
    other[..., 2] = torch.randn(2, 48)
    same = [0, 1, 3]
    torch.testing.assert_close(model(other)[..., same], model(x)[..., same])
    assert not torch.allclose(model(other)[..., 2], model(x)[..., 2])


def test_dropout_only_while_training() -> None:
    model, x = small(dropout=0.5), torch.randn(2, 48, 3)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_len": 49}, "lookback 48 is shorter than patch_len 49"),
        ({"num_heads": 3}, "dim 16 is not divisible by num_heads 3"),
        ({"depth": 0}, "depth is 0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_rejects(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**options)
