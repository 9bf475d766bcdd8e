"""Options shared by every method that rounds weights to an integer grid."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lessen.core.strict import check_fields
from lessen.errors import UsageError
from lessen.formats.affine import Int
from lessen.formats.granularity import PerGroup, PerRow


@dataclass(frozen=True)
class Rounding:
    """The integer grid and how its scales are chosen."""

    bits: int = 4
    """Width of a code, 2 to 8."""
    group: int | None = 32
    """Weights that share a scale; None: a whole row."""
    symmetric: bool = True
    """Codes around zero without a zero point."""
    full_range: bool = True
    """Use the lowest code too, with a scale of either sign (symmetric only)."""
    scale: Literal["absmax", "mse", "hessian"] = "hessian"
    """Scales from the extremes, from the squared weight error, or from that error weighted by the input's curvature."""

    def __post_init__(self) -> None:
        check_fields(self)
        _ = self.format  # refuses widths that no format has
        if self.group is not None and self.group < 1:
            raise UsageError(f"{type(self).__name__}.group", got=str(self.group), wanted="a positive number, or None for whole rows")

    @property
    def format(self) -> Int:
        """The number format that the options describe."""
        return Int(self.bits, PerRow() if self.group is None else PerGroup(self.group), self.symmetric, self.full_range)

    def grid(self, weight: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point by the rule of `scale`; importance "in" counts unless the rule is "mse"."""
        if self.scale == "absmax":
            return self.format.grid(weight)
        return self.format.search(weight, None if self.scale == "mse" else importance)
