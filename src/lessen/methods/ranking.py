"""The deciding engine: from scores of channels to what every unit keeps. Every pruning method ends here.

    scores, one row per objective  ->  normalised inside a partition, over those that are still there
                                   ->  merged over the objectives
                                   ->  ranked against all others, the lowest leave, `step` channels to a round
                                   ->  until the budget is met; every unit keeps its least, and widths that the hardware likes

One engine covers what papers describe apart: UKMP normalises by modality and ranks in rounds, SAMP merges tasks and balances the layers,
FLAP standardises every layer, Isomorphic Pruning compares like with like, uniform pruning narrows all layers by the same amount.

Channels of a unit leave in chunks, lowest scores first: the first chunk brings the width down to a multiple of `multiple`, each further
one takes `multiple` channels. Chunks that compete are ranked by their mean score; equal ones go by unit, then by channel, the first ones
leaving first. Since a unit's chunks are in rising order, the ranking never takes a better channel of a unit before a worse one.

Layer-wise balancing: with `slack` = k no unit loses more than k times the share u that all would lose if all lost the same:

    least of unit l = ceil(n_l * max(least, 1 - k u))

so that scores which call a whole layer worthless are believed only so far. u follows from the budget by bisection over the cost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from lessen.errors import LessenError, UsageError
from lessen.targets.cost import Channels, Cost, Goal

Normalise = Literal["none", "mean", "minmax", "zscore"]
Merge = Literal["sum", "max", "harmonic", "rank"]


@dataclass(frozen=True)
class Rules:
    """How channels compete.

    Attributes:
        normalise: applied to every objective inside every partition.
        renew: normalise again in every round, over the channels that are left.
        merge: objectives into one score: their sum, the largest, their harmonic mean, or the mean of their ranks.
        weights: of the objectives; () weighs all alike.
        multiple: widths left are multiples of this, unless a unit loses nothing.
        least: fraction of its channels that every unit keeps at least; one channel (or one multiple) always stays.
        step: channels that leave in a round; None: all in one round.
        fine: channels in a round once nine tenths of the way are done; None: as before.
        slack: a unit may lose this many times the share that it would lose if all lost the same; None: any share.
        alone: units do not compete: a channel counts what its place is among those of its own unit, so that all lose the same share.
    """

    normalise: Normalise = "none"
    renew: bool = True
    merge: Merge = "sum"
    weights: tuple[float, ...] = ()
    multiple: int = 1
    least: float = 0.0
    step: int | None = None
    fine: int | None = None
    slack: float | None = None
    alone: bool = False


def rank(
    scores: Sequence[Tensor],
    partitions: Sequence[str],
    together: Sequence[int],
    goal: Goal,
    rules: Rules,
    floors: Sequence[int] | None = None,
) -> list[Tensor]:
    """Choose what stays.

    Args:
        scores: for each unit "channel" or "objective channel", higher is better.
        partitions: for each unit the partition inside which its scores are normalised.
        together: for each unit a number; units with the same number have the same size and are narrowed by the same amount.
        goal: when to stop.
        rules: how they compete.
        floors: channels that each unit keeps at least, beside the share in `rules`.

    Returns:
        indices that stay, int64, sorted, one tensor per unit.

    Raises:
        UsageError: the goal cannot be reached without emptying a unit.
    """
    contest = _Contest(scores, partitions, together, goal.cost, rules)
    contest.least = list(floors or contest.least)
    whole = goal.cost.whole
    share = rules.least if rules.slack is None else max(rules.least, 1 - rules.slack * contest.alike(goal.value))
    contest.spend(goal, contest.floors(share))
    left = goal.cost.at(contest.widths)
    if not isinstance(goal.cost, Channels) and left - goal.value > 0.005 * whole and contest.exhausted(share):
        where = f"a budget of {_count(goal.value)} {goal.cost.name}"
        got = f"{_count(left)} of {_count(whole)} after removing all that may go"
        raise UsageError(where, got=got, wanted="a budget that leaves something in every unit", remedy="ask for less, or lower `least`")
    return contest.kept()


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"


@dataclass(frozen=True)
class _Chunk:
    """Channels that leave together: the same number of each of some units, so far down their orders."""

    group: int
    start: int
    end: int


class _Contest:
    """The state of one ranking: which channels are left."""

    def __init__(self, scores: Sequence[Tensor], partitions: Sequence[str], together: Sequence[int], cost: Cost, rules: Rules):
        self.rules, self.cost = rules, cost
        self.scores = [torch.atleast_2d(score.double().cpu()) for score in scores]
        self.alive = [torch.ones(score.shape[1], dtype=torch.bool) for score in self.scores]
        self.sizes = [score.shape[1] for score in self.scores]
        self.widths = list(self.sizes)
        self.least = [1] * len(self.sizes)
        members: dict[str, list[int]] = {}
        groups: dict[int, list[int]] = {}
        for unit, (partition, number) in enumerate(zip(partitions, together, strict=True)):
            members.setdefault(partition, []).append(unit)
            groups.setdefault(number, []).append(unit)
        self.partitions = list(members.values())
        self.groups = list(groups.values())
        for group in self.groups:
            if len({self.sizes[unit] for unit in group}) > 1:
                raise LessenError("ranking", got="units of several sizes to be narrowed alike", wanted="one size")
        self._first: list[Tensor] | None = None

    def kept(self) -> list[Tensor]:
        return [alive.nonzero()[:, 0] for alive in self.alive]

    def exhausted(self, share: float) -> bool:
        """Whether no group has a chunk left that may go."""
        floors = self.floors(share)
        return not any(list(_spans(self.widths[g[0]], self.rules.multiple, max(floors[u] for u in g))) for g in self.groups)

    def floors(self, share: float) -> list[int]:
        """Channels that every unit keeps at least where this share stays."""
        return [max(ceil(share * size - 1e-9), own) for size, own in zip(self.sizes, self.least, strict=True)]

    def alike(self, goal: float) -> float:
        """The share that every unit loses where all lose the same and the goal is met, in [0, 1]."""
        low, high = 0.0, 1.0
        while high - low > 1e-3:
            middle = (low + high) / 2
            enough = self.cost.at(self.floors(1 - middle)) <= goal
            low, high = (low, middle) if enough else (middle, high)
        return high

    def spend(self, goal: Goal, floors: Sequence[int]) -> None:
        """Remove rounds of channels until the goal is met or nothing more may go."""
        left = self.cost.at(self.widths)
        while left > goal.value:
            before = left
            removed, left = self._round(left, goal.value, goal.strict, floors)
            if not removed or (self.rules.step is None and left == before):
                return

    def _round(self, left: float, goal: float, strict: bool, floors: Sequence[int]) -> tuple[int, float]:
        merged = self._alone(self._merged()) if self.rules.alone else self._merged()
        orders = [score.argsort(stable=True) for score in merged]
        quota = self._quota(left, goal)
        removed = 0
        cut = [0] * len(self.groups)
        for chunk in self._ranked(merged, orders, floors):
            if left <= goal or removed >= quota:
                break
            if chunk.start != cut[chunk.group]:  # rounding of means has swapped equals, or an earlier chunk was passed over
                continue
            saving = self._saving(chunk)
            if not strict and abs(left - saving - goal) >= abs(left - goal) and saving > 0:
                continue
            left -= saving
            cut[chunk.group] = chunk.end
            for unit in self.groups[chunk.group]:
                self.widths[unit] -= chunk.end - chunk.start
                removed += chunk.end - chunk.start
        for group, count in zip(self.groups, cut, strict=True):
            for unit in group:
                places = self.alive[unit].nonzero()[:, 0]
                self.alive[unit][places[orders[unit][:count]]] = False
        return removed, self.cost.at(self.widths) if removed else left

    def _quota(self, left: float, goal: float) -> float:
        rules = self.rules
        if rules.step is None:
            return float("inf")
        way = self.cost.whole - goal
        near = rules.fine is not None and way > 0 and (self.cost.whole - left) >= 0.9 * way
        return float(rules.fine if near and rules.fine is not None else rules.step)

    def _saving(self, chunk: _Chunk) -> float:
        if len(self.groups[chunk.group]) == 1:
            unit = self.groups[chunk.group][0]
            return self.cost.saving(self.widths, unit, self.widths[unit] - (chunk.end - chunk.start))
        after = list(self.widths)
        for unit in self.groups[chunk.group]:
            after[unit] -= chunk.end - chunk.start
        return self.cost.at(self.widths) - self.cost.at(after)

    def _ranked(self, merged: Sequence[Tensor], orders: Sequence[Tensor], floors: Sequence[int]) -> Iterator[_Chunk]:
        """Chunks of all groups, the lowest mean score first."""
        means: list[Tensor] = []
        chunks: list[_Chunk] = []
        for number, group in enumerate(self.groups):
            ordered = torch.stack([merged[unit][orders[unit]] for unit in group]).mean(0)
            spans = list(_spans(self.widths[group[0]], self.rules.multiple, max(floors[unit] for unit in group)))
            if spans:
                single = self.rules.multiple == 1
                means.append(ordered[: len(spans)] if single else torch.stack([ordered[start:end].mean() for start, end in spans]))
                chunks += [_Chunk(number, start, end) for start, end in spans]
        if not chunks:
            return iter(())
        return (chunks[place] for place in torch.cat(means).argsort(stable=True).tolist())

    def _merged(self) -> list[Tensor]:
        """One score per channel that is left, by unit."""
        now = self._normalised()
        weights = torch.tensor(self.rules.weights or [1.0] * len(now[0]), dtype=torch.float64)[:, None]
        if self.rules.merge == "rank":
            now = _ranks(now)
        match self.rules.merge:
            case "max":
                return [(weights * score).amax(0) for score in now]
            case "harmonic":
                tiny = torch.finfo(torch.float64).tiny
                return [weights.sum() / (weights / score.clamp_min(tiny)).sum(0) for score in now]
            case _:
                return [(weights * score).sum(0) for score in now]

    def _alone(self, merged: Sequence[Tensor]) -> list[Tensor]:
        """The share of a unit that is gone once a channel is: the same scale in all of them."""
        places = [score.argsort(stable=True).argsort(stable=True).double() for score in merged]
        return [(size - width + 1 + place) / size for place, width, size in zip(places, self.widths, self.sizes, strict=True)]

    def _normalised(self) -> list[Tensor]:
        now = [score[:, alive] for score, alive in zip(self.scores, self.alive, strict=True)]
        if self.rules.normalise == "none":
            return now
        if self.rules.renew or self._first is None:
            self._first = [_scale(torch.cat([now[unit] for unit in units], 1), self.rules.normalise) for units in self.partitions]
        for units, scale in zip(self.partitions, self._first, strict=True):
            shift, factor = scale[:, :1], scale[:, 1:]
            for unit in units:
                now[unit] = (now[unit] - shift) / factor
        return now


def _scale(values: Tensor, how: Normalise) -> Tensor:
    """What to subtract and what to divide by, "objective 2"; values are "objective channel"."""
    tiny = torch.finfo(torch.float64).tiny
    zero = torch.zeros(len(values), 1, dtype=torch.float64)
    if how == "mean":
        return torch.cat([zero, values.mean(1, keepdim=True).clamp_min(tiny)], 1)
    if how == "minmax":
        low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
        return torch.cat([low, (high - low).clamp_min(tiny)], 1)
    return torch.cat([values.mean(1, keepdim=True), values.std(1, correction=0, keepdim=True).clamp_min(tiny)], 1)


def _ranks(scores: Sequence[Tensor]) -> list[Tensor]:
    """Each objective's ranking of all channels as numbers from 0 to 1."""
    flat = torch.cat(list(scores), 1)
    places = flat.argsort(dim=1, stable=True).argsort(dim=1, stable=True).double() / max(1, flat.shape[1] - 1)
    return list(places.split([score.shape[1] for score in scores], 1))


def _spans(size: int, multiple: int, least: int) -> Iterator[tuple[int, int]]:
    """Positions in rising order of score that leave together."""
    start, end = 0, size % multiple or multiple
    while size - end >= least:
        yield start, end
        start, end = end, end + multiple
