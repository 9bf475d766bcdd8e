"""The analog/digital split, found: as much as possible on tiles for a stated loss of quality.

A split is a set of layers that stay digital. What it saves is the worth of the others (energy, or multiplications where no energy is
given), what it costs is measured on chips:

    maximise  sum of worth_l over layers on tiles      subject to      mean over chips of L(split) - L(digital) <= max_loss

1. rank: loss of each layer alone on tiles, over its worth: the layers that hurt most for what they save come first
2. bisect: the shortest beginning of that list that has to be digital; every candidate is evaluated as a whole, since losses do not add up
3. refine: the digital layers, the most valuable first, are tried on tiles again; one that fits under the limit stays there
4. prove: the split found is evaluated on chips that the search has not seen, since a search fits the chips that it looks at

The greedy mapping of LionHeart (https://arxiv.org/abs/2401.09420) takes layers by their multiplications until the limit is reached; to
take them by loss for worth, to bisect and to go back is ours. Bisection needs the loss to fall along the list, which it does but for the
noise of a few chips; the answer holds the limit in any case: what is returned was measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from torch import nn

from lessen.analog.mapping import Mapped, Split
from lessen.analog.sensitivity import Bench, Row, rank
from lessen.core.event import Event, Listener
from lessen.core.strict import strict
from lessen.errors import UsageError


@dataclass(frozen=True)
class FoundSplit:
    """A split and what it was measured to do.

    Attributes:
        split: layers that stay digital, those that the mapping kept before among them.
        loss: mean over the chips of the search.
        proof: losses of chips that the search has not seen.
        all_analog: mean loss with every layer on tiles.
        digital_share: worth that stays digital, in parts of that of all layers considered.
        rows: layers, the first to become digital first, with their own losses.
        worth: of every layer.
        evaluations: that it took.
    """

    split: Split
    loss: float
    proof: tuple[float, ...]
    all_analog: float
    digital_share: float
    rows: list[Row]
    worth: Mapping[str, float]
    evaluations: int

    def table(self) -> list[dict[str, Any]]:
        """A row for every layer: name, loss alone and its spread, share of the worth, and where it computes."""
        total = sum(self.worth.values())
        return [
            {
                "layer": row.name,
                "loss": row.loss,
                "spread": row.spread,
                "share": self.worth[row.name] / total,
                "digital": row.name in self.split.digital,
            }
            for row in self.rows
        ]


@strict()
def find_split(
    mapped: Mapped,
    evaluate: Callable[[nn.Module], float],
    *,
    max_loss: float,
    better: Literal["lower", "higher"] = "lower",
    worth: Mapping[str, float] | None = None,
    chips: int | Sequence[int] = 3,
    seconds: float | None = None,
    on_event: Listener | None = None,
) -> FoundSplit:
    """Find which layers have to stay digital.

    Args:
        mapped: from `map`, converters calibrated, with everything on tiles that may go there.
        evaluate: judges a model; one number.
        max_loss: how much worse than digital the mean over chips may be, in units of the evaluation.
        better: whether lower numbers are better (perplexity) or higher ones (accuracy).
        worth: what each layer saves on tiles, such as its energy; None: its multiplications in the evaluation.
        chips: instances in the search, from seed 0 on, or their seeds; as many others, with the seeds that follow, prove what it found.
        seconds: since programming; None: the first moment that the device describes.
        on_event: progress.

    Raises:
        UsageError: a worth that is missing or negative, or a limit below zero.
    """
    if not max_loss >= 0:
        raise UsageError("find_split", got=f"max_loss={max_loss}", wanted="at least 0")
    seeds = range(chips) if isinstance(chips, int) else list(chips)
    bench = Bench(mapped, evaluate, better, seeds, seconds)
    try:
        value = _worth(bench, worth)
        rows = sorted(rank(bench, on_event=on_event), key=lambda row: -row.loss / max(value[row.name], 1e-30))
        search = _Search(bench, rows, on_event)
        digital, loss = search.refined(search.bisected(max_loss), max_loss, value)
        proof = tuple(bench.loss(chip, digital) for chip in range(max(seeds) + 1, max(seeds) + 1 + len(seeds)))
        kept = tuple(name for name, reason in mapped.digital.items() if reason == "kept digital")
        share = sum(value[name] for name in digital) / max(sum(value.values()), 1e-30)
        split = replace(mapped.split, digital=(*kept, *(row.name for row in rows if row.name in digital)))
        return FoundSplit(split, loss, proof, search.loss(frozenset()), share, rows, value, bench.evaluations)
    finally:
        bench.close()


class _Search:
    """Losses of splits, each measured once."""

    def __init__(self, bench: Bench, rows: list[Row], on_event: Listener | None):
        self.bench, self.order, self.on_event = bench, [row.name for row in rows], on_event
        self.known: dict[frozenset[str], float] = {}

    def loss(self, digital: frozenset[str]) -> float:
        """Mean over the chips."""
        if digital not in self.known:
            self.known[digital] = fmean(self.bench.losses(digital))
            if self.on_event is not None:
                what = f"{len(digital)} of {len(self.order)} digital: loss {self.known[digital]:.4g}"
                self.on_event(Event("split", len(self.known), 0, what))
        return self.known[digital]

    def bisected(self, limit: float) -> frozenset[str]:
        """The shortest beginning of the list that holds the limit, if losses fall along it; one that holds it in any case."""
        low, high = -1, len(self.order)  # all digital loses nothing
        while high - low > 1:
            middle = (low + high) // 2
            if self.loss(frozenset(self.order[:middle])) <= limit:
                high = middle
            else:
                low = middle
        return frozenset(self.order[:high])

    def refined(self, digital: frozenset[str], limit: float, value: Mapping[str, float]) -> tuple[frozenset[str], float]:
        """Layers that turn out to fit on tiles, the most valuable first; and the loss then."""
        for name in sorted(digital, key=lambda name: -value[name]):
            if self.loss(digital - {name}) <= limit:
                digital = digital - {name}
        return digital, self.loss(digital)


def _worth(bench: Bench, worth: Mapping[str, float] | None) -> dict[str, float]:
    if worth is None:
        return {name: bench.macs.get(name, 0.0) for name in bench.mapped.layers}
    for name in bench.mapped.layers:
        if not worth.get(name, -1.0) >= 0:
            raise UsageError("worth", got=f"{worth.get(name)} for {name}", wanted="a number of at least 0 for every layer on tiles")
    return {name: float(worth[name]) for name in bench.mapped.layers}
