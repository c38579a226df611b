"""The delta-rule layer and GDKVM's memory module."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from toolkit.blocks.delta_memory import DeltaMemory, GDKVMMemory, decay_parameters
from toolkit.errors import InputError
from toolkit.kernels.gated_delta_rule import reference


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def layer(**options) -> DeltaMemory:
    return DeltaMemory(**{"dim": 10, "num_heads": 2, "head_dim": 4, "value_dim": 6} | options)


def test_layer_is_what_the_paper_says() -> None:
    """Written out for each part apart: projections, convolutions, gates, the loop over tokens, norm and output gate."""
    memory, x = layer(), torch.randn(2, 7, 10)
    parts = []
    for weight, kernel in zip(
        memory.qkv_proj.weight.split(memory.widths), memory.conv.weight.split(memory.widths), strict=True
    ):
        tokens = F.pad(x @ weight.T, (0, 0, 3, 0))
        mixed = sum(tokens[:, i : i + 7] * kernel[:, 0, i] for i in range(4))
        parts.append((mixed * mixed.sigmoid()).unflatten(-1, (2, -1)))
    beta = torch.sigmoid(x @ memory.b_proj.weight.T)
    g = -memory.A_log.exp() * F.softplus(x @ memory.a_proj.weight.T + memory.dt_bias)
    o, final = reference.gated_delta_rule(*parts, g, beta, None, None, 4**-0.5, True)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    y = (o.flatten(-2) * F.silu(x @ memory.g_proj.weight.T)) @ memory.out_proj.weight.T
    got, state = memory(x)
    torch.testing.assert_close((got, state.memory), (y, final), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("split", [1, 2, 5])
def test_layer_continues_from_its_state(split: int) -> None:
    memory, x = layer(), torch.randn(2, 7, 10, requires_grad=True)
    left, state = memory(x[:, :split])
    right, final = memory(x[:, split:], state)
    whole, expected = memory(x)
    torch.testing.assert_close((torch.cat([left, right], 1), *final), (whole, *expected), rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (torch.cat([left, right], 1), whole)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conv_size", [1, 4])
def test_layer_streams_token_by_token(conv_size: int) -> None:
    memory, x = layer(conv_size=conv_size), torch.randn(2, 7, 10)
    state, outputs = memory.initial_state(2), []
    for token in x.unbind(1):
        y, state = memory.step(token, state)
        outputs.append(y)
    whole, expected = memory(x)
    torch.testing.assert_close((torch.stack(outputs, 1), *state), (whole, *expected), rtol=1e-4, atol=1e-5)
    assert not outputs[0].requires_grad


def test_layer_is_causal_and_trains_every_parameter() -> None:
    memory, x = layer(), torch.randn(2, 7, 10, requires_grad=True)
    (dx,) = torch.autograd.grad(memory(x)[0][:, 3].sum(), x)
    assert not dx[:, 4:].any()
    assert all(dx[:, t].any() for t in range(4))
    memory(x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in memory.parameters())


def test_layer_keeps_its_decays_in_float32_under_autocast() -> None:
    memory, x = layer(), torch.randn(2, 7, 10)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = memory(x)
        assert memory.log_decay(x).dtype == torch.float32
    assert (y.dtype, state.memory.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y.float(), memory(x)[0], rtol=0.1, atol=0.05)


def test_layer_compiles_and_copies() -> None:
    memory, x = layer(), torch.randn(2, 7, 10)
    expected = memory(x)[0]
    compiled = torch.compile(memory, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], expected, rtol=1e-5, atol=1e-6)
    for twin in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        torch.testing.assert_close(twin(x)[0], expected)


def test_layer_errors() -> None:
    with pytest.raises(InputError, match=r"x has shape \[2, 7, 9\], not \[B, T, dim\] with dim = 10"):
        layer()(torch.randn(2, 7, 9))
    with pytest.raises(InputError, match=r"not \[B, dim\]"):
        layer().step(torch.randn(2, 7, 10), layer().initial_state(2))


def test_gdkvm_parameters_are_the_checkpoints() -> None:
    shapes = {name: list(x.shape) for name, x in GDKVMMemory().state_dict().items()}
    assert shapes == {"A_log": [8], "dt_bias": [8], "a_proj.weight": [8, 256], "b_proj.weight": [8, 256]}


@pytest.mark.parametrize("options", [{}, {"decay": "raw", "alpha_expand": "tile"}, {"key_scale": "spectral"}])
def test_gdkvm_frames_one_by_one(options: dict) -> None:
    memory = GDKVMMemory(12, 3, **options)
    key, value = torch.randn(2, 4, 8, 3, 5), torch.randn(2, 4, 2, 12, 3, 5)
    readout, states = memory(key, value)
    assert readout.shape == value.shape
    state = None
    for t in range(4):
        frame, state = memory.step(key[:, t], value[:, t], state)
        torch.testing.assert_close((frame, state), (readout[:, t], states[:, t]), rtol=1e-4, atol=1e-5)
    later, _ = memory(key[:, 2:], value[:, 2:], states[:, 1])
    torch.testing.assert_close(later, readout[:, 2:], rtol=1e-4, atol=1e-5)


def test_gdkvm_gates_show_what_the_next_frame_meets() -> None:
    """Without erasure, a frame with shut values keeps alpha times the state."""
    memory = GDKVMMemory(12, 3)
    key, value = torch.randn(1, 1, 8, 3, 5), torch.randn(1, 1, 1, 12, 3, 5)
    _, states = memory(key, value)
    with torch.no_grad():
        memory.b_proj.weight.copy_(-1e3 * states[0, 0, 0].sum(0).sign())  # shut for every row of one sign
    alpha, beta = memory.gates(states[:, 0])
    assert alpha.shape == beta.shape == (1, 1, 8, 3)
    shut = beta.amax(-1)[0, 0] < 1e-6
    assert shut.any()
    _, after = memory.step(key[:, 0], torch.zeros_like(value[:, 0]), states[:, 0])
    kept = alpha.repeat_interleave(4, -1) * states[:, 0]
    torch.testing.assert_close(after[0, 0, shut], kept[0, 0, shut], rtol=1e-4, atol=1e-5)


def test_gdkvm_trains_every_parameter() -> None:
    memory = GDKVMMemory(12, 3)
    readout, _ = memory(torch.randn(2, 4, 8, 3, 5), torch.randn(2, 4, 1, 12, 3, 5))
    readout.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in memory.parameters())


def test_decay_parameters_lie_in_the_published_ranges() -> None:
    A_log, dt_bias = decay_parameters(10_000)
    assert (A_log.isfinite().all(), A_log.max() <= torch.tensor(16.0).log()) == (True, True)
    dt = F.softplus(dt_bias)
    assert 0.00099 < dt.min() < 0.0011
    assert 0.09 < dt.max() < 0.1001
