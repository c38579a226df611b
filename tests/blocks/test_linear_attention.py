"""The layers of gated linear attention: their definition, streams, scripts, and wrong widths."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from toolkit.blocks.linear_attention import BidirectionalGatedLinearAttention, GatedLinearAttention, log_decays
from toolkit.errors import InputError
from toolkit.kernels.bidirectional_gla import bidirectional_gla


@pytest.mark.parametrize("gradients", [True, False])
def test_log_decays_of_any_logit(gradients):
    z = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([-1e4, -200.0, -90.0, 0.0, 90.0, 1e4])])
    with torch.set_grad_enabled(gradients):
        found = log_decays(z, 16.0)
    torch.testing.assert_close(found.double(), F.logsigmoid(z.double()) / 16, rtol=1e-6, atol=1e-8)
    assert log_decays(z.bfloat16(), 16.0).dtype is torch.float32


def test_causal_layer_is_its_definition():
    """The recurrence of the paper, equation 3 and section 4.4, token by token."""
    layer, x = GatedLinearAttention(12, 2, gate_rank=3), torch.randn(2, 7, 12)
    q, k, v = (part.unflatten(-1, (2, -1)) for part in layer.qkv_proj(x).split([6, 6, 12], dim=-1))
    decay = torch.sigmoid(layer.gk_proj(x)).pow(1 / 16).unflatten(-1, (2, -1))
    state, outputs = torch.zeros(2, 2, 3, 6), []
    for t in range(7):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        o = torch.einsum("bhk,bhkv->bhv", q[:, t] * 3**-0.5, state)
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.g_norm.weight
        outputs.append(layer.o_proj(o.flatten(1) * F.silu(layer.g_proj(x[:, t]))))
    found, last = layer(x)
    torch.testing.assert_close(found, torch.stack(outputs, 1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(last, state)


def test_a_stream_equals_the_whole():
    layer, x = GatedLinearAttention(32, 4), torch.randn(3, 41, 32)
    whole, last = layer(x)
    parts, state = [], layer.initial_state(3)
    part, state = layer(x[:, :30], state)
    state = state.detach().clone()
    steps = [layer.step(x[:, t], state) for t in range(30, 41)]
    parts = torch.cat([part, torch.stack(steps, 1)], 1)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-6)


def test_causal_layer_does_not_see_ahead():
    layer, x = GatedLinearAttention(16, 2), torch.randn(1, 9, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0][0, 4].sum(), x)
    assert (gradient[0, 5:] == 0).all()
    assert (gradient[0, :5].abs().amax(-1) > 0).all()


def test_bidirectional_layer_mirrors_with_its_gates_swapped():
    layer, x = BidirectionalGatedLinearAttention(24, 3, key_dim=12), torch.randn(2, 37, 24)
    mirrored = BidirectionalGatedLinearAttention(24, 3, key_dim=12)
    mirrored.load_state_dict(layer.state_dict())
    up = mirrored.gk_proj[1]
    up.load_state_dict({name: value.roll(12, 0) for name, value in up.state_dict().items()})
    torch.testing.assert_close(mirrored(x.flip(1)).flip(1), layer(x))


def test_share_scales_the_sum_of_both_directions():
    half, x = BidirectionalGatedLinearAttention(24, 3, key_dim=12), torch.randn(1, 19, 24)
    quarter = BidirectionalGatedLinearAttention(24, 3, key_dim=12, share=0.25)
    quarter.load_state_dict(half.state_dict())
    torch.testing.assert_close(quarter(x), half(x) / 2)


@pytest.mark.parametrize("gradients", [True, False])
def test_script_equals_the_layer(gradients):
    layer, x = BidirectionalGatedLinearAttention(24, 3, key_dim=12), torch.randn(2, 70, 24)
    script = torch.jit.script(layer)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(script(x), layer(x), rtol=0, atol=0)
    if gradients:
        script(x).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_registered_operator_differentiates_as_the_function():
    inputs = [torch.randn(1, 6, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(5)]

    def scripted(q, k, v, forward, backward):
        return torch.ops.gated.bidirectional_gla(q, k, v, F.logsigmoid(forward), F.logsigmoid(backward), 0.5)

    def function(q, k, v, forward, backward):
        return bidirectional_gla(q, k, v, F.logsigmoid(forward), F.logsigmoid(backward), scale=0.5)

    torch.testing.assert_close(scripted(*inputs), function(*inputs))
    assert torch.autograd.gradcheck(scripted, inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "dim 10 is not divisible by num_heads 4"),
        ({"dim": 12, "num_heads": 4}, "key_dim 6 is not divisible by num_heads 4"),
        ({"dim": 12, "num_heads": 0}, "dim 12 is not divisible by num_heads 0"),
    ],
)
def test_wrong_widths(arguments, message):
    with pytest.raises(InputError, match=message):
        GatedLinearAttention(**arguments)
