"""One solve for every runtime: the codes of a quantized matrix in the one shape that all containers are packed from.

Every integer format here means  w = scale * (code - zero). Containers differ in how many bits a code may have, in how many weights share
a scale, and in whether a zero point can be stored. Some differences cost nothing:

    narrow codes in a wide container      code - zero stays what it is: 3-bit codes live in a 4-bit container
    a group of 64 in blocks of 32         both blocks carry the same scale
    a zero point in a symmetric container  if code - zero happens to fit, it simply is the symmetric code

All of these are exact, so they are taken and said aloud. Anything else would need new codes, that is a second quantization, and is refused.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lessen.core.edit import Quantize
from lessen.errors import LessenError
from lessen.formats.affine import Int

ELSEWHERE = "the Hugging Face directory holds it, for transformers"
"""The remedy where a container does not know an architecture: true of every model that was opened at all."""


@dataclass(frozen=True)
class Grid:
    """A quantized matrix as every container wants to see it.

    Attributes:
        name: of the tensor, for messages.
        bits: width of a code.
        codes: uint8 "out in", in [0, 2^bits).
        scale: "out group", in the dtype in which it is stored.
        zero: uint8 "out group", the code that stands for 0.
        symmetric: every zero is 2^(bits-1).
        notes: what was done to fit a container, for people.
    """

    name: str
    bits: int
    codes: Tensor
    scale: Tensor
    zero: Tensor
    symmetric: bool
    notes: tuple[str, ...] = ()

    @property
    def group(self) -> int:
        """How many consecutive inputs share a scale."""
        return self.codes.shape[1] // self.scale.shape[1]

    def centred(self, bits: int) -> Tensor | None:
        """int16 "out in": codes around zero if all fit into [-2^(bits-1), 2^(bits-1)), else None."""
        zero = self.zero.to(torch.int16).repeat_interleave(self.group, 1)
        values = self.codes.to(torch.int16) - zero
        low, high = (int(v) for v in torch.aminmax(values))
        return values if -(1 << bits - 1) <= low and high < 1 << bits - 1 else None

    def folded(self, bits: int) -> "Grid | None":
        """The same weights as symmetric codes of `bits`, zero points folded in; None if they do not fit."""
        values = self.centred(bits)
        if values is None:
            return None
        half = 1 << bits - 1
        wider = f"; {self.bits}-bit codes became {bits}-bit ones" if bits > self.bits else ""
        note = f"zero points folded into symmetric codes (exact{wider})"
        codes, zero = (values + half).to(torch.uint8), torch.full_like(self.zero, half)
        return replace(self, bits=bits, codes=codes, zero=zero, symmetric=True, notes=(*self.notes, note))

    def widened(self, bits: int) -> "Grid":
        """The same weights with codes of `bits` >= self.bits."""
        if bits == self.bits:
            return self
        shift = (1 << bits - 1) - (1 << self.bits - 1) if self.symmetric else 0
        note = f"{self.bits}-bit codes in {bits}-bit containers (exact)"
        return replace(self, bits=bits, codes=self.codes + shift, zero=self.zero + shift, notes=(*self.notes, note))

    def split(self, group: int) -> "Grid":
        """The same weights with a scale for every `group` inputs; LessenError if groups do not nest."""
        if group == self.group:
            return self
        if self.group % group:
            remedy = self.regrouped(group) or f"quantize with group={group}, which divides its rows of {self.codes.shape[1]}"
            raise LessenError(self.name, got=f"groups of {self.group}", wanted=f"a multiple of {group}", remedy=remedy)
        times = self.group // group
        note = f"each scale repeated {times} times, to groups of {group} (exact)"
        return replace(
            self, scale=self.scale.repeat_interleave(times, 1), zero=self.zero.repeat_interleave(times, 1), notes=(*self.notes, note)
        )

    def regrouped(self, group: int) -> str | None:
        """What to do where no group of a container divides the rows, `group` being its smallest; None where one does.

        >>> Grid("w", 4, torch.zeros(1, 200), torch.ones(1, 1), torch.zeros(1, 1), True).regrouped(16)
        'no multiple of 16 divides its rows of 200: leave this container out, the Hugging Face directory holds them'
        """
        columns = self.codes.shape[1]
        if columns % group == 0:
            return None
        return f"no multiple of {group} divides its rows of {columns}: leave this container out, the Hugging Face directory holds them"

    def rows(self, order: Tensor) -> "Grid":
        """The same matrix with its output rows in another order."""
        return replace(self, codes=self.codes[order], scale=self.scale[order], zero=self.zero[order])

    def half_scale(self) -> "Grid":
        """The same weights with float16 scales; LessenError if that would change them."""
        scale = self.scale.to(torch.float16)
        if not torch.equal(scale.float(), self.scale.float()):
            raise LessenError(
                self.name,
                got=f"{str(self.scale.dtype).removeprefix('torch.')} scales",
                wanted="scales that float16 holds exactly",
                remedy="quantize with scale_dtype float16",
            )
        return replace(self, scale=scale)

    def dequantized(self) -> Tensor:
        """float32 "out in": exactly what the codes mean."""
        rows, columns = self.codes.shape
        values = self.codes.view(rows, -1, self.group).float() - self.zero.float().unsqueeze(2)
        return (values * self.scale.float().unsqueeze(2)).view(rows, columns)


def grid_of(edit: Quantize) -> Grid:
    """The grid of a quantized tensor.

    >>> from lessen.formats.affine import Codes, PerRow
    >>> grid = grid_of(Quantize("w", Int(4, PerRow()), Codes(torch.tensor([[-8, 7]]).to(torch.int8), torch.ones(1, 1).half())))
    >>> grid.codes.tolist(), grid.zero.tolist(), grid.dequantized().tolist()
    ([[0, 15]], [[8]], [[-8.0, 7.0]])
    """
    if not isinstance(edit.format, Int):
        got, remedy = f"codes of {edit.format}", "quantize it with an integer format"
        raise LessenError(edit.name, got=got, wanted="integer codes, which all containers here hold", remedy=remedy)
    bits, codes = edit.format.bits, edit.codes
    rows = codes.values.shape[0]
    scale, zero, notes = codes.scale, codes.zero, ()
    if scale.shape[0] != rows:
        scale = scale.expand(rows, -1).contiguous()
        zero = None if zero is None else zero.expand(rows, -1).contiguous()
        notes = ("the scale of the whole tensor repeated for each row (exact)",)
    if zero is not None:
        return Grid(edit.name, bits, codes.values.to(torch.uint8), scale, zero.to(torch.uint8), False, notes)
    half = 1 << bits - 1
    unsigned = (codes.values.to(torch.int16) + half).to(torch.uint8)
    return Grid(edit.name, bits, unsigned, scale, torch.full_like(scale, half, dtype=torch.uint8), True, notes)
