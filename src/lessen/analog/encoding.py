"""How signed weights become conductances, and how column currents become signed sums again.

A conductance is positive and has a floor; a weight is neither. With w in [-1, 1] (a weight over the largest of its column):

    Differential   two devices: g+ carries max(w, 0), g- carries max(-w, 0), the other stays at g_min; the currents are subtracted
    Offset         one device at the middle of its range plus w/2 of it; a reference column at the middle is subtracted
    Sliced         a weight of `bits` bits as digits of `cell_bits` bits, each digit in columns of its own, added with shifts behind the ADC

An encoding gives *planes*: conductances to be programmed, and a signed sum of planes for every group of columns that one ADC reads.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lessen.core.strict import check_fields
from lessen.errors import UsageError


@dataclass(frozen=True)
class Plane:
    """Devices that hold one part of all weights.

    Attributes:
        share: between 0 and 1 of the device's range, the shape of the weights (or one column of them, for a reference).
        sign: with which its current joins the column sum.
        slice: of which group of columns it is a part.
        reference: whether it is a single column whose current all columns of the tile share.
    """

    share: Tensor
    sign: float
    slice: int = 0
    reference: bool = False


@dataclass(frozen=True)
class Differential:
    """A pair of devices for each weight."""

    scale: Literal["column", "tile"] = "column"
    """Whose largest weight takes the whole range."""

    @property
    def shifts(self) -> tuple[float, ...]:
        """What a group of columns counts in the sum, for each."""
        return (1.0,)

    references: ClassVar[bool] = False

    @property
    def devices(self) -> int:
        """Devices for one weight."""
        return 2

    def planes(self, weight: Tensor) -> list[Plane]:
        """Planes of weights in [-1, 1], `tile row column`."""
        return [Plane(weight.clamp(min=0), 1.0), Plane((-weight).clamp(min=0), -1.0)]


@dataclass(frozen=True)
class Offset:
    """One device for each weight and a reference column for each tile."""

    scale: Literal["column", "tile"] = "column"
    """Whose largest weight takes the whole range."""

    @property
    def shifts(self) -> tuple[float, ...]:
        """What a group of columns counts in the sum, for each."""
        return (2.0,)

    references: ClassVar[bool] = True

    @property
    def devices(self) -> int:
        """Devices for one weight, the reference column left out."""
        return 1

    def planes(self, weight: Tensor) -> list[Plane]:
        """Planes of weights in [-1, 1], `tile row column`; the second has one column."""
        return [Plane((weight + 1) / 2, 1.0), Plane(torch.full_like(weight[..., :1], 0.5), -1.0, reference=True)]


@dataclass(frozen=True)
class Sliced:
    """Weights of a few bits, cut into digits that a cell can tell apart."""

    bits: int = 8
    """Of a weight, its sign among them."""
    cell_bits: int = 2
    """Of one cell."""
    pair: Differential | Offset = Differential()
    """How a digit gets its sign."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not (2 <= self.bits <= 16 and 1 <= self.cell_bits <= self.bits):
            got = f"bits={self.bits}, cell_bits={self.cell_bits}"
            raise UsageError("Sliced", got=got, wanted="2 to 16 bits, and 1 to `bits` in a cell")

    @property
    def scale(self) -> Literal["column", "tile"]:
        """Whose largest weight takes the whole range."""
        return self.pair.scale

    @property
    def digits(self) -> int:
        """Digits of a magnitude."""
        return -(-(self.bits - 1) // self.cell_bits)

    @property
    def shifts(self) -> tuple[float, ...]:
        """What a group of columns counts in the sum, for each, lowest digit first."""
        top, base = 2 ** (self.bits - 1) - 1, 2**self.cell_bits
        return tuple(self.pair.shifts[0] * (base - 1) * base**k / top for k in range(self.digits))

    @property
    def references(self) -> bool:
        """Whether columns are read against a reference column of their tile."""
        return self.pair.references

    @property
    def devices(self) -> int:
        """Devices for one weight."""
        return self.pair.devices * self.digits

    def planes(self, weight: Tensor) -> list[Plane]:
        """Planes of weights in [-1, 1], `tile row column`, digit after digit."""
        top, base = 2 ** (self.bits - 1) - 1, 2**self.cell_bits
        left, sign = (weight.abs() * top).round(), weight.sign()
        found: list[Plane] = []
        for k in range(self.digits):
            digit = sign * torch.remainder(left, base) / (base - 1)
            left = torch.div(left, base, rounding_mode="floor")
            found += [replace(plane, slice=k) for plane in self.pair.planes(digit)]
        return found


Encoding = Differential | Offset | Sliced
