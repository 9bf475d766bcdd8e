"""Affine integer formats: w = scale * (code - zero), int2 to int8, with one scale per tensor, row or group.

Symmetric codes lie around zero. The plain range -(2^(b-1) - 1) .. 2^(b-1) - 1 wastes one code; the full range uses it with a scale
whose sign puts the extreme weight of the group, wherever it lies, on the code -2^(b-1) (llama.cpp's Q4_0 does the same):

    scale = extreme / -2^(b-1)

Asymmetric codes run from 0 to 2^b - 1, and the code `zero` stands for 0, so zero is always exact and always inside the range.

Scales are rounded to the type in which they are stored before any code is chosen; what is decoded here is then what every runtime
decodes. A scale is never 0 (dividing by it must be safe): groups of zeros get 1, tiny groups the smallest scale the type can hold.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.errors import LessenError, UsageError
from lessen.formats.granularity import (
    Granularity,
    PerGroup,
    PerRow,
    PerTensor,
    check_scale_dtype,
    extremes,
    grouped,
    scale_shape,
    stored_scale,
)
from lessen.formats.search import Space, minimise, symmetric_factors

_LOW = {2: 0.35, 3: 0.4, 4: 0.5, 5: 0.6, 6: 0.75, 7: 0.85, 8: 0.9}
"""Smallest shrink factor worth trying, by bits: best of a scan over the linear layers of a language model, per row and in groups."""


@dataclass(frozen=True)
class Codes:
    """A quantized matrix.

    Attributes:
        values: "out in"; int8 codes around zero (symmetric) or uint8 codes from 0 (asymmetric).
        scale: "out group" ("1 1" for PerTensor), in the format's `scale_dtype`; negative scales are legal.
        zero: None (symmetric) or uint8 "out group", the code that stands for 0.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor | None = None


@dataclass(frozen=True)
class Int:
    """An affine integer format.

    Attributes:
        bits: width of a code, 2 to 8.
        granularity: who shares a scale.
        symmetric: codes lie in [-(2^(bits-1) - 1), 2^(bits-1) - 1]; with full_range also -2^(bits-1) (scale may be negative).
            Otherwise in [0, 2^bits - 1], with an integer zero point.
        full_range: see above; without meaning for asymmetric codes.
        scale_dtype: type in which scales are stored: float16, bfloat16 or float32.

    >>> q = Int(4, PerRow())
    >>> codes = q.encode(torch.tensor([[-8.0, 0.4, 3.0, 7.0]]))
    >>> codes.values.tolist(), codes.scale.tolist(), q.decode(codes).tolist()
    ([[-8, 0, 3, 7]], [[1.0]], [[-8.0, 0.0, 3.0, 7.0]])
    """

    bits: int = 4
    granularity: Granularity = PerGroup(32)
    symmetric: bool = True
    full_range: bool = True
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self):
        if self.bits not in range(2, 9):
            raise UsageError("Int.bits", got=str(self.bits), wanted="a whole number from 2 to 8")
        check_scale_dtype(self.scale_dtype, "Int.scale_dtype")

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code.

        >>> Int(4).code_range, Int(4, full_range=False).code_range, Int(4, symmetric=False).code_range
        ((-8, 7), (-7, 7), (0, 15))
        """
        half = 1 << (self.bits - 1)
        if self.symmetric:
            return -half if self.full_range else 1 - half, half - 1
        return 0, 2 * half - 1

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Stored bits per weight with scales and zero points (as wide as a code) of a matrix "out in".

        >>> Int(4, PerGroup(32)).bits_per_weight((64, 64)), Int(4, PerGroup(32), symmetric=False).bits_per_weight((64, 64))
        (4.5, 4.625)
        """
        rows, groups = scale_shape(shape, self.granularity)
        overhead = self.scale_dtype.itemsize * 8 + (0 if self.symmetric else self.bits)
        return self.bits + overhead * rows * groups / (shape[0] * shape[1])

    def grid(self, weight: Tensor, where: str = "weight") -> tuple[Tensor, Tensor | None]:
        """(scale, zero) from the extreme values of each group, already rounded to `scale_dtype`.

        Args:
            weight: "out in".
            where: name of the tensor, for errors.

        Returns:
            scale "out group" in `scale_dtype`, zero uint8 "out group" or None.

        Raises:
            LessenError: the weight has NaN or infinite values, or is too large for a scale of this type.
            UsageError: groups do not divide the rows.
        """
        low, high = extremes(weight, self.granularity, where)
        lowest, highest = self.code_range
        reach = max(-lowest, highest) + 0.5
        if not self.symmetric:
            low, high = low.clamp(max=0), high.clamp(min=0)
            scale = stored_scale((high - low) / highest, high - low, reach, self.scale_dtype, where)
            zero = (-low / scale.float()).round().clamp(lowest, highest)
            return scale, zero.to(torch.uint8)
        extreme = torch.where(-low >= high, low, high)
        scale = extreme / lowest if self.full_range else extreme.abs() / highest
        return stored_scale(scale, extreme, reach, self.scale_dtype, where), None

    def search(
        self,
        weight: Tensor,
        importance: Tensor | None = None,
        *,
        steps: int | None = None,
        low: float | None = None,
        refits: int = 3,
        where: str = "weight",
    ) -> tuple[Tensor, Tensor | None]:
        """(scale, zero) that minimise sum_j h_j (w_j - Q(w_j))^2 in each group; never worse than `grid`. See `lessen.formats.search`.

        Args:
            weight: "out in".
            importance: h, "in" or "out in", non-negative; None, or zeros throughout a group, counts every weight alike.
            steps: shrink factors to try, for each sign of the scale or each of five zero points; None: 12 if symmetric, else 8.
            low: smallest shrink factor; None chooses by bits and granularity.
            refits: alternations of codes and least-squares scale after the sweep.
            where: name of the tensor, for errors.

        Returns:
            scale "out group" in `scale_dtype`, zero uint8 "out group" or None.

        Raises:
            LessenError, UsageError: as `grid`, or for an importance that does not fit.
        """
        lowest, highest = self.code_range
        if low is None:
            # A whole tensor has far outliers: the best scale for the many may be a tenth of what reaches them.
            low = 0.1 if isinstance(self.granularity, PerTensor) else _LOW[self.bits]
        if self.symmetric:
            # The lopsided range reaches further on one side: also stretched until the short side reaches the extreme, and mirrored.
            space = Space(self.levels, symmetric_factors(low, -lowest / highest, steps or 12, self.full_range), refits=refits)
        else:
            space = Space(self.levels, symmetric_factors(low, 1.0, steps or 8, False), (0, -1, 1, -2, 2), highest, refits)
        return minimise(weight, importance, self.grid(weight, where), self.granularity, space, where)

    def levels(self, ratio: Tensor, zero: Tensor | None = None) -> Tensor:
        """Nearest codes of w / scale with the zero point taken off, as floats; ties go to the even code. Writes over `ratio`.

        Args:
            ratio: w / scale, float, any shape.
            zero: zero points that broadcast against it, None for symmetric formats.
        """
        lowest, highest = self.code_range
        ratio.round_()
        return ratio.clamp_(lowest, highest) if zero is None else ratio.clamp_(lowest - zero, highest - zero)

    def bounds(self, zero: Tensor | None = None) -> tuple[Tensor | float, Tensor | float]:
        """Range of w / scale that is not clipped, half a step beyond the extreme codes."""
        lowest, highest = self.code_range
        return (lowest - 0.5, highest + 0.5) if zero is None else (lowest - 0.5 - zero, highest + 0.5 - zero)

    def round(self, weight: Tensor, scale: Tensor, zero: Tensor | None) -> Codes:
        """Nearest codes on a given grid; ties go to the even code.

        Args:
            weight: "out in".
            scale: as `grid` or `search` gave it, "out group".
            zero: likewise, None for symmetric formats.

        Raises:
            LessenError: the weight has NaN values.
        """
        column = None if zero is None else zero.reshape(-1, 1).float()
        codes = self.levels(grouped(weight, self.granularity) / scale.reshape(-1, 1).float(), column)
        if bool(codes.sum().isnan()):
            raise LessenError("weight", got="NaN", wanted="finite weights", remedy="use the grid of these very weights")
        codes = codes if column is None else codes.add_(column)
        return Codes(codes.to(torch.int8 if self.symmetric else torch.uint8).view(weight.shape), scale, zero)

    def encode(self, weight: Tensor) -> Codes:
        """Codes of a matrix "out in" on the grid of its extreme values."""
        return self.round(weight, *self.grid(weight))

    def decode(self, codes: Codes) -> Tensor:
        """float32 "out in": exactly scale * (values - zero) in float32."""
        values = grouped(codes.values, self.granularity)
        if codes.zero is not None:
            values = values - codes.zero.reshape(-1, 1).float()
        return (values * codes.scale.reshape(-1, 1).float()).view(codes.values.shape)


__all__ = ["Codes", "Granularity", "Int", "PerGroup", "PerRow", "PerTensor"]
