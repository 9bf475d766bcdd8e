"""Affine integer formats: w = scale * (code - zero), int2 to int8, with one scale per tensor, row or group."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.formats.granularity import Granularity, PerGroup, PerRow, PerTensor


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
    """An affine integer format (TO BE COMPLETED by the formats owner; fields and method names are fixed).

    symmetric: codes lie in [-(2^(bits-1) - 1), 2^(bits-1) - 1]; with full_range also -2^(bits-1) (scale may be negative).
    """

    bits: int = 4
    granularity: Granularity = PerGroup(32)
    symmetric: bool = True
    full_range: bool = True
    scale_dtype: torch.dtype = torch.float16

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        raise NotImplementedError

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Stored bits per weight with scales and zero points."""
        raise NotImplementedError

    def grid(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """(scale, zero) from the extreme values of each group, already rounded to `scale_dtype`."""
        raise NotImplementedError

    def round(self, weight: Tensor, scale: Tensor, zero: Tensor | None) -> Codes:
        """Nearest codes on a given grid."""
        raise NotImplementedError

    def encode(self, weight: Tensor) -> Codes:
        return self.round(weight, *self.grid(weight))

    def decode(self, codes: Codes) -> Tensor:
        """float32 "out in": exactly scale * (values - zero) in float32."""
        raise NotImplementedError


__all__ = ["Codes", "Granularity", "Int", "PerGroup", "PerRow", "PerTensor"]
