"""Stuck devices: as many as asked for, at the ends, the same ones every time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lessen.analog.chip import Chip
from lessen.analog.devices.faults import Faults
from lessen.analog.devices.pcm import PCM
from lessen.analog.tiles.crossbar import Moment, realise
from lessen.analog.tiles.streams import stream
from lessen.errors import UsageError

ENDS = (1.0, 40.0)


@pytest.mark.parametrize(("low", "high"), [(0.0175, 0.0904), (0.0, 0.1), (0.5, 0.5)])
def test_as_many_are_stuck_as_was_asked_for(low: float, high: float):
    n = 1_000_000
    found = Faults(low, high).apply(torch.full((n,), 20.0), ENDS, stream(3, "faults"))
    for end, rate in zip(ENDS, (low, high), strict=True):
        # Five standard errors of a binomial count: a correct rate fails once in 1.7 million.
        assert float((found == end).double().mean()) == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / n) + 1e-12)
    assert bool(((found == 20.0) | (found == ENDS[0]) | (found == ENDS[1])).all())


def test_the_same_devices_are_stuck_at_every_time():
    a = Faults(0.02, 0.05).apply(torch.full((4, 50, 60), 20.0), ENDS, stream(1, "faults", "layer"))
    b = Faults(0.02, 0.05).apply(torch.full((4, 50, 60), 10.0), ENDS, stream(1, "faults", "layer"))
    assert bool(((a == ENDS[0]) == (b == ENDS[0])).all())
    assert bool(((a == ENDS[1]) == (b == ENDS[1])).all())


def test_more_faults_keep_those_that_were():
    g = torch.full((1000,), 20.0)
    few, many = (Faults(rate, rate).apply(g, ENDS, stream(1, "faults")) != 20 for rate in (0.05, 0.2))
    assert bool((many | ~few).all())
    assert int(many.sum()) > int(few.sum()) > 0


def test_a_chip_without_faults_costs_nothing():
    g = torch.ones(3)
    assert Faults().apply(g, ENDS, stream(0)) is g
    assert not Faults()


@given(st.floats(-1, 2), st.floats(-1, 2))
def test_rates_are_shares(low: float, high: float):
    if low >= 0 and high >= 0 and low + high <= 1:
        Faults(low, high)
    else:
        with pytest.raises(UsageError, match="shares of devices"):
            Faults(low, high)


def test_nan_is_no_rate():
    with pytest.raises(UsageError):
        Faults(math.nan, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_are_kept(dtype: torch.dtype):
    assert Faults(0.1, 0.1).apply(torch.ones(10, dtype=dtype), ENDS, stream(0)).dtype == dtype


def test_a_stuck_device_is_read_with_the_noise_of_where_it_is_stuck():
    chip = Chip(device=PCM(), faults=Faults(high=1.0), reads="fresh")
    made = realise(torch.zeros(1, 4, 4), chip, Moment(0, "layer", 3600.0))
    full = torch.full((1,), chip.device.g_max)
    sigma = chip.device.read_sigma(full, 3600.0, full)
    assert made.variance is not None and sigma is not None
    both = 2 * (sigma / chip.device.g_max).square()  # devices of a pair
    torch.testing.assert_close(made.variance, both.expand_as(made.variance))
