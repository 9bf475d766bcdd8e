"""Wires of whole physical tiles against Kirchhoff's equations: all devices of all weights on one array, and what they load it with."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lessen.analog.chip import Array, Chip
from lessen.analog.devices.device import Device
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.devices.rram import MiloRRAM
from lessen.analog.encoding import Differential, Encoding, Offset, Sliced
from lessen.analog.mapping import map
from lessen.analog.periphery import Dac, Wires
from lessen.analog.tiles.resistance import effective, solve
from lessen.analog.tiles.wires import array, taken_apart
from lessen.errors import UsageError
from tests.analog.test_resistance import nodal

LOW = Device(g_min=5.0, g_max=25.0)


def net(rows: int, columns: int, seed: int = 0) -> tuple[nn.Linear, Tensor]:
    """A layer whose columns all take the whole range, and inputs from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(rows, columns, bias=False).double()
    linear.weight.data = torch.rand(columns, rows, generator=generator, dtype=torch.float64) * 2 - 1
    linear.weight.data[:, 0] = 1.0
    return linear, torch.rand(5, rows, generator=generator, dtype=torch.float64)


def physical(linear: nn.Linear, chip: Chip) -> Tensor:
    """Conductances of a tile `row column`, written out device by device: the devices of a weight beside each other, references last."""
    low, span = chip.device.g_min, chip.device.g_max - chip.device.g_min
    columns = []
    for weights in linear.weight.detach():
        if isinstance(chip.encoding, Differential):
            columns += [weights.clamp(min=0), (-weights).clamp(min=0)]
        elif isinstance(chip.encoding, Offset):
            columns += [(weights + 1) / 2]
        else:  # 5 bits in cells of 2: a magnitude of 15 is two digits
            magnitude = (weights.abs() * 15).round()
            for digit in (magnitude % 4, magnitude // 4):
                signed = weights.sign() * digit / 3
                columns += [signed.clamp(min=0), (-signed).clamp(min=0)]
    if isinstance(chip.encoding, Offset):
        columns.append(torch.full_like(columns[0], 0.5))
    return low + span * torch.stack(columns, 1)


def read(currents: Tensor, chip: Chip) -> Tensor:
    """Outputs from the currents of physical columns, `vector column`."""
    span = chip.device.g_max - chip.device.g_min
    if isinstance(chip.encoding, Differential):
        return (currents[:, 0::2] - currents[:, 1::2]) / span
    if isinstance(chip.encoding, Offset):
        return 2 * (currents[:, :-1] - currents[:, -1:]) / span
    low, high = ((currents[:, k::4] - currents[:, k + 1 :: 4]) * 3 / 15 for k in (0, 2))
    return (low + 4 * high) / span


@pytest.mark.parametrize("device", [Device(), LOW], ids=["from zero", "from 5 uS"])
@pytest.mark.parametrize("encoding", [Differential(), Offset(), Sliced(5, 2)], ids=["pair", "offset", "slices"])
@pytest.mark.parametrize("model", ["solved", "iterative"])
@torch.no_grad()
def test_a_tile_is_solved_with_all_devices_of_its_weights(device: Device, encoding: Encoding, model: Any):
    linear, x = net(8, 4)
    chip = Chip(device, encoding, wires=Wires(30.0, model), array=Array(8, 4 * encoding.devices))
    expected = read(torch.stack([nodal(physical(linear, chip), v, 30.0, 30.0) for v in x]), chip)
    found = map(linear, chip).program()(x)
    # nodal's dense matrix keeps half of float64's digits; the iteration stops at 1e-9 of a voltage
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_physical_tiles_beside_each_other_have_wires_of_their_own():
    linear, x = net(6, 5)
    for encoding in (Differential(), Offset()):
        for model in ("solved", "iterative"):
            wires: Any = Wires(30.0, model)
            chip = Chip(encoding=encoding, wires=wires, array=Array(6, 2 * encoding.devices))
            found = map(linear, chip).program()(x)
            parts = []
            for start in (0, 2, 4):
                part, _ = net(6, 5)
                part.weight.data = part.weight.data[start : start + 2]
                parts.append(read(torch.stack([nodal(physical(part, chip), v, 30.0, 30.0) for v in x]), chip))
            torch.testing.assert_close(found, torch.cat(parts, 1), rtol=1e-5, atol=1e-6)


def test_taking_apart_undoes_the_order_on_the_array():
    for encoding in (Differential(), Offset(), Sliced(6, 2, Offset())):
        planes = encoding.planes(torch.rand(2, 3, 4) * 2 - 1)
        for plane, again in zip(planes, taken_apart(array(planes, [p.share for p in planes]), planes), strict=True):
            assert torch.equal(plane.share, again)


def timed(g: Tensor, x: Tensor, ohm: float, sign: Tensor | None = None) -> Tensor:
    """Currents of columns `vector column` for inputs coded in time: rows leave one by one, those that are left are solved exactly."""
    sign = torch.ones_like(x) if sign is None else sign
    found = x.new_zeros(len(x), g.shape[1])
    for vector, inputs in enumerate(x):
        before = 0.0
        for end in inputs.unique():
            driven = (inputs >= end).to(g)[:, None]
            found[vector] += (end - before) * sign[vector] @ effective((g * driven)[None], 0.0, ohm)[0]
            before = end
    return found


@pytest.mark.parametrize(
    ("device", "encoding", "within"),
    [
        (Device(), Offset(), 0.06),
        (Device(), Differential(), 0.06),
        (LOW, Differential(), 0.06),
        (LOW, Sliced(5, 2), 0.06),
        (Device(9.0, 88.0), Offset(), 0.1),
        (Device(50.0, 225.0), Differential(), 0.15),
        (Device(50.0, 225.0), Offset(), 0.2),
    ],
    ids=["offset", "pair", "pair from 5 uS", "slices from 5 uS", "cmo offset", "milo pair", "milo offset"],
)
@pytest.mark.parametrize("coded", ["graded", "two ways", "binary"])
@torch.no_grad()
def test_the_closed_form_is_loaded_by_all_devices(device: Device, encoding: Encoding, within: float, coded: str):
    """64 rows, 5 ohm: what wires take from the outputs is that of the exact ladder, inputs coded in time.

    The closed form is right to second order in the load; at 225 uS the load is 1.4 and wires take half of the output.
    """
    linear, x = net(64, 6)
    chip = Chip(device, encoding, Dac(bits=None), wires=Wires(5.0, "fast"), array=Array(64, 64))
    g = physical(linear, chip)
    if coded == "binary":
        x = (x > 0.5).double()
    sent = timed(g, x, 5.0)
    if coded == "two ways":  # first all positive rows, then all negative ones would be two reads; together they share the load
        x = x * torch.where(torch.arange(64) % 8 == 0, -1.0, 1.0)
        sent = timed(g, x.abs(), 5.0, x.sign())
    ideal = map(linear, replace(chip, wires=Wires(0.0))).program()(x)
    exact, found = read(sent, chip), map(linear, chip).program()(x)
    assert float((found - exact).norm() / (ideal - exact).norm()) < within
    assert float((exact - ideal).norm() / ideal.norm()) > 0.01  # there is something to be found


@torch.no_grad()
def test_the_closed_form_is_that_of_the_ladder_where_load_is_even():
    linear = nn.Linear(200, 2, bias=False).double()
    nn.init.ones_(linear.weight)
    x = torch.ones(1, 200, dtype=torch.float64)
    for ohm in (0.01, 0.5, 5.0):
        chip = Chip(LOW, Differential(), wires=Wires(ohm, "fast"), array=Array(200, 4))
        exact = read(timed(physical(linear, chip), x, ohm), chip)
        torch.testing.assert_close(map(linear, chip).program()(x), exact, rtol=2e-2 * ohm + 1e-4, atol=0)  # 200 pieces are no continuum


@torch.no_grad()
def test_cells_with_a_curve_are_iterated_or_refused():
    linear, x = net(8, 3)
    chip = Chip(MiloRRAM(), Differential(), wires=Wires(20.0, "iterative"), array=Array(8, 6), reads="quiet")
    found = map(linear, chip).program(0)(x)
    mapped = map(linear, replace(chip, wires=Wires(20.0, "fast"))).program(0)
    load = mapped.tiles("").numbers.load  # pyright: ignore[reportOptionalMemberAccess]
    assert load is not None
    g = load.abs().unflatten(-1, (2, 3)).transpose(-1, -2).flatten(-2)  # tile row (column device)
    powers = chip.device.powers(g)
    currents = solve(g, x[None] * 0.2, 20.0, 20.0, powers)[0]
    span = chip.device.g_max - chip.device.g_min
    torch.testing.assert_close(found, (currents[:, 0::2] - currents[:, 1::2]) / (0.2 * span), rtol=1e-6, atol=1e-7)
    ohmic = solve(g, x[None] * 0.2, 20.0, 20.0)[0]
    assert float((ohmic - currents).abs().max() / currents.abs().max()) > 1e-3  # the curve matters
    for model in ("columns", "solved"):
        with pytest.raises(UsageError, match=r"takes cells to be ohmic, with MiloRRAM.*iterative"):
            Chip(MiloRRAM(), wires=Wires(1.0, model))
    assert Chip(MiloRRAM(), wires=Wires(0.0, "solved")).wires.ohm == 0


@torch.no_grad()
def test_iterated_wires_stand_beside_converters_fresh_reads_and_digits():
    linear, x = net(20, 7)
    device = Gaussian(written=0.0, reading=1e-6)
    chip = Chip(device, Sliced(6, 3, Offset()), Dac(6, digit_bits=1), wires=Wires(2.0, "iterative"), array=Array(10, 6), reads="fresh")
    found = map(linear, chip, calibration=[x]).program()(x)
    without = map(linear, replace(chip, wires=Wires(0.0)), calibration=[x]).program()(x)
    assert 0.001 < float((found - without).norm() / without.norm()) < 0.2
