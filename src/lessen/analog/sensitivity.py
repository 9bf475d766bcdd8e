"""Which layers a chip harms, and how much: one projection at a time, on several chips.

    alone    L(only layer l on tiles) - L(all digital)              what the layer costs where it is the only analog one
    spared   L(all on tiles) - L(all but layer l on tiles)          what keeping it digital would give back

`L` is whatever is evaluated, turned so that more is worse. Few layers carry most of the loss in language models: of 49 projections of GPT-2
four do, the output of the first attention block most of all (https://arxiv.org/abs/2606.02672), so the few are worth finding.

A chip is programmed once, all layers of it; a layer is then switched between its tiles and its digital self without touching either, so
that the cost of a row is one evaluation. Chips that were looked at before are kept and shown again (`Bench`), with the noise of their reads
started anew, so that every answer depends on the chip and on what is digital, never on what was asked before.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.analog.mapping import Mapped
from lessen.analog.tiles.execute import Numbers
from lessen.analog.tiles.layer import matrix
from lessen.analog.tiles.streams import stream
from lessen.core.event import Event, Listener
from lessen.core.modules import evaluating, heard
from lessen.core.strict import strict
from lessen.errors import LessenError, UsageError, nearest

_HELD = 2**31  # bytes of programmed tiles that are kept for chips that are not looked at


@dataclass(frozen=True)
class Row:
    """What one layer costs.

    Attributes:
        name: of the layer.
        losses: of each chip, in the units of the evaluation; more is worse.
        macs: multiplications of the layer in one evaluation.
    """

    name: str
    losses: tuple[float, ...]
    macs: float

    @property
    def loss(self) -> float:
        """Mean over the chips."""
        return fmean(self.losses)

    @property
    def spread(self) -> float:
        """Standard deviation over the chips."""
        return stdev(self.losses) if len(self.losses) > 1 else 0.0


class Bench:
    """Chips of a mapped network on which layers are switched; leave it with `close`.

    Args:
        mapped: the network; converters calibrated.
        evaluate: judges a model; one number.
        better: whether lower or higher numbers are better.
        chips: seeds of the instances.
        seconds: at which they are looked at; None: the first moment of the device.
    """

    def __init__(
        self,
        mapped: Mapped,
        evaluate: Callable[[nn.Module], float],
        better: Literal["lower", "higher"] = "lower",
        chips: Sequence[int] = (0, 1, 2),
        seconds: float | None = None,
    ):
        if not chips:
            raise UsageError("chips", got="none", wanted="at least one seed")
        self.mapped, self.evaluate, self.chips = mapped, evaluate, tuple(chips)
        self.sign = 1.0 if better == "lower" else -1.0
        self.seconds = float(mapped.chip.device.first if seconds is None else seconds)
        self.evaluations = 0
        self._before = (mapped.seed, mapped.seconds)
        self._shown: int | None = None
        self._held: dict[int, dict[str, Numbers | None]] = {}
        self.macs: dict[str, float] = {}
        with heard(mapped.layers, self._count):
            self.digital = self._judge(mapped.layers)

    def losses(self, digital: Collection[str]) -> tuple[float, ...]:
        """How much worse than all digital each chip is while the named layers are digital."""
        return tuple(self.loss(chip, digital) for chip in self.chips)

    def loss(self, chip: int, digital: Collection[str]) -> float:
        """The same of one chip."""
        if len(digital) == len(self.mapped.layers):
            return 0.0
        self._show(chip)
        for name in self.mapped.layers:
            self.mapped.tiles(name).generator = stream(chip, "fresh", name, self.seconds, device=matrix(self.mapped.layers[name]).device)
        return self.sign * (self._judge(digital) - self.digital)

    def close(self) -> None:
        """All layers on tiles again, of the chip that was programmed before, if there was one."""
        self._held.clear()
        self.mapped.seed, self.mapped.seconds = self._before
        if self._before[0] is not None and self._before[1] is not None:
            self.mapped.at(self._before[1])

    def _judge(self, digital: Collection[str]) -> float:
        layers = self.mapped.layers
        try:
            for name in layers:
                self.mapped.tiles(name).mode = "digital" if name in digital else "run"
            with torch.no_grad(), evaluating(self.mapped.model):
                found = float(self.evaluate(self.mapped.model))
        finally:
            for name in layers:
                self.mapped.tiles(name).mode = "run"
        self.evaluations += 1
        if found != found:
            raise LessenError("evaluate", got="NaN", wanted="a number for every split", remedy="an evaluation that survives a bad model")
        return found

    def _show(self, chip: int) -> None:
        """Put the tiles of a chip in place."""
        if chip == self._shown:
            return
        mapped = self.mapped
        if self._shown is not None and self._room():
            self._held[self._shown] = {name: mapped.tiles(name).numbers for name in mapped.layers}
            for name in mapped.layers:
                mapped.tiles(name).room = None  # the next chip takes memory of its own
        held = self._held.get(chip)
        if held is None:
            mapped.program(chip, self.seconds)
        else:
            for name, numbers in held.items():
                mapped.tiles(name).numbers = numbers
        self._shown = chip

    def _room(self) -> bool:
        one = sum(n.matrix.nbytes for name in self.mapped.layers if (n := self.mapped.tiles(name).numbers) is not None)
        return one * (len(self._held) + 1) <= _HELD

    def _count(self, name: str, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            weight = matrix(self.mapped.layers[name])
            self.macs[name] = self.macs.get(name, 0.0) + output.numel() / weight.shape[0] * weight.numel()


@strict()
def sensitivity(
    mapped: Mapped,
    evaluate: Callable[[nn.Module], float],
    *,
    mode: Literal["alone", "spared"] = "alone",
    better: Literal["lower", "higher"] = "lower",
    chips: int = 3,
    seconds: float | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    on_event: Listener | None = None,
) -> list[Row]:
    """Rank the layers of a mapped network by what the chip does to them, the worst first.

    Args:
        mapped: from `map`, converters calibrated.
        evaluate: judges a model; one number.
        mode: see the header.
        better: whether lower numbers are better (perplexity) or higher ones (accuracy).
        chips: instances, from seed 0 on.
        seconds: since programming; None: the first moment that the device describes.
        groups: sets of layers that are switched together, by a name of their own; None: every layer by itself.
        on_event: progress.
    """
    bench = Bench(mapped, evaluate, better, range(chips), seconds)
    try:
        return rank(bench, mode, groups, on_event)
    finally:
        bench.close()


def rank(
    bench: Bench,
    mode: Literal["alone", "spared"] = "alone",
    groups: Mapping[str, Sequence[str]] | None = None,
    on_event: Listener | None = None,
) -> list[Row]:
    """`sensitivity` on chips that are there already."""
    layers = list(bench.mapped.layers)
    sets = {name: (name,) for name in layers} if groups is None else {name: tuple(members) for name, members in groups.items()}
    for member in (m for members in sets.values() for m in members):
        if member not in bench.mapped.layers:
            raise UsageError("groups", got=repr(member), wanted="a layer on tiles", remedy=nearest(member, layers))
    found: dict[str, list[float]] = {name: [] for name in sets}
    for number, chip in enumerate(bench.chips):  # chips outside: each is put in place once
        everything = bench.loss(chip, ()) if mode == "spared" else 0.0
        for done, (name, members) in enumerate(sets.items(), start=1):
            others = [layer for layer in layers if layer not in members]
            loss = bench.loss(chip, others) if mode == "alone" else everything - bench.loss(chip, members)
            found[name].append(loss)
            if on_event is not None:
                on_event(Event("sensitivity", number * len(sets) + done, len(bench.chips) * len(sets), name))
    rows = [Row(name, tuple(losses), sum(bench.macs.get(m, 0.0) for m in sets[name])) for name, losses in found.items()]
    return sorted(rows, key=lambda row: -row.loss)
