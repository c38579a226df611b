"""The gated attention layer: the released layer's numbers, and its own definition token by token."""

from __future__ import annotations

import golden
import pytest
import torch
from torch import Tensor

from toolkit.blocks.attention import GatedAttention, rotate
from toolkit.errors import InputError

CONSTRUCTOR = {"dim", "num_heads", "num_kv_heads", "head_dim", "gate", "qk_norm", "rope_theta", "causal"}


@pytest.mark.parametrize("name", ["mixer_gated_attention", "mixer_gated_attention_headwise"])
def test_released_layer(name: str) -> None:
    case = golden.load(name)
    options = {key: value for key, value in case.config.items() if key in CONSTRUCTOR}
    layer = GatedAttention(**options, bias=case.config["qkv_bias"], norm_eps=case.config["rms_norm_eps"])
    layer.load_state_dict({key: torch.from_numpy(value) for key, value in case.state().items()})
    x = torch.from_numpy(case.input("x"))
    with torch.no_grad():
        case.check("y", layer(x), 1e-5)
        case.check("gate", layer.openness(x), 1e-5)


def by_tokens(layer: GatedAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The layer without norm and rotation, a head and a query at a time."""
    H, D, group = layer.num_heads, layer.head_dim, layer.num_heads // layer.num_kv_heads
    (B, T, _), per_head = x.shape, layer.head_dim if layer.gate == "elementwise" else 1
    rows, k, v = layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)
    o = x.new_zeros(B, T, H * D)
    for h in range(H):
        kv, place = divmod(h, group)
        start = kv * group * (D + per_head)
        q = rows[..., start + place * D : start + (place + 1) * D]
        gates = start + group * D + place * per_head
        opened = rows[..., gates : gates + per_head].sigmoid()
        for t in range(T):
            seen = torch.ones(T, dtype=torch.bool) if mask is None else mask[t].clone()
            if layer.causal:
                seen[t + 1 :] = False
            scores = torch.einsum("bd,bsd->bs", q[:, t], k[:, seen, kv * D : (kv + 1) * D]) / D**0.5
            mean = torch.einsum("bs,bsd->bd", scores.softmax(-1), v[:, seen, kv * D : (kv + 1) * D])
            o[:, t, h * D : (h + 1) * D] = mean * opened[:, t]
    return layer.o_proj(o)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gate", ["elementwise", "headwise"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, None), (6, 2, 5), (4, 1, 3), (1, 1, 8)])
def test_definition(heads: int, kv_heads: int, head_dim: int | None, gate: str, causal: bool) -> None:
    layer = GatedAttention(
        12, heads, num_kv_heads=kv_heads, head_dim=head_dim, gate=gate, bias=True, causal=causal, dtype=torch.float64
    )
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_tokens(layer, x))
    torch.testing.assert_close(layer.float()(x.float()), by_tokens(layer, x.float()), rtol=1e-4, atol=1e-5)


def test_mask() -> None:
    layer, x = GatedAttention(8, 2, causal=True), torch.randn(2, 6, 8)
    mask = torch.rand(6, 6) < 0.7
    mask.fill_diagonal_(True)
    torch.testing.assert_close(layer(x, mask), by_tokens(layer, x, mask), rtol=1e-4, atol=1e-5)
    real = torch.tensor([True, True, True, True, False, False])
    changed = torch.where(real[:, None], x, torch.randn(2, 6, 8))
    torch.testing.assert_close(layer(changed, real)[:, :4], layer(x, real)[:, :4])


def test_later_tokens_change_nothing_before() -> None:
    layer = GatedAttention(8, 2, qk_norm=True, rope_theta=10_000.0, causal=True)
    x = torch.randn(1, 9, 8)
    torch.testing.assert_close(layer(x)[:, :5], layer(x[:, :5]), rtol=1e-4, atol=1e-5)


def test_rotation_keeps_lengths_and_depends_on_distance() -> None:
    x = torch.randn(1, 1, 1, 8).expand(1, 12, 1, 8)
    turned = rotate(x, 100.0)
    torch.testing.assert_close(turned[:, 0], x[:, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    products = torch.einsum("bthd,bshd->bts", turned, turned)[0]
    for distance in range(1, 6):
        same = products.diagonal(distance)
        torch.testing.assert_close(same, same[:1].expand_as(same), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gate", ["elementwise", "headwise"])
def test_a_shut_gate_stops_value_and_gradient(gate: str) -> None:
    layer, x = GatedAttention(8, 2, gate=gate, bias=True), torch.randn(1, 5, 8)
    with torch.no_grad():
        layer.q_proj.weight.zero_()
        layer.q_proj.bias.fill_(-200)
    layer(x).sum().backward()
    assert not layer.openness(x).any()
    torch.testing.assert_close(layer(x), layer.o_proj.bias.expand(1, 5, 8))
    assert not layer.v_proj.weight.grad.any()


def test_every_parameter_gets_a_gradient_and_half_types_work() -> None:
    layer = GatedAttention(16, 4, num_kv_heads=2, qk_norm=True, bias=True, rope_theta=10_000.0, causal=True)
    x = torch.randn(2, 6, 16)
    layer(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())
    exact = layer(x)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() <= 3e-2 * exact.norm()


def test_compile_and_export() -> None:
    layer, x = GatedAttention(8, 2, rope_theta=100.0, causal=True).eval(), torch.randn(2, 6, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(layer, (x,), dynamic_shapes={"x": {1: torch.export.Dim("time", min=2, max=64)}})
    longer = torch.randn(2, 11, 8)
    torch.testing.assert_close(exported.module()(longer), layer(longer), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "dim 8 is not divisible by num_heads 3"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads is 4, not a multiple of num_kv_heads 3"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_heads": 8, "rope_theta": 1e4}, "head_dim is 1"),
        ({"num_heads": 2, "gate": "headwize"}, "gate is 'headwize'.*headwise"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GatedAttention(8, **options)
