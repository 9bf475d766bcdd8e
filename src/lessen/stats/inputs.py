"""What data says about the inputs of a network's layers, collected with hooks on the whole network.

`lessen.engine` does this block by block for language models that may be larger than memory; here any module in memory runs forward as it
is. For every unit, every layer that reads it is listened to (`Read`); a "layer" unit is listened to at its input and output; angle
statistics are taken where the unit is made, since they compare an input with the weights that meet it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.unit import Unit, View
from lessen.errors import LessenError
from lessen.stats.accumulators import Accumulator, BlockSimilarity
from lessen.stats.angles import AngleEntropy
from lessen.stats.readers import Reader, is_conv1d, makers, readers

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Read:
    """One layer that reads a unit, and what its input is like. `stats[Read]` is a list of them.

    Attributes:
        reader: the layer.
        stats: accumulated values of its input.
    """

    reader: Reader
    stats: Mapping[type, Tensor]

    def view(self, view: View) -> View:
        """The unit as this layer sees it: one matrix "rows in" with the channels on axis 1."""
        return self.reader.view(view.unit, view.tensors[self.reader.part.name])


def collect(
    model: nn.Module,
    units: Sequence[Unit],
    needs: Sequence[type],
    batches: Iterable[Any],
    forward: Forward,
    tick: Callable[[int], None] | None = None,
) -> dict[str, dict[type, Any]]:
    """Run every batch forward and accumulate what methods need.

    Args:
        model: not changed.
        units: about which something is needed.
        needs: accumulator classes of inputs, `BlockSimilarity` for layers, `AngleEntropy` for units.
        batches: what `forward` takes.
        forward: runs the model on a batch.
        tick: hears the number of finished batches.

    Returns:
        by unit name: `Read` for input statistics, else the value of each need.
    """
    batches = list(batches)
    if not batches:
        remedy = "prune(model, example_inputs, batches), or a method that looks at none (Magnitude)"
        raise LessenError("batches", got="none", wanted="one at least, to collect statistics", remedy=remedy)
    listening = _Listening(units, tuple(needs))
    try:
        listening.start(model)
        for number, batch in enumerate(batches, 1):
            listening.padding = _real_tokens(batch)
            with torch.no_grad():
                forward(model, batch)
            if tick:
                tick(number)
    finally:
        listening.stop()
    return listening.value()


class _Listening:
    def __init__(self, units: Sequence[Unit], needs: tuple[type, ...]):
        self.units, self.needs = units, needs
        self.inputs = [need for need in needs if need not in (BlockSimilarity, AngleEntropy)]
        self.readers: dict[str, list[Reader]] = {}
        self.by_reader: dict[str, dict[type, Accumulator]] = {}
        self.blocks: dict[str, BlockSimilarity] = {}
        self.angles: dict[str, AngleEntropy] = {}
        self.makers: dict[str, list[Reader]] = {}
        self.padding: Tensor | None = None
        self.handles: list[Any] = []

    def start(self, model: nn.Module) -> None:
        """Listen until `stop`."""
        for unit in self.units:
            if self.inputs:
                self._read(model, unit)
            if BlockSimilarity in self.needs and unit.kind == "layer":
                self.blocks[unit.name] = BlockSimilarity()
                hook = partial(self._similar, self.blocks[unit.name])
                self.handles.append(model.get_submodule(unit.name).register_forward_hook(hook, with_kwargs=True))
            if AngleEntropy in self.needs:
                self._made(model, unit)

    def _read(self, model: nn.Module, unit: Unit) -> None:
        self.readers[unit.name] = readers(model, unit)
        for reader in self.readers[unit.name]:
            if reader.path not in self.by_reader:
                self.by_reader[reader.path] = {need: need() for need in self.inputs}
                hook = partial(self._input, reader, self.by_reader[reader.path])
                self.handles.append(reader.module.register_forward_pre_hook(hook))

    def _made(self, model: nn.Module, unit: Unit) -> None:
        self.makers[unit.name] = [m for m in makers(model, unit) if isinstance(m.module, nn.Linear) or is_conv1d(m.module)]
        for maker in self.makers[unit.name]:
            if maker.path not in self.angles:
                self.angles[maker.path] = AngleEntropy(maker.matrix(maker.module.get_parameter("weight").detach()))
                hook = partial(self._angle, self.angles[maker.path])
                self.handles.append(maker.module.register_forward_pre_hook(hook))

    def _input(self, reader: Reader, accumulators: Mapping[type, Accumulator], _: nn.Module, args: tuple[Any, ...]) -> None:
        x = self._real(reader.tokens(args[0].detach()), args[0])
        for accumulator in accumulators.values():
            accumulator.update(x)

    def _angle(self, accumulator: AngleEntropy, _: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach()
        accumulator.update(self._real(x.reshape(-1, x.shape[-1]), x))

    def _similar(self, accumulator: BlockSimilarity, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        before = args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))
        after = out[0] if isinstance(out, tuple) else out
        accumulator.update(after.detach(), before.detach())

    def _real(self, rows: Tensor, x: Tensor) -> Tensor:
        """The rows without padding, where the input's leading axes are those of the attention mask."""
        mask = self.padding
        return rows[mask.reshape(-1).to(rows.device)] if mask is not None and x.shape[: mask.ndim] == mask.shape else rows

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()

    def value(self) -> dict[str, dict[type, Any]]:
        values: dict[type, Any]
        found: dict[str, dict[type, Any]] = {}
        inputs = {path: {need: a.value() for need, a in wanted.items() if a.count} for path, wanted in self.by_reader.items()}
        for unit in self.units:
            values = {}
            if self.inputs:
                values[Read] = [Read(reader, inputs[reader.path]) for reader in self.readers[unit.name] if inputs[reader.path]]
            if unit.name in self.blocks:
                values[BlockSimilarity] = self.blocks[unit.name].value()
            if unit.name in self.makers:
                values[AngleEntropy] = self._entropy(unit)
            found[unit.name] = values
        return found

    def _entropy(self, unit: Unit) -> Tensor:
        """Mean over the rows that make a channel, shape "channel"; zeros if nothing linear makes it."""
        total, rows = torch.zeros(unit.size, dtype=torch.float64), 0
        for maker in self.makers[unit.name]:
            if self.angles[maker.path].count:
                alone = View(Unit(unit.name, unit.kind, unit.size, (replace(maker.part, axis=0),)), {})
                total += alone.sum_per_channel({maker.part.name: self.angles[maker.path].value()[:, None]}).double()
                rows += maker.part.span * maker.part.repeat
        return total / max(rows, 1)


def _real_tokens(batch: Any) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
