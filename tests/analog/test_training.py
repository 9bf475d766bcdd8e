"""A rehearsal computes what the chip does, lets gradients pass where they should, and trains the model that was given."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lessen.analog import mapping
from lessen.analog.chip import Array, Chip
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.devices.pcm import PCM
from lessen.analog.devices.rram import WanRRAM
from lessen.analog.encoding import Offset, Sliced
from lessen.analog.periphery import Adc, Dac, Wires
from lessen.analog.robust.est import EST, estimated
from lessen.analog.robust.hwa import HardwareAware, foundation
from lessen.analog.training.noise import Injected, Programmed
from lessen.analog.training.rehearsal import Clipped, rehearse
from lessen.analog.training.straight import FITS, driven, read
from lessen.errors import UsageError
from lessen.recover.losses import Logits, NextToken
from tests.analog.pictures import kept_bytes

QUIET = Injected(0.0)
CHIPS = {
    "ideal": Chip(),
    "converters": Chip(dac=Dac(6), adc=Adc(6)),
    "row tiles": Chip(dac=Dac(6), adc=Adc(6), array=Array(10, 8)),
    "tile scales, offset": Chip(dac=Dac(6), adc=Adc(6, per="tile"), encoding=Offset("tile"), array=Array(10, 8)),
    "wires": Chip(dac=Dac(6), adc=Adc(6), wires=Wires(2.0), array=Array(64, 8)),
    "dynamic": Chip(dac=Dac(6, range="dynamic"), adc=Adc(6, range=6.0)),
    "no dac": Chip(adc=Adc(6, range=6.0)),
    "no adc": Chip(dac=Dac(6), array=Array(10, 8)),
}


def full_scale(layer: nn.Module) -> float:
    """The learned range of a layer."""
    return float(layer.get_parameter("full_scale").detach())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4)]
    return nn.Sequential(*convolutions, nn.Flatten(2), nn.Conv1d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 34, 5)).double()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("noise", [QUIET, Programmed(last=0.0)], ids=["nothing injected", "programmed"])
def test_a_rehearsal_with_perfect_devices_is_the_mapped_network(chip: Chip, noise: Injected | Programmed, images: Tensor):
    net = network()
    rehearsal = rehearse(net, chip, noise=noise, calibration=[images])
    mapped = mapping.map(net, chip, calibration=[images]).program(0)
    with torch.no_grad():
        # float64; the fast model's cubic loses no more than a digit or two
        torch.testing.assert_close(rehearsal.model(images), mapped.model(images), atol=1e-12, rtol=0)


def test_programmed_noise_is_what_the_chip_makes_of_the_weights(images: Tensor):
    net, chip = network(), Chip(device=PCM(), dac=Dac(6), adc=Adc(6), array=Array(10, 8), compensation="column")
    rehearsal = rehearse(net, chip, noise=Programmed(last=3600.0), calibration=[images])
    mapped = mapping.map(net, chip, calibration=[images])
    with torch.no_grad():
        found = rehearsal.model(images)
        stage: Any = rehearsal.layers["0"].stage
        instance, seconds = stage.drawn
        mapped.program(instance, seconds)
        # the same draws; sums in another order may round to another code where they lie between two, which float64 does not meet here
        torch.testing.assert_close(found, mapped.model(images), atol=1e-10, rtol=0)
        assert not torch.equal(rehearsal.model(images), found)
    assert 20.0 <= seconds <= 3600.0


def test_the_model_is_trained_and_otherwise_left_as_it_was(images: Tensor):
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rehearsal = rehearse(net, CHIPS["converters"], calibration=[images])
    shared = dict(rehearsal.model.named_parameters())
    assert all(shared[name] is parameter for name, parameter in net.named_parameters())
    assert [name for name in shared if name not in dict(net.named_parameters())] == [f"{n}.full_scale" for n in rehearsal.layers]
    rehearsal.model(images).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(hasattr(module, "tiles") for module in net.modules())


def test_without_noise_and_converters_gradients_are_those_of_the_model(images: Tensor):
    net = network()
    expected = torch.autograd.grad(net(images).square().sum(), list(net.parameters()))
    for chip in (Chip(), Chip(array=Array(10, 8))):
        twin = rehearse(net, chip, noise=QUIET).model
        found = torch.autograd.grad(twin(images).square().sum(), list(net.parameters()))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)  # float64, sums in another order


def test_injected_noise_has_its_deviation_for_each_column_or_the_tensor():
    layer = nn.Linear(400, 50, bias=False).double()
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(0.1, 3, 50, dtype=torch.float64)[:, None])
    x = torch.eye(400, dtype=torch.float64)
    for of in ("column", "tensor"):
        twin = rehearse(layer, Chip(array=Array(100, 100)), noise=Injected(0.05, of)).model
        with torch.no_grad():
            errors = torch.stack([(twin(x) - layer(x)).t() for _ in range(20)])  # draw output input
        tiles = layer.weight.detach().abs().reshape(50, 4, 100).amax(-1)
        largest = tiles if of == "column" else tiles.amax().expand_as(tiles)
        measured = errors.reshape(20, 50, 4, 100).square().mean((0, 3)).sqrt()
        # 2000 draws each: a standard error of 1.6 %, and the worst of 200 lies within 4 of them
        torch.testing.assert_close(measured / largest, torch.full_like(tiles, 0.05), rtol=0.065, atol=0)


def test_output_noise_has_its_deviation_whatever_the_tiles():
    layer = nn.Linear(400, 50, bias=False).double()
    x = torch.rand(3000, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for rows, dac in ((400, None), (100, None), (100, 8)):
        chip = Chip(dac=Dac(dac), array=Array(rows, 100))
        twin = rehearse(layer, chip, noise=QUIET, output_noise=0.1, calibration=[x] if dac else None).model
        quiet = rehearse(layer, chip, noise=QUIET, calibration=[x] if dac else None)
        with torch.no_grad():
            measured = (twin(x) - quiet.model(x)).square().mean(0).sqrt()
        largest = layer.weight.detach().abs().reshape(50, 400 // rows, rows).amax(-1)
        full = 1.0 if not dac else full_scale(quiet.layers[""])
        expected = 0.1 * full * largest.square().mean(1).sqrt()
        torch.testing.assert_close(measured / expected, torch.ones_like(expected), rtol=0.06, atol=0)  # 3000 draws: 4.6 standard errors


def test_the_gradient_of_a_full_scale_follows_the_rule():
    x = torch.tensor([0.5, 3.0, 2.5, -4.0, -5.0, 0.1], dtype=torch.float64, requires_grad=True)
    full = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    outer = torch.tensor([1.0, -3.0, 2.0, 5.0, -7.0, 1.0], dtype=torch.float64)
    driven(x, full, 127, decay=0.01).backward(outer)
    assert x.grad is not None
    assert full.grad is not None
    assert x.grad.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    # above: only -3 asks for more; below: only 5 does. Two thirds are clipped, so nothing decays.
    assert full.grad.tolist() == [2.0 * (-3.0 - 5.0)]
    wide, x = torch.tensor([10.0], dtype=torch.float64, requires_grad=True), x.detach()
    driven(x, wide, 127, decay=0.01).backward(outer)
    assert FITS < 1
    assert wide.grad is not None
    assert wide.grad.tolist() == [10.0 * 0.01]


def test_an_adc_passes_gradients_where_it_does_not_clip():
    sums = torch.tensor([0.1, 5.0, -5.0, -0.9], requires_grad=True)
    read(sums * 1.0, torch.tensor(0.25), 4).backward(torch.ones(4))
    assert sums.grad is not None
    assert sums.grad.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_learned_ranges_shrink_to_the_inputs_and_go_to_the_chip():
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    net = nn.Linear(16, 4)
    rehearsal = rehearse(net, Chip(dac=Dac(4, quantile=1.0), adc=Adc(8)), noise=QUIET, calibration=[20 * x, x])
    start = full_scale(rehearsal.layers[""])
    rehearsal.train(x, losses=(Logits(),), steps=60, batch=64, learning_rate=1.0, precision="float32", patience=None)
    learned = full_scale(rehearsal.layers[""])
    assert learned < start - 20  # 60 steps of about half the learning rate, all of them downwards
    mapped = rehearsal.mapped([x])
    found = mapped.tiles("").ranges.input
    assert found is not None
    assert float(found) == pytest.approx(learned)
    mapped.program(0)


def test_rows_are_clipped_after_every_step():
    net = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8))
    with torch.no_grad():
        net.get_parameter("0.weight")[:, 0] = 30.0
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    rehearsal = HardwareAware(clip=2.0).rehearse(net, Chip())
    rehearsal.train(x, losses=(Logits(),), steps=1, batch=8, learning_rate=1e-9, precision="float32")
    weight = net.get_parameter("0.weight").detach()
    spread = torch.cat([torch.full((8, 1), 30.0), weight[:, 1:]], 1).square().mean(1).sqrt()
    torch.testing.assert_close(weight[:, 0], 2.0 * spread, rtol=1e-4, atol=0)  # weights moved by less than 1e-8
    equal = nn.Linear(4, 1)
    with torch.no_grad():
        equal.weight.fill_(0.5)
    Clipped(2.0, ("",))(equal)
    assert torch.equal(equal.weight.detach(), torch.full((1, 4), 0.5))
    again = copy.deepcopy(net)
    Clipped(1e6, ("0", "2"))(again)
    assert torch.equal(again.get_parameter("0.weight"), net.get_parameter("0.weight"))


def test_the_recipe_of_foundation_models_distils(images: Tensor):
    chip, training, options = foundation(Chip(device=PCM(), array=Array(64, 64)), steps=2, batch=2, precision="float32")
    assert (chip.dac.levels, chip.adc.levels, chip.adc.range) == (127, 127, 14.0)
    net = network().float()
    rehearsal = training.rehearse(net, chip, calibration=[images.float()])
    found = rehearsal.train(images.float(), options=options)
    assert found.steps == 2
    assert all(entry["loss"] > 0 for entry in found.history)  # a teacher without noise, a student with it
    rehearsal.mapped(calibration=[images.float()]).program(0)


@pytest.mark.parametrize("chip", [Chip(dac=Dac(4, digit_bits=1), adc=Adc(6)), Chip(encoding=Sliced(), adc=Adc(6))])
def test_chips_that_read_in_parts_are_left_to_est(chip: Chip):
    with pytest.raises(UsageError, match=r"robust\.est"):
        rehearse(network(), chip)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="sigma"):
        Injected(-1.0)
    with pytest.raises(UsageError, match="first"):
        Programmed(first=10.0, last=1.0)
    with pytest.raises(UsageError, match="output_noise"):
        rehearse(network(), Chip(), output_noise=-0.1)
    with pytest.raises(UsageError, match="clip"):
        HardwareAware(clip=0.0)


ANY = {
    "pcm": Chip(device=PCM(), dac=Dac(8), adc=Adc(8), array=Array(64, 64), reads="fresh", compensation="column"),
    "bit-serial slices": Chip(device=WanRRAM(), encoding=Sliced(4, 2), dac=Dac(4, digit_bits=1), adc=Adc(6), array=Array(64, 64)),
    "wires": Chip(device=PCM(), dac=Dac(8), adc=Adc(8), wires=Wires(1.0), array=Array(64, 64)),
}


@pytest.mark.parametrize("chip", ANY.values(), ids=ANY)
def test_est_puts_out_what_the_chip_does_and_differentiates_the_clean_layers(chip: Chip):
    torch.manual_seed(0)
    for layer, shape in (
        (nn.Linear(70, 5), (3, 7, 70)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9, 9)),
        (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), (3, 4, 9, 9)),
        (nn.Conv1d(4, 6, 3, dilation=2, bias=False), (3, 4, 20)),
    ):
        x = torch.randn(shape)
        twin = EST().rehearse(layer, chip, calibration=[x]).model
        inputs, outer = x.clone().requires_grad_(), torch.randn_like(layer(x))
        out = twin(inputs)
        out.backward(outer)
        found = [inputs.grad, *(p.grad for p in layer.parameters())]
        clean = x.clone().requires_grad_()
        expected = torch.autograd.grad(layer(clean), [clean, *layer.parameters()], outer)
        assert float((out - layer(x)).detach().norm() / layer(x).detach().norm()) > 0.01  # it is no clean layer
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # float32, sums in another order


def test_any_forward_takes_the_place_of_a_linear_layer():
    layer, x = nn.Linear(6, 3), torch.randn(5, 6, requires_grad=True)
    out = estimated(lambda inputs: torch.round(layer(inputs)), x, layer)
    assert torch.equal(out, out.round())
    out.sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(5, 6))


class Differentiated(nn.Linear):
    """Standard noise-aware training: the law of `PCM` an hour after programming, written so that it can be differentiated."""

    def forward(self, input: Tensor) -> Tensor:
        scale = self.weight.abs().amax(1, keepdim=True)
        noisy = torch.zeros_like(self.weight)
        flicker = math.sqrt(math.log((3600 + 250e-9) / (2 * 250e-9)))
        for sign in (1.0, -1.0):
            x = (sign * self.weight / scale).clamp(min=1e-7)
            written = (x + (0.26348 + 1.9650 * x - 1.1731 * x**2) / 25 * torch.randn_like(x)).clamp(min=1e-7)
            mean, spread = (0.0244 - 0.0155 * x.log()).clamp(0.049, 0.1), (-0.0059 - 0.0125 * x.log()).clamp(0.008, 0.045)
            drifted = written * (3600 / 20) ** -(mean + spread * torch.randn_like(x)).abs()
            read = drifted * (0.0088 / (written**0.65).clamp(min=0.001)).clamp(max=0.2) * flicker
            noisy = noisy + sign * scale * (drifted + read * torch.randn_like(x)).clamp(min=0)
        return nn.functional.linear(input, noisy, self.bias)


def test_est_keeps_less_than_half_of_what_noise_that_is_differentiated_keeps():
    sizes = [(64, 128), (128, 128), (128, 10)]
    plain = nn.Sequential(*[module for a, b in sizes for module in (nn.Linear(a, b), nn.ReLU())])
    standard = nn.Sequential(*[module for a, b in sizes for module in (Differentiated(a, b), nn.ReLU())])
    x = torch.randn(64, 64)
    est = EST().rehearse(plain, Chip(device=PCM()), calibration=[x]).model
    rehearsed = rehearse(plain, Chip(device=PCM()), noise=Programmed()).model
    assert kept_bytes(est, x) == kept_bytes(plain, x)  # nothing but what the digital network keeps
    assert kept_bytes(est, x) < 0.5 * kept_bytes(rehearsed, x)
    assert kept_bytes(est, x) < 0.1 * kept_bytes(standard, x)


def test_training_repeats_bitwise():
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    y = torch.randint(3, (32,), generator=torch.Generator().manual_seed(1))
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        net = nn.Linear(8, 3)
        rehearsal = HardwareAware(Programmed()).rehearse(net, Chip(device=PCM(), dac=Dac(8)), calibration=[x])
        rehearsal.train(list(zip(x, y, strict=True)), losses=(NextToken(),), steps=5, batch=8, precision="float32")
        found.append(net.weight.detach().clone())
    assert torch.equal(*found)


@pytest.mark.parametrize(("noise", "model"), [(Injected(), "solved"), (Injected(), "iterative"), (Programmed(), "iterative")])
def test_wires_that_training_would_not_meet_are_refused(noise: Injected | Programmed, model: Any):
    with pytest.raises(UsageError, match=r"rehearse: got wires of 2 ohm .*, wanted a model of wires that training meets: fast"):
        rehearse(nn.Sequential(nn.Linear(8, 4)), Chip(wires=Wires(2.0, model)), noise=noise)


@torch.no_grad()
@pytest.mark.parametrize("model", ["columns", "solved"])
def test_wires_of_the_chip_are_part_of_its_errors(model: Any):
    net, x = nn.Sequential(nn.Linear(128, 8, bias=False)), torch.rand(16, 128)
    chip = Chip(device=Gaussian(written=0.0), wires=Wires(5.0, model), reads="quiet")
    mapped, rehearsed = mapping.map(net, chip).program(0)(x), rehearse(net, chip, noise=Programmed()).model(x)
    assert (mapped - net(x)).square().mean() > 0.01 * net(x).square().mean()
    torch.testing.assert_close(rehearsed, mapped, rtol=1e-4, atol=1e-4)
