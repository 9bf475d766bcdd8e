"""Use of a device: pulses counted against the formula, life, disturbance by reading."""

import math
from dataclasses import replace

import pytest
import torch

from lessen.analog import chipfile
from lessen.analog.chip import Chip
from lessen.analog.chipfile import preset
from lessen.analog.described import derived
from lessen.analog.devices import DEVICES
from lessen.analog.devices.flash import NorFlash
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.devices.wear import Use, Wear, expected_pulses, verified, wear
from lessen.analog.mapping import map
from lessen.errors import LessenError, UsageError


@pytest.mark.parametrize("ratio", [0.25, 1.0, 3.0])
def test_pulses_of_write_and_verify_are_as_many_as_the_formula_says(ratio: float):
    device = Gaussian(written=0.02)  # 0.5 uS of 25
    target = torch.full((200, 500), 12.0)
    g, pulses = verified(device, target, 0.5 * ratio, torch.Generator().manual_seed(0))
    expected = float(expected_pulses(torch.tensor(0.5), 0.5 * ratio))
    # Geometric: the mean of 100,000 counts has a standard error of sqrt(1 - p) / (p sqrt(n)), at most 0.3 % of 1 / p.
    assert float(pulses.double().mean()) == pytest.approx(expected, rel=0.015)
    assert float((g - target).abs().max()) <= 0.5 * ratio
    assert g.shape == pulses.shape == target.shape
    # What is accepted is the same Gaussian, cut: its deviation has a closed form.
    cut = ratio * math.sqrt(2 / math.pi) * math.exp(-ratio * ratio / 2) / math.erf(ratio / math.sqrt(2))
    assert float(g.double().std()) == pytest.approx(0.5 * math.sqrt(1 - cut), rel=0.01)


def test_what_is_never_accepted_is_an_error():
    with pytest.raises(LessenError, match=r"write and verify: got .* of 100 devices outside after 3 pulses"):
        verified(Gaussian(written=0.1), torch.full((100,), 12.0), 0.01, torch.Generator().manual_seed(0), limit=3)
    for tolerance in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="tolerance"):
            verified(Gaussian(), torch.ones(2), tolerance, torch.Generator())
        with pytest.raises(UsageError, match="tolerance"):
            expected_pulses(torch.ones(2), tolerance)


def test_a_fixed_network_lives_for_ever_and_one_that_learns_does_not():
    assert Wear(1e5).lifetime_seconds(3, 0.0) == math.inf
    assert Wear(1e5).lifetime_seconds(5, 2.0) == 1e4
    assert Wear().lifetime_seconds(5, 2.0) == math.inf
    for pulses, rate in ((0.0, 1.0), (1.0, -1.0), (math.nan, 1.0)):
        with pytest.raises(UsageError, match="lifetime"):
            Wear(1e5).lifetime_seconds(pulses, rate)


def test_reads_disturb_with_their_logarithm():
    found, g = Wear(disturb=0.01, onset=1e6), torch.tensor([2.0, 10.0], dtype=torch.float64)
    torch.testing.assert_close(found.disturbed(g, 0), g)
    torch.testing.assert_close(found.disturbed(g, 9e6), g * 1.01)
    torch.testing.assert_close(found.disturbed(g, 1e12 - 1e6), g * 1.06)
    assert bool((Wear(disturb=-0.5).disturbed(g, 1e300) == 0).all())
    for reads in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="reads"):
            found.disturbed(g, reads)


def test_every_device_has_an_order_of_magnitude():
    assert wear(NorFlash()).endurance < wear(DEVICES[2]()).endurance
    for kind in DEVICES:
        assert wear(kind()).endurance > 0


@pytest.mark.parametrize("wrong", [{"endurance": 0.0}, {"endurance": math.nan}, {"disturb": 1.0}, {"onset": 0.0}])
def test_wear_that_makes_no_sense_is_refused(wrong: dict[str, float]):
    with pytest.raises(UsageError, match="Wear"):
        Wear(**wrong)


def test_a_description_says_how_long_a_chip_lives():
    found = derived(preset("rram-milo"))
    assert found["endurance"] == "1e+06 pulses, an order of magnitude: 2,740 years if every value is written once a day"
    assert found["read disturb"] == "0.5% a decade of reads beyond 1e+06"
    assert "endurance" not in derived(preset("ideal"))
    often = replace(preset("rram-milo"), use=Use(reads_a_second=1e6, updates_a_second=1.0, pulses=10, endurance=1e7))
    assert derived(often)["endurance"] == "1e+07 pulses: 0.03171 years if every value is written as often as stated"  # 1e6 s
    assert derived(often)["read disturb"].endswith(": 3.7% after a year at 1e+06 reads a second")  # 0.5 % x log10(3.15e7)


@pytest.mark.parametrize("wrong", [{"reads_a_second": -1.0}, {"pulses": 0.5}, {"updates_a_second": math.nan}, {"disturb": 2.0}])
def test_use_that_makes_no_sense_is_refused(wrong: dict[str, float]):
    with pytest.raises(UsageError, match=r"Use|Wear"):
        Use(**wrong)


@torch.no_grad()
def test_reads_move_what_a_mapped_network_computes():
    layer, x = torch.nn.Linear(16, 4, bias=False), torch.ones(1, 16)
    read = Chip(use=Use(reads_a_second=1e6, disturb=0.01, onset=1e6))
    exact, quiet, moved = layer(x), *(map(layer, chip).program(0, seconds=999.0)(x) for chip in (Chip(), read))
    torch.testing.assert_close(quiet, exact)
    torch.testing.assert_close(moved, 1.03 * exact)  # three decades of one per cent
    found = map(layer, replace(read, compensation="tile")).program(0, seconds=999.0)(x)
    torch.testing.assert_close(found, exact)  # all devices of a tile alike: digital correction finds the factor


def test_use_stands_in_a_chip_file():
    chip = replace(preset("nor-wtm2101"), use=Use(reads_a_second=10.0, endurance=1e4))
    assert chipfile.loads(chipfile.dumps(chip)) == chip


@pytest.mark.parametrize("ratio", [0.25, 1.0, 3.0])
def test_a_tolerance_says_how_many_pulses_a_value_takes(ratio: float):
    device, use = Gaussian(written=0.02), Use(tolerance_us=0.5 * ratio, pulses=7.0, updates_a_second=2.0, endurance=1e6)  # 0.5 uS of 25
    # The deviation of 16,384 samples is right to 1 / sqrt(2 n) = 0.55 %, and so are the pulses where they go with its inverse.
    assert use.pulses_of(device) == pytest.approx(float(expected_pulses(torch.tensor(0.5), 0.5 * ratio)), rel=0.02)
    counted = verified(device, torch.full((20_000,), 12.5), 0.5 * ratio, torch.Generator().manual_seed(1))[1]
    assert use.pulses_of(device) == pytest.approx(float(counted.double().mean()), rel=0.04)  # standard error of the count: up to 0.7 %
    assert use.life_seconds(device) == pytest.approx(1e6 / (2 * use.pulses_of(device)))
    assert replace(use, tolerance_us=None).pulses_of(device) == 7.0


def test_a_description_says_how_many_pulses_a_value_takes():
    chip = preset("rram-milo")
    assert derived(chip)["pulses for a value"] == "1, as stated"
    found = derived(replace(chip, use=Use(tolerance_us=1.0)))
    pulses, why = found["pulses for a value"].split(" ", 1)
    assert float(pulses) > 1 and why == "on average, to be within 1 uS in the middle of the range"
    years = float(found["endurance"].split(": ")[1].split(" ")[0].replace(",", ""))
    assert years == pytest.approx(1e6 / 365 / float(pulses), rel=0.01)  # written once a day; pulses are shown to three digits
    assert chipfile.loads(chipfile.dumps(replace(chip, use=Use(tolerance_us=1.0)))).use.tolerance_us == 1.0
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match="tolerance_us"):
            Use(tolerance_us=wrong)
