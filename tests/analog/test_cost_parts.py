"""Figures of components against what was published, and how they scale."""

import pytest
import torch

from lessen.analog.chip import Array, Chip, System
from lessen.analog.cost.components import Technology, cell_read_pj
from lessen.analog.cost.scaling import NODES_NM, area_factor, energy_factor
from lessen.analog.cost.tile import mean_share, read_pj
from lessen.analog.devices.device import Device
from lessen.analog.devices.sram import SramCell
from lessen.analog.encoding import Differential, Offset, Sliced
from lessen.analog.periphery import Adc, Dac


def test_nothing_changes_where_it_was_published():
    for node in NODES_NM:
        assert energy_factor(node, 0.9, of=(node, 0.9)) == 1
        assert area_factor(node, of=node) == 1


def test_smaller_nodes_and_lower_supplies_take_less():
    energies = [energy_factor(node, 0.8, of=(45, 0.9)) for node in (180, *NODES_NM, 22, 5, 3)]
    ordered = dict(zip((180, *NODES_NM, 22, 5, 3), energies, strict=True))
    assert [ordered[n] for n in sorted(ordered)] == sorted(energies)
    assert energy_factor(22, 0.7, of=(45, 0.9)) < energy_factor(22, 0.8, of=(45, 0.9))
    assert energy_factor(65, 0.3, of=(65, 0.5)) == 1  # below the minimum of the fit nothing is gained
    areas = [area_factor(node, of=45) for node in (180, 130, 65, 45, 22, 7, 5)]
    assert areas == sorted(areas, reverse=True)


def test_the_scaling_table_is_the_published_one():
    assert area_factor(65, of=130) == pytest.approx(0.23)
    assert area_factor(7, of=130) == pytest.approx(0.0092)
    at = {node: a * 0.81 + b * 0.9 + c for node, (a, b, c) in {45: (1.103, -0.362, 0.2767), 7: (0.1776, -0.09097, 0.02447)}.items()}
    assert energy_factor(7, 0.9, of=(45, 0.9)) == pytest.approx(at[7] / at[45])


def test_memories_are_those_of_the_source():
    figures = Technology(45, 0.9)
    # 64 bits of 8 KiB, 32 KiB and 1 MiB: 10, 20, 100 pJ; the square root passes 13 % above the last
    assert [64 * figures.memory_pj(kib) for kib in (8, 32)] == pytest.approx([10, 20])
    assert 64 * figures.memory_pj(1024) == pytest.approx(100, rel=0.15)
    assert 256 * Technology(32, 0.9).memory_pj(64, "edram") == pytest.approx(20.45)
    assert Technology(32, 0.9).memory_um2(64, "edram") == pytest.approx(83000)
    assert figures.memory_pj(4096) > figures.memory_pj(1024)  # wires to its banks


def test_logic_and_wires_are_those_of_the_source():
    assert Technology(45, 0.9).mac_pj == pytest.approx(0.3)
    assert 256 * Technology(32, 0.9).hop_pj == pytest.approx(20.74)
    assert Technology(32, 0.9).shift_add_pj == pytest.approx(0.021)
    assert Technology(40, 0.9).scale_pj == pytest.approx(0.25)
    # 256 bits over 10 mm: 310 pJ at 0.9 V, 200 pJ at 0.75 V, 150 pJ at 0.65 V; one capacitance for all passes within 8 %
    for supply, published in ((0.9, 310), (0.75, 200), (0.65, 150)):
        assert 2560 * Technology(40, supply).wire_pj(1.0) == pytest.approx(published, rel=0.1)
    assert Technology(22, 0.8).dac_pj(1) == 0
    assert Technology(28, 0.8).dac_pj(8) == pytest.approx(0.05 * 8 * 0.64)


def test_a_cell_is_ohms_law():
    assert cell_read_pj(25.0, 0.2, 100.0, 1.0) == pytest.approx(25e-6 * 0.2 * 0.2 * 100e-9 * 1e12)


def test_conductances_are_those_of_the_weights():
    weight = torch.tensor([[1.0, 0.5], [0.0, -1.0]])
    assert mean_share(weight, Chip(encoding=Differential())) == pytest.approx(2.5 / 4 / 2)
    # each device of an offset encoding stands at the middle, plus half its weight
    assert mean_share(weight, Chip(encoding=Offset())) == pytest.approx(0.5 + (1 + 0.5 - 1) / 4 / 2)
    # 127, 64, 0, -127 in base 4: digits 3331, 0001, 0, -(3331)
    digits = (3 + 3 + 3 + 1) + 1 + (3 + 3 + 3 + 1)
    assert mean_share(weight, Chip(encoding=Sliced(8, 2))) == pytest.approx(digits / 3 / (4 * 4 * 2))


def test_rows_that_padding_adds_hold_no_devices():
    weight = torch.ones(1, 5)
    for encoding in (Differential(), Offset()):
        whole = mean_share(weight, Chip(encoding=encoding))
        assert mean_share(weight, Chip(encoding=encoding, array=Array(2, 8))) == pytest.approx(whole)


def test_a_normal_matrix_stands_in_for_weights_that_are_not_given():
    torch.manual_seed(0)
    drawn = mean_share(torch.randn(256, 512), Chip())
    assert mean_share(None, Chip()) == pytest.approx(drawn, rel=0.05)  # the largest of 512 draws scatters by more than that in one column


def test_an_sram_cell_moves_charge_and_no_current():
    slow = Chip(device=SramCell(), dac=Dac(8, digit_bits=1), adc=Adc(8), system=System(read_ns=1000))
    fast = Chip(device=SramCell(), dac=Dac(8, digit_bits=1), adc=Adc(8), system=System(read_ns=10))
    assert read_pj(1.0, slow) == read_pj(1.0, fast) == pytest.approx(1.2e-3 * 0.64 / 2)
    ohmic = Chip(device=Device(g_min=5, g_max=25), dac=Dac(8), adc=Adc(8))
    assert read_pj(0.0, ohmic) == pytest.approx(5e-6 * 0.04 * 100e-9 * 1e12 / 3)
