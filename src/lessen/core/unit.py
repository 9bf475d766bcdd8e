"""What can be changed as one piece: a `Unit` names the coupled slices, a `View` adds the weights.

Removing one channel of a feed-forward layer removes a row of two matrices and a column of a third. A `Unit` says so as data: a
number of channels, and for every tensor that carries them the axis and the span (how many consecutive indices belong to one
channel: 1 for a feed-forward channel, `head_dim` for a key head).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["linear", "embedding", "inputs", "ffn", "kv_group", "layer", "channels", "heads", "head_dim", "width", "experts", "vocab"]


PER_GROUP = "of every key/value group"
"""What the reason of a unit says whose channels are the queries of each key/value head: one channel is a head in every group."""


@dataclass(frozen=True)
class Slice:
    """One axis of one tensor along which a unit's channels lie, `span` indices to a channel, from index `start` on.

    `start` is other than 0 in fused tensors (`qkv_proj`: queries, then keys, then values), which a unit may name several times. All
    channels may come again `repeat` times at a distance of `stride` indices (one feature of every head), so that the indices of a
    channel are `start + r * stride + channel * span + i`; a stride of None means that one run of channels follows the other.
    `length` is the size of the whole axis where the slice was found, so that edits are not carried out on another architecture that has
    the same names; None where nobody looked.
    """

    name: str
    axis: int
    span: int = 1
    start: int = 0
    repeat: int = 1
    stride: int | None = None
    length: int | None = field(default=None, compare=False, repr=False)

    def indices(self, size: int) -> Tensor:
        """Where the channels of a unit of this size lie: int64, shape "channel index".

        >>> Slice("w", 0, span=2, repeat=2).indices(2)
        tensor([[0, 1, 4, 5],
                [2, 3, 6, 7]])
        """
        stride = size * self.span if self.stride is None else self.stride
        runs = torch.arange(self.repeat)[:, None] * stride + torch.arange(self.span)
        return self.start + torch.arange(size)[:, None] * self.span + runs.reshape(1, -1)


@dataclass(frozen=True)
class Unit:
    """Slices of tensors that must change together.

    Attributes:
        name: dotted module path, unique in the model (`model.layers.3.mlp`).
        kind: what the channels are.
        size: number of channels.
        slices: every tensor that carries the channels. For kind "linear", the weight's output axis.
        block: index of the decoder block that holds the unit; None outside the blocks.
        sizes: configuration fields that hold the size, with their factor (`{"num_attention_heads": 3}`: three to a channel).
        producer: for kind "inputs", the tensor whose output axis can absorb a rescaling of the shared input; None if there is none.
        reason: why these slices belong together, for people.
        normed: a norm looks at all channels together, so that a cut changes what it divides by.
        chain: how each slice is tied to the ones before, for people.
        complete: the slices name every tensor, biases and buffers too, and may cross those of other units (heads and features of heads):
            edits of such units that follow each other act at once.
        floor: channels that must stay at least (as many experts as a router chooses).
        among: for kind "layer", of how many blocks it is one; None where nobody counted.
    """

    name: str
    kind: Kind
    size: int
    slices: tuple[Slice, ...]
    block: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    producer: Slice | None = None
    reason: str = ""
    normed: bool = False
    chain: tuple[str, ...] = ()
    complete: bool = False
    floor: int = 1
    among: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class View:
    """A unit together with the tensors its slices name: all that a method may look at besides statistics."""

    unit: Unit
    tensors: Mapping[str, Tensor]

    @property
    def weight(self) -> Tensor:
        """The weight of a one-tensor unit, "out in"."""
        return self.tensors[self.unit.slices[0].name]

    def sum_per_channel(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Add per-element scores of every slice up to one number per channel.

        Args:
            scores: for each tensor to count, a tensor of its shape.

        Returns:
            float32, shape "channel".

        >>> import torch
        >>> unit = Unit("mlp", "ffn", 2, (Slice("up", 0), Slice("down", 1)))
        >>> view = View(unit, {"up": torch.ones(2, 3), "down": torch.ones(3, 2)})
        >>> view.sum_per_channel(view.tensors)
        tensor([6., 6.])
        """
        total = 0
        for part in self.unit.slices:
            if part.name not in scores:
                continue
            score = scores[part.name].float().movedim(part.axis, 0)
            at = part.indices(self.unit.size).to(score.device)
            total = total + score[at].reshape(self.unit.size, at.shape[1] * prod(score.shape[1:])).sum(1)
        return total  # pyright: ignore[reportReturnType]
