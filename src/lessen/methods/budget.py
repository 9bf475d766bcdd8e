"""How many channels go, and whose: every pruning method scores, this file selects.

Channels of a unit leave in chunks, lowest scores first: the first chunk brings the width down to a multiple of `multiple`, each further
one takes `multiple` channels. Chunks that compete are ranked by their mean score. Since a unit's chunks are already in rising order, the
ranking never takes a better channel of a unit before a worse one. With `multiple=1` exactly round(ratio * n) channels go; otherwise
the nearest count that can be had, the smaller one on a tie.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

from torch import Tensor

from lessen.core.edit import Edit, Keep
from lessen.core.unit import Kind, View
from lessen.errors import LessenError, UsageError


@dataclass(frozen=True)
class Budget:
    """Options shared by every method that removes channels."""

    ratio: float = 0.2
    """Fraction of the channels to remove, in [0, 1)."""
    unit: Literal["ffn", "kv_group"] = "ffn"
    """What to remove: feed-forward channels, or key/value heads with their queries."""
    across: Literal["layer", "model"] = "layer"
    """Who competes: the channels of one layer (all layers get the same width), or those of the whole model."""
    multiple: int = 1
    """Widths that are left are multiples of this, for kernels that want them."""
    least: float = 0.1
    """Fraction of its channels that every layer keeps at least when the whole model competes."""

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not 0 <= self.ratio < 1:
            raise UsageError(where, got=f"ratio={self.ratio}", wanted="a fraction to remove, at least 0 and below 1")
        if not 0 <= self.least <= 1:
            raise UsageError(where, got=f"least={self.least}", wanted="a fraction between 0 and 1")
        if self.across == "model" and self.ratio + self.least > 1:
            got = f"ratio={self.ratio} with least={self.least}"
            raise UsageError(where, got=got, wanted="a sum of 1 at most", remedy="lower one of them")
        if self.multiple < 1:
            raise UsageError(where, got=f"multiple={self.multiple}", wanted="1 or more")
        if self.unit not in ("ffn", "kv_group"):
            raise UsageError(where, got=f"unit={self.unit!r}", wanted="ffn or kv_group")
        if self.across not in ("layer", "model"):
            raise UsageError(where, got=f"across={self.across!r}", wanted="layer or model")

    @property
    def kind(self) -> Kind:
        """The kind of unit that the method decides on."""
        return self.unit

    def select(self, views: Sequence[View], scores: Sequence[Tensor]) -> list[Tensor]:
        """What each unit keeps.

        Args:
            views: the units.
            scores: for each unit one number per channel, higher is better, shape "channel".

        Returns:
            for each unit the indices that stay, int64, sorted.

        Raises:
            LessenError: a score is NaN.
        """
        for view, score in zip(views, scores, strict=True):
            if bool(score.isnan().any()):
                got, remedy = f"{int(score.isnan().sum())} NaN scores of {len(score)}", "check the weights and the calibration text"
                raise LessenError(view.unit.name, got=got, wanted="a number per channel", remedy=remedy)
        if self.across == "layer":
            return [keep([score], self.ratio, self.multiple)[0] for score in scores]
        return keep(scores, self.ratio, self.multiple, self.least)

    def keeps(self, views: Sequence[View], scores: Sequence[Tensor]) -> list[Edit]:
        """One `Keep` for each unit that loses channels."""
        chosen = self.select(views, scores)
        return [Keep(view.unit, stay) for view, stay in zip(views, chosen, strict=True) if len(stay) < view.unit.size]


def keep(scores: Sequence[Tensor], ratio: float, multiple: int = 1, least: float = 0.0) -> list[Tensor]:
    """Choose what stays when all given units compete; ties go by unit, then by channel, the first ones leaving first.

    Args:
        scores: one tensor "channel" per unit, higher is better.
        ratio: fraction of all channels to remove.
        multiple: widths left are multiples of this, unless a unit loses nothing.
        least: fraction that every unit keeps at least; one channel (or one multiple) always stays.

    Returns:
        indices that stay, int64, sorted, one tensor per unit.

    >>> import torch
    >>> keep([torch.tensor([1.0, 9.0, 2.0, 8.0]), torch.tensor([7.0, 6.0, 5.0, 4.0])], ratio=0.25)
    [tensor([1, 3]), tensor([0, 1, 2, 3])]
    """
    orders = [score.double().cpu().argsort(stable=True) for score in scores]
    target = floor(ratio * sum(len(order) for order in orders) + 0.5)
    ranked = sorted(
        (float(score.double().cpu()[order[start:end]].mean()), unit, start, end)
        for unit, (score, order) in enumerate(zip(scores, orders, strict=True))
        for start, end in _chunks(len(order), multiple, least)
    )
    removed, cut = 0, [0] * len(scores)
    for _, unit, start, end in ranked:
        # A chunk of a unit comes after its earlier ones, unless rounding of means has swapped equals.
        if start != cut[unit] or abs(removed + end - start - target) >= abs(removed - target):
            continue
        removed, cut[unit] = removed + end - start, end
    return [order[gone:].sort().values for order, gone in zip(orders, cut, strict=True)]


def _chunks(size: int, multiple: int, least: float) -> Iterator[tuple[int, int]]:
    """Positions in rising order of score that leave together."""
    floor_width = max(ceil(least * size - 1e-9), 1)
    start, end = 0, size % multiple or multiple
    while size - end >= floor_width:
        yield start, end
        start, end = end, end + multiple
