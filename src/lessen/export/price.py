"""What a grid costs in each container, before anything is rounded: the bytes of the weights in the file that would be written.

A format of b bits in groups of g takes b + 16/g bits a weight on paper. Containers spend more: GGUF knows blocks of 32 with 4, 5 or 8 bits
only, ONNX Runtime codes of 2, 4 or 8 bits, compressed-tensors packs linear layers to the bit but keeps a token table in bytes, and its
scales once more for a tied head. A wish for a size can only be held against these prices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, gcd, inf, prod
from typing import NamedTuple

from torch import nn

from lessen.errors import LessenError
from lessen.export import gguf_blocks, gptq, onnx, onnx_weights
from lessen.export.gguf_metadata import architecture
from lessen.models.checkpoint import Checkpoint
from lessen.structure.decoder import units

USUAL = ("gguf", "onnx")
"""Containers beside the Hugging Face directory where none are named; those that do not know the architecture are left out."""

_TOKEN_BYTES = 34
"""GGUF holds the tokenizer in the same file: text, length, type and merge rule of a token together."""


class Layout(NamedTuple):
    """A grid for linear layers and one for token tables: bits and group; group None is a whole row, bits 16 is no grid."""

    bits: int
    group: int | None
    table_bits: int
    table_group: int | None


@dataclass(frozen=True)
class Matrix:
    """A matrix that gets a grid.

    Attributes:
        shape: "out in".
        table: whether the grid of the tables is its.
        packable: a linear layer; an `nn.Embedding` is not.
        users: modules that share it; a tied head is the second.
    """

    shape: tuple[int, int]
    table: bool
    packable: bool
    users: int


@dataclass(frozen=True)
class Contents:
    """What a file has to hold.

    Attributes:
        matrices: distinct matrices, and how often each occurs.
        others: parameters of matrices without a grid.
        vectors: parameters of the rest.
        width: bytes of a parameter in the source, for what is copied.
        vocabulary: tokens, 0 without a tokenizer.
    """

    matrices: tuple[tuple[Matrix, int], ...]
    others: int
    vectors: int
    width: float
    vocabulary: int


def contents(checkpoint: Checkpoint) -> Contents:
    """Shapes and kinds of all that is stored; reads no weight."""
    modules = dict(checkpoint.skeleton().named_modules())
    kinds = {unit.slices[0].name: unit.kind for unit in units(checkpoint) if unit.kind in ("linear", "embedding")}
    found: dict[Matrix, int] = {}
    others = vectors = 0
    for name in checkpoint.names:
        shape = tuple(checkpoint.shape(name))
        if name in kinds:
            packable = not isinstance(modules.get(name.removesuffix(".weight")), nn.Embedding)
            users = 1 + sum(target == name for target in checkpoint.tied.values())
            matrix = Matrix((shape[0], shape[1]), kinds[name] == "embedding", packable, users)
            found[matrix] = found.get(matrix, 0) + 1
        elif len(shape) == 1:
            vectors += prod(shape)
        else:
            others += prod(shape)
    total = others + vectors + sum(prod(m.shape) * n for m, n in found.items())
    width = min(4.0, max(2.0, checkpoint.size_bytes / max(1, total)))
    return Contents(tuple(found.items()), others, vectors, width, max((m.shape[0] for m in found if m.table), default=0))


def containers(checkpoint: Checkpoint, names: Sequence[str] | None) -> tuple[str, ...]:
    """The containers that will be written: the Hugging Face directory always, then those asked for, or the usual ones that can be.

    >>> from types import SimpleNamespace
    >>> containers(SimpleNamespace(config={"model_type": "mamba"}, label="m"), None)
    ('huggingface',)
    """
    if names is not None:
        return ("huggingface", *(name for name in names if name in PRICES and name != "huggingface"))
    known = {"onnx"} if checkpoint.config.get("model_type") in onnx.ARCHITECTURES else set()
    try:
        architecture(checkpoint)
        known.add("gguf")
    except LessenError:
        pass  # the export itself says so
    return ("huggingface", *(name for name in USUAL if name in known))


def _huggingface(of: Contents, layout: Layout) -> float:
    total = of.width * (of.others + of.vectors)
    for matrix, times in of.matrices:
        bits, group = _grid(matrix, layout)
        rows, columns = matrix.shape
        if bits == 16:
            total += times * of.width * rows * columns
        elif matrix.packable:
            total += times * (4 * rows * ceil(columns * bits / 32) + 2 * rows * columns / group + 16)
        else:
            total += times * (rows * columns + matrix.users * 2 * rows * columns / group)
    return total


def _gguf(of: Contents, layout: Layout) -> float:
    total = 2.0 * of.others + 4 * of.vectors + _TOKEN_BYTES * of.vocabulary
    for matrix, times in of.matrices:
        bits, group = _grid(matrix, layout)
        held = [gguf_blocks.BLOCK_BYTES[kind] for kind, width in gguf_blocks.CENTRED.items() if bits <= width]
        if bits < 16 and group % gguf_blocks.BLOCK:
            return inf
        total += times * prod(matrix.shape) * (min(held) / gguf_blocks.BLOCK if held else 2)
    return total


def _onnx(of: Contents, layout: Layout) -> float:
    total = of.width * of.others + 4 * of.vectors
    for matrix, times in of.matrices:
        bits, group = _grid(matrix, layout)
        block = gcd(group, 256)
        if bits < 16 and block < 16:
            return inf
        spent = of.width if bits == 16 else min(w for w in onnx_weights.WIDTHS if w >= bits) / 8 + 2 / block
        total += times * prod(matrix.shape) * spent
    return total


def _gptq(of: Contents, layout: Layout) -> float:
    total = 2.0 * (of.others + of.vectors)
    layers = [matrix for matrix, _ in of.matrices if matrix.packable and _grid(matrix, layout)[0] < 16]
    packed = [_grid(matrix, layout) for matrix in layers if not matrix.table] or [_grid(matrix, layout) for matrix in layers]
    bits = min(width for width in gptq.WIDTHS if width >= max((width for width, _ in packed), default=2))
    finest = gcd(*(group for _, group in packed))
    for matrix, times in of.matrices:
        rows, columns = matrix.shape
        width, group = _grid(matrix, layout)
        if matrix not in layers or width > bits or group % finest:  # a head that would widen all others stays dense
            total += times * 2 * rows * columns
        else:
            total += times * (rows * columns * (bits + (16 + bits) / finest) / 8 + 4 * columns)
    return total


def _grid(matrix: Matrix, layout: Layout) -> tuple[int, int]:
    """Bits and group, a whole row counted out."""
    bits, group = layout[2:] if matrix.table else layout[:2]
    return bits, group or matrix.shape[1]


PRICES: dict[str, Callable[[Contents, Layout], float]] = {"huggingface": _huggingface, "gguf": _gguf, "onnx": _onnx, "gptq": _gptq}
"""Bytes by container; infinite where it cannot hold the layout."""


def pricing(checkpoint: Checkpoint, names: Sequence[str] | None) -> Callable[[Layout], dict[str, float]]:
    """What a layout costs in every container that will be written.

    Args:
        checkpoint: the model.
        names: formats asked for beside the Hugging Face directory; None: the usual ones.
    """
    held, written = contents(checkpoint), containers(checkpoint, names)
    return lambda layout: {name: PRICES[name](held, layout) for name in written}
