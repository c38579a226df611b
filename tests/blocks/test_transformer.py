"""Encoder blocks: PyTorch's numbers, initial weights and dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolkit.blocks.dropout import Dropout
from toolkit.blocks.transformer import EncoderLayer, TransformerEncoder
from toolkit.errors import InputError


def test_same_seed_gives_the_library_weights_and_outputs() -> None:
    torch.manual_seed(5)
    library = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 24, 0.1, batch_first=True, norm_first=True),
        2,
        enable_nested_tensor=False,
    )
    torch.manual_seed(5)
    ours = TransformerEncoder(EncoderLayer(16, 4, 24, 0.1), 2)
    expected = library.state_dict()
    assert list(ours.state_dict()) == list(expected)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[name]), name

    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(ours.eval()(x), library.eval()(x), rtol=1e-5, atol=1e-5)
    layer = library.layers[0].train()
    layer.load_state_dict(ours.layers[0].state_dict())  # the names agree for a single layer too


def test_layers_start_equal_but_are_separate() -> None:
    encoder = TransformerEncoder(EncoderLayer(8, 2, 8), 2)
    first, second = encoder.layers
    assert torch.equal(first.linear1.weight, second.linear1.weight)
    assert first.linear1.weight is not second.linear1.weight


def test_dropout_only_in_training() -> None:
    layer = EncoderLayer(8, 2, 8, dropout=0.5)
    x = torch.randn(2, 3, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("tokens", [5, 80])
def test_mean_over_masks_is_near_the_output_without(tokens: int) -> None:
    """Dropout rates agree with the library's: the moments of the output over masks do."""
    torch.manual_seed(0)
    library = nn.TransformerEncoderLayer(8, 2, 8, 0.2, batch_first=True, norm_first=True)
    ours = EncoderLayer(8, 2, 8, 0.2)
    ours.load_state_dict(library.state_dict())
    x = torch.randn(1, tokens, 8).expand(3000, -1, -1)
    with torch.no_grad():
        a, b = ours(x), library(x)
    torch.testing.assert_close(a.mean(0), b.mean(0), rtol=0, atol=0.08)
    torch.testing.assert_close(a.std(0).mean(), b.std(0).mean(), rtol=0.02, atol=0)


def test_heads_must_divide() -> None:
    with pytest.raises(InputError, match="dim 10 is not divisible by num_heads 4"):
        EncoderLayer(10, 4, 8)


def test_dropout_module() -> None:
    drop = Dropout(0.5)
    x = torch.ones(1000)
    assert 300 < (drop(x) == 0).sum() < 700
    assert drop.eval()(x) is x
    assert repr(drop) == "Dropout(p=0.5)"
