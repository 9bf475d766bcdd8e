"""How many weights share one scale, as a value: `PerTensor()`, `PerRow()`, `PerGroup(64)`."""

from dataclasses import dataclass

from lessen.errors import UsageError


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
            near = sorted((d for d in range(8, columns + 1) if columns % d == 0), key=lambda d: abs(d - self.size))[:4]
            raise UsageError(
                where,
                got=f"{columns} input features in groups of {self.size}",
                wanted=f"a divisor of {columns}",
                remedy=f"use {', '.join(map(str, near))}",
            )
        return columns // self.size


Granularity = PerTensor | PerRow | PerGroup
