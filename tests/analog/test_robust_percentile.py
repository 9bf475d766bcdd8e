"""Ranges of converters: searched ones lose less than the widest, and never more than any that was tried."""

from statistics import fmean

import pytest
import torch
from torch import nn

from lessen.analog.chip import Array, Chip
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.encoding import Differential, Offset, Sliced
from lessen.analog.mapping import map
from lessen.analog.periphery import Adc, Dac
from lessen.analog.robust.percentile import RangeSearch, _lost, sweep
from lessen.errors import LessenError, UsageError
from tests.analog.robust_nets import classifier, cross_entropy, pictures


def heavy_tailed(count: int, width: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(count, width, generator=random) * torch.randn(count, width, generator=random).exp()


@pytest.mark.parametrize("levels", [3, 7, 31])
def test_the_range_of_inputs_has_the_least_error_at_the_outputs_of_all_that_were_tried(levels):
    x, weight = heavy_tailed(400, 12), torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    found = RangeSearch().of_inputs(x, weight, levels)

    def at_outputs(full) -> float:  # errors of different inputs are independent: their squares add up
        return float((_lost(x, torch.as_tensor(full), levels).square() @ weight.square().t()).sum())

    tried = [at_outputs(x.abs().max() * k / 40) for k in range(1, 41)]
    assert at_outputs(found) == pytest.approx(min(tried))
    assert at_outputs(found) < 0.9 * tried[-1]  # the widest range


def test_entropy_clips_tails_of_heavy_tailed_inputs_and_keeps_the_range_of_even_ones():
    even = torch.rand(2000, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    search, weight = RangeSearch(dac="entropy"), torch.ones(1, 8)
    assert search.of_inputs(even, weight, 127) > 0.9
    tails = heavy_tailed(2000, 8)
    assert search.of_inputs(tails, weight, 7) < 0.5 * tails.abs().max()


@pytest.mark.parametrize("per", ["column", "tile"])
@pytest.mark.parametrize("encoding", [Differential(), Offset(), Sliced(4, 2)], ids=repr)
def test_the_ranges_of_sums_lose_less_than_the_widest_at_the_outputs(encoding, per):
    model = nn.Sequential(nn.Linear(40, 24))
    x = heavy_tailed(500, 40)
    chip = Chip(encoding=encoding, array=Array(16, 8 * encoding.devices), dac=Dac(8, range="dynamic"), adc=Adc(4, per=per))
    mapped = map(model, chip)

    def error(search: RangeSearch) -> float:
        search.calibrate(mapped, [x])
        with torch.no_grad():
            return float((mapped.program().model(x) - model(x)).square().mean())

    widest, best = error(RangeSearch(adc="quantile", quantile=1.0)), error(RangeSearch())
    assert mapped.tiles("0").ranges.sums is not None
    assert best < 0.7 * widest


def test_a_classifier_on_coarse_inputs_loses_less_with_searched_ranges():
    model, evaluate = classifier(), cross_entropy()
    with torch.no_grad():
        digital = evaluate(model)
    mapped = map(model, Chip(Gaussian(written=0.02), dac=Dac(3), adc=Adc(8), array=Array(64, 64)))
    lost = {}
    for name, search in {"widest": RangeSearch("quantile", "quantile", 1.0), "mse": RangeSearch()}.items():
        search.calibrate(mapped, [pictures(128, 5)[0]])
        with torch.no_grad():
            lost[name] = fmean(evaluate(mapped.program(seed).model) for seed in range(3)) - digital
    assert lost["widest"] > 0.1
    assert lost["mse"] < 0.6 * lost["widest"]


def test_a_sweep_leaves_the_best_quantile_in_place():
    model, evaluate = classifier(), cross_entropy(200)
    mapped = map(model, Chip(dac=Dac(4), adc=Adc(4), array=Array(64, 64)))
    best, found = sweep(mapped, [pictures(64, 5)[0]], evaluate, (0.9, 0.99, 1.0))
    assert found[best] == min(found.values()) < found[1.0]
    with torch.no_grad():
        assert evaluate(mapped.model) == pytest.approx(found[best])


def test_wrong_requests_are_refused():
    with pytest.raises(UsageError, match="a quantile from"):
        RangeSearch(quantile=0.2)
    mapped = map(nn.Sequential(nn.Linear(3, 3)), Chip(dac=Dac(8), adc=Adc(8)))
    with pytest.raises(UsageError, match="at least one"):
        RangeSearch().calibrate(mapped, [])
    with pytest.raises(LessenError, match="data that reaches"):
        RangeSearch().calibrate(mapped, [torch.ones(1, 3)], run=lambda model, batch: None)
