"""Walking a model block by block: hidden states in, statistics out, never more than one block in memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from lessen.core.modules import heard
from lessen.core.unit import Unit
from lessen.models.stream import Stream
from lessen.stats.accumulators import Accumulator

BATCH_TOKENS = 4096  # enough rows for a matrix product to run at full speed, few enough to stay small beside a block

Hidden = list[Tensor]
"""Hidden states of many windows, "batch seq dim" each."""


def embed(stream: Stream, tokens: Tensor) -> Hidden:
    """Hidden states before the first block, in batches of about `BATCH_TOKENS`."""
    return [stream.embed(part) for part in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))]


def advance(stream: Stream, block: nn.Module, index: int, hidden: Hidden) -> Hidden:
    """Hidden states after a block, batch by batch."""
    return [stream.forward(block, index, part) for part in hidden]


class _Heard(Exception):
    """Ends a forward once every input that was wanted has been seen."""


@contextmanager
def inputs_of(block: nn.Module, modules: Mapping[str, str], stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """While the block runs, the input of each named submodule: `{key: path}` in, `{key: tensor}` filled at every forward.

    With `stop`, the forward is ended by `_Heard` when the last of them has been seen.
    """
    seen: dict[str, Tensor] = {}

    def hear(key: str, args: tuple[Tensor, ...], _: None) -> None:
        seen[key] = args[0]
        if stop and len(seen) == len(modules):
            raise _Heard

    with heard({key: block.get_submodule(path) for key, path in modules.items()}, hear, before=True):
        yield seen


class Inputs:
    """The distinct inputs of one block's linears: which linear reads which, and where to listen.

    Args:
        units: all units of the block.
        prefix: dotted path of the block with a trailing dot.
    """

    def __init__(self, units: Sequence[Unit], prefix: str):
        shared = [unit for unit in units if unit.kind == "inputs"]
        self.of_weight = {part.name: unit.name for unit in shared for part in unit.slices}
        self.listen = {unit.name: unit.slices[0].name.removeprefix(prefix).removesuffix(".weight") for unit in shared}

    def key(self, unit: Unit) -> str:
        """Name of the input whose statistics a unit is judged by: what it reads, or for channels what its writing linear reads."""
        if unit.kind == "inputs":
            return unit.name
        return self.of_weight[unit.slices[0].name if unit.kind == "linear" else unit.slices[-1].name]


def collect(
    stream: Stream, block: nn.Module, index: int, inputs: Inputs, hidden: Hidden, needs: Mapping[str, Sequence[type]], original: Hidden
) -> tuple[dict[str, dict[type, Tensor]], Hidden]:
    """Statistics of the block's inputs on `hidden`, and the block's output on `original`.

    Args:
        stream: the model.
        block: the block, with its own weights.
        index: its position.
        inputs: its distinct inputs.
        hidden: windows as the compressed model delivers them.
        needs: accumulator classes by input name.
        original: the same windows as the uncompressed model delivers them, for statistics that compare the two; [] if there are none.
    """
    accumulators: dict[str, dict[type, Accumulator]] = {key: {need: need() for need in wanted} for key, wanted in needs.items() if wanted}
    listen = {key: inputs.listen[key] for key in accumulators}
    outputs: Hidden = []
    before: dict[str, Tensor] = {}
    for number, part in enumerate(hidden):
        if original:
            with inputs_of(block, listen) as seen:
                outputs.append(stream.forward(block, index, original[number]))
            before = seen
        for key, x in inputs_now(stream, block, index, listen, part).items():
            for accumulator in accumulators[key].values():
                accumulator.update(x, before[key] if accumulator.paired else None)
    return {key: {kind: a.value() for kind, a in wanted.items()} for key, wanted in accumulators.items()}, outputs


def inputs_now(stream: Stream, block: nn.Module, index: int, listen: Mapping[str, str], hidden: Tensor) -> dict[str, Tensor]:
    """What the named submodules read when the block runs on one batch; the run ends as soon as all of them were called."""
    if not listen:
        return {}
    with inputs_of(block, listen, stop=True) as seen, suppress(_Heard):
        stream.forward(block, index, hidden)
    return seen


def relative_error(output: Hidden, wanted: Hidden) -> float:
    """Mean over tokens of ||output - wanted||^2 / ||wanted||^2: each token counts relative to its own size."""
    total, count = 0.0, 0
    for have, want in zip(output, wanted, strict=True):
        difference = (have.float() - want.float()).square().sum(-1)
        total += float((difference / want.float().square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)).double().sum())
        count += difference.numel()
    return total / count
