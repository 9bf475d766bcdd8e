"""llama.cpp's own quantizer, called in the library that `xllamacpp` ships: the very code behind `llama-quantize`.

Plain Q4_0 divides each block of 32 by its extreme value / -8. With an importance matrix (for each input of a linear the mean of its
squares over calibration text) it searches the scale that minimises the importance-weighted error instead. `llama-quantize` keeps the
token table in Q8_0 where rows are no multiple of 256 (576 is not); with an importance matrix it also raises the down projections of the
first eighth of the layers to Q4_1, which is left out here so that all files have the same bytes.
"""

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lessen.errors import LessenError


@cache
def _library() -> Any:
    try:
        from xllamacpp import xllamacpp  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise LessenError("llama.cpp", got="no xllamacpp package", wanted="its library", remedy="pip install xllamacpp") from error
    library = ctypes.CDLL(xllamacpp.__file__)
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def quantized(weight: Tensor, kind: Any, importance: Tensor | None = None) -> np.ndarray:
    """Bytes of a matrix as llama.cpp quantizes it.

    Args:
        weight: float32 "out in".
        kind: a `gguf.GGMLQuantizationType`.
        importance: float32 "in", or None.

    Returns:
        uint8, rows one after the other.
    """
    from gguf import quant_shape_to_byte_shape

    source = np.ascontiguousarray(weight.float().numpy())
    out = np.empty(quant_shape_to_byte_shape(source.shape, kind), np.uint8)
    guide = None if importance is None else np.ascontiguousarray(importance.float().numpy())
    size = _library().ggml_quantize_chunk(
        int(kind), source.ctypes.data, out.ctypes.data, 0, *source.shape, None if guide is None else guide.ctypes.data
    )
    if size != out.nbytes:
        raise LessenError(f"ggml_quantize_chunk to {kind.name}", got=f"{size} bytes", wanted=f"{out.nbytes}")
    return out.reshape(-1)


def importance(model: Path, tokens: Tensor) -> dict[str, Tensor]:
    """Mean square of every linear's inputs over "windows seq" token ids, float32 "in" by weight name: what `llama-imatrix` gathers."""
    from lessen.models import load

    module = load(model)
    sums: dict[str, Tensor] = {}

    def listen(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Tensor]) -> None:
            squares = inputs[0].double().square().flatten(0, -2).sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        return hook

    for name, child in module.named_modules():
        if isinstance(child, torch.nn.Linear) and ".layers." in name:
            child.register_forward_pre_hook(listen(f"{name}.weight"))
    with torch.no_grad():
        for window in tokens:
            module(input_ids=window[None], use_cache=False)
    return {name: (total / tokens.numel()).float() for name, total in sums.items()}


def requantize(file: Path, read: Any, blocks: int, heads: Mapping[str, int], guide: Mapping[str, Tensor]) -> None:
    """Overwrite every quantized tensor of a GGUF file of a Llama with llama.cpp's own quantization of the float weight: same bytes.

    Args:
        file: changed in place.
        read: float weights by Hugging Face name.
        blocks: number of decoder blocks.
        heads: of "q_proj" and "k_proj", whose rows llama.cpp stores pairwise.
        guide: what `importance` gathered; empty for plain rounding.
    """
    from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFReader, get_tensor_name_map

    table = get_tensor_name_map(MODEL_ARCH.LLAMA, blocks)
    plain = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
    stored = {t.name: (t.tensor_type, int(t.data_offset), int(t.n_bytes)) for t in GGUFReader(file).tensors if t.tensor_type not in plain}
    names = {table.get_name(name, try_suffixes=(".weight",)): name for name in read.names}
    with file.open("r+b") as out:
        for place, (kind, offset, size) in stored.items():
            name = names[place]
            weight, order = read.read(name), heads.get(name.split(".")[-2])
            if order is not None:
                weight = weight.view(order, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            data = quantized(weight, kind, guide.get(name))
            if data.nbytes != size:
                raise LessenError(f"{file}: {place}", got=f"{data.nbytes} bytes", wanted=f"{size}")
            out.seek(offset)
            out.write(data.tobytes())
