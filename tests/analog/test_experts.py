"""Mixtures of experts on tiles: routers stay digital unless they are asked for, experts without a token take ranges of the others."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lessen.analog.chip import Chip
from lessen.analog.mapping import Split, map
from lessen.analog.periphery import Adc, Dac
from lessen.errors import UsageError
from tests.analog.robust_nets import mixture, sentences

CHIP = Chip(dac=Dac(8), adc=Adc(8))


def run(model: nn.Module, tokens: Tensor) -> object:
    return model(input_ids=tokens)


def test_routers_stay_digital_unless_the_split_puts_them_on_tiles():
    mapped = map(mixture(), Chip(), split=["*embed*"])
    assert not any("gate." in f"{name}." for name in mapped.layers)
    assert "router" in mapped.digital["model.layers.0.mlp.gate"]
    some = map(mixture(), Chip(), split=Split(("*embed*",), tiles=("model.layers.1.*",)))
    assert "model.layers.1.mlp.gate.scores" in some.layers and "model.layers.0.mlp.gate" in some.digital
    with pytest.raises(UsageError, match=r"split: got 'model\.layers\.9'"):
        map(mixture(), Chip(), split=["+model.layers.9"])


def test_a_linear_layer_beside_experts_is_a_router_by_its_name():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up = nn.Linear(4, 2), nn.Linear(4, 4)
            self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            shares = self.gate(x).softmax(-1)
            return torch.stack([shares[:, i, None] * e(self.up(x)) for i, e in enumerate(self.experts)]).sum(0)

    assert set(map(Mixed(), Chip()).layers) == {"up", "experts.0", "experts.1"}
    assert set(map(nn.ModuleDict({"gate": nn.Linear(4, 4)}), Chip()).layers) == {"gate"}  # a gate of something else


@torch.no_grad()
def test_experts_without_a_token_have_the_widest_ranges_of_the_others():
    model, tokens = copy.deepcopy(mixture()), sentences(4, 24, 5)
    model.get_submodule("model.layers.0.mlp.gate").get_parameter("weight")[3] = -100.0  # an expert that gets few tokens or none
    mapped = map(model, CHIP, split=["*embed*"], calibration=[tokens[:1, :6]], run=run).program()
    starved = [name for name in mapped.borrowed if name.startswith("model.layers.0.mlp.experts.")]
    assert {name.rpartition(".")[2] for name in starved} == {"gate_up", "down"}
    for name in starved:
        others = [n for n in mapped.layers if n.startswith("model.layers.0.mlp.experts.") and n.endswith(name.rpartition(".")[2])]
        known = [mapped.tiles(n).ranges.input for n in others if n not in mapped.borrowed]
        assert known and mapped.tiles(name).ranges.input == max(t for t in known if t is not None)
    found, digital = run(mapped.model, tokens), run(model, tokens)
    assert torch.isfinite(found.logits).all()  # pyright: ignore[reportAttributeAccessIssue]
    assert digital is not None
