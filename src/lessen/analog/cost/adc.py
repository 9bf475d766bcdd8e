"""What converting a column sum costs: by far the largest share of many analog chips.

A converter's energy grows with its bits b in two regimes: below some ten bits it is set by how fast circuits of a technology can be driven,
above by thermal noise (four times the energy for a bit). Published converters are compared by a figure of merit in which signal-to-noise
ratio and energy cancel; its best values over sampling rate f and bits are a straight line and a ceiling (`Survey`):

    SNDR = 20 log10(2) b + 10 log10(1.5) dB,     FOM = min(213.78 - 2.872 ln f, 128.31 + 3.2205 ceil(b)) dB
    E    = exp(26.04962 + 1.880037 ln(node) - 2.829126 ln b - 1.470202) / (2 * 10^((FOM - SNDR) / 10))                             pJ
    area = exp(0.9932795 ln(node) + 0.1807154 ln f + 0.2991243 ln E + 1.3461916)                                                   um^2

This is the best that has been built, not the typical: a chip may need several times as much. Bits are effective ones; below 4 the survey
has no converters, and 4 are taken.

Coefficients: Andrulis et al. 2024, Modeling Analog-Digital-Converter Energy and Area for Compute-In-Memory Accelerator Design,
https://arxiv.org/abs/2404.06553 (as its authors' package hwcomponents-adc has them, MIT), fitted to Murmann's ADC Performance Survey.

`Successive` is the model of ZigZag-IMC (Houshmand et al. 2023, Benchmarking and modeling of analog and digital SRAM in-memory computing
architectures, https://arxiv.org/abs/2305.18335) for converters in the pitch of SRAM columns at 28 nm:

    E = (100 fF b + 0.001 fF 4^b) V^2,     area = 10^(1.206 - 0.0369 b) 2^b um^2,     delay = b (0.640 + 0.00653 rows) ns
"""

from dataclasses import dataclass
from math import ceil, exp, log, log2, log10
from typing import Protocol

from lessen.analog.chip import Chip
from lessen.analog.cost.scaling import area_factor
from lessen.core.strict import check_fields
from lessen.errors import UsageError

_LEAST_BITS = 4


class AdcModel(Protocol):
    """Energy, area and time of one converter."""

    def energy_pj(self, chip: Chip) -> float:
        """Of one conversion."""
        ...

    def area_um2(self, chip: Chip) -> float:
        """Of one converter."""
        ...

    def sample_ns(self, chip: Chip) -> float:
        """Of one conversion."""
        ...


def bits_of(chip: Chip) -> int:
    """Resolution of a chip's converters; an error for ideal ones, which have no price."""
    if chip.adc.bits is None:
        raise UsageError(f"cost of {chip.name}", got="an ideal ADC", wanted="a resolution", remedy="adc.bits = 8")
    return chip.adc.bits


def survey_energy_pj(bits: float, node_nm: float, rate: float) -> float:
    """Energy of one conversion after the survey.

    Args:
        bits: effective.
        node_nm: technology.
        rate: conversions a second of one converter.

    >>> round(survey_energy_pj(8, 22, 1e8), 3)
    0.847
    """
    bits = max(bits, _LEAST_BITS)
    sndr = 20 * log10(2) * bits + 10 * log10(1.5)
    merit = min(213.7806687348118 - 2.8719030399529957 * log(rate), 128.3068287398817 + 3.2205115109775615 * min(ceil(bits), 20))
    technology = 26.0496215686518 + 1.8800369206815004 * log(node_nm) - 2.8291256050594527 * log(bits) - 1.4702022133784405
    return exp(technology) / (2 * 10 ** ((merit - sndr) / 10))


def survey_area_um2(bits: float, node_nm: float, rate: float) -> float:
    """Area of one converter after the survey.

    >>> round(survey_area_um2(8, 22, 1e8))
    2199
    """
    energy = survey_energy_pj(bits, node_nm, rate)
    return exp(0.9932794744745022 * log(node_nm) + 0.18071538424508238 * log(rate) + 0.29912426192653485 * log(energy) + 1.3461916439910742)


@dataclass(frozen=True)
class Survey:
    """The best published converters, by regression."""

    def energy_pj(self, chip: Chip) -> float:
        return survey_energy_pj(bits_of(chip), chip.system.node_nm, chip.system.adc_rate)

    def area_um2(self, chip: Chip) -> float:
        return survey_area_um2(bits_of(chip), chip.system.node_nm, chip.system.adc_rate)

    def sample_ns(self, chip: Chip) -> float:
        return 1e9 / chip.system.adc_rate


@dataclass(frozen=True)
class Successive:
    """Successive approximation in the pitch of SRAM columns, after ZigZag-IMC; its rate follows from bits and rows."""

    def energy_pj(self, chip: Chip) -> float:
        bits = bits_of(chip)
        return (100 * bits + 0.001 * 4**bits) * 1e-3 * chip.system.supply_v**2

    def area_um2(self, chip: Chip) -> float:
        bits = bits_of(chip)
        return 10 ** (1.206 - 0.0369 * bits) * 2**bits * area_factor(chip.system.node_nm, of=28)

    def sample_ns(self, chip: Chip) -> float:
        return bits_of(chip) * (0.640 + 0.00653 * chip.array.rows)


@dataclass(frozen=True)
class Stated:
    """A converter whose figures are known: from its data sheet or a measurement."""

    pj: float
    """One conversion."""
    um2: float
    """One converter."""
    ns: float
    """One conversion."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not (0 <= self.pj < float("inf") and 0 <= self.um2 < float("inf") and 0 < self.ns < float("inf")):
            raise UsageError("Stated", got=f"pj={self.pj:g}, um2={self.um2:g}, ns={self.ns:g}", wanted="finite figures, and a time above 0")

    def energy_pj(self, chip: Chip) -> float:
        return self.pj

    def area_um2(self, chip: Chip) -> float:
        return self.um2

    def sample_ns(self, chip: Chip) -> float:
        return self.ns


MODELS: dict[str, AdcModel] = {"survey": Survey(), "successive": Successive()}
"""By the name that a chip's `System.adc_model` gives."""


def lossless_adc_bits(rows: int, cell_bits: int, input_bits: int) -> int:
    """Bits that tell all possible sums of a column apart, without a sign: ceil(log2(rows (2^w - 1) (2^d - 1) + 1)).

    Args:
        rows: driven at once.
        cell_bits: w, of what a cell holds.
        input_bits: d, driven at once.

    >>> lossless_adc_bits(128, 2, 1)  # ISAAC, which saves one of them by its encoding
    9
    """
    if min(rows, cell_bits, input_bits) < 1:
        raise UsageError("lossless_adc_bits", got=f"{rows}, {cell_bits}, {input_bits}", wanted="at least 1 each")
    return ceil(log2(rows * (2**cell_bits - 1) * (2**input_bits - 1) + 1))
