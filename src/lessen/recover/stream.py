"""Closed-form compensation of a pruned decoder, block by block, straight from the checkpoint.

Two streams of hidden states run side by side: as the dense model has them, and as the pruned blocks, compensated so far, deliver them. In
every block the layer that writes the attention output is fitted first, then the one that writes the feed-forward output, each on the
inputs that it will really get. What it is fitted to lies between two targets:

    own       what the dense layer puts out
    residual  the dense model's hidden state minus what the residual stream holds already (`drift` = 1)

The second makes every block repair what the blocks before it left wrong, and from few tokens it also learns what does not carry over. On
SmolLM2 without a fifth of its parameters the middle of the two was best on held-out text of three kinds (16k tokens to fit). If blocks were
dropped, the hidden state that counts is the one after them, and the second target alone: the feed-forward layer before a gap learns, as
far as a linear map can, to do their work.

Memory: one block of each model, its sums, and two sets of hidden states, whatever the depth.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lessen.core.edit import Drop, Edit, Replace
from lessen.core.event import Event, Listener
from lessen.core.modules import heard
from lessen.errors import UsageError
from lessen.models.checkpoint import Checkpoint
from lessen.models.edited import Edited
from lessen.models.skeleton import fill
from lessen.models.stream import Stream
from lessen.recover.losses import Logits
from lessen.recover.modules import autocast
from lessen.recover.objective import Objective
from lessen.recover.regression import Sums
from lessen.structure.families import FAMILIES

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Compensation:
    """How pruned layers are fitted."""

    kind: Literal["regression", "bias"] = "regression"
    """Fit the columns that stay, or only a bias."""
    damping: float = 0.03
    """How strongly weights are pulled to what they were, as a fraction of the mean square of the inputs."""
    drift: float | None = None
    """0: match the dense layer; 1: match the dense model's hidden state, which repairs earlier blocks too; none takes the middle, unless
    blocks were dropped."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Of matrix products while text runs through the blocks (sums are float32 and float64); none takes bfloat16 where it is fast."""

    def __post_init__(self) -> None:
        if self.kind not in ("regression", "bias"):
            raise UsageError("Compensation", got=f"kind={self.kind!r}", wanted="regression or bias")
        if self.damping < 0 or not 0 <= (self.drift or 0) <= 1:
            got = f"damping={self.damping}, drift={self.drift}"
            raise UsageError("Compensation", got=got, wanted="a damping of at least 0 and a drift from 0 to 1")


def compensate(
    source: Checkpoint,
    edits: Sequence[Edit],
    tokens: Tensor,
    options: Compensation | None = None,
    *,
    device: str = "cpu",
    on_event: Listener | None = None,
) -> list[Edit]:
    """Fit what is left of a pruned decoder to the dense one.

    Args:
        source: the dense model.
        edits: what was decided about it: `Keep`, `Drop`, `Replace`.
        tokens: text to fit on, "windows seq".
        options: how.
        device: where to compute.
        on_event: hears of every block.

    Returns:
        Further edits, to be applied after the given ones.

    Raises:
        UsageError: the architecture is not described in `lessen.structure.families`.
    """
    options = options or Compensation()
    walk = _Walk(source, edits, options, device)
    batches = tokens.split(max(1, _TOKENS_AT_ONCE // tokens.shape[1]))
    dense, pruned = ([stream.embed(part) for part in batches] for stream in (walk.dense, walk.pruned))
    walk.dense.release()
    walk.pruned.release()
    found: list[Edit] = []
    with torch.no_grad(), autocast(options.precision, torch.device(device)):
        for gap in range(walk.starts[0]):
            skipped = walk.dense.block(gap)
            dense = [walk.dense.forward(skipped, gap, part) for part in dense]
        for number in range(walk.pruned.blocks):
            made, dense, pruned = walk.block(number, dense, pruned)
            found += made
            if on_event:
                on_event(Event("compensate", number + 1, walk.pruned.blocks, f"{walk.pruned.path}.{number}"))
    return found


def improved(
    source: Checkpoint,
    edits: Sequence[Edit],
    tokens: Tensor,
    heldout: Tensor,
    options: Compensation | None = None,
    *,
    on_event: Listener | None = None,
) -> list[Edit]:
    """The edits, with least squares after them if the held-out text is then nearer to the dense model; what they repaired themselves stays.

    Args:
        source: the dense model.
        edits: what was decided about it.
        tokens: text to fit on, "windows seq".
        heldout: text to judge on, "windows seq".
        options: how to fit.
        on_event: hears of every block.
    """
    fitted = [*edits, *compensate(source, edits, tokens, options, on_event=on_event)]
    return list(min(edits, fitted, key=lambda found: distance(source, Edited(source, found), heldout)))


def distance(source: Checkpoint, other: Checkpoint, tokens: Tensor) -> float:
    """Mean KL of another model's next-token distributions to the dense one's, in nats; both are in memory meanwhile."""
    teacher, student = (fill(c.skeleton(), c, torch.float32) for c in (source, other))
    objective, total, count = Objective((Logits(),), teacher), 0.0, 0.0
    with torch.no_grad(), autocast(None, torch.device("cpu")):
        for window in tokens.split(1):
            total += float(objective.sums(student, window)["logits"][0])
            count += float(objective.counts(window)[0])
    return total / count


class _Walk:
    def __init__(self, source: Checkpoint, edits: Sequence[Edit], options: Compensation, device: str):
        family = FAMILIES.get(str(source.config.get("model_type")))
        if family is None:
            remedy = "use lessen.recover.module.compensate on the model in memory"
            got = f"model_type {source.config.get('model_type')!r}"
            raise UsageError(source.label, got=got, wanted="a family of lessen.structure.families", remedy=remedy)
        # Where a norm stands between a layer and the residual stream, the layer's own output is all it can be fitted to.
        drift = (1.0 if any(isinstance(edit, Drop) for edit in edits) else 0.5) if options.drift is None else options.drift
        self.drift = drift if family.norms is not None else 0.0
        self.options, self.layers = options, (family.o, family.down)
        self.dense, self.pruned = Stream(source, device), Stream(Edited(source, edits), device)
        self.starts = _origins(edits, self.dense)

    def block(self, number: int, dense: list[Tensor], pruned: list[Tensor]) -> tuple[list[Edit], list[Tensor], list[Tensor]]:
        """Fit one block; the edits, and both streams after it."""
        start, end = self.starts[number], self.starts[number + 1]
        theirs, ours = self.dense.block(start), self.pruned.block(number)
        outputs = [self._dense(theirs, start, part) for part in dense]
        after = [found[0] for found in outputs]
        for gap in range(start + 1, end):
            skipped = self.dense.block(gap)
            after = [self.dense.forward(skipped, gap, part) for part in after]
        edits: list[Edit] = []
        for place, name in enumerate(self.layers):
            sums = Sums()
            layer = ours.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            for part, hidden in enumerate(pruned):
                x, base = self._inputs(ours, number, hidden, place)
                own = outputs[part][1][place]
                # What the residual stream should hold after this layer: of the feed-forward one, what the next block is to read.
                state = after[part] if place == 1 else outputs[part][0] - outputs[part][1][1]
                target = own if self.drift == 0 else self.drift * (state - base) + (1 - self.drift) * own
                sums.update(x.flatten(0, -2), target.flatten(0, -2))
            edits += self._fit(layer, f"{self.pruned.path}.{number}.{name}", sums)
        return edits, after, [self.pruned.forward(ours, number, part) for part in pruned]

    def _dense(self, block: nn.Module, index: int, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A dense block's output, and those of its two writing layers."""
        with _calls(block, self.layers) as seen:
            out = self.dense.forward(block, index, hidden)
        return out, [seen[name][1] for name in self.layers]

    def _inputs(self, block: nn.Module, number: int, hidden: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """A writing layer's input, and what the residual stream holds before it adds its output."""
        with _calls(block, self.layers) as seen:
            out = self.pruned.forward(block, number, hidden)
        x, y = seen[self.layers[place]]
        return x, hidden if place == 0 else out - y

    def _fit(self, layer: nn.Linear, name: str, sums: Sums) -> list[Edit]:
        """Put the fitted weight (or bias) into the block, and say so as edits."""
        if self.options.kind == "bias":
            bias = sums.shift(layer.weight).to(layer.weight)
            layer.bias = nn.Parameter(bias, requires_grad=False)
            return [Replace(f"{name}.bias", bias)]
        weight = sums.solve(layer.weight, self.options.damping, layer.bias).to(layer.weight)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return [Replace(f"{name}.weight", weight)]


@contextmanager
def _calls(block: nn.Module, names: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """While the block runs, input and output of each named submodule."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hear(name: str, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = args[0], output

    with heard({name: block.get_submodule(name) for name in names}, hear):
        yield seen


def _origins(edits: Sequence[Edit], stream: Stream) -> list[int]:
    """For every block that stays its number in the dense model, and the number of blocks there at the end."""
    stay = list(range(stream.blocks))
    for edit in edits:
        if isinstance(edit, Drop):
            del stay[int(edit.unit.name.rpartition(".")[2])]
    return [*stay, stream.blocks]
