"""`rehearse`: a twin of the model to be trained, in which every batch meets another chip.

    rehearsal = rehearse(model, chip, noise=Injected(0.03), calibration=batches)
    rehearsal.train(data, heldout, losses=(NextToken(),), epochs=2)     # trains the model: its parameters are shared
    mapped = rehearsal.mapped(batches)                                  # the model on the chip, with the ranges that were learned

One layer, forward, W its weight and N an error of this batch:

    x_q = DAC(x)          rounded and clipped at a full scale r that may be learned       `straight`
    s   = x_q (W + N)^T   in one product, or one batched product of row tiles where each of them has an ADC of its own
    y   = sum over tiles of ADC(s + output noise - IR drop) + bias

On the way back rounding is the identity, clipping stops the gradient, and N, the noise and the drop are constants: the gradient of W is
that of W + N, straight through. N is Gaussian (`Injected`), or what the chip makes of W at a random time (`Programmed`): programmed,
drifted, faulty and read, with the digital correction of drift.

The twin always rehearses, under `no_grad` and in evaluation mode too, so that held-out data finds the state that is best on noisy chips.
To see the clean digital network call the model itself; to see it on the chip call `mapped`.

Left out, and refused: bit slices and inputs driven digit by digit in front of an ADC, devices that are not ohmic, wires that are solved for
every input, and with Gaussian errors all wires but the fast model; `robust.est` trains through those. Reads that are fresh for every vector
are drawn once for a batch.
Papers: Joshi et al. 2020, Nature Communications 11, 2473 (noise injection); Rasch et al. 2023, Nature Communications 14, 5282 (converters,
output noise); Büchel et al. 2025, https://arxiv.org/abs/2505.09663 (learned ranges).
Ours: the chip's own errors as N; row tiles in one batched product.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lessen.analog import mapping
from lessen.analog.chip import Chip
from lessen.analog.mapping import Mapped, Split
from lessen.analog.tiles.exchange import Places
from lessen.analog.tiles.layer import matrix
from lessen.analog.training.noise import Injected, Programmed, Stage
from lessen.analog.training.rehearsed import on_stage
from lessen.core.event import Listener
from lessen.core.modules import evaluating
from lessen.core.strict import strict
from lessen.errors import UsageError
from lessen.recover.loop import Recovered, recover
from lessen.recover.losses import Logits, OnFeatures
from lessen.recover.objective import call
from lessen.recover.options import Options


@dataclass
class Rehearsal:
    """A network that is trained for a chip.

    Attributes:
        model: the twin; its parameters are those of the original, and the learned full scales of its layers.
        original: the model that was given; clean and digital.
        chip: for which it trains.
        layers: the layers that rehearse, by name.
        split: what stays digital.
        run: how a model is called with a batch.
        after_step: what is done to the twin after every step of training.
    """

    model: nn.Module
    original: nn.Module
    chip: Chip
    layers: dict[str, nn.Module]
    split: Split = field(default_factory=Split)
    run: Callable[[nn.Module, Any], Any] | None = None
    after_step: Callable[[nn.Module], None] | None = None
    _hooks: list[Any] = field(default_factory=list, repr=False)

    def train(
        self,
        data: Any,
        heldout: Any = None,
        options: Options | None = None,
        *,
        teacher: nn.Module | None = None,
        work: str | Path | None = None,
        on_event: Listener | None = None,
        **settings: Any,
    ) -> Recovered:
        """Train with the one training loop (`lessen.recover`), and settle.

        Args:
            data: as `recover` takes it.
            heldout: likewise; scored on noisy chips.
            options: settings of the loop.
            work: directory for checkpoints.
            on_event: hears of every step.
            **settings: fields of `Options`, instead of `options`.
            teacher: for losses that look at one; by default a copy of the original as it is now, clean and digital.

        Returns:
            What `recover` says; its model is the twin.
        """
        if options is not None and settings:
            raise UsageError("train", got="options and single settings", wanted="one of the two")
        chosen = options or Options(**settings)
        if self.after_step is not None:
            chosen = replace(chosen, after_step=_both(self.after_step, chosen.after_step))
        if teacher is None and any(isinstance(loss, Logits | OnFeatures) for loss in chosen.losses):
            teacher = copy.deepcopy(self.original)
        found = recover(self.model, teacher, data, heldout, chosen, run=self.run or call, work=work, on_event=on_event)
        self.settle()
        return found

    def settle(self) -> nn.Module:
        """Give the original what training has changed besides its parameters (statistics of batch norms); the original."""
        own = dict(self.original.named_buffers())
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                if name in own and own[name].shape == buffer.shape:
                    own[name].copy_(buffer)
        return self.original

    def mapped(self, calibration: Iterable[Any] | None = None, chip: Chip | None = None) -> Mapped:
        """The original on the chip, to be programmed.

        Args:
            calibration: batches for the ranges that were not learned or stated.
            chip: another than the one trained for.
        """
        batches = None if calibration is None else list(calibration)
        mapped = mapping.map(self.original, chip or self.chip, split=self.split, calibration=batches, run=self.run)
        learned = {name: scale for name, layer in self.layers.items() if (scale := getattr(layer, "full_scale", None)) is not None}
        if not learned or mapped.chip.dac.bits is None or mapped.chip.dac.range != "calibrated":
            return mapped
        for name, scale in learned.items():
            mapped.tiles(name).ranges.input = scale.detach().clone().reshape(())
        if batches is not None and isinstance(mapped.chip.adc.range, str) and mapped.chip.adc.bits is not None:
            _look_at_sums(mapped, batches, self.run)
        return mapped


@strict()
def rehearse(
    model: nn.Module,
    chip: Chip,
    *,
    noise: Injected | Programmed | None = None,
    ranges: Literal["learned", "calibrated"] = "learned",
    output_noise: float = 0.0,
    split: Split | Sequence[str] | None = None,
    calibration: Iterable[Any] | None = None,
    run: Callable[[nn.Module, Any], Any] | None = None,
) -> Rehearsal:
    """A twin of a model that computes as a chip would, differently noisy for every batch, and through which gradients pass.

    Args:
        model: shares its parameters with the twin, so that training the twin trains it; otherwise it stays as it is.
        chip: whose converters, tiles and wires are rehearsed, and with `Programmed` its devices.
        noise: of the weights; None: `Injected()`.
        ranges: full scales of the DACs: learned from where calibration has put them, or left there.
        output_noise: standard deviation of the noise of a column sum, as a part of a fully driven row's largest weight.
        split: which layers stay digital, as `map` takes it.
        calibration: batches from which ranges start.
        run: how a model is called with a batch.

    Raises:
        UsageError: a chip whose columns are not read as one sum; see the header.
    """
    noise = noise or Injected()
    check(chip, noise)
    if not 0 <= output_noise < math.inf:
        raise UsageError("rehearse", got=f"output_noise={output_noise:g}", wanted="a finite number of at least 0")
    mapped = mapping.map(
        model, replace(chip, reads="quiet" if chip.reads == "quiet" else "frozen"), split=split, calibration=calibration, run=run
    )
    stage = Stage(noise, output_noise)
    rehearsal = as_rehearsal(mapped, model, chip, split, run, lambda layer: on_stage(layer, stage, ranges == "learned"))
    if isinstance(stage.noise, Programmed):
        rehearsal._hooks.append(rehearsal.model.register_forward_pre_hook(lambda *_: stage.another(mapped.chip)))
    return rehearsal


def as_rehearsal(
    mapped: Mapped,
    model: nn.Module,
    chip: Chip,
    split: Split | Sequence[str] | None,
    run: Callable[[nn.Module, Any], Any] | None,
    make: Callable[[nn.Module], nn.Module],
) -> Rehearsal:
    """Put other layers in the places of a mapped twin's; the twin becomes a rehearsal's."""
    places, layers = Places(mapped.model), dict[str, nn.Module]()
    for name, layer in mapped.layers.items():
        layers[name] = make(layer)
        places.exchange(layer, layers[name])
    return Rehearsal(places.root, model, chip, layers, Split.of(split), run)


@dataclass(frozen=True)
class Clipped:
    """Bring every row of the weights on tiles, one for each output, to at most `deviations` times its root mean square.

    That is its standard deviation about zero: by the one about its mean, a row of nearly equal weights would be clipped to nothing.
    """

    deviations: float
    layers: tuple[str, ...]

    def __call__(self, model: nn.Module) -> None:
        """Clip in place."""
        with torch.no_grad():
            for name in self.layers:
                rows = matrix(model.get_submodule(name))
                limit = self.deviations * rows.square().mean(1, keepdim=True).sqrt()
                rows.copy_(torch.minimum(torch.maximum(rows, -limit), limit))


@dataclass(frozen=True)
class _Both:
    first: Callable[[nn.Module], None]
    second: Callable[[nn.Module], None]

    def __call__(self, model: nn.Module) -> None:
        self.first(model)
        self.second(model)


def _both(first: Callable[[nn.Module], None], second: Callable[[nn.Module], None] | None) -> Callable[[nn.Module], None]:
    return first if second is None else _Both(first, second)


def check(chip: Chip, noise: Injected | Programmed) -> None:
    """Refuse a chip whose columns are not read as one sum, or whose wires the errors of training would leave out."""
    wanted, remedy = "a chip whose columns are read as one sum", "robust.est trains through any chip"
    if chip.adc.bits is not None and (chip.dac.cycles > 1 or len(chip.encoding.shifts) > 1):
        raise UsageError("rehearse", got="digits or slices in front of an ADC", wanted=wanted, remedy=remedy)
    if chip.device.powers(torch.tensor([chip.device.g_max])) is not None:
        raise UsageError("rehearse", got=f"{type(chip.device).__name__}, which is not ohmic", wanted="ohmic devices", remedy=remedy)
    known = ("fast", "columns", "solved") if isinstance(noise, Programmed) else ("fast",)
    if chip.wires.ohm and chip.wires.model not in known:
        got = f"wires of {chip.wires.ohm:g} ohm and wires.model={chip.wires.model!r} with {type(noise).__name__} errors"
        raise UsageError("rehearse", got=got, wanted=f"a model of wires that training meets: {', '.join(known)}", remedy=remedy)


def _look_at_sums(mapped: Mapped, batches: list[Any], run: Callable[[nn.Module, Any], Any] | None) -> None:
    """Ranges of the ADCs for full scales that are given."""
    tiles = [mapped.tiles(name) for name in mapped.layers]
    for each in tiles:
        each.ranges.sums, each.mode = None, "sums"
    try:
        with torch.no_grad(), evaluating(mapped.model):
            for batch in batches:
                (run or call)(mapped.model, batch)
    finally:
        for each in tiles:
            each.mode = "run"
