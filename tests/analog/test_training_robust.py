"""Each method of training for a chip shows its effect on a small network, over several seeds or chips."""

import copy
import math
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lessen.analog import mapping
from lessen.analog.chip import Chip
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.devices.pcm import PCM
from lessen.analog.encoding import Differential
from lessen.analog.periphery import Adc, Dac
from lessen.analog.robust.adabs import AdaBS
from lessen.analog.robust.bwma import BWMA, binary, staircase
from lessen.analog.robust.est import EST
from lessen.analog.robust.gradient_norm import GradientNorm
from lessen.analog.robust.hwa import HardwareAware
from lessen.analog.simulation import simulate
from lessen.analog.training.noise import Injected, Programmed
from lessen.errors import UsageError
from lessen.recover.loop import recover
from lessen.recover.losses import NextToken
from tests.analog.pictures import accuracy, kept_bytes, pictures, stacked, trained

NOISY = Chip(device=Gaussian(written=0.1), dac=Dac(8), adc=Adc(8))
SETTINGS: dict[str, Any] = {"losses": (NextToken(),), "steps": 120, "batch": 64, "learning_rate": 3e-3, "precision": "float32"}


@pytest.fixture(scope="module")
def samples() -> list[tuple[Tensor, Tensor]]:
    return pictures(2000, 1)


@pytest.fixture(scope="module")
def unseen() -> list[tuple[Tensor, Tensor]]:
    return pictures(800, 2)


def on_chips(mapped: mapping.Mapped, unseen: list[tuple[Tensor, Tensor]], seconds: float | None = None, chips: int = 6) -> float:
    """Mean accuracy over chips."""
    return fmean(accuracy(mapped.program(seed, seconds).model, unseen) for seed in range(chips))


def test_hardware_aware_training_loses_less_than_half(samples: list[tuple[Tensor, Tensor]], unseen: list[tuple[Tensor, Tensor]]):
    calibration = [stacked(samples[:256])[0]]
    net = trained(0)
    digital = accuracy(net, unseen)
    plain = on_chips(mapping.map(net, NOISY, calibration=calibration), unseen)
    found = {}
    for name, method in (("without noise", HardwareAware(Injected(0.0), clip=None)), ("aware", HardwareAware(Injected(0.1)))):
        rehearsal = method.rehearse(copy.deepcopy(net), NOISY, calibration=calibration)
        rehearsal.train(samples, **SETTINGS)
        found[name] = on_chips(rehearsal.mapped(calibration), unseen)
    assert digital - plain > 3
    # the same steps without noise do not reach it
    assert digital - found["aware"] < 0.5 * (digital - plain) < digital - found["without noise"], (digital, plain, found)


def test_est_beats_plain_mapping_and_the_same_steps_without_a_chip_and_keeps_less(
    samples: list[tuple[Tensor, Tensor]], unseen: list[tuple[Tensor, Tensor]]
):
    """Errors of a fifth of the range: where they are small, any further training is as good."""
    chip, chips = Chip(device=Gaussian(written=0.2), dac=Dac(6), adc=Adc(6)), range(100, 116)
    settings: dict[str, Any] = SETTINGS | {"steps": 240}
    calibration = [stacked(samples[:256])[0]]
    digital, control, own = (trained(0) for _ in range(3))
    recover(control, None, samples, **settings)
    est, aware = (
        method.rehearse(net, chip, calibration=calibration)
        for method, net in ((EST(), own), (HardwareAware(Programmed(), clip=None, ranges="calibrated"), digital))
    )
    assert kept_bytes(est.model, calibration[0]) < kept_bytes(aware.model, calibration[0])
    est.train(samples, **settings)
    plain, same = (mapping.map(net, chip, calibration=calibration) for net in (digital, control.eval()))
    found = [[accuracy(mapped.program(s).model, unseen) for s in chips] for mapped in (plain, same, est.mapped(calibration))]
    for other in found[:2]:
        gains = torch.tensor(found[2]) - torch.tensor(other)  # chip by chip
        assert gains.mean() > 4, (gains.mean(), gains.std())  # points of a hundred
        assert gains.mean() > 3 * gains.std() / len(chips) ** 0.5


def test_est_is_near_training_through_the_noise_where_errors_are_small(
    samples: list[tuple[Tensor, Tensor]], unseen: list[tuple[Tensor, Tensor]]
):
    chip = Chip(device=PCM(), dac=Dac(6), adc=Adc(6), compensation="tile")
    calibration = [stacked(samples[:256])[0]]
    scores = {}
    for name, method in (("est", EST()), ("through noisy weights", HardwareAware(Programmed(), clip=None, ranges="calibrated"))):
        rehearsal = method.rehearse(trained(0), chip, calibration=calibration)
        rehearsal.train(samples, **SETTINGS)
        scores[name] = on_chips(rehearsal.mapped(calibration), unseen, 3600.0, chips=8)
    # means over 8 chips; a network of 800 pictures found by another order of sums differs by a few tenths of a point
    assert scores["est"] > scores["through noisy weights"] - 0.8


def test_adabs_brings_a_drifted_network_back_and_leaves_the_model(
    samples: list[tuple[Tensor, Tensor]], unseen: list[tuple[Tensor, Tensor]]
):
    net = trained(0, norms=True)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images = stacked(samples)[0]
    mapped = mapping.map(net, Chip(device=PCM(), dac=Dac(8), adc=Adc(8)), calibration=[images[:256]])
    year = 365 * 86400.0
    adapt = AdaBS(images[:100].split(50))  # 5 % of the training data
    found = {}
    for name, method in (("drifted", None), ("adapted", adapt)):
        found[name] = simulate(mapped, lambda model: accuracy(model, unseen), times=[year], chips=4, adapt=method).summary()[0]["mean"]
    digital = accuracy(net, unseen)
    assert digital - found["drifted"] > 4
    assert digital - found["adapted"] < 0.5 * (digital - found["drifted"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    twin = {name: buffer for name, buffer in mapped.model.named_buffers() if name.endswith("running_var")}
    assert all(not torch.equal(buffer, before[name]) for name, buffer in twin.items())
    assert all(norm.momentum == 0.1 for norm in mapped.model.modules() if isinstance(norm, nn.BatchNorm2d))


def test_adabs_finds_the_statistics_of_its_batches_on_an_ideal_chip():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).double()
    x = torch.randn(60, 6, dtype=torch.float64)
    mapped = mapping.map(net, Chip()).program(0)
    assert AdaBS(x.split(20))(mapped) == ["1"]
    norm = mapped.model[1]  # pyright: ignore[reportIndexIssue]
    inner = net[0](x).detach()
    torch.testing.assert_close(norm.running_mean, inner.mean(0))
    variances = torch.stack([part.var(0) for part in inner.split(20)]).mean(0)
    torch.testing.assert_close(norm.running_var, variances)
    with pytest.raises(UsageError, match="batch norm"):
        AdaBS([x])(mapping.map(nn.Linear(6, 4).double(), Chip()).program(0))


class Siren(nn.Module):
    """Coordinates to a grey value through sines."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, 1)])
        generator = torch.Generator().manual_seed(0)
        for number, layer in enumerate(self.layers):
            limit = 1 / 2 if number == 0 else math.sqrt(6 / width) / 30
            with torch.no_grad():
                layer.weight.copy_((2 * torch.rand(layer.weight.shape, generator=generator) - 1) * limit)  # pyright: ignore[reportArgumentType, reportCallIssue]
                layer.bias.copy_((2 * torch.rand(layer.bias.shape, generator=generator) - 1) * limit)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x) if number == 2 else torch.sin((30 if number else 12) * layer(x))
        return x[:, 0]


def image(side: int = 24) -> tuple[Tensor, Tensor]:
    """Coordinates, and grey values of a picture with edges and waves."""
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grey = 0.5 + 0.25 * torch.sin(7 * x + 3 * y) * torch.cos(5 * y) + 0.25 * ((x**2 + y**2) < 0.4)
    return torch.stack([x.flatten(), y.flatten()], 1), grey.flatten()


def fitted(steps: int, strength: float, way: str) -> nn.Module:
    """A coordinate network after some steps; the norm of the gradient counts with a strength."""
    x, y = image()
    net, data = Siren(), list(zip(x, y, strict=True))
    loss = GradientNorm(net, lambda out, batch: (out - batch[1]).square().mean(), strength, way=way)  # pyright: ignore[reportArgumentType]
    recover(net, None, data, losses=(loss,), steps=steps, batch=len(data), learning_rate=2e-3, precision="float32")
    return net


@pytest.mark.parametrize("way", ["exact", "nearby"])
def test_a_coordinate_network_with_small_gradients_bears_errors_of_weights(way: str):
    """Beside it the same steps without the term, and fewer of them: it is not that it has learned less."""
    x, y = image()
    decibels = {}
    for name, steps, strength in (("robust", 200, 0.3), ("same steps", 200, 0.0), ("fewer", 100, 0.0)):
        mapped = mapping.map(fitted(steps, strength, way), Chip(device=Gaussian(written=0.03)))
        with torch.no_grad():
            found = [-10 * (mapped.program(seed).model(x) - y).square().mean().log10() for seed in range(8)]
        decibels[name] = torch.stack(found)
    for control in ("same steps", "fewer"):
        gains = decibels["robust"] - decibels[control]  # chip by chip
        assert gains.mean() > 1.5, decibels
        assert gains.mean() > 4 * gains.std() / len(gains) ** 0.5, decibels


def test_the_nearby_norm_is_the_exact_one_to_first_order():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    batch = (torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64))
    found = []
    for way, radius in (("exact", 1.0), ("nearby", 1e-5)):
        loss = GradientNorm(net, lambda out, b: (out - b[1]).square().mean(), 0.5, way=way, radius=radius)  # pyright: ignore[reportArgumentType]
        found.append(float(loss.of_output(net(batch[0]), batch).detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-4)  # the error is of the order of the radius
    direct = torch.autograd.grad((net(batch[0]) - batch[1]).square().mean(), [net.get_parameter("0.weight"), net.get_parameter("2.weight")])
    rows = [w.detach().abs().amax(1, keepdim=True) for w in (net.get_parameter("0.weight"), net.get_parameter("2.weight"))]
    norm = torch.stack([(g * r).square().sum() for g, r in zip(direct, rows, strict=True)]).sum().sqrt()
    assert found[0] == pytest.approx(float(((net(batch[0]) - batch[1]).square().mean() + 0.5 * norm).detach()), rel=1e-12)


def test_binary_weights_are_the_nearest_and_the_staircase_has_its_slopes():
    weight = torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    best = (binary(weight) - weight).square().sum(1)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert bool(((factor * binary(weight) - weight).square().sum(1) > best).all())
    x = torch.tensor([0.3, 0.49, -0.5001, 2.0], dtype=torch.float64, requires_grad=True)
    full = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    out = staircase(x, full, 4, sharpness=4.0)
    assert out.tolist() == [0.25, 0.5, -0.5, 1.0]
    out.sum().backward()
    middle = [0.3 * 4 - 1 - 0.5, 0.49 * 4 - 1 - 0.5, 0.5001 * 4 - 2 - 0.5]
    assert x.grad is not None
    assert x.grad.tolist()[:3] == pytest.approx([2 / math.tanh(2) / math.cosh(4 * v) ** 2 for v in middle])
    assert float(x.grad[3]) == 0


def test_binary_weights_are_learned_and_bear_errors_that_plain_weights_do_not(
    samples: list[tuple[Tensor, Tensor]], unseen: list[tuple[Tensor, Tensor]]
):
    """The first layer digital, as is usual; the plain network has as many more steps of training, and converters of the same bits."""
    settings: dict[str, Any] = SETTINGS | {"steps": 200}
    calibration = [stacked(samples[:256])[0]]
    chip = Chip(device=Gaussian(written=0.1), encoding=Differential(), dac=Dac(5), adc=Adc(8))
    thrown, plain, net = (trained(0) for _ in range(3))
    with torch.no_grad():
        for name in ("3.weight", "7.weight"):  # the sign of what was trained in full precision, with the best scale
            weight = thrown.get_parameter(name)
            weight.copy_(binary(weight.flatten(1)).reshape(weight.shape))
    recover(plain, None, samples, **settings)
    rehearsal = BWMA(bits=4).rehearse(net, chip, calibration=calibration, split=["0"])
    rehearsal.train(samples, **settings)
    mapped = rehearsal.mapped(calibration)
    assert (mapped.chip.dac.levels, mapped.chip.encoding.devices) == (15, 2)
    for name in ("3.weight", "7.weight"):
        rows = net.get_parameter(name).detach().flatten(1)
        torch.testing.assert_close(rows.abs(), rows[:, :1].abs().expand_as(rows))
        assert all(set(plane.share.unique().tolist()) == {0.0, 1.0} for plane in chip.encoding.planes(torch.sign(rows)))
    learned, rounded, full = (accuracy(each, unseen) for each in (net.eval(), thrown, plain.eval()))
    assert learned > rounded + 20, (learned, rounded)  # training is what makes it right
    naive = on_chips(mapping.map(thrown, chip, split=["0"], calibration=calibration), unseen)
    assert on_chips(mapped, unseen) > naive + 20
    for written in (0.1, 0.3):
        other = replace(chip, device=Gaussian(written=written))
        own = on_chips(rehearsal.mapped(calibration, replace(mapped.chip, device=other.device)), unseen, chips=8)
        theirs = on_chips(mapping.map(plain, other, split=["0"], calibration=calibration), unseen, chips=8)
        assert learned - own < 0.4 * (full - theirs), (learned, own, full, theirs)
    assert own > theirs + 20  # where errors are large it is the better network, not only the one that loses less
