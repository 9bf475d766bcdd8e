"""Models in half precision: tiles are computed in float32, outputs are of the model's type."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lessen.analog.chip import Array, Chip
from lessen.analog.chipfile import preset, presets
from lessen.analog.devices.pcm import PCM
from lessen.analog.mapping import map
from lessen.analog.periphery import Adc, Dac, Wires
from lessen.analog.training.noise import Injected, Programmed
from lessen.analog.training.rehearsal import rehearse

HALVES = [torch.bfloat16, torch.float16]


def twins(layer: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A layer in half precision, and one in float32 with the same weights."""
    half = copy.deepcopy(layer).to(dtype)
    return half, copy.deepcopy(half).float()


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("dtype", HALVES)
@torch.no_grad()
def test_every_preset_computes_what_it_does_in_float32(name: str, dtype: torch.dtype):
    torch.manual_seed(0)
    half, wide = twins(nn.Linear(64, 32), dtype)
    x = torch.randn(48, 64).to(dtype)
    for reads in ("frozen", "fresh"):
        chip = replace(preset(name), reads=reads)
        found = map(half, chip, calibration=[x]).program(3)(x)
        expected = map(wide, chip, calibration=[x.float()]).program(3)(x.float())
        assert found.dtype == dtype
        assert torch.equal(found, expected.to(dtype))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@torch.no_grad()
def test_convolutions_and_wires_do_so_too(padding_mode: Any):
    torch.manual_seed(0)
    layers: list[tuple[nn.Module, Tensor]] = [
        (nn.Conv2d(3, 6, 3, padding=1, padding_mode=padding_mode), torch.randn(4, 3, 7, 7)),
        (nn.Conv1d(4, 6, 3), torch.randn(4, 4, 9)),
    ]
    chip = Chip(PCM(), dac=Dac(8), adc=Adc(8, noise=0.5), array=Array(32, 32))
    for layer, x in layers:
        half, wide = twins(layer, torch.bfloat16)
        x = x.bfloat16()
        for one in (chip, replace(chip, wires=Wires(2.0))):
            found = map(half, one, calibration=[x]).program(1)(x)
            expected = map(wide, one, calibration=[x.float()]).program(1)(x.float())
            assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize("noise", [Injected(0.0), Programmed()], ids=["injected", "programmed"])
def test_rehearsals_train_in_half_precision(noise: Injected | Programmed):
    torch.manual_seed(0)
    half, _ = twins(nn.Linear(24, 6), torch.bfloat16)
    x = torch.randn(32, 24).bfloat16()
    chip = Chip(PCM(), dac=Dac(8), adc=Adc(8), wires=Wires(1.0), array=Array(16, 16))
    rehearsal = rehearse(half, chip, noise=noise, calibration=[x])
    found = rehearsal.model(x)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    gradient = half.get_parameter("weight").grad
    assert gradient is not None and gradient.dtype == torch.bfloat16 and bool(gradient.isfinite().all())
