"""What follows from a chip's description: wires and reference columns."""

import pytest
import torch

from lessen.analog.chip import Array, Chip
from lessen.analog.chipfile import preset, presets
from lessen.analog.described import derived
from lessen.analog.devices.device import Device
from lessen.analog.encoding import Differential, Offset, Sliced
from lessen.analog.periphery import Wires
from lessen.analog.tiles.resistance import effective
from lessen.analog.tiles.wires import array


@pytest.mark.parametrize(("rows", "ohm"), [(128, 1.0), (256, 5.0), (512, 20.0)])
def test_the_loss_of_a_column_is_that_of_kirchhoffs_equations(rows: int, ohm: float):
    chip = Chip(device=Device(g_min=5.0, g_max=25.0), array=Array(rows, 64), wires=Wires(ohm))
    told = derived(chip)["IR drop"]
    assert told.endswith(f"of a column of {rows} devices of 15 uS, all driven, by the wire of the column alone")
    column = torch.full((1, rows, 1), 15.0, dtype=torch.float64)
    exact = 1 - float(effective(column, 0.0, ohm).sum() / column.sum())
    # The closed form is of a continuous wire, from which one of so many cells differs by about 1 / rows; a tenth of a per cent is shown.
    assert float(told.split("%")[0]) / 100 == pytest.approx(exact, rel=1.5 / rows, abs=6e-4)


def test_no_loss_is_told_where_it_is_none_and_none_shown_as_nothing():
    assert derived(Chip())["IR drop"] == "none described (wires.ohm = 0)"
    assert derived(Chip(array=Array(8, 8), wires=Wires(0.1)))["IR drop"].startswith("0.1% at most of the current")


@pytest.mark.parametrize(
    ("encoding", "columns", "says"),
    [
        (Offset(), 64, "1 beside the 64 of weights; array.columns = 64 does not count them"),
        (Sliced(8, 2, Offset()), 67, "4 beside the 64 of weights, one for each digit of a weight; array.columns = 67 does not count them"),
        (Sliced(8, 1, Offset()), 13, "7 beside the 7 of weights, one for each digit of a weight; array.columns = 13 does not count them"),
    ],
    ids=repr,
)
def test_reference_columns_are_counted(encoding: Offset | Sliced, columns: int, says: str):
    chip = Chip(encoding=encoding, array=Array(64, columns))
    assert derived(chip)["reference columns of a tile"] == says
    planes = encoding.planes(torch.zeros(1, 64, chip.columns))
    conductances = [plane.share for plane in planes]
    beside = sum(plane.reference for plane in planes)
    assert int(says.split(" ")[0]) == beside
    assert array(planes, conductances).shape[-1] == chip.columns * encoding.devices + beside > columns  # they never fit in what is left


def test_pairs_need_no_references():
    for chip in (Chip(encoding=Differential()), *(preset(name) for name in presets())):
        assert ("reference columns of a tile" in derived(chip)) == chip.encoding.references
