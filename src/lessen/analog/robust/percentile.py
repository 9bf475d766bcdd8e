"""Ranges of converters after training: by a percentile, by squared error, by information.

A converter of b bits with range r rounds in steps of r / (2^(b-1) - 1) and clips beyond r. A wide range rounds coarsely, a narrow one
clips; which is worse depends on the distribution, so the range is searched on calibration data:

    quantile   r = a quantile of |x|; one for all layers, and `sweep` finds which by the quality of the network
    mse        r = argmin E[h (Q_r(x) - x)^2]        DAC: h_i = sum_o W_oi^2, what an error of input i does to the outputs; ADC: h = 1, each
               column by itself, or all of a tile together with the squares of their scales as h if they share a range
    entropy    r = argmin KL(p || q_r)               p: histogram of |x|, what lies beyond r counted into the last bin; q_r: the same
               histogram as the codes can tell it, each code's mass spread evenly over the bins that fall into it

Squared error is what a layer does to its outputs; entropy keeps the shape of the distribution. Neither is the quality of the network: a
rare large sum may be the one that tells two classes apart, and `sweep` is the judge where ranges of sums are in doubt.

Sources: range calibration by percentile and by entropy is that of inference engines (Migacz 2017, "8-bit Inference with TensorRT", GPU
Technology Conference); for analog chips Lammie et al. optimise ranges of conductances and DACs after training. Ours: weights of inputs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.analog.mapping import Mapped
from lessen.analog.tiles.crossbar import over_tiles, pieces, scales
from lessen.analog.tiles.layer import Tiles, matrix
from lessen.analog.tiles.listening import listen
from lessen.core.modules import evaluating
from lessen.core.strict import check_fields
from lessen.errors import LessenError, UsageError

_BINS = 1024
_AT_ONCE = 2**24  # numbers of a batch of rounded sums


@dataclass(frozen=True)
class RangeSearch:
    """Set the ranges of calibrated converters."""

    dac: Literal["quantile", "mse", "entropy"] = "mse"
    """How the range of inputs is chosen."""
    adc: Literal["quantile", "mse"] = "mse"
    """How the ranges of column sums are chosen."""
    quantile: float = 0.9999
    """Of magnitudes, where a range is chosen by it."""
    steps: int = 40
    """Ranges that are tried, from a fortieth of the largest magnitude up to it."""
    samples: int = 1024
    """Input vectors of each layer that are looked at."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0.5 <= self.quantile <= 1 or self.steps < 2 or self.samples < 1:
            got = f"quantile={self.quantile:g}, steps={self.steps}, samples={self.samples}"
            raise UsageError("RangeSearch", got=got, wanted="a quantile from 0.5 to 1, at least 2 steps and 1 sample")

    def calibrate(self, mapped: Mapped, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] | None = None) -> dict[str, float]:
        """Set the ranges of a mapped network; program it (again) afterwards.

        Args:
            mapped: the network.
            batches: calibration inputs.
            run: how the model is called with a batch.

        Returns:
            The range of each layer's inputs, over the largest magnitude that was seen.
        """
        seen = inputs_of(mapped, batches, run, self.samples)
        found: dict[str, float] = {}
        for name, layer in mapped.layers.items():
            tiles, weight = mapped.tiles(name), matrix(layer).detach()
            if name not in seen and name in mapped.borrowed:
                continue
            if name not in seen:
                remedy = f"split=Split(digital=({name!r},))"
                raise LessenError(f"calibration of {name}", got="no input", wanted="data that reaches the layer", remedy=remedy)
            x, chip = seen[name], mapped.chip
            if chip.dac.levels is not None and chip.dac.range == "calibrated":
                tiles.ranges.input = self.of_inputs(x, weight, chip.dac.levels, tiles.place.groups)
                found[name] = float(tiles.ranges.input / x.abs().max().clamp(min=1e-30))
            if chip.adc.levels is not None and chip.adc.range == "calibrated":
                tiles.ranges.sums = self.of_sums(tiles, x, weight, chip.adc.levels)
        return found

    def of_inputs(self, x: Tensor, weight: Tensor, levels: int, groups: int = 1) -> Tensor:
        """The range of a DAC with codes up to `levels` for inputs `vector (group input)` of a weight `(group output) input`."""
        largest = x.abs().max()
        if largest == 0:
            return torch.ones_like(largest)
        if self.dac == "quantile":
            return _quantile(x.abs().flatten(), self.quantile).clamp(min=1e-3 * largest)
        tried = largest * torch.arange(1, self.steps + 1, dtype=x.dtype) / self.steps
        if self.dac == "entropy":
            return tried[torch.tensor([_divergence(x, float(r), levels) for r in tried]).argmin()]
        heavy = weight.square().reshape(groups, -1, weight.shape[1]).sum(1).flatten()
        return tried[torch.stack([(_lost(x, r, levels).square().mean(0) * heavy).sum() for r in tried]).argmin()]

    def of_sums(self, tiles: Tiles, x: Tensor, weight: Tensor, levels: int) -> Tensor:
        """The ranges of ADCs with codes up to `levels`, `tile 1 (slice column)`."""
        chip, slices = tiles.chip, len(tiles.chip.encoding.shifts)
        found = []
        for _, _, piece in pieces(weight, tiles.place):
            sums = tiles.sums(x[: max(1, _AT_ONCE // (piece.shape[0] * piece.shape[2] * slices * chip.dac.cycles))], piece)
            largest = sums.abs().amax(1, keepdim=True).unflatten(-1, (slices, -1))
            widest = largest.flatten(-2).amax(-1)[..., None, None]
            largest = torch.where(largest > 1e-3 * widest, largest, torch.where(widest == 0, torch.ones_like(widest), widest))
            shared = chip.adc.per == "tile"
            most = (over_tiles(largest, chip.columns) if shared else largest).flatten(-2)
            if self.adc == "quantile":
                range_ = torch.quantile(sums.abs().float(), self.quantile, dim=1, keepdim=True).to(sums).maximum(1e-3 * most)
                found.append(over_tiles(range_.unflatten(-1, (slices, -1)), chip.columns).flatten(-2) if shared else range_)
                continue
            heavy = scales(piece, chip).square().repeat(1, 1, slices)
            errors = torch.stack(
                [_lost(sums, most * (k / self.steps), levels).square().mean(1, keepdim=True) * heavy for k in range(1, self.steps + 1)]
            )
            if shared:  # columns of a tile are judged together
                parts = errors.unflatten(-1, (slices, -1)).split(chip.columns, -1)
                errors = torch.cat([p.sum(-1, keepdim=True).expand_as(p) for p in parts], -1).flatten(-2)
            found.append(most * (errors.argmin(0) + 1) / self.steps)
        return torch.cat([f.unflatten(-1, (slices, -1)) for f in found], -1).flatten(-2)


def sweep(
    mapped: Mapped,
    batches: Iterable[Any],
    evaluate: Callable[[nn.Module], float],
    quantiles: Sequence[float] = (0.99, 0.999, 0.9999, 1.0),
    *,
    better: Literal["lower", "higher"] = "lower",
    seed: int = 0,
    run: Callable[[nn.Module, Any], Any] | None = None,
) -> tuple[float, dict[float, float]]:
    """Set all ranges by the quantile with which the network is best on a chip.

    Args:
        mapped: the network; it is left calibrated with the best quantile and programmed.
        batches: calibration inputs.
        evaluate: judges a model; one number.
        quantiles: to try.
        better: whether lower or higher numbers are better.
        seed: of the chip instance.
        run: how the model is called with a batch.

    Returns:
        The best quantile, and what each of them gave.
    """
    batches, found = list(batches), dict[float, float]()
    for quantile in quantiles:
        RangeSearch("quantile", "quantile", quantile).calibrate(mapped, batches, run)
        with torch.no_grad(), evaluating(mapped.model):
            found[quantile] = float(evaluate(mapped.program(seed).model))
    best = (min if better == "lower" else max)(found, key=lambda q: found[q])
    RangeSearch("quantile", "quantile", best).calibrate(mapped, batches, run)
    mapped.program(seed)
    return best, found


def inputs_of(mapped: Mapped, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] | None, samples: int) -> dict[str, Tensor]:
    """Samples of the inputs of every layer, `vector (group input)`: as many of each batch."""
    batches = list(batches)
    share = -(-samples // max(len(batches), 1))
    seen: dict[str, list[Tensor]] = {}

    def hear(name: str, x: Tensor, _: Tensor) -> None:
        seen.setdefault(name, []).append(x[:: -(-len(x) // share)].clone())

    listen(mapped, hear, batches, run)
    return {name: torch.cat(parts) for name, parts in seen.items()}


def _lost(x: Tensor, full: Tensor, levels: int) -> Tensor:
    """What a converter of this range gets wrong."""
    step = full / levels
    return (x / step).round_().clamp_(-levels, levels).mul_(step).sub_(x)


def _quantile(values: Tensor, share: float) -> Tensor:
    """A quantile of many numbers, of at most 2^20 of them."""
    return torch.quantile(values[:: -(-values.numel() // 2**20)].float(), share).to(values)


def _divergence(x: Tensor, full: float, levels: int) -> float:
    """KL(p || q) of the magnitudes of inputs and of what codes make of them."""
    flat = x.abs().flatten()
    seen = torch.histc(flat.clamp(max=full).float(), _BINS, 0, full)
    code = ((torch.arange(_BINS) + 0.5) * (levels / _BINS)).round().long()
    inside = torch.histc(flat[flat <= full].float(), _BINS, 0, full)
    mass = torch.zeros(levels + 1).index_add_(0, code, inside)
    filled = torch.zeros(levels + 1).index_add_(0, code, (inside > 0).float())
    told = torch.where(inside > 0, mass[code] / filled[code].clamp(min=1), torch.zeros(()))
    p, q = seen / seen.sum(), told / told.sum().clamp(min=1e-30)
    held = p > 0
    return float((p[held] * (p[held] / q[held].clamp(min=1e-12)).log()).sum())
