"""NORA: the function stays, and converters with few bits see inputs of one size."""

import copy
from statistics import fmean

import pytest
import torch
from torch import nn

from lessen.analog.chip import Chip
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.mapping import map
from lessen.analog.periphery import Adc, Dac
from lessen.analog.robust.nora import NORA, readings
from lessen.core.apply import apply
from lessen.core.edit import Edit, Replace
from lessen.errors import UsageError
from tests.analog.robust_nets import language_loss, llama, sentences


def run(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens).logits


def with_outliers(model: nn.Module) -> nn.Module:
    """The same function with a few features that are forty times larger behind each norm, as large language models have them."""
    made = copy.deepcopy(model)
    edits: list[Edit] = []
    for reading in readings(made, [sentences(4, 24, 5)], run, 8):
        gain = torch.ones(48)
        gain[[3, 17, 31]] = 40.0
        edits.append(Replace(f"{reading.norm}.weight", made.get_parameter(f"{reading.norm}.weight").detach() * gain))
        edits += [Replace(f"{n}.weight", made.get_parameter(f"{n}.weight").detach() / gain) for n in reading.layers]
    return apply(made, edits)


def test_all_readers_of_a_norm_are_found():
    found = {r.norm: r.layers for r in readings(llama(), [sentences(2, 8, 0)], run, 8)}
    first = "model.layers.0"
    assert found[f"{first}.input_layernorm"] == tuple(f"{first}.self_attn.{n}_proj" for n in "qkv")
    assert found[f"{first}.post_attention_layernorm"] == (f"{first}.mlp.gate_proj", f"{first}.mlp.up_proj")
    assert found["model.norm"] == ("lm_head",)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_function_is_the_same_in_float64(strength):
    model = copy.deepcopy(llama()).double()
    tokens = sentences(4, 24, 3)
    found = NORA(strength).decide(model, Chip(), [tokens], run)
    with torch.no_grad():
        before = run(model, tokens)
        after = run(apply(copy.deepcopy(model), list(found.edits)), tokens)
    assert len(found.strengths) == 5
    assert (after - before).abs().max() < 1e-10 * before.abs().max()


def test_a_norm_that_something_else_reads_too_is_left_with_its_reason():
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second, self.last = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.second(self.first(x))
            seen = self.norm(x)
            return seen + self.last(seen)

    found = NORA(0.5).decide(Leaky(), Chip(), [torch.randn(5, 8)])
    assert found.left == {"norm": "something else reads it too: the outputs change"}
    assert {edit.name for edit in found.edits} == {"first.weight", "first.bias", "second.weight"}


def test_converters_with_few_bits_lose_less_on_a_network_with_outliers():
    model, evaluate = with_outliers(llama()), language_loss(48)
    with torch.no_grad():
        digital = evaluate(model)
        assert digital == pytest.approx(evaluate(llama()), abs=1e-4)  # float32: the outliers change nothing
    chip = Chip(Gaussian(written=0.02), dac=Dac(6), adc=Adc(8))
    calibration = [sentences(16, 24, 5)]

    def loss(net: nn.Module) -> float:
        mapped = map(net, chip, split=["*embed*"], calibration=calibration, run=run)
        with torch.no_grad():
            return fmean(evaluate(mapped.program(seed).model) for seed in range(4)) - digital

    found = NORA().decide(model, chip, calibration, run)
    plain, rescaled = loss(model), loss(apply(copy.deepcopy(model), list(found.edits)))
    assert plain > 0.2  # nats: the outliers do harm
    assert rescaled < plain / 3


def test_wrong_options_are_refused():
    with pytest.raises(UsageError, match="a strength from 0 to 1"):
        NORA(strength=1.5)
