"""What stands around an array: converters that drive rows and read columns, and wires that are no perfect conductors.

Inputs are driven as codes of `Dac.bits` bits with a sign, all at once or digit by digit. A column sum is read by an ADC whose range is a
choice: too wide wastes levels, too narrow clips. Ranges come from calibration data (a quantile of what was seen) or are stated.
"""

from dataclasses import dataclass
from typing import Literal

from lessen.core.strict import check_fields
from lessen.errors import UsageError


@dataclass(frozen=True)
class Dac:
    """Drives the rows of a tile."""

    bits: int | None = 8
    """Of an input, its sign among them; None: inputs are driven as they are."""
    digit_bits: int | None = None
    """Bits driven at once (1: bit-serial); None: all at once."""
    range: Literal["calibrated", "dynamic"] = "calibrated"
    """Full scale: a quantile of calibration inputs for each layer, or the largest input of each vector."""
    quantile: float = 0.9999
    """Of the magnitudes of calibration inputs."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.bits is not None and not 2 <= self.bits <= 16:
            raise UsageError("Dac", got=f"bits={self.bits}", wanted="2 to 16 bits with the sign, or none for inputs as they are")
        if self.digit_bits is not None and not (self.bits and 1 <= self.digit_bits < self.bits):
            raise UsageError("Dac", got=f"digit_bits={self.digit_bits}", wanted="1 to bits - 1 bits driven at once, or none for all")
        check_quantile("Dac", self.quantile)

    @property
    def cycles(self) -> int:
        """Reads of a tile for one input vector."""
        return 1 if self.bits is None or self.digit_bits is None else -(-(self.bits - 1) // self.digit_bits)

    @property
    def levels(self) -> int | None:
        """Largest code."""
        return None if self.bits is None else 2 ** (self.bits - 1) - 1


@dataclass(frozen=True)
class Adc:
    """Reads the columns of a tile."""

    bits: int | None = 8
    """Of a column sum, its sign among them; None: sums are read as they are."""
    range: float | Literal["calibrated"] = "calibrated"
    """Largest sum that is not clipped, in units of one row fully driven into a device of full range; or a quantile of calibration sums."""
    per: Literal["column", "tile"] = "column"
    """Whether columns have ranges of their own (a gain for each, in the digital scale) or share one."""
    quantile: float = 0.9999
    """Of the magnitudes of calibration sums."""
    noise: float = 0.0
    """Standard deviation of its own noise, in steps."""
    columns: int = 8
    """Columns that take turns at one converter: time and area, not accuracy."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.bits is not None and not 2 <= self.bits <= 20:
            raise UsageError("Adc", got=f"bits={self.bits}", wanted="2 to 20 bits with the sign, or none for sums as they are")
        if not isinstance(self.range, str) and not 0 < self.range < float("inf"):
            raise UsageError("Adc", got=f"range={self.range}", wanted='a positive number of fully driven rows, or "calibrated"')
        if not 0 <= self.noise < float("inf") or self.columns < 1:
            raise UsageError("Adc", got=f"noise={self.noise:g}, columns={self.columns}", wanted="noise >= 0 and at least one column")
        check_quantile("Adc", self.quantile)

    @property
    def levels(self) -> int | None:
        """Largest code."""
        return None if self.bits is None else 2 ** (self.bits - 1) - 1


@dataclass(frozen=True)
class Wires:
    """Resistance between neighbouring cells."""

    ohm: float = 0.35
    """From cell to cell, along rows and columns alike."""
    model: Literal["fast", "columns", "solved", "iterative"] = "fast"
    """A closed form from the load of each physical column, for inputs coded in time (rows lose nothing; cells conduct as at low voltage);
    Kirchhoff's equations of the columns, or of rows and columns (seconds for a large tile), for inputs coded as voltages and ohmic cells,
    solved when a chip is programmed, so that reading costs nothing; or of rows and columns with the cells' own curves, solved for every
    input vector."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.ohm < float("inf"):
            raise UsageError("Wires", got=f"ohm={self.ohm}", wanted="a resistance of at least 0")


def check_quantile(where: str, value: float) -> None:
    """Refuse what is no quantile."""
    if not 0.5 <= value <= 1:
        raise UsageError(where, got=f"quantile={value:g}", wanted="a number from 0.5 to 1")
