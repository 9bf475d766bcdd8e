"""Layers that a network registers under several names, and networks that are one such layer themselves."""

import pytest
import torch
from torch import nn

from lessen.analog.chip import Chip
from lessen.analog.mapping import map
from lessen.analog.periphery import Dac
from lessen.analog.training.rehearsal import rehearse
from lessen.errors import LessenError


class Twice(nn.Module):
    """One layer, one block and one attention under two names each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = self.b = nn.Linear(8, 8)
        self.left = self.right = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.one = self.other = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.right(self.b(self.left(self.a(x))))
        x = self.one(x, x, x, need_weights=False)[0]
        return self.other(x, x, x, need_weights=False)[0]


def test_a_layer_under_two_names_lies_on_tiles_under_both():
    model, x = Twice().eval(), torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    mapped = map(model, Chip())
    assert sorted(mapped.layers) == ["a", "left.0", *(f"one.{part}_proj" for part in ("k", "out", "q", "v"))]
    assert mapped.model.b is mapped.model.a is mapped.layers["a"] and mapped.model.other is mapped.model.one
    assert mapped.model.right is mapped.model.left
    with pytest.raises(LessenError, match="no programmed tiles"):
        mapped.layers["a"](x)
    assert torch.allclose(mapped.program(0)(x), model(x), atol=1e-5)  # float32 rounding
    kept = map(model, Chip(), split=["b", "other"])  # either of its names keeps it
    assert list(kept.layers) == ["left.0"] and type(kept.model.a) is nn.Linear and type(kept.model.b) is nn.Linear
    rehearsal = rehearse(model, Chip())
    assert rehearsal.model.b is rehearsal.model.a is rehearsal.layers["a"]


def test_a_network_that_is_an_attention_lies_on_tiles():
    torch.manual_seed(0)
    model, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(2, 5, 8)
    mapped = map(model, Chip()).program(0)
    assert sorted(mapped.layers) == ["k_proj", "out_proj", "q_proj", "v_proj"] and not mapped.digital
    assert torch.allclose(mapped(x, x, x)[0], model(x, x, x)[0], atol=1e-5)  # float32 rounding


class HalfReached(Twice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x)


def test_a_layer_under_two_names_that_calibration_never_reached_is_digital_under_both():
    mapped = map(HalfReached(), Chip(dac=Dac(8)), calibration=[torch.ones(2, 8)])
    assert list(mapped.layers) == ["left.0"] and type(mapped.model.a) is nn.Linear and mapped.model.a is mapped.model.b
