"""Remapping: the order of rows and columns changes nothing on a sound chip, and takes much of the harm of stuck devices."""

from dataclasses import replace
from itertools import permutations
from statistics import fmean

import pytest
import torch
from torch import nn

from lessen.analog.chip import Array, Chip
from lessen.analog.devices.faults import Faults
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.devices.pcm import PCM
from lessen.analog.encoding import Differential, Offset, Sliced
from lessen.analog.mapping import map
from lessen.analog.robust.remap import Remap, _Tile
from lessen.analog.simulation import simulate
from lessen.analog.tiles.arrangement import Arrangement
from lessen.analog.tiles.crossbar import pieces, stuck
from lessen.errors import UsageError
from tests.analog.robust_nets import classifier, cross_entropy, pictures

ENCODINGS = [Differential(), Differential("tile"), Offset(), Sliced(4, 1), Sliced(6, 2, Offset())]


def shuffled(mapped, seed: int) -> None:
    """Any order on every tile."""
    random = torch.Generator().manual_seed(seed)
    for name in mapped.layers:
        tiles = mapped.tiles(name)
        for number, _, logical in pieces(tiles_weight(mapped, name), tiles.place):
            count, rows, columns = logical.shape
            width = tiles.chip.columns
            spans = [range(start, min(start + width, columns)) for start in range(0, columns, width)]
            order = torch.stack([torch.cat([torch.randperm(len(s), generator=random) + s[0] for s in spans]) for _ in range(count)])
            lines = torch.stack([torch.stack([torch.randperm(rows, generator=random) for _ in spans]) for _ in range(count)])
            signs = torch.randint(2, (count, columns), generator=random) * 2.0 - 1
            tiles.arranged[number] = Arrangement(0, lines, order, signs, width)


def tiles_weight(mapped, name: str) -> torch.Tensor:
    return mapped.layers[name].weight.detach().flatten(1)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
def test_any_order_computes_the_same_on_a_sound_chip(encoding):
    model = nn.Sequential(nn.Conv2d(6, 8, 3, groups=2), nn.Flatten(), nn.Linear(8 * 9, 30)).double()
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mapped = map(model, Chip(encoding=encoding, array=Array(20, 8 * encoding.devices)))
    with torch.no_grad():
        before = mapped.program(0).model(x)
        shuffled(mapped, 1)
        after = mapped.program(0).model(x)
    assert (after - before).abs().max() < 1e-12 * before.abs().max()


@torch.no_grad()
def test_drift_is_corrected_by_the_order_that_is_there():
    model, x = nn.Sequential(nn.Linear(60, 40)), torch.randn(32, 60)
    chip = Chip(device=PCM(), faults=Faults(0.03, 0.003), array=Array(64, 64), compensation="column")
    mapped = map(model, chip).program(0, 20.0)
    mapped(x)  # a reference of the order before
    Remap().arrange(mapped)
    found = mapped.at(86400.0)(x)
    fresh = map(model, chip).program(0, 20.0)
    for name in mapped.layers:
        fresh.tiles(name).arranged = mapped.tiles(name).arranged
    assert torch.equal(fresh.at(86400.0)(x), found)
    lost = [(y - model(x)).square().mean() for y in (map(model, chip).program(0, 86400.0)(x), found)]
    assert lost[1] < 0.7 * lost[0]


def test_devices_differ_after_a_change_of_order_and_only_for_the_chip_that_it_is_meant_for():
    model = nn.Sequential(nn.Linear(20, 30))
    x = torch.randn(4, 20)
    mapped = map(model, Chip(Gaussian(written=0.1), array=Array(8, 16)))
    with torch.no_grad():
        before = [mapped.program(seed).model(x) for seed in (0, 1)]
        shuffled(mapped, 1)
        after = [mapped.program(seed).model(x) for seed in (0, 1)]
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
def test_the_expected_error_is_the_one_that_the_chip_makes(encoding):
    model = nn.Sequential(nn.Linear(20, 30, bias=False)).double()
    chip = Chip(encoding=encoding, array=Array(10, 8 * encoding.devices), faults=Faults(0.05, 0.05))
    mapped = map(model, chip)
    expected = Remap().arrange(mapped, 3)["0"]
    eye = torch.eye(20, dtype=torch.float64)

    def error(net) -> float:
        with torch.no_grad():
            exact = net.model(eye).t()
        # a sliced weight is rounded before anything is stuck, which the expectation leaves out, and so does this
        sound = map(model, replace(chip, faults=Faults())).program(3)
        with torch.no_grad():
            return float((exact - sound.model(eye).t()).square().sum())

    # faults of a reference column move all columns of its tile, whatever the order: not part of what an order decides
    if not encoding.references:
        assert error(mapped) == pytest.approx(expected[1], rel=1e-6)
        mapped.tiles("0").arranged.clear()
        assert error(mapped.program(3)) == pytest.approx(expected[0], rel=1e-6)
    assert expected[1] < 0.5 * expected[0]


def test_the_assignment_of_rows_is_the_best_there_is():
    random = torch.Generator().manual_seed(0)
    weight = torch.rand(5, 4, generator=random) * 2 - 1
    chip = Chip(array=Array(5, 8), faults=Faults(0.2, 0.2))
    marks = [states[0] for _, states in stuck(weight[None], chip, 0, "layer")]
    one = _Tile(weight, torch.rand(4, generator=random) + 0.5, torch.rand(5, generator=random), chip, marks)
    one._rows()
    found = one.loss()
    every = []
    for order in permutations(range(5)):
        one.rows = torch.tensor(order)
        every.append(one.loss())
    assert found == pytest.approx(min(every), rel=1e-5)


def test_more_passes_never_make_it_worse():
    model = nn.Sequential(nn.Linear(40, 40))
    chip = Chip(array=Array(40, 80), faults=Faults(0.05, 0.02))
    losses = [Remap(passes=n).arrange(map(model, chip), 0)["0"][1] for n in (1, 2, 4)]
    assert losses[0] >= losses[1] >= losses[2] > 0


def test_a_classifier_gets_most_of_what_faults_took_back():
    model, evaluate = classifier(), cross_entropy()
    with torch.no_grad():
        digital = evaluate(model)
    mapped = map(model, Chip(array=Array(64, 64), faults=Faults(0.05, 0.02)))
    plain, remapped = [], []
    batches = [pictures(64, 5)[0]]
    for seed in range(4):
        mapped.program(seed)
        with torch.no_grad():
            plain.append(evaluate(mapped.model) - digital)
        Remap().arrange(mapped, seed, batches)
        with torch.no_grad():
            remapped.append(evaluate(mapped.model) - digital)
    assert fmean(plain) > 0.2  # nats: faults do harm
    assert fmean(remapped) < 0.4 * fmean(plain)


def test_a_simulation_remaps_each_of_its_chips():
    model, evaluate = classifier(), cross_entropy(200)
    mapped = map(model, Chip(array=Array(64, 64), faults=Faults(0.05, 0.02)))
    plain = simulate(mapped, evaluate, chips=2, times=[0.0, 10.0])
    found = simulate(mapped, evaluate, chips=2, times=[0.0, 10.0], adapt=Remap())
    assert all(a.values["quality"] < b.values["quality"] for a, b in zip(found.looks, plain.looks, strict=True))


def test_wrong_requests_are_refused():
    with pytest.raises(UsageError, match="wanted 1 or more"):
        Remap(passes=0)
    with pytest.raises(UsageError, match="program"):
        Remap().arrange(map(nn.Sequential(nn.Linear(3, 3)), Chip()))
