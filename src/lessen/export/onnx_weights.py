"""Codes as ONNX Runtime's `MatMulNBits` wants them, in a file beside the graph, written one matrix at a time.

    B            uint8 "out block bytes": the codes of a block in order, 8 / bits to a byte, lowest bits first
    scales       "out block"
    zero_points  uint8 "out bytes", packed in the same way; left out when every zero is 2^(bits-1)

Blocks are powers of two from 16 to 256, so a group of 48 becomes three blocks of 16 with one scale; widths are 2, 4 and 8 bits. Both
are exact. Scales are stored as they are (float16) and converted to float32 by a `Cast` node that ONNX Runtime carries out once, when
it loads the model: the CPU kernels want float32, the file need not hold it.

Operator: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (com.microsoft.MatMulNBits)
"""

from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lessen.errors import LessenError
from lessen.export.grid import Grid
from lessen.formats.pack import pack

WIDTHS = (2, 4, 8)
_ALIGN = 4096


@dataclass(frozen=True)
class Blocks:
    """One or several matrices that read the same input, as one `MatMulNBits`.

    Attributes:
        bits: 2, 4 or 8.
        block: inputs to a scale.
        shape: (out, in) of all rows together.
        codes: uint8 "out block bytes".
        scale: "out block".
        zeros: uint8 "out bytes", None for symmetric codes.
        notes: what was done to fit.
    """

    bits: int
    block: int
    shape: tuple[int, int]
    codes: Tensor
    scale: Tensor
    zeros: Tensor | None
    notes: tuple[str, ...]


def layout(grid: Grid) -> tuple[int, int, bool]:
    """(bits, block, symmetric): matrices of one layout can be stacked.

    Raises:
        LessenError: groups that no block of 16 or more divides.
    """
    bits = next(width for width in WIDTHS if width >= grid.bits)
    block = min(256, gcd(grid.group, 256))
    if block < 16:
        remedy = grid.regrouped(16) or f"quantize with group=16, which divides its rows of {grid.codes.shape[1]}, or a multiple of it"
        raise LessenError(grid.name, got=f"groups of {grid.group}", wanted="a multiple of 16 for ONNX Runtime", remedy=remedy)
    return bits, block, grid.symmetric


def blocks_of(grids: list[Grid]) -> Blocks:
    """Stack matrices of one layout and one row length, first rows first."""
    bits, block, symmetric = layout(grids[0])
    fitted = [grid.widened(bits).split(block) for grid in grids]
    codes = torch.cat([grid.codes for grid in fitted])
    zeros = None if symmetric else pack(torch.cat([grid.zero for grid in fitted]), bits)
    rows, columns = codes.shape
    packed = pack(codes, bits).view(rows, columns // block, block * bits // 8)
    notes = tuple(dict.fromkeys(note for grid in fitted for note in grid.notes))
    return Blocks(bits, block, (rows, columns), packed, torch.cat([grid.scale for grid in fitted]), zeros, notes)


class WeightFile:
    """The file beside the graph: tensors are appended, the graph refers to them by offset.

    Several initializers may refer to one region: an embedding and a tied output head have different shapes and the same bytes.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("wb")
        self._placed: dict[str, tuple[int, int]] = {}

    def add(self, name: str, tensor: Tensor, shape: tuple[int, ...] | None = None, same_as: str | None = None) -> Any:
        """An initializer (`TensorProto`) for a tensor.

        Args:
            name: of the initializer.
            tensor: its values; not written again if `same_as` is given.
            shape: to give it, if not its own.
            same_as: initializer whose bytes these are.
        """
        from onnx import StringStringEntryProto, TensorProto

        kinds = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16, torch.bfloat16: TensorProto.BFLOAT16}
        if same_as is None:
            self._file.write(bytes(-self._file.tell() % _ALIGN) if tensor.numel() > _ALIGN else b"")
            start = self._file.tell()
            self._file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._placed[name] = (start, self._file.tell() - start)
        start, length = self._placed[same_as or name]
        proto = TensorProto(name=name, data_type=kinds.get(tensor.dtype, TensorProto.UINT8), data_location=TensorProto.EXTERNAL)
        proto.dims.extend(shape or tuple(tensor.shape))
        for key, value in (("location", self.path.name), ("offset", start), ("length", length)):
            proto.external_data.append(StringStringEntryProto(key=key, value=str(value)))
        return proto

    def close(self) -> None:
        self._file.close()
