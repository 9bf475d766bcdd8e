"""Converters: the reference's table to three digits, the package that the coefficients are from, and the other published model."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers import hwcomponents_adc
from lessen.analog.chip import Chip, System
from lessen.analog.cost.adc import Stated, Successive, Survey, lossless_adc_bits, survey_area_um2, survey_energy_pj
from lessen.analog.periphery import Adc, Dac
from lessen.errors import UsageError

# Energy in pJ and area in um2 at 100 MS/s, evaluated from the regression once, outside this project.
TABLE = {
    65: [(3.50, 9860), (3.55, 9900), (4.04, 10289), (4.97, 10951), (6.49, 11862), (8.87, 13020), (12.5, 14443)],
    32: [(0.924, 3274), (0.936, 3287), (1.07, 3417), (1.31, 3637), (1.71, 3939), (2.34, 4324), (3.31, 4796)],
    22: [(0.457, 1828), (0.463, 1835), (0.527, 1907), (0.649, 2030), (0.847, 2199), (1.16, 2414), (1.64, 2678)],
}


@pytest.mark.parametrize("node", TABLE)
def test_the_table_comes_out_to_three_digits(node: int):
    for bits, (energy, area) in enumerate(TABLE[node], start=4):
        assert float(f"{survey_energy_pj(bits, node, 1e8):.3g}") == energy
        assert round(survey_area_um2(bits, node, 1e8)) == area


def test_a_faster_converter_of_few_bits_takes_area_and_no_energy():
    assert survey_energy_pj(8, 22, 1e9) == survey_energy_pj(8, 22, 1e8)
    assert round(survey_area_um2(8, 22, 1e9)) == 3334


@pytest.mark.skipif(
    not hwcomponents_adc.installed(), reason="hwcomponents-adc is not installed: python -m benchmarks.peers.hwcomponents_adc"
)
def test_the_package_that_the_coefficients_are_from_says_the_same():
    for bits in (4, 5.5, 6, 8, 10, 12, 14):
        for node in (7, 14, 22, 40, 65, 130):
            for rate in (1e6, 1e8, 1e9, 5e9):
                energy, area = hwcomponents_adc.price(bits, node, rate)
                # the same formula in the same precision; the order of additions differs
                assert survey_energy_pj(bits, node, rate) == pytest.approx(energy, rel=1e-9)
                assert survey_area_um2(bits, node, rate) == pytest.approx(area, rel=1e-9)


@given(st.integers(4, 16), st.floats(7, 130), st.floats(1e5, 1e10))
def test_more_bits_an_older_node_or_a_higher_rate_never_cost_less(bits: int, node: float, rate: float):
    here = survey_energy_pj(bits, node, rate)
    assert survey_energy_pj(bits + 1, node, rate) > here
    assert survey_energy_pj(bits, node * 1.1, rate) > here
    assert survey_energy_pj(bits, node, rate * 1.5) >= here
    assert survey_area_um2(bits, node, rate * 1.5) > survey_area_um2(bits, node, rate)


def test_fewer_bits_than_the_survey_has_cost_what_its_fewest_do():
    assert survey_energy_pj(2, 22, 1e8) == survey_energy_pj(4, 22, 1e8)


def test_converters_in_the_pitch_of_sram_columns():
    chip = Chip(dac=Dac(8), adc=Adc(8), system=System(node_nm=28, supply_v=0.8))
    assert Successive().energy_pj(chip) == pytest.approx((100 * 8 + 0.001 * 4**8) * 0.64e-3)
    assert round(Successive().energy_pj(chip), 3) == 0.554
    assert Successive().area_um2(chip) == pytest.approx(10 ** (1.206 - 0.0369 * 8) * 256)
    assert Successive().sample_ns(chip) == pytest.approx(8 * (0.640 + 0.00653 * 512))


def test_a_chip_chooses_its_model_and_a_stated_converter_says_what_it_was_told():
    chip = Chip(adc=Adc(8))
    assert Survey().sample_ns(chip) == 10
    stated = Stated(pj=0.85, um2=100, ns=1)
    assert (stated.energy_pj(chip), stated.area_um2(chip), stated.sample_ns(chip)) == (0.85, 100, 1)
    with pytest.raises(UsageError, match="a time above 0"):
        Stated(1, 1, 0)
    with pytest.raises(UsageError, match=r"an ideal ADC.*adc\.bits = 8"):
        Survey().energy_pj(Chip())
    with pytest.raises(UsageError, match="adc_model"):
        System(adc_model="flash")  # pyright: ignore[reportArgumentType]


@given(st.integers(1, 4096), st.integers(1, 8), st.integers(1, 8))
def test_lossless_bits_are_enough_and_one_fewer_is_not(rows: int, cell: int, driven: int):
    bits, sums = lossless_adc_bits(rows, cell, driven), rows * (2**cell - 1) * (2**driven - 1) + 1
    assert 2**bits >= sums > 2 ** (bits - 1)
    assert math.log2(sums) <= bits


def test_isaacs_columns_need_nine_bits():
    assert lossless_adc_bits(128, 2, 1) == 9
    with pytest.raises(UsageError):
        lossless_adc_bits(0, 2, 1)
