"""Floating-point formats of a byte or less, as tables: fp8 e4m3, fp8 e5m2, fp4 e2m1.

A code is sign, exponent and mantissa, E and M bits wide. With bias = 2^(E-1) - 1 it stands for

    exponent > 0:  (-1)^sign * 2^(exponent - bias) * (1 + mantissa / 2^M)
    exponent = 0:  (-1)^sign * 2^(1 - bias) * mantissa / 2^M                   (subnormal)

and what the largest exponents mean is where the three differ: e5m2 keeps IEEE's infinities and NaNs, e4m3 gives up everything but one
NaN per sign for one more octave (largest value 448), e2m1 has neither (0, 0.5, 1, 1.5, 2, 3, 4, 6).

Without the sign, codes and values rise together, so rounding is a search in the sorted table. A tie between two codes goes to the even
one, whose mantissa ends in 0. Beyond the largest finite value codes saturate: a weight never becomes infinite.

The step grows with the value: relative precision is what these formats keep, so they bear outliers better than integers and use
the middle of the range worse. Weights are divided by a scale first, which puts the largest of a group on the largest value.

Paper: Micikevicius et al. 2022, FP8 Formats for Deep Learning, https://arxiv.org/abs/2209.05433 (table 1); e2m1: OCP Microscaling
Formats (MX) v1.0, https://arxiv.org/abs/2310.10537 (table 1). Not here: block scales that are themselves fp8 or powers of two (NVFP4, MX).
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from lessen.errors import LessenError, UsageError, nearest
from lessen.formats.affine import Codes
from lessen.formats.granularity import Granularity, PerRow, check_scale_dtype, extremes, grouped, scale_shape, stored_scale
from lessen.formats.search import Space, minimise, symmetric_factors


@dataclass(frozen=True)
class Minifloat:
    """Layout of a small float: sign, exponent, mantissa.

    Attributes:
        exponent: width of the exponent, bits.
        mantissa: width of the mantissa, bits.
        special: what the largest exponent holds: infinities and NaNs ("ieee"), one NaN at the very end ("nan"), only numbers ("none").
    """

    exponent: int
    mantissa: int
    special: Literal["ieee", "nan", "none"]

    @property
    def bits(self) -> int:
        """Width of a code."""
        return 1 + self.exponent + self.mantissa

    @property
    def largest(self) -> float:
        """Largest finite value.

        >>> [kind.largest for kind in KINDS.values()]
        [448.0, 57344.0, 6.0]
        """
        return float(magnitudes(self)[-1])

    def encode(self, x: Tensor) -> Tensor:
        """Nearest codes, uint8, ties to even; beyond the largest finite value, saturated.

        Args:
            x: any shape, any float type; rounded to float32 first if wider.

        Raises:
            LessenError: NaN (no code of the format is nearest to it).

        >>> KINDS["e2m1"].encode(torch.tensor([0.0, 0.25, 0.75, 2.5, -5.0, 1e9])).tolist()
        [0, 0, 2, 4, 14, 7]
        """
        x = x.float()
        if bool(x.isnan().any()):
            raise LessenError("encode", got="NaN", wanted="numbers", remedy="load the checkpoint again")
        code = torch.bucketize(x.abs(), thresholds(self).to(x.device), out_int32=True)
        return (code + (x.signbit().int() << (self.bits - 1))).to(torch.uint8)

    def decode(self, code: Tensor) -> Tensor:
        """float32 values of uint8 codes, any shape."""
        return values(self).to(code.device)[code.int()]

    def nearest(self, x: Tensor) -> Tensor:
        """Nearest values, float32: `decode(encode(x))` by arithmetic, several times faster than the table. NaN stays NaN.

        Between two powers of two the values are evenly spaced, 2^M to the octave, so dividing by that spacing and rounding to a whole
        number is rounding to the format; an even number is an even mantissa.
        """
        x = x.float().clamp(-self.largest, self.largest)
        octave = (x.view(torch.int32) & 0x7F800000).view(torch.float32)  # the largest power of two that is not above |x|
        smallest_normal = 2.0 ** (2 - (1 << (self.exponent - 1)))
        spacing = octave.clamp_(min=smallest_normal).mul_(2.0**-self.mantissa)
        return (x / spacing).round_().mul_(spacing)


KINDS = {"e4m3": Minifloat(4, 3, "nan"), "e5m2": Minifloat(5, 2, "ieee"), "e2m1": Minifloat(2, 1, "none")}
"""By name. e4m3 is what torch calls float8_e4m3fn."""


@cache
def values(kind: Minifloat) -> Tensor:
    """Value of every code in order, float32 "code", infinities and NaNs included.

    >>> values(KINDS["e2m1"]).tolist()[:8]
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    code = torch.arange(1 << (kind.bits - 1))
    exponent, mantissa = code >> kind.mantissa, code & (1 << kind.mantissa) - 1
    significand = torch.where(exponent > 0, mantissa + (1 << kind.mantissa), mantissa).double()
    bias = (1 << (kind.exponent - 1)) - 1
    positive = torch.ldexp(significand, exponent.clamp(min=1) - bias - kind.mantissa).float()
    if kind.special == "ieee":
        positive[-(1 << kind.mantissa)] = torch.inf
        positive[-(1 << kind.mantissa) + 1 :] = torch.nan
    elif kind.special == "nan":
        positive[-1] = torch.nan
    return torch.cat([positive, -positive])


@cache
def magnitudes(kind: Minifloat) -> Tensor:
    """The finite values >= 0, rising; their indices are their codes."""
    positive = values(kind)[: 1 << (kind.bits - 1)]
    return positive[positive.isfinite()]


@cache
def thresholds(kind: Minifloat) -> Tensor:
    """Largest float32 that rounds to each magnitude but the last: the midpoint above it, or just less where the tie goes up."""
    table = magnitudes(kind)
    middle = (table[:-1] + table[1:]) / 2
    odd = torch.arange(len(middle)) % 2 == 1
    return torch.where(odd, torch.nextafter(middle, torch.zeros(())), middle)


@dataclass(frozen=True)
class Float:
    """A scaled small float: w = scale * value(code).

    Attributes:
        kind: "e4m3", "e5m2" or "e2m1".
        granularity: who shares a scale.
        scale_dtype: type in which scales are stored: float16, bfloat16 or float32.

    >>> q = Float("e2m1", PerRow())
    >>> codes = q.encode(torch.tensor([[12.0, -1.0, 0.1, 7.0]]))
    >>> codes.values.tolist(), codes.scale.tolist(), q.decode(codes).tolist()
    ([[7, 9, 0, 6]], [[2.0]], [[12.0, -1.0, 0.0, 8.0]])
    """

    kind: str = "e4m3"
    granularity: Granularity = PerRow()
    scale_dtype: torch.dtype = torch.float32

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UsageError("Float.kind", got=str(self.kind), wanted="a small float", remedy=nearest(str(self.kind), KINDS))
        check_scale_dtype(self.scale_dtype, "Float.scale_dtype")

    @property
    def layout(self) -> Minifloat:
        """The table behind `kind`."""
        return KINDS[self.kind]

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.layout.bits

    @property
    def code_range(self) -> tuple[float, float]:
        """Smallest and largest finite value."""
        return -self.layout.largest, self.layout.largest

    @property
    def symmetric(self) -> bool:
        """Always: small floats have no zero point."""
        return True

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Stored bits per weight of a matrix "out in", scales included.

        >>> Float("e4m3", PerRow()).bits_per_weight((8, 64))
        8.5
        """
        rows, groups = scale_shape(shape, self.granularity)
        return self.bits + self.scale_dtype.itemsize * 8 * rows * groups / (shape[0] * shape[1])

    def grid(self, weight: Tensor, where: str = "weight") -> tuple[Tensor, None]:
        """(scale, None), the scale "out group" that puts the largest weight of each group on the largest value.

        Args:
            weight: "out in".
            where: name of the tensor, for errors.

        Raises:
            LessenError: the weight has NaN or infinite values, or is too large for a scale of this type.
            UsageError: groups do not divide the rows.
        """
        low, high = extremes(weight, self.granularity, where)
        extreme = torch.maximum(-low, high)
        return stored_scale(extreme / self.layout.largest, extreme, self.bounds()[1], self.scale_dtype, where), None

    def search(
        self, weight: Tensor, importance: Tensor | None = None, *, steps: int = 12, low: float = 0.5, refits: int = 3, where: str = "weight"
    ) -> tuple[Tensor, None]:
        """(scale, None) that minimises sum_j h_j (w_j - Q(w_j))^2 in each group; never worse than `grid`. See `lessen.formats.search`.

        Args:
            weight: "out in".
            importance: h, "in" or "out in", non-negative; None, or zeros throughout a group, counts every weight alike.
            steps: shrink factors to try.
            low: smallest shrink factor; half covers every position of the weights within the octaves of the table.
            refits: alternations of codes and least-squares scale after the sweep.
            where: name of the tensor, for errors.
        """
        space = Space(self.levels, symmetric_factors(low, 1.0, steps, False), refits=refits)
        return minimise(weight, importance, self.grid(weight, where), self.granularity, space, where)[0], None

    def levels(self, ratio: Tensor, zero: Tensor | None = None) -> Tensor:
        """Nearest values of w / scale; `zero` must be None."""
        return self.layout.nearest(ratio)

    def bounds(self, zero: Tensor | None = None) -> tuple[float, float]:
        """Range of w / scale that is not clipped, half a step beyond the largest value."""
        largest, below = (float(v) for v in magnitudes(self.layout)[[-1, -2]])
        reach = largest + (largest - below) / 2
        return -reach, reach

    def round(self, weight: Tensor, scale: Tensor, zero: Tensor | None = None) -> Codes:
        """Nearest codes on a given grid, uint8 "out in"; ties go to the even code.

        Args:
            weight: "out in".
            scale: as `grid` or `search` gave it, "out group".
            zero: None.

        Raises:
            LessenError: the weight has NaN values.
        """
        codes = self.layout.encode(grouped(weight, self.granularity) / scale.reshape(-1, 1).float())
        return Codes(codes.view(weight.shape), scale)

    def encode(self, weight: Tensor) -> Codes:
        """Codes of a matrix "out in" on the grid of its extreme values."""
        return self.round(weight, *self.grid(weight))

    def decode(self, codes: Codes) -> Tensor:
        """float32 "out in": exactly scale * value(code) in float32."""
        rows, groups = scale_shape(codes.values.shape, self.granularity)
        values = self.layout.decode(codes.values).view(rows * groups, -1)
        return (values * codes.scale.reshape(-1, 1).float()).view(codes.values.shape)
