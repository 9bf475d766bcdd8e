"""Options shared by every method that removes channels, and the way from its scores to what stays.

A pruning method is a `score`; how many channels go, and whose, is written here and in `lessen.methods.ranking` once for all of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from lessen.core.edit import Edit, Keep
from lessen.core.method import Stats
from lessen.core.strict import check_fields
from lessen.core.unit import Kind, Unit, View
from lessen.errors import LessenError, UsageError
from lessen.methods.ranking import Merge, Normalise, Rules, rank
from lessen.stats.inputs import Read
from lessen.targets.cost import Channels, Cost, Goal

Counted = Literal["channels", "parameters", "bytes", "macs", "latency"]
Across = Literal["layer", "place", "model"]


@dataclass(frozen=True)
class Budget:
    """Options shared by every method that removes channels."""

    ratio: float = 0.2
    """Fraction to remove, in [0, 1)."""
    unit: Literal["ffn", "kv_group", "all"] = "ffn"
    """What to remove in a language model: feed-forward channels, key/value heads with their queries, or both in one ranking."""
    across: Across = "layer"
    """Who competes: channels of one layer (all lose the same share), places of a block (each as wide in all blocks), or the whole model."""
    multiple: int = 1
    """Widths that are left are multiples of this, for kernels that want them."""
    least: float = 0.1
    """Fraction of its channels that every layer keeps at least when the whole model competes."""
    of: Counted = "channels"
    """What the ratio counts: channels, or what the whole model costs (embeddings included) in one of the other units."""
    per: Literal["channel", "parameter", "cost"] = "channel"
    """Rank by the score of a channel, or by its score for each parameter, or each unit of what is budgeted, that leaves with it."""
    normalise: Normalise = "none"
    """How scores are made comparable inside a partition: divided by their mean, stretched to 0..1, or standardised."""
    partition: Literal["model", "unit", "kind", "block", "tower", "alike"] = "model"
    """Inside what: the model, a unit, units of a kind, a block, a tower (vision, language), or units of one place in all blocks."""
    towers: tuple[str, ...] = ()
    """Name prefixes of towers; empty: what is called vision, visual, image or audio is one, everything else is language."""

    scope: ClassVar[str] = "model"
    reads: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        where = type(self).__name__
        if not 0 <= self.ratio < 1:
            raise UsageError(where, got=f"ratio={self.ratio}", wanted="a fraction to remove, at least 0 and below 1")
        if not 0 <= self.least <= 1:
            raise UsageError(where, got=f"least={self.least}", wanted="a fraction between 0 and 1")
        if self.across != "layer" and self.of == "channels" and self.ratio + self.least > 1:
            got = f"ratio={self.ratio} with least={self.least}"
            raise UsageError(where, got=got, wanted="a sum of 1 at most", remedy="lower one of them")
        if self.multiple < 1:
            raise UsageError(where, got=f"multiple={self.multiple}", wanted="1 or more")
        if self.unit not in ("ffn", "kv_group", "all"):
            raise UsageError(where, got=f"unit={self.unit!r}", wanted="ffn, kv_group or all")
        if self.across not in get_args(Across):
            raise UsageError(where, got=f"across={self.across!r}", wanted="layer, place or model")

    @property
    def needs(self) -> tuple[type, ...]:
        """Statistics to collect before `score` is asked."""
        return ()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of unit that the method decides on in a language model."""
        return ("ffn", "kv_group") if self.unit == "all" else (self.unit,)

    @property
    def kind(self) -> Kind:
        """The first of them."""
        return self.kinds[0]

    @property
    def rules(self) -> Rules:
        """How channels compete."""
        alone = self.across == "layer"
        return Rules(self.normalise, multiple=self.multiple, least=0.0 if alone else self.least, alone=alone)

    def score(self, view: View, stats: Stats) -> Tensor:
        """How much each channel matters, "channel" or "objective channel"; higher is better."""
        raise LessenError(type(self).__name__, got="no score", wanted="a method with one")

    def unable(self, view: View) -> str | None:
        """Why the method cannot judge a unit, which is then left whole, as the end of a sentence; None if it can."""
        return None

    def remarks(self, views: Sequence[View], stats: Sequence[Stats]) -> list[str]:
        """What of the method does not apply to some units, as sentences."""
        return []

    def scores(self, views: Sequence[View], stats: Sequence[Stats]) -> list[Tensor]:
        """The score of every unit, for each parameter if asked so."""
        found: list[Tensor] = []
        for view, stat in zip(views, stats, strict=True):
            score = self._over_readers(view, stat) if self.reads and Read in stat else self.score(view, stat)
            found.append(score / parameters_per_channel(view) if self.per == "parameter" else score)
        return found

    def _over_readers(self, view: View, stats: Stats) -> Tensor:
        """The scores of every layer that reads the unit, added up."""
        total: Tensor | None = None
        for read in stats[Read]:
            part = self.score(read.view(view), read.stats)
            total = part if total is None else total + part
        if total is None:
            wanted, remedy = "one, to weigh its input", "use a method that needs no inputs (Magnitude, Taylor)"
            raise LessenError(view.unit.name, got="no layer that reads its channels", wanted=wanted, remedy=remedy)
        return total

    def decide(self, views: Sequence[View], stats: Sequence[Stats], goal: Goal | None = None) -> list[Edit]:
        """One `Keep` for each unit that loses channels.

        Args:
            views: the units.
            stats: what was collected about each.
            goal: how much may be left; None: what `ratio` and `of` say, of these units alone.
        """
        scores = self.scores(views, stats)
        if self.per == "cost" and goal is not None:
            scores = [score / worth for score, worth in zip(scores, cost_per_channel(goal.cost, [v.unit for v in views]), strict=True)]
        chosen = self.select([view.unit for view in views], scores, goal)
        return [Keep(view.unit, stay) for view, stay in zip(views, chosen, strict=True) if len(stay) < view.unit.size]

    def select(self, units: Sequence[Unit], scores: Sequence[Tensor], goal: Goal | None = None) -> list[Tensor]:
        """What each unit keeps.

        Args:
            units: the units.
            scores: for each one number per channel and objective, higher is better, "channel" or "objective channel".
            goal: how much may be left; None: the ratio, of the channels.

        Returns:
            for each unit the indices that stay, int64, sorted.

        Raises:
            LessenError: a score is NaN. UsageError: the goal cannot be reached.
        """
        for unit, score in zip(units, scores, strict=True):
            if bool(score.isnan().any()):
                got, remedy = f"{int(score.isnan().sum())} NaN scores of {score.numel()}", "check the weights and the calibration data"
                raise LessenError(unit.name, got=got, wanted="a number per channel", remedy=remedy)
        if not units:
            return []
        labels = [self._partition(unit) for unit in units]
        if goal is None and self.across == "layer":
            return [
                rank([score], [label], [0], _share([unit], self.ratio), self.rules, [unit.floor])[0]
                for unit, score, label in zip(units, scores, labels, strict=True)
            ]
        together = list(range(len(units)))
        if self.across != "model":
            alike = [(alike_name(unit.name), unit.kind, unit.size) for unit in units]
            together = [alike.index(key) for key in alike]
        return rank(scores, labels, together, goal or _share(units, self.ratio), self.rules, [unit.floor for unit in units])

    def _partition(self, unit: Unit) -> str:
        match self.partition:
            case "unit":
                return unit.name
            case "kind":
                return unit.kind
            case "block":
                return f"{_before_number(unit)}{unit.block}"
            case "tower":
                return tower(unit, self.towers)
            case "alike":
                return " ".join([unit.kind, *(f"{alike_name(part.name)}:{part.axis}" for part in unit.slices)])
            case _:
                return ""


def keep(scores: Sequence[Tensor], ratio: float, multiple: int = 1, least: float = 0.0) -> list[Tensor]:
    """Choose what stays when all given units compete; ties go by unit, then by channel, the first ones leaving first.

    With `multiple=1` exactly round(ratio * n) channels go; otherwise the nearest count that can be had, the smaller one on a tie.

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
    units = [Unit(str(number), "ffn", len(score), ()) for number, score in enumerate(scores)]
    rules = Rules(multiple=multiple, least=least)
    return rank(scores, [""] * len(units), list(range(len(units))), _share(units, ratio), rules)


def _share(units: Sequence[Unit], ratio: float) -> Goal:
    """A fraction of the channels, rounded to a whole number of them."""
    cost = Channels(units)
    return Goal(cost, cost.whole - int(ratio * cost.whole + 0.5))


def parameters_per_channel(view: View) -> float:
    """How many parameters leave with one channel of a unit, on average.

    >>> from lessen.core.unit import Slice
    >>> import torch
    >>> unit = Unit("mlp", "ffn", 4, (Slice("up", 0), Slice("down", 1)))
    >>> parameters_per_channel(View(unit, {"up": torch.ones(4, 3), "down": torch.ones(3, 4)}))
    6.0
    """
    total = 0.0
    for part in dict.fromkeys(view.unit.slices):
        shape = view.tensors[part.name].shape
        total += part.span * part.repeat * prod(shape) / shape[part.axis]
    return total


def cost_per_channel(cost: Cost, units: Sequence[Unit]) -> list[float]:
    """How much of a cost leaves with one channel of each unit, on average, while all others are whole.

    >>> from lessen.core.unit import Slice
    >>> from lessen.targets.cost import Elements
    >>> unit = Unit("mlp", "ffn", 4, (Slice("up", 0), Slice("down", 1)))
    >>> cost_per_channel(Elements("macs", {"up": (4, 3), "down": (3, 4)}, [unit], {"up": 10.0}), [unit])
    [33.0]
    """
    sizes = [unit.size for unit in units]
    # One channel stays: a shape with none cannot be measured, and that of a unit of one cannot be narrowed.
    worth = [cost.saving(sizes, place, 1) / (size - 1) if size > 1 else 1.0 for place, size in enumerate(sizes)]
    return [max(value, 1e-12) for value in worth]  # nothing may leave where a table of latencies is flat


def alike_name(name: str) -> str:
    """A dotted name without its numbers: what equal places in different blocks have in common.

    >>> alike_name("model.layers.3.mlp")
    'model.layers.*.mlp'
    """
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


_BRIDGE = r"(?:^|\.)(?:q_?former|(?:multi_?modal_|mm_)?projector|connector|perceiver\w*|resampler)(?:\.|$)"
"""What stands between towers: it reads one modality and writes for the other, on a scale of its own."""


def tower(unit: Unit, prefixes: Sequence[str] = ()) -> str:
    """The tower of a model that a unit belongs to.

    >>> tower(Unit("model.vision_tower.layers.0.mlp", "ffn", 4, ())), tower(Unit("model.layers.0.mlp", "ffn", 4, ()))
    ('vision', 'language')
    >>> tower(Unit("qformer.encoder.layer.0", "ffn", 4, ())), tower(Unit("model.multi_modal_projector", "ffn", 4, ()))
    ('bridge', 'bridge')
    """
    name = unit.slices[0].name if unit.slices else unit.name
    if prefixes:
        own = [prefix for prefix in prefixes if name == prefix or name.startswith(f"{prefix.rstrip('.')}.")]
        return max(own, key=len, default="language")
    path = name.lower()
    if re.search(_BRIDGE, path):
        return "bridge"
    if re.search(r"vision|visual|image|pixel|(?:^|\.)vit(?:\.|$)", path):
        return "vision"
    return "audio" if re.search(r"audio|speech", path) else "language"


def _before_number(unit: Unit) -> str:
    found = re.match(r"(.*?\.)\d+(?:\.|$)", unit.name)
    return found[1] if found else ""


def with_options(method: "Budget", **options: Any) -> "Budget":
    """The method with other options; unknown ones are left out."""
    known = {name: value for name, value in options.items() if hasattr(method, name)}
    return replace(method, **known)


__all__ = ["Budget", "Merge", "alike_name", "keep", "parameters_per_channel", "tower", "with_options"]
