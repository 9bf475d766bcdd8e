"""Codes as GGML blocks: 32 consecutive weights of a row with one float16 scale, bit for bit.

    Q4_0   d, 16 bytes                    w = d * (u - 8)      u in 0..15
    Q4_1   d, m, 16 bytes                 w = d * u + m
    Q5_0   d, 4 bytes, 16 bytes           w = d * (u - 16)     u in 0..31
    Q5_1   d, m, 4 bytes, 16 bytes        w = d * u + m
    Q8_0   d, 32 bytes                    w = d * u            u in -128..127

Byte i of the sixteen holds the low four bits of u[i] and, above them, those of u[i + 16]; bit i of the four bytes is the fifth bit of
u[i]. The symmetric types hold symmetric codes exactly, and asymmetric ones whenever code - zero fits. Q4_1 and Q5_1 have no zero point
but a minimum m = -d * zero, which must be rounded to float16: an error of at most zero / 2048 steps.

Layout: https://github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h
"""

import numpy as np
import torch
from torch import Tensor

from lessen.errors import LessenError
from lessen.export.grid import Grid

BLOCK = 32
CENTRED = {"Q4_0": 4, "Q5_0": 5, "Q8_0": 8}
WITH_MINIMUM = {"Q4_1": 4, "Q5_1": 5}
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}


def choose(grid: Grid) -> str:
    """The smallest block type that holds the codes (of Q4_1 and Q5_1: but for the rounding of the minimum).

    Raises:
        LessenError: asymmetric codes that are too wide, or groups that are no multiple of 32.
    """
    grid.half_scale().split(BLOCK)
    fits = [name for name, bits in CENTRED.items() if grid.bits <= bits and grid.centred(bits) is not None]
    fits += [name for name, bits in WITH_MINIMUM.items() if grid.bits <= bits and not grid.symmetric]
    if not fits:
        remedy = "quantize it symmetrically, or with 7 bits"
        raise LessenError(grid.name, got=f"asymmetric {grid.bits}-bit codes", wanted="codes that a GGUF block can hold", remedy=remedy)
    return min(fits, key=lambda name: BLOCK_BYTES[name])


def pack(grid: Grid, kind: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Bytes of the blocks.

    Args:
        grid: the codes.
        kind: what `choose` said.

    Returns:
        uint8 "out bytes", and notes on what was done.
    """
    fine = grid.half_scale().split(BLOCK)
    rows = fine.codes.shape[0]
    notes = fine.notes
    parts = [_bytes(fine.scale)]
    if kind in CENTRED:
        bits = CENTRED[kind]
        values = fine.centred(bits)
        assert values is not None, "choose() has checked that the codes fit"
        if grid.symmetric and grid.bits < bits:
            notes = (*notes, f"{grid.bits}-bit codes in {kind} blocks (exact)")
        elif not grid.symmetric:
            notes = (*notes, f"zero points folded into the codes of {kind} (exact)")
        if kind == "Q8_0":
            parts.append(values.to(torch.int8).view(torch.uint8).view(rows, -1, BLOCK))
            return torch.cat(parts, 2).reshape(rows, -1).numpy(), notes
        unsigned = (values + (1 << bits - 1)).to(torch.uint8)
    else:
        if grid.bits < WITH_MINIMUM[kind]:
            notes = (*notes, f"{grid.bits}-bit codes in {kind} blocks (exact)")
        unsigned = fine.codes
        parts.append(_bytes(minimum(fine)))
    unsigned = unsigned.view(rows, -1, BLOCK)
    if kind.startswith("Q5"):
        fifth = np.packbits((unsigned >> 4).numpy(), axis=2, bitorder="little")
        parts.append(torch.from_numpy(fifth))
    low = unsigned & 15
    parts.append(low[:, :, : BLOCK // 2] | low[:, :, BLOCK // 2 :] << 4)
    return torch.cat(parts, 2).reshape(rows, -1).numpy(), notes


def minimum(fine: Grid) -> Tensor:
    """float16 "out group": the minimum that stands for the zero point."""
    return (-fine.scale.float() * fine.zero.float()).half()


def meaning(grid: Grid, kind: str) -> Tensor:
    """float32 "out in": the weights that a runtime reads from the blocks."""
    if kind in CENTRED:
        return grid.dequantized()
    fine = grid.half_scale().split(BLOCK)
    rows = fine.codes.shape[0]
    values = fine.codes.view(rows, -1, BLOCK).float() * fine.scale.float().unsqueeze(2) + minimum(fine).float().unsqueeze(2)
    return values.view(rows, -1)


def _bytes(half: Tensor) -> Tensor:
    """uint8 "out group 2" of a float16 "out group"."""
    return half.contiguous().view(torch.uint8).view(*half.shape, 2)
