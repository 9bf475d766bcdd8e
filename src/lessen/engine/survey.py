"""The model pass: look at every block once, then let a method rank units of the whole model against each other."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from lessen.core.edit import Drop, Edit, Keep, Replace
from lessen.core.event import Event, Listener
from lessen.core.record import Record
from lessen.core.unit import PER_GROUP, Kind, Unit, View
from lessen.engine.describe import describe
from lessen.engine.journal import Journal
from lessen.engine.walk import Hidden, Inputs, advance, collect, embed
from lessen.errors import LessenError, UsageError
from lessen.models.checkpoint import Checkpoint
from lessen.models.skeleton import fill
from lessen.models.stream import Stream
from lessen.stats.accumulators import BlockSimilarity
from lessen.stats.gradients import Gradient
from lessen.stats.whole import survey
from lessen.structure.decoder import units, view
from lessen.targets.cost import Elements, Goal

_WORDS = {
    "ffn": "feed-forward channels",
    "kv_group": "key/value groups",
    "head_dim": "features of every head",
    "width": "residual channels",
    "vocab": "token ids",
}


class Views(Sequence[View]):
    """Views whose tensors are read when they are looked at, one unit at a time."""

    def __init__(self, checkpoint: Checkpoint, of: Sequence[Unit]):
        self.checkpoint, self.units = checkpoint, of

    def __len__(self) -> int:
        return len(self.units)

    @overload
    def __getitem__(self, index: int) -> View: ...
    @overload
    def __getitem__(self, index: slice) -> "Views": ...
    def __getitem__(self, index: int | slice) -> "View | Views":
        if isinstance(index, slice):
            return Views(self.checkpoint, self.units[index])
        return view(self.checkpoint, self.units[index])

    def __iter__(self) -> Iterator[View]:
        return (view(self.checkpoint, unit) for unit in self.units)


@dataclass
class ModelPass:
    """One walk that collects statistics for a method of scope "model", and its decision."""

    checkpoint: Checkpoint
    method: Any
    calibration: Tensor | None
    journal: Journal
    index: int
    on_event: Listener | None = None
    device: str = "cpu"

    def run(self) -> None:
        """Finish every step that the journal does not hold."""
        chosen = _chosen(self.checkpoint, self.method)
        stream = Stream(self.checkpoint, self.device)
        whole = any(issubclass(need, Gradient) for need in self.method.needs)
        steps = 0 if whole or not self.method.needs else stream.blocks
        if self.journal.finished(self.index) > steps:
            return
        values = self._whole(stream, chosen) if whole else self._survey(stream, chosen) if steps else {}
        started = time.perf_counter()
        stats = [values.get(unit.name, {}) for unit in chosen]
        views = Views(self.checkpoint, chosen)
        goal = goal_of(self.checkpoint, chosen, self.method)
        edits = self.method.decide(views, stats) if goal is None else self.method.decide(views, stats, goal)
        seconds = (time.perf_counter() - started) / max(1, len(edits))
        self.journal.commit(self.index, steps, edits, [record(edit, self.method, seconds) for edit in edits])
        if self.on_event:
            self.on_event(Event("prune", steps + 1, steps + 1, f"{describe(self.method)}: {len(edits)} edits", seconds=seconds))

    def _whole(self, stream: Stream, chosen: Sequence[Unit]) -> dict[str, dict[type, Any]]:
        """Statistics that take a backward pass: the one occasion on which a model is held whole."""
        tokens = self._text()
        stream.release()
        model = fill(self.checkpoint.skeleton(), self.checkpoint, torch.float32).to(self.device)
        batches = [window[None].to(self.device) for window in tokens]
        found, _ = survey(model, chosen, self.method.needs, batches, self.method.collecting(), self.on_event)
        return {unit.name: stats for unit, stats in zip(chosen, found, strict=True)}

    def _text(self) -> Tensor:
        if self.calibration is None:
            name = type(self.method).__name__
            raise LessenError(name, got="no calibration text", wanted="some, to collect its statistics", remedy="give a calibration text")
        return self.calibration

    def _survey(self, stream: Stream, chosen: Sequence[Unit]) -> dict[str, dict[type, Tensor]]:
        done = self.journal.finished(self.index)
        hidden = embed(stream, self._text())
        stream.release()
        kept: dict[str, Tensor] = {}
        if done:
            kept = self.journal.state(self.index, done - 1)
            hidden = list(kept.pop("hidden").split([len(part) for part in hidden]))
        everything = [unit for unit in units(self.checkpoint) if unit.kind in ("inputs", *_decided_on(self.method))]
        for index in range(done, stream.blocks):
            started = time.perf_counter()
            mine = [unit for unit in everything if unit.block == index]
            measured, hidden = self._block(stream, index, mine, hidden)
            kept |= measured
            self.journal.commit(self.index, index, [], [], {**kept, "hidden": torch.cat(hidden)})
            if self.on_event:
                seconds = time.perf_counter() - started
                self.on_event(Event("survey", index + 1, stream.blocks, f"{stream.path}.{index}: {describe(self.method)}", seconds=seconds))
        return _by_unit(kept, self.method.needs)

    def _block(self, stream: Stream, index: int, mine: Sequence[Unit], hidden: Hidden) -> tuple[dict[str, Tensor], Hidden]:
        """Statistics of one block's units, named "unit/Accumulator", and the hidden states after it."""
        block = stream.block(index)
        chosen = [unit for unit in mine if unit.kind in _decided_on(self.method)]
        if self.method.kind == "layer":
            after = advance(stream, block, index, hidden)
            similarity = BlockSimilarity()
            for output, before in zip(after, hidden, strict=True):
                similarity.update(output, before)
            return {f"{unit.name}/BlockSimilarity": similarity.value() for unit in chosen}, after
        inputs = Inputs(mine, f"{stream.path}.{index}.")
        needs = {inputs.key(unit): list(self.method.needs) for unit in chosen}
        stats, after = collect(stream, block, index, inputs, hidden, needs, hidden)
        return {f"{unit.name}/{kind.__name__}": value for unit in chosen for kind, value in stats[inputs.key(unit)].items()}, after


def _decided_on(method: Any) -> tuple[Kind, ...]:
    return getattr(method, "kinds", (method.kind,))


def _chosen(checkpoint: Checkpoint, method: Any) -> list[Unit]:
    """The units that a method decides on, in model order."""
    kinds = _decided_on(method)
    for kind in kinds:
        units(checkpoint, kind)  # raises if this architecture has none
    return [unit for unit in units(checkpoint) if unit.kind in kinds]


def goal_of(checkpoint: Checkpoint, chosen: Sequence[Unit], method: Any) -> Goal | None:
    """How much may be left of what the method counts; None where it counts channels, or whole layers.

    A language model's multiplications are those of its linears and its head, each weight once per token.
    """
    counted = getattr(method, "of", "channels")
    if counted == "channels":
        return None
    if counted == "latency":
        remedy = 'lessen.prune(model, example, batches, to="0.8x latency")'
        raise UsageError(describe(method), got="a budget of measured time", wanted="parameters, bytes or macs in a recipe", remedy=remedy)
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
    if counted == "macs":
        multiplied = {part.name for unit in units(checkpoint) if unit.kind == "linear" for part in unit.slices}
        heads = {unit.slices[0].name for unit in units(checkpoint, "embedding")[-1:]}
        cost = Elements("macs", shapes, chosen, dict.fromkeys(multiplied | heads, 1.0), 0.0)
    else:
        cost = Elements(counted, shapes, chosen, default=1.0 if counted == "parameters" else 2.0)
    return Goal(cost, (1 - method.ratio) * cost.whole)


def _by_unit(kept: Mapping[str, Tensor], needs: Sequence[type]) -> dict[str, dict[type, Tensor]]:
    classes = {need.__name__: need for need in needs}
    found: dict[str, dict[type, Tensor]] = {}
    for key, value in kept.items():
        unit, _, kind = key.rpartition("/")
        found.setdefault(unit, {})[classes[kind]] = value
    return found


def record(edit: Edit, method: Any, seconds: float) -> Record:
    """What a pruning edit did, for the run."""
    if isinstance(edit, Keep):
        unit, kept = edit.unit, len(edit.indices)
        where = f" {PER_GROUP}" if PER_GROUP in unit.reason else ""
        reason = f"{unit.size - kept} of {unit.size} {_WORDS.get(unit.kind, unit.kind)}{where} removed"
        return Record(unit.block, unit.name, describe(method), "keep", (unit.size,), (kept,), 0.0, seconds=seconds, reason=reason)
    if isinstance(edit, Drop):
        return Record(edit.unit.block, edit.unit.name, describe(method), "drop", (1,), (0,), 0.0, seconds=seconds, reason="layer removed")
    if isinstance(edit, Replace):
        shape = tuple(edit.weight.shape)
        return Record(None, edit.name, describe(method), "replace", shape, shape, 32.0, seconds=seconds, reason="compensation")
    raise LessenError(describe(method), got=f"a {type(edit).__name__} edit", wanted="Keep, Drop or Replace from a method of scope model")
