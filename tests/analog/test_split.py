"""Sensitivities find the layers that a chip harms, and the split keeps a stated loss with as much as possible on tiles."""

import pytest
import torch
from torch import nn

from lessen.analog.chip import Chip
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.mapping import Split, map
from lessen.analog.sensitivity import sensitivity
from lessen.analog.splitting import find_split
from lessen.errors import UsageError
from tests.analog.robust_nets import classifier, cross_entropy


class Fragile(nn.Module):
    """Two paths that are added; the chip's errors in the second are multiplied by a hundred."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sturdy, self.fragile, self.large = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sturdy(x) + 10 * self.fragile(x) + 0.1 * self.large(x)[:, :16]


def error_of(model: nn.Module):
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = model(x)
    return lambda net: float((net(x) - exact).square().mean())


@pytest.mark.parametrize("mode", ["alone", "spared"])
def test_sensitivity_ranks_layers_by_the_gain_of_their_errors(mode):
    model = Fragile()
    rows = sensitivity(map(model, Chip(Gaussian(written=0.05))), error_of(model), mode=mode)
    assert [row.name for row in rows] == ["fragile", "sturdy", "large"]
    # gains 10, 1 and 0.1: squared errors a hundred apart, within a factor of 4 for 1024 weights on three chips
    ratios = rows[0].loss / rows[1].loss, rows[1].loss / rows[2].loss
    assert all(25 < ratio < 400 for ratio in ratios[: 2 if mode == "alone" else 1])


def test_losses_depend_on_the_chip_alone_and_the_mapped_network_stays_programmed_as_it_was():
    model, chip = classifier(), Chip(Gaussian(written=0.1, reading=0.02), reads="fresh")
    mapped = map(model, chip).program(5)
    x = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = mapped.program(5).model(x)
    first = sensitivity(mapped, cross_entropy(100), chips=2)
    again = sensitivity(mapped, cross_entropy(100), chips=2)
    assert first == again
    assert mapped.seed == 5
    with torch.no_grad():
        assert torch.equal(mapped.program(5).model(x), before)


def test_the_split_keeps_its_limit_where_all_on_tiles_does_not_and_leaves_most_on_tiles():
    model = classifier()
    mapped = map(model, Chip(Gaussian(written=0.15)))
    found = find_split(mapped, cross_entropy(), max_loss=0.05, chips=3)
    assert found.all_analog > 0.1
    assert found.loss <= 0.05
    # chips that the search has not seen: half of what was lost is back, whatever luck it had
    assert sum(found.proof) / 3 < found.all_analog / 2
    assert found.digital_share < 0.3
    rows = found.table()
    assert {row["layer"] for row in rows if row["digital"]} == set(found.split.digital)
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_worth_decides_between_layers_that_hurt_alike():
    model = Fragile()
    model.sturdy.weight.data.copy_(model.fragile.weight.data)
    chip, evaluate = Chip(Gaussian(written=0.05)), error_of(model)
    limit = 0.5 * find_split(map(model, chip), evaluate, max_loss=1e9).loss
    cheap = find_split(map(model, chip), evaluate, max_loss=limit, worth={"sturdy": 1, "fragile": 1, "large": 1})
    assert cheap.split.digital == ("fragile",)  # the only layer without which half of the loss is gone
    assert cheap.digital_share == pytest.approx(1 / 3)


def test_a_limit_of_zero_is_all_digital_and_a_wide_one_all_analog():
    model = Fragile()
    mapped = map(model, Chip(Gaussian(written=0.05)))
    assert set(find_split(mapped, error_of(model), max_loss=0.0).split.digital) == {"sturdy", "fragile", "large"}
    assert find_split(mapped, error_of(model), max_loss=1e9).split == Split()


def test_layers_kept_digital_by_the_mapping_stay_in_the_split():
    model = Fragile()
    mapped = map(model, Chip(Gaussian(written=0.05)), split=["large"])
    assert "large" in find_split(mapped, error_of(model), max_loss=1e9).split.digital


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_loss": -1.0}, "wanted at least 0"),
        ({"max_loss": 1.0, "worth": {"sturdy": 1.0}}, "wanted a number of at least 0 for every layer"),
        ({"max_loss": 1.0, "better": "less"}, "better"),
        ({"max_loss": 1.0, "chips": 0}, "at least one seed"),
    ],
)
def test_requests_that_make_no_sense_are_refused(wrong, message):
    model = Fragile()
    with pytest.raises(UsageError, match=message):
        find_split(map(model, Chip()), error_of(model), **wrong)


def test_an_unknown_member_of_a_group_gets_the_nearest_name():
    model = Fragile()
    with pytest.raises(UsageError, match="did you mean sturdy"):
        sensitivity(map(model, Chip()), error_of(model), groups={"a": ["sturdi"]})
