"""The block pass: decide block after block, each on the hidden states that the compressed blocks before it deliver.

Two streams of hidden states run side by side over the calibration text: what the original model has at this depth, and what the
compressed model has. Statistics are taken from the second with the block's own weights; candidates are judged by how far they move
the second from the first on held-out windows.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.apply import edited
from lessen.core.edit import Drop, Edit, Keep, Quantize, Replace
from lessen.core.event import Event, Listener
from lessen.core.method import Method
from lessen.core.record import Record
from lessen.core.unit import Unit, View
from lessen.engine.describe import describe
from lessen.engine.journal import Journal
from lessen.engine.walk import Hidden, Inputs, advance, collect, embed, inputs_now, relative_error
from lessen.methods.select import Select
from lessen.models.checkpoint import Checkpoint
from lessen.models.edited import Edited
from lessen.models.stream import Stream
from lessen.structure.decoder import units, view


@dataclass(frozen=True)
class Text:
    """Token windows "windows seq": what statistics are taken from, and what candidates are judged on."""

    calibration: Tensor
    heldout: Tensor


@dataclass
class Streams:
    """Hidden states at one depth: the original model's and the compressed model's, on calibration and held-out windows.

    `original` is empty unless a statistic compares the two streams: half the work of the walk.
    """

    original: Hidden
    compressed: Hidden
    heldout_original: Hidden
    heldout: Hidden

    def tensors(self) -> dict[str, Tensor]:
        """As one tensor each, for the journal."""
        return {name: torch.cat(value) for name, value in vars(self).items() if value}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], like: "Streams") -> "Streams":
        """Cut into the batches of `like`: the same shapes give the same bits."""
        sizes = {name: [len(part) for part in value] for name, value in vars(like).items()}
        return cls(**{name: list(tensors[name].split(sizes[name])) if sizes[name] else [] for name in sizes})


@dataclass
class BlockPass:
    """One walk that quantizes: methods of scope "block" on the linears, and on the embeddings before the first block."""

    checkpoint: Checkpoint
    methods: Sequence[Any]
    text: Text | None
    journal: Journal
    index: int
    on_event: Listener | None = None
    device: str = "cpu"
    found: dict[int | None, list[Unit]] = field(default_factory=dict)

    def run(self) -> None:
        """Finish every step that the journal does not hold."""
        for unit in units(self.checkpoint):
            self.found.setdefault(unit.block, []).append(unit)
        if self.journal.finished(self.index) == 0:
            self._embeddings()
        done = self.journal.finished(self.index)
        stream = Stream(self.checkpoint, self.device)
        if done > stream.blocks:
            return
        streams = self._streams(stream, done)
        for block in range(done - 1, stream.blocks):
            started = time.perf_counter()
            edits, records, streams = self._block(stream, block, streams)
            seconds = time.perf_counter() - started
            records = [Record(**{**vars(r), "seconds": seconds / len(records)}) for r in records]
            self.journal.commit(self.index, block + 1, edits, records, streams.tensors() if streams else None)
            self._tell(block, stream, records, seconds)

    def _streams(self, stream: Stream, done: int) -> Streams | None:
        """Hidden states where the journal ends."""
        if self.text is None:
            return None
        front = Stream(Edited(self.checkpoint, self.journal.edits(self.index, 0)), self.device)
        paired = any(need.paired for method in self.methods for need in method.needs)
        original = embed(stream, self.text.calibration) if paired else []
        heldout = [embed(s, self.text.heldout) for s in (stream, front)]
        streams = Streams(original, embed(front, self.text.calibration), *heldout)
        stream.release()
        return streams if done == 1 else Streams.restore(self.journal.state(self.index, done - 1), streams)

    def _embeddings(self) -> None:
        edits: list[Edit] = []
        records: list[Record] = []
        for unit in self.found.get(None, []):
            for method in self.methods:
                if method.kind == unit.kind:
                    started = time.perf_counter()
                    decided = method(view(self.checkpoint, unit), {})
                    edits += decided
                    records += [_record(edit, None, method, seconds=time.perf_counter() - started) for edit in decided]
        self.journal.commit(self.index, 0, edits, records)

    def _block(self, stream: Stream, index: int, streams: Streams | None) -> tuple[list[Edit], list[Record], Streams | None]:
        block, prefix = stream.block(index), f"{stream.path}.{index}."
        inputs = Inputs(self.found[index], prefix)
        methods = [method for method in self.methods if method.kind in ("linear", "inputs")]
        weights = {prefix + name: parameter.data for name, parameter in block.named_parameters()}
        if streams is None:
            edits = [edit for method in methods for edit in self._decide(method, index, inputs, weights, {})]
            return edits, [_record(edit, index, _maker(methods, edit)) for edit in edits], None
        needs: dict[str, list[type]] = {key: [] for key in inputs.listen}
        for method in methods:
            for key in needs:
                needs[key] += [need for need in method.needs if need not in needs[key]]
        stats, original = collect(stream, block, index, inputs, streams.compressed, needs, streams.original)
        target = advance(stream, block, index, streams.heldout_original)
        trial = _Trial(stream, block, index, weights, streams.heldout, target)
        edits: list[Edit] = []
        records: list[Record] = []
        for method in methods:
            best = trial.best(candidates(method), lambda m: self._decide(m, index, inputs, weights, stats))
            edits += best.edits
            records += [_record(e, index, best.method, error=best.error, candidates=best.errors, own=best.own) for e in best.edits]
        linear_errors = _linear_errors(stream, block, index, inputs, weights, edits, streams.heldout)
        trial.put(edits)
        after = Streams(original, advance(stream, block, index, streams.compressed), target, advance(stream, block, index, streams.heldout))
        records = [Record(**{**vars(r), "error": linear_errors.get(r.unit, r.error)}) for r in records]
        return edits, records, after

    def _decide(self, method: Any, index: int, inputs: Inputs, weights: Mapping[str, Tensor], stats: Mapping[str, Any]) -> list[Edit]:
        """One method's edits for a whole block; units that rescale their producers come before the producers themselves."""
        edits: list[Edit] = []
        chosen = [unit for unit in self.found[index] if unit.kind == method.kind]
        for unit in reversed(chosen) if method.kind == "inputs" else chosen:
            names = [part.name for part in (*unit.slices, *([unit.producer] if unit.producer else []))]
            now = {name: edited(name, weights[name], [e for e in edits if isinstance(e, Replace)]) for name in names}
            edits += method(View(unit, {k: v for k, v in now.items() if v is not None}), stats.get(inputs.key(unit), {}))
        return edits

    def _tell(self, block: int, stream: Stream, records: Sequence[Record], seconds: float) -> None:
        if self.on_event:
            weights = [r for r in records if r.action == "quantize"]
            size = sum(r.shape_after[0] * r.shape_after[1] for r in weights)
            bits = sum(r.bits * r.shape_after[0] * r.shape_after[1] for r in weights) / size if size else None
            error = max((r.error for r in weights if r.error is not None), default=None)
            chosen = ", ".join(dict.fromkeys(r.method.partition("(")[0] for r in weights))
            message = f"{stream.path}.{block}: {chosen}"
            self.on_event(Event("quantize", block + 1, stream.blocks, message, error, bits, seconds))


def candidates(method: Any) -> tuple[Any, ...]:
    """The methods to try on a block."""
    return method.candidates if isinstance(method, Select) else (method,)


@dataclass(frozen=True)
class _Best:
    method: Method
    edits: list[Edit]
    error: float
    errors: dict[str, float]
    own: dict[str, float]


@dataclass
class _Trial:
    """A block that can be given edits, judged, and put back."""

    stream: Stream
    block: nn.Module
    index: int
    weights: Mapping[str, Tensor]
    heldout: Hidden
    target: Hidden

    def put(self, edits: Sequence[Edit]) -> None:
        prefix = f"{self.stream.path}.{self.index}."
        for name, parameter in self.block.named_parameters():
            changed = edited(prefix + name, self.weights[prefix + name], edits)
            if changed is not None:
                parameter.data = changed

    def best(self, methods: Sequence[Method], decide: Any) -> _Best:
        """The candidate with the smallest held-out error; the first one on a tie."""
        tried: list[_Best] = []
        own: dict[str, float] = {}
        untouched = advance(self.stream, self.block, self.index, self.heldout)  # the block is as it was: only the inputs have drifted
        for method in methods:
            edits = decide(method)
            self.put(edits)
            output = advance(self.stream, self.block, self.index, self.heldout)
            error = relative_error(output, self.target)
            if error == error:
                own[describe(method)] = relative_error(output, untouched)
            tried.append(_Best(method, edits, error, {}, {}))
        self.put([])
        finite = [t for t in tried if t.error == t.error] or tried
        best = min(finite, key=lambda t: t.error)
        return _Best(best.method, best.edits, best.error, {describe(t.method): t.error for t in tried if t.error == t.error}, own)


def _maker(methods: Sequence[Method], edit: Edit) -> Method:
    return methods[0] if len(methods) == 1 or isinstance(edit, Replace) else methods[-1]


def _record(edit: Edit, block: int | None, method: Method, **measured: Any) -> Record:
    name = edit.unit.name if isinstance(edit, Keep | Drop) else edit.name
    tensor = edit.codes.values if isinstance(edit, Quantize) else edit.weight if isinstance(edit, Replace) else torch.empty(0)
    shape = tuple(tensor.shape)
    bits = edit.format.bits_per_weight(shape) if isinstance(edit, Quantize) else 32.0
    return Record(
        block,
        name,
        describe(method),
        "quantize" if isinstance(edit, Quantize) else "replace",
        shape,
        shape,
        bits,
        reason=getattr(edit, "note", ""),
        **measured,
    )


def _linear_errors(
    stream: Stream, block: nn.Module, index: int, inputs: Inputs, weights: Mapping[str, Tensor], edits: Sequence[Edit], heldout: Hidden
) -> dict[str, float]:
    """Relative squared error of each linear's own output on held-out windows, by tensor name.

    Measured with the block's original weights around it. Where a method rescaled inputs (Replace), a linear alone has no error of
    its own to compare, and the block's stands for it.
    """
    if any(isinstance(edit, Replace) for edit in edits):
        return {}
    wrong: dict[str, float] = {}
    whole: dict[str, float] = {}
    for part in heldout:
        seen = inputs_now(stream, block, index, inputs.listen, part)
        for edit in edits:
            if isinstance(edit, Quantize) and edit.name in inputs.of_weight:
                x = seen[inputs.of_weight[edit.name]].float()
                weight = weights[edit.name].float()
                difference = edit.format.decode(edit.codes).to(weight.device) - weight
                wrong[edit.name] = wrong.get(edit.name, 0.0) + float((x @ difference.T).square().sum())
                whole[edit.name] = whole.get(edit.name, 0.0) + float((x @ weight.T).square().sum())
    return {name: wrong[name] / whole[name] for name in wrong if whole[name] > 0}
