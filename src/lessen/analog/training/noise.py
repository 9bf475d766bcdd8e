"""Errors of weights in training: another draw for every batch, Gaussian or the chip's own; and what draws them for a whole network."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lessen.analog.chip import Chip
from lessen.analog.tiles import execute
from lessen.analog.tiles.crossbar import Layout, Moment
from lessen.analog.tiles.layer import Tiles
from lessen.analog.tiles.streams import normal
from lessen.core.strict import check_fields
from lessen.errors import UsageError


@dataclass(frozen=True)
class Injected:
    """Gaussian errors, fresh for every batch."""

    sigma: float = 0.03
    """Standard deviation, as a part of the largest weight."""
    of: Literal["column", "tensor"] = "column"
    """Whose largest weight: that of the tile's column in which the error lies, or of the whole layer."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.sigma < math.inf:
            raise UsageError("Injected", got=f"sigma={self.sigma:g}", wanted="a finite number of at least 0")


@dataclass(frozen=True)
class Programmed:
    """What the chip itself makes of the weights: another instance for every batch, at a time drawn evenly on a logarithmic scale."""

    first: float | None = None
    """Earliest time in seconds since programming; None: where the device's description begins."""
    last: float = 365 * 86400.0
    """Latest time: a year, the last at which a simulation looks by itself."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= (self.first or 0) <= self.last < math.inf:
            raise UsageError("Programmed", got=f"first={self.first}, last={self.last:g}", wanted="0 <= first <= last")

    def draw(self, chip: Chip, generator: torch.Generator | None = None) -> tuple[int, float]:
        """An instance of a chip and a time in its life."""
        first = chip.device.first if self.first is None else self.first
        chip.device.check_time(first)
        early, late = math.log1p(first), math.log1p(max(first, self.last))
        drawn = float(torch.rand((), generator=generator, dtype=torch.float64))
        seconds = min(max(math.expm1(early + drawn * (late - early)), first), max(first, self.last))
        return int(torch.randint(2**62, (), generator=generator)), seconds


@dataclass
class Stage:
    """What the layers of a rehearsal share.

    Attributes:
        noise: of the weights: Gaussian errors (`sigma`, `of`), or the chip's own at some time (`seconds`).
        output_noise: of column sums, in fully driven rows of a column's largest weight.
        decay: of learned full scales.
        generator: of all noise; None: torch's own, which the training loop seeds for every step.
        drawn: instance of the chip and seconds since programming, for this batch.
    """

    noise: Injected | Programmed
    output_noise: float = 0.0
    decay: float = 0.01
    generator: torch.Generator | None = None
    drawn: tuple[int, float] | None = None

    def another(self, chip: Chip) -> None:
        """Another instance at another time."""
        if isinstance(self.noise, Programmed):
            self.drawn = self.noise.draw(chip, self.generator)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers."""
        return normal(like, self.generator)

    def error(self, weight: Tensor, scale: Tensor, tiles: Tiles) -> tuple[Tensor | None, Tensor]:
        """What this batch's chip adds to a weight `(group output) input`, and its scales `tile 1 column`, drift compensated."""
        if isinstance(self.noise, Programmed):
            instance, seconds = self.drawn or self.noise.draw(tiles.chip, self.generator)
            crossbar, own = tiles.programmed(weight, Moment(instance, tiles.name, seconds))
            made = execute.fold(crossbar, own, tiles.chip, tiles.place).matrix
            return made.transpose(1, 2).reshape(weight.shape).sub_(weight), own
        if not self.noise.sigma:
            return None, scale
        largest = scale.amax() if self.noise.of == "tensor" else spread(scale, tiles.place)
        return self.normal(weight).mul_(self.noise.sigma * largest), scale


def spread(scale: Tensor, place: Layout) -> Tensor:
    """Scales of tile columns, `tile 1 column`, as they lie over a weight `(group output) input`; one column if all inputs share theirs."""
    if place.row_tiles == 1:
        return scale.reshape(-1, 1)
    wide = scale.reshape(place.groups, place.row_tiles, 1, place.outputs).expand(-1, -1, place.rows, -1)
    return wide.flatten(1, 2)[:, : place.inputs].transpose(1, 2).reshape(-1, place.inputs)
