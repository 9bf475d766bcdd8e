"""A directory that lessen wrote as a Checkpoint: codes as they were decided, weights as they decode, widths as they were left.

`lessen.json` says under "formats" which tensors are codes and of what format. The files hold a quantized matrix `X.weight` in one of
the two ways that stock transformers reads through compressed-tensors:

    X.weight_packed   unsigned codes as one dense little-endian bit string per row, in int32 words; X.weight_shape: [out, in]
    X.weight          int8, unsigned codes minus 2^(bits-1) (embeddings)

with X.weight_scale "out group" and, for asymmetric formats, X.weight_zero_point in the same coding (packed along the output axis).
Layers whose width differs from `config.json` are rebuilt in the shape of their tensors.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.edit import Quantize
from lessen.errors import LessenError
from lessen.formats.affine import Codes, Int
from lessen.formats.granularity import PerTensor
from lessen.formats.pack import unpack_words
from lessen.formats.spec import int_from_json
from lessen.models.huggingface import HuggingFace, add_generation_config
from lessen.models.skeleton import skeleton
from lessen.models.tensors import read_json

_BESIDE = ("weight_scale", "weight_zero_point", "weight_shape")


class Compressed(HuggingFace):
    """See `Checkpoint`.

    Raises:
        LessenError: besides the reasons of a plain directory: codes whose format `lessen.json` does not give, or that do not fit it.
    """

    def __init__(self, folder: Path):
        where = folder / "lessen.json"
        described = read_json(where).get("formats") or {}
        self._formats = {name: int_from_json(data, f"{where}: {name}") for name, data in described.items()}
        super().__init__(folder)

    def quantized(self, name: str) -> Quantize | None:
        key = self._key(name)
        if not self._is_codes(key):
            return None
        return Quantize(self.tied.get(name, name), self._formats[key], self._codes(key))

    def skeleton(self) -> nn.Module:
        model = skeleton(self.config, self.label, self._shapes)
        add_generation_config(model, self.folder)
        return model

    def _read_config(self) -> dict[str, Any]:
        config = read_json(self.folder / "config.json")
        config.pop("quantization_config", None)
        return config

    def _stored_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for key, entry in self._files.items():
            path, _, part = key.rpartition(".")
            if part == "weight_packed":
                if f"{path}.weight_shape" not in self._files:
                    raise LessenError(self.label, got=f"no tensor {path}.weight_shape", wanted=f"one beside {key}", remedy=_AGAIN)
                shapes[f"{path}.weight"] = tuple(self._files.read(f"{path}.weight_shape").tolist())
            elif part not in _BESIDE:
                shapes[key] = entry.shape
        for key in shapes:
            if self._is_codes(key) and key not in self._formats:
                where = str(self.folder / "lessen.json")
                raise LessenError(where, got=f"no format for {key}", wanted="one for every tensor of codes", remedy=_AGAIN)
        return shapes

    def _is_codes(self, key: str) -> bool:
        return f"{key}_packed" in self._files or (f"{key}_scale" in self._files and self._files[key].dtype == torch.int8)

    def _read_stored(self, key: str) -> Tensor:
        return self._formats[key].decode(self._codes(key)) if self._is_codes(key) else self._files.read(key)

    def _codes(self, key: str) -> Codes:
        format, shape = self._formats[key], self._shapes[key]
        groups = format.granularity.groups(shape[1], f"{self.label}: {key}")
        scale = self._beside(f"{key}_scale", (shape[0], groups))
        packed = f"{key}_packed"
        unsigned = (
            unpack_words(self._beside(packed, (shape[0], _words(shape[1], format.bits))), format.bits, shape[1])
            if packed in self._files
            else self._offset(self._files.read(key), format.bits)
        )
        zero = None if format.symmetric else self._zero(key, format, (shape[0], groups))
        if isinstance(format.granularity, PerTensor):
            scale, zero = scale[:1], None if zero is None else zero[:1]
        if format.symmetric:
            return Codes((unsigned.to(torch.int16) - (1 << format.bits - 1)).to(torch.int8), scale)
        return Codes(unsigned, scale, zero)

    def _zero(self, key: str, format: Int, shape: tuple[int, int]) -> Tensor:
        name = f"{key}_zero_point"
        if f"{key}_packed" in self._files:
            words = self._beside(name, (_words(shape[0], format.bits), shape[1]))
            return unpack_words(words.T.contiguous(), format.bits, shape[0]).T.contiguous()
        return self._offset(self._beside(name, shape), format.bits)

    def _offset(self, signed: Tensor, bits: int) -> Tensor:
        return (signed.to(torch.int16) + (1 << bits - 1)).to(torch.uint8)

    def _beside(self, key: str, shape: tuple[int, int]) -> Tensor:
        """A tensor that belongs to codes, which must have this shape."""
        if key not in self._files:
            raise LessenError(self.label, got=f"no tensor {key}", wanted="one beside the codes", remedy=_AGAIN)
        if self._files[key].shape != shape:
            got = f"shape {self._files[key].shape}"
            raise LessenError(f"{self.label}: {key}", got=got, wanted=f"{shape} by the format in lessen.json", remedy=_AGAIN)
        return self._files.read(key)


_AGAIN = "write the directory again, or copy all of it"


def _words(columns: int, bits: int) -> int:
    return -(-columns * bits // 32)
