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
from lessen.formats import search
from lessen.formats.granularity import Granularity, PerGroup, PerRow, PerTensor

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


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
    granularity: Granularity = PerGroup(32)  # noqa: RUF009 (frozen, so sharing it is safe)
    symmetric: bool = True
    full_range: bool = True
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self):
        if self.bits not in range(2, 9):
            raise UsageError("Int.bits", got=str(self.bits), wanted="a whole number from 2 to 8")
        if self.scale_dtype not in SCALE_DTYPES:
            raise UsageError("Int.scale_dtype", got=str(self.scale_dtype), wanted="torch.float16, torch.bfloat16 or torch.float32")

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
        rows, groups = self.scale_shape(shape)
        overhead = self.scale_dtype.itemsize * 8 + (0 if self.symmetric else self.bits)
        return self.bits + overhead * rows * groups / (shape[0] * shape[1])

    def scale_shape(self, shape: tuple[int, ...], where: str = "weight") -> tuple[int, int]:
        """Shape of the scales of a matrix of this shape; UsageError if groups do not divide it."""
        if len(shape) != 2:
            raise UsageError(where, got=f"shape {tuple(shape)}", wanted='a matrix "out in"', remedy="flatten the trailing axes")
        return (1 if isinstance(self.granularity, PerTensor) else shape[0]), self.granularity.groups(shape[1], where)

    def grid(self, weight: Tensor, where: str = "weight") -> tuple[Tensor, Tensor | None]:
        """(scale, zero) from the extreme values of each group, already rounded to `scale_dtype`.

        Args:
            weight: "out in".
            where: name of the tensor, for errors.

        Returns:
            scale "out group" in `scale_dtype`, zero uint8 "out group" or None.

        Raises:
            LessenError: the weight has NaN or infinite values, or is too large for a scale of this type.
        """
        low, high = self._extremes(weight, where)
        lowest, highest = self.code_range
        if not self.symmetric:
            low, high = low.clamp(max=0), high.clamp(min=0)
            scale = self._stored((high - low) / highest, high - low, where)
            zero = (-low / scale.float()).round().clamp(lowest, highest)
            return scale, zero.to(torch.uint8)
        extreme = torch.where(-low >= high, low, high)
        if self.full_range:
            return self._stored(extreme / lowest, extreme, where), None
        return self._stored(extreme.abs() / highest, extreme, where), None

    def search(
        self,
        weight: Tensor,
        importance: Tensor | None = None,
        *,
        steps: int = 12,
        low: float | None = None,
        refits: int = 2,
        where: str = "weight",
    ) -> tuple[Tensor, Tensor | None]:
        """(scale, zero) that minimise sum_j h_j (w_j - Q(w_j))^2 in each group; never worse than `grid`.

        Args:
            weight: "out in".
            importance: h, "in" or "out in", non-negative; None counts every weight the same.
            steps: shrink factors to try, for each sign of the scale or neighbour of the zero point.
            low: smallest shrink factor; None chooses by bits.
            refits: alternations of codes and least-squares scale after the sweep.
            where: name of the tensor, for errors.

        Returns:
            scale "out group" in `scale_dtype`, zero uint8 "out group" or None.
        """
        scale, zero = self.grid(weight, where)
        low = {2: 0.35, 3: 0.5, 4: 0.6}.get(self.bits, 0.8) if low is None else low
        if importance is not None:
            if importance.shape not in (weight.shape, weight.shape[1:]):
                got = f"importance of shape {tuple(importance.shape)}"
                raise UsageError(where, got=got, wanted=f"{tuple(weight.shape)} or its last axis")
            if not bool((importance >= 0).all()) or bool(importance.isinf().any()):
                raise LessenError(where, got="negative, NaN or infinite importance", wanted="finite numbers from 0")
        rows = weight.shape[0] if isinstance(self.granularity, PerTensor) else max(1, search.SLAB // weight.shape[1])
        scales, zeros = [], []
        for start in range(0, weight.shape[0], rows):
            part = slice(start, start + rows)
            h = importance[part] if importance is not None and importance.ndim == 2 else importance
            found = self._search_rows(weight[part], h, scale[part], None if zero is None else zero[part], steps, low, refits)
            scales.append(found[0])
            zeros.append(found[1])
        return torch.cat(scales), None if zero is None else torch.cat(zeros)

    def round(self, weight: Tensor, scale: Tensor, zero: Tensor | None) -> Codes:
        """Nearest codes on a given grid; ties go to the even code.

        Args:
            weight: "out in".
            scale: as `grid` or `search` gave it, "out group".
            zero: likewise, None for symmetric formats.
        """
        lowest, highest = self.code_range
        codes = (self._grouped(weight) / scale.reshape(-1, 1).float()).round_()
        if zero is not None:
            codes += zero.reshape(-1, 1)
        codes = codes.clamp_(lowest, highest).to(torch.int8 if self.symmetric else torch.uint8)
        return Codes(codes.view(weight.shape), scale, zero)

    def encode(self, weight: Tensor) -> Codes:
        """Codes of a matrix "out in" on the grid of its extreme values."""
        return self.round(weight, *self.grid(weight))

    def decode(self, codes: Codes) -> Tensor:
        """float32 "out in": exactly scale * (values - zero) in float32."""
        values = self._grouped(codes.values)
        if codes.zero is not None:
            values = values - codes.zero.reshape(-1, 1).float()
        return (values * codes.scale.reshape(-1, 1).float()).view(codes.values.shape)

    def _grouped(self, weight: Tensor) -> Tensor:
        """float32 "group size": one row for each scale."""
        rows, groups = self.scale_shape(weight.shape)
        return weight.float().reshape(rows * groups, -1)

    def _extremes(self, weight: Tensor, where: str) -> tuple[Tensor, Tensor]:
        """Smallest and largest weight of each group, float32 "out group"."""
        low, high = torch.aminmax(self._grouped(weight), dim=1)
        if not bool(low.isfinite().all() and high.isfinite().all()):
            raise LessenError(where, got="NaN or infinite weights", wanted="finite ones", remedy="load the checkpoint again")
        shape = self.scale_shape(weight.shape, where)
        return low.view(shape), high.view(shape)

    def _stored(self, scale: Tensor, extreme: Tensor, where: str) -> Tensor:
        """Scales as they will be stored: rounded, never 0, 1 for groups of zeros. extreme: largest weight, or width, of the group."""
        stored = scale.to(self.scale_dtype)
        if not bool(stored.isfinite().all()):
            raise LessenError(where, got=f"a scale of {float(scale.abs().max()):.3g}", wanted=f"one that {self.scale_dtype} can hold",
                              remedy="use scale_dtype=torch.float32")  # fmt: skip
        smallest = max(torch.finfo(self.scale_dtype).smallest_normal * torch.finfo(self.scale_dtype).eps, torch.finfo().smallest_normal)
        # float16 scales below 6e-5 are so coarse that rounding down would clip by more than half a step: take the next larger.
        reach = max(abs(code) for code in self.code_range) + 0.5
        short = stored.float().abs() * reach < extreme.abs()
        step = torch.where(short, smallest, 0.0).copysign(scale)
        stored = (stored.float() + step).to(self.scale_dtype)
        floor = torch.where(stored.abs() < smallest, torch.full_like(scale, smallest).copysign(scale), stored.float())
        return torch.where(extreme == 0, 1.0, floor).to(self.scale_dtype)

    def _search_rows(
        self, weight: Tensor, importance: Tensor | None, scale: Tensor, zero: Tensor | None, steps: int, low: float, refits: int
    ) -> tuple[Tensor, Tensor | None]:
        """`search` on rows that fit into the cache."""
        h = None if importance is None else self._grouped(importance.expand_as(weight))
        slab = search.Slab.of(self._grouped(weight), h, self.code_range)
        plain = scale.float().view(-1)
        plain_zero = None if zero is None else zero.float().view(-1)
        best = slab.loss(plain, plain_zero)
        found, found_zero = plain, plain_zero
        for trial_zero, factors in self._trials(plain_zero, steps, low):
            candidate, _ = search.sweep(slab.dots, plain, trial_zero, factors, refits)
            candidate = candidate.to(self.scale_dtype).float()
            loss = slab.loss(candidate, trial_zero)
            better = (loss < best) & candidate.isfinite() & (candidate != 0)
            best, found = torch.where(better, loss, best), torch.where(better, candidate, found)
            if found_zero is not None and trial_zero is not None:
                found_zero = torch.where(better, trial_zero, found_zero)
        stored_zero = None if found_zero is None else found_zero.to(torch.uint8).view(scale.shape)
        return found.to(self.scale_dtype).view(scale.shape), stored_zero

    def _trials(self, zero: Tensor | None, steps: int, low: float) -> list[tuple[Tensor | None, list[float]]]:
        """Zero points to try, each with the factors on the plain scale."""
        lowest, highest = self.code_range
        if zero is not None:
            factors = torch.linspace(low, 1.0, steps).tolist()
            return [((zero + shift).clamp(lowest, highest), factors) for shift in (0, -1, 1)]
        # The lopsided range reaches -2^(b-1) on one side only: stretched until the short side reaches the extreme, or mirrored.
        factors = torch.linspace(low, lowest / -highest, steps).tolist()
        return [(None, factors + [-f for f in factors] if self.full_range else factors)]


__all__ = ["Codes", "Granularity", "Int", "PerGroup", "PerRow", "PerTensor"]
