"""A multiply-accumulate on a full tile: where the energy of an array goes, whatever network it serves.

    E_MAC = E_cell + E_DAC / columns + E_ADC slices cycles / rows + E_digital

The converter is shared by the rows of a column, so tall arrays and few slices and cycles make it cheap; they also ask more of its bits
(`lossless_adc_bits`). Peak figures of published macros are of this kind: every cell in use, no buffers, no transport, no idle time.
"""

from dataclasses import dataclass, fields

from lessen.analog.chip import Chip
from lessen.analog.cost.adc import AdcModel
from lessen.analog.cost.count import LayerShape
from lessen.analog.cost.tile import interval_ns, tile_area, tile_energy


@dataclass(frozen=True)
class PerMac:
    """Femtojoules of one multiply-accumulate on a full tile.

    Attributes:
        cells, dac, adc: the macro.
        digital: sums and scales behind it.
    """

    cells: float
    dac: float
    adc: float
    digital: float

    @property
    def macro(self) -> float:
        """Arrays and converters."""
        return self.cells + self.dac + self.adc

    @property
    def total(self) -> float:
        """With the sums behind the converters."""
        return sum(getattr(self, f.name) for f in fields(self))

    @property
    def macro_tops_per_watt(self) -> float:
        """Two operations for a multiply-accumulate."""
        return 2000 / self.macro


def per_mac(chip: Chip, adc: AdcModel | None = None) -> PerMac:
    """Energy of a multiply-accumulate on a full tile.

    >>> from lessen.analog.periphery import Adc, Dac
    >>> round(per_mac(Chip(dac=Dac(8), adc=Adc(8))).adc, 2)  # 0.847 pJ for a conversion, 512 rows
    1.65
    """
    full = LayerShape("tile", "linear", chip.array.rows, chip.columns, 1, 1.0, chip.array.rows)
    energy = tile_energy(full, chip, adc=adc)
    return PerMac(*(1000 * part / full.macs for part in (energy.cells, energy.dac, energy.adc, energy.digital)))


def tops_per_mm2(chip: Chip, adc: AdcModel | None = None) -> float:
    """Peak operations a second of a tile over its area, buffers and router left out."""
    area = tile_area(chip, adc)
    macro = area.cells + area.adc + area.dac + area.digital
    operations = 2 * chip.array.rows * chip.columns / (chip.dac.cycles * interval_ns(chip, adc))
    return operations * 1e-3 / (macro * 1e-6)
