"""HaLoRA: a branch that was trained beside noisy tiles is worth more there than one that was trained beside clean weights."""

from statistics import fmean
from typing import Any

import pytest
import torch
from torch import nn

from lessen.analog.chip import Chip
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.mapping import map
from lessen.analog.robust.halora import HaLoRA, LowNorm
from lessen.analog.tiles.branches import Beside, Hybrid
from lessen.errors import UsageError
from lessen.recover.loop import recover
from lessen.recover.losses import NextToken
from tests.analog.robust_nets import language_loss, llama, sentences

CHIP = Chip(Gaussian(written=0.2))
SETTINGS: dict[str, Any] = {"steps": 160, "batch": 32, "learning_rate": 5e-3, "evaluate_every": 80, "precision": "float32"}
SETTINGS |= {"losses": (NextToken(),), "patience": None}


def on_chips(hybrid: Hybrid, evaluate) -> float:
    mapped = map(hybrid.model, CHIP, split=hybrid.split)
    with torch.no_grad():
        return fmean(evaluate(mapped.program(seed).model) for seed in range(100, 105))


def test_a_branch_trained_beside_noise_beats_one_trained_beside_clean_weights():
    method, evaluate = HaLoRA(targets=("*_proj",)), language_loss(64, rule=8)
    data, heldout = sentences(512, 24, 0, rule=8), sentences(64, 24, 3, rule=8)  # another language than the base has learned
    clean = method.attach(llama())
    recover(clean.model, None, data, heldout, train=(".down.", ".up."), **SETTINGS)
    robust = method.attach(llama())
    method.train(robust, CHIP, data, heldout, **SETTINGS)
    with torch.no_grad():
        digital = evaluate(clean.model)
    lost, left = on_chips(clean, evaluate) - digital, on_chips(robust, evaluate) - digital
    assert lost > 0.5  # nats: chips undo what the clean branch has learned
    assert left < 0.75 * lost


def test_only_the_branches_are_trained_and_the_base_is_shared():
    model = llama()
    before = {name: p.clone() for name, p in model.named_parameters()}
    method = HaLoRA(rank=2, targets=("*q_proj",))
    hybrid = method.attach(model)
    layer = hybrid.model.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(layer, Beside)
    assert layer.base.weight is model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    method.train(hybrid, CHIP, sentences(32, 24, 0), losses=(NextToken(),), steps=2, batch=4, precision="float32")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert layer.up.weight.abs().max() > 0


def test_branches_start_as_nothing_and_stay_digital():
    hybrid = HaLoRA(rank=2).attach(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)))
    x = torch.randn(3, 6)
    with torch.no_grad():
        base = hybrid.model.get_submodule("0.base")(x)
        assert torch.equal(hybrid.model.get_submodule("0")(x), base)
    assert set(map(hybrid.model, CHIP, split=hybrid.split).layers) == {"0.base", "1.base"}
    assert hybrid.digital_macs == {"0": 2 * (6 + 5), "1": 2 * (5 + 4)}


def test_the_regulariser_is_the_largest_singular_values_squared():
    hybrid = HaLoRA(rank=3).attach(nn.Sequential(nn.Linear(8, 5)))
    part = hybrid.model.get_submodule("0")
    assert isinstance(part, Beside)
    nn.init.normal_(part.up.weight)
    expected = torch.linalg.svdvals(part.down.weight)[0] ** 2 + torch.linalg.svdvals(part.up.weight)[0] ** 2
    found = LowNorm({"0": part}).of_output(None, None)
    torch.testing.assert_close(found, expected)


def test_the_regulariser_keeps_the_branch_small():
    sizes = []
    for mu in (0.0, 1.0):
        method = HaLoRA(rank=2, mu=mu, targets=("*q_proj",))
        hybrid = method.attach(llama())
        method.train(hybrid, CHIP, sentences(64, 24, 0, rule=8), losses=(NextToken(),), steps=15, batch=8, learning_rate=1e-2)
        part = hybrid.model.get_submodule("model.layers.1.self_attn.q_proj")
        assert isinstance(part, Beside)
        sizes.append(float(part.down.weight.norm() + part.up.weight.norm()))
    assert sizes[1] < 0.95 * sizes[0]


def test_wrong_options_are_refused():
    with pytest.raises(UsageError, match="a rank of at least 1"):
        HaLoRA(rank=0)
    with pytest.raises(UsageError, match="such as 0"):
        HaLoRA(targets=("q",)).attach(nn.Sequential(nn.Linear(6, 5)))
