"""How many weights share one scale, as a value: `PerTensor()`, `PerRow()`, `PerGroup(64)`; and what every scaled format needs.

Scales are stored as a matrix "out group" ("1 1" for a whole tensor). Inside, weights are seen as "group size", one row for each scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.errors import LessenError, UsageError

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def groups(self, columns: int, where: str = "weight") -> int:
        return 1


@dataclass(frozen=True)
class PerRow:
    """One scale for each output row."""

    def groups(self, columns: int, where: str = "weight") -> int:
        return 1


@dataclass(frozen=True)
class PerGroup:
    """One scale for every `size` consecutive inputs of a row.

    >>> PerGroup(64).groups(576)
    9
    >>> PerGroup(128).groups(576, "layers.0.q_proj")
    Traceback (most recent call last):
    lessen.errors.UsageError: layers.0.q_proj: got 576 input features in groups of 128, wanted a divisor of 576; use 96, 144, 64, 192
    """

    size: int

    def groups(self, columns: int, where: str = "weight") -> int:
        """Number of groups in a row of `columns` inputs; UsageError if they do not divide."""
        if self.size < 1 or columns % self.size:
            near = sorted((d for d in range(1, columns + 1) if columns % d == 0 and d > 7), key=lambda d: abs(d - self.size))[:4]
            raise UsageError(
                where,
                got=f"{columns} input features in groups of {self.size}",
                wanted=f"a divisor of {columns}",
                remedy=f"use {', '.join(map(str, near or [columns]))}",
            )
        return columns // self.size


Granularity = PerTensor | PerRow | PerGroup


def scale_shape(shape: tuple[int, ...], granularity: Granularity, where: str = "weight") -> tuple[int, int]:
    """Shape of the scales of a matrix "out in".

    >>> scale_shape((4, 64), PerGroup(16)), scale_shape((4, 64), PerRow()), scale_shape((4, 64), PerTensor())
    ((4, 4), (4, 1), (1, 1))
    """
    if len(shape) != 2 or 0 in shape:
        raise UsageError(where, got=f"shape {tuple(shape)}", wanted='a matrix "out in" with weights in it')
    return (1 if isinstance(granularity, PerTensor) else shape[0]), granularity.groups(shape[1], where)


def grouped(weight: Tensor, granularity: Granularity, where: str = "weight") -> Tensor:
    """float32 "group size": one row for each scale of a matrix "out in"."""
    rows, groups = scale_shape(weight.shape, granularity, where)
    return weight.float().reshape(rows * groups, -1)


def extremes(weight: Tensor, granularity: Granularity, where: str = "weight") -> tuple[Tensor, Tensor]:
    """Smallest and largest weight for each scale, float32 "out group"; LessenError for NaN or infinite weights."""
    low, high = torch.aminmax(grouped(weight, granularity, where), dim=1)
    if not bool(low.isfinite().all() and high.isfinite().all()):
        raise LessenError(where, got="NaN or infinite weights", wanted="finite ones", remedy="load the checkpoint again")
    shape = scale_shape(weight.shape, granularity, where)
    return low.view(shape), high.view(shape)


def stored_scale(scale: Tensor, extreme: Tensor, reach: float, dtype: torch.dtype, where: str = "weight") -> Tensor:
    """Scales as they will be stored: rounded to `dtype`, never 0 (dividing by them is safe), 1 for groups of zeros.

    Args:
        scale: "out group", float32, not yet rounded.
        extreme: "out group", the weight (or width) that the scale must cover; 0 for groups of zeros.
        reach: largest multiple of the scale that is not clipped.
        dtype: type of the result.
        where: name of the tensor, for errors.
    """
    info = torch.finfo(dtype)
    stored = scale.to(dtype)
    if not bool(stored.isfinite().all()):
        got = f"a scale of {float(scale.abs().max()):.3g}"
        raise LessenError(where, got=got, wanted=f"at most {info.max:.3g}", remedy="use scale_dtype=torch.float32")
    # float16 is subnormal below 6e-5, and so coarse there that rounding down could clip by more than half a step: take the next larger.
    spacing = max(info.smallest_normal * info.eps, torch.finfo(torch.float32).smallest_normal)
    short = stored.float().abs() * reach < extreme.abs()
    stored = stored.float() + torch.where(short, spacing, 0.0).copysign(scale)
    stored = torch.where(stored.abs() < spacing, torch.full_like(stored, spacing).copysign(scale), stored)
    return torch.where(extreme == 0, 1.0, stored).to(dtype)


def check_scale_dtype(dtype: torch.dtype, where: str) -> None:
    """UsageError unless scales can be stored in this type."""
    if dtype not in SCALE_DTYPES:
        raise UsageError(where, got=str(dtype), wanted=" or ".join(map(str, SCALE_DTYPES)))
