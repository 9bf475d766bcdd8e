"""Codes of 1 to 8 bits as dense bytes, and the orders in which other programs want them.

The one rule: a row of codes is a string of bits, lowest bit of the first code first. Code i occupies the bits i*bits .. (i+1)*bits - 1,
bit k is bit k mod 8 of byte k div 8, and codes may straddle bytes. Read four bytes at a time as little-endian int32, the same string
serves everyone who packs into words. Codes are unsigned: symmetric ones are offset by 2^(bits-1) first (`unsigned`).

    compressed-tensors   int32 "out words"       pack_words(codes, bits)                  all widths, rows padded to whole words
    GPTQ                 int32 "words out"       pack_words(codes, bits).T                in * bits must be a multiple of 32
    ONNX MatMulNBits     uint8 "out group bytes" pack(codes as "out group size", bits)    4 bits: byte = u[2i] | u[2i+1] << 4
    GGUF Q4_0, Q4_1      uint8 "block 16"        pack_halves(codes as "block 32")         byte = u[i] | u[i+16] << 4

Layouts: https://github.com/vllm-project/compressed-tensors (pack_quantized), https://github.com/AutoGPTQ/AutoGPTQ (qlinear),
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (MatMulNBits), https://github.com/ggml-org/ggml (block_q4_0).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad as fill

from lessen.errors import UsageError


def pack(values: Tensor, bits: int) -> Tensor:
    """Codes as bytes along the last axis.

    Args:
        values: uint8 "... code", each below 2^bits.
        bits: width of a code, 1 to 8.

    Returns:
        uint8 "... byte", ceil(codes * bits / 8) bytes, the last one filled up with zeros.

    >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()
    [33, 3]
    """
    _check(bits)
    if values.dtype != torch.uint8 or (values.numel() and int(values.max()) >> bits):
        got = f"{values.dtype} codes" + (f" up to {int(values.max())}" if values.numel() else "")
        raise UsageError("pack", got=got, wanted=f"uint8 codes below {1 << bits}", remedy="offset signed codes with `unsigned` first")
    # Eight codes fill exactly `bits` bytes, and at most one int64.
    eights = fill(values, (0, -values.shape[-1] % 8)).unflatten(-1, (-1, 8))
    string = torch.zeros(eights.shape[:-1], dtype=torch.int64, device=values.device)
    for i in range(8):
        string |= eights[..., i].to(torch.int64) << (i * bits)
    length = -(-values.shape[-1] * bits // 8)
    return torch.stack([(string >> (8 * k)).to(torch.uint8) for k in range(bits)], -1).flatten(-2)[..., :length].contiguous()


def unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of `pack`: the first `count` codes along the last axis, uint8 "... code".

    >>> unpack(torch.tensor([33, 3], dtype=torch.uint8), 4, 3).tolist()
    [1, 2, 3]
    """
    _check(bits)
    length = -(-count * bits // 8)
    if data.dtype != torch.uint8 or data.shape[-1] < length:
        raise UsageError(
            "unpack", got=f"{data.shape[-1]} bytes of {data.dtype}", wanted=f"{length} of uint8 for {count} codes of {bits} bits"
        )
    blocks = fill(data[..., :length], (0, -length % bits)).unflatten(-1, (-1, bits))
    string = torch.zeros(blocks.shape[:-1], dtype=torch.int64, device=data.device)
    for k in range(bits):
        string |= blocks[..., k].to(torch.int64) << (8 * k)
    mask = (1 << bits) - 1
    return torch.stack([(string >> (i * bits) & mask).to(torch.uint8) for i in range(8)], -1).flatten(-2)[..., :count].contiguous()


def pack_words(values: Tensor, bits: int) -> Tensor:
    """The same string of bits as int32 "... word", the last word filled up with zeros.

    >>> pack_words(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()
    [801]
    """
    data = pack(values, bits)
    four = fill(data, (0, -data.shape[-1] % 4)).unflatten(-1, (-1, 4)).to(torch.int32)
    return four[..., 0] | four[..., 1] << 8 | four[..., 2] << 16 | four[..., 3] << 24


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of `pack_words`: the first `count` codes along the last axis, uint8 "... code"."""
    return unpack(torch.stack([(words >> (8 * k) & 255).to(torch.uint8) for k in range(4)], -1).flatten(-2), bits, count)


def pack_halves(values: Tensor) -> Tensor:
    """4-bit codes, the first half of the last axis in the low nibbles and the second in the high ones: uint8 "... half".

    >>> pack_halves(torch.tensor([1, 2, 3, 4], dtype=torch.uint8)).tolist()
    [49, 66]
    """
    if values.shape[-1] % 2:
        raise UsageError("pack_halves", got=f"{values.shape[-1]} codes", wanted="an even number")
    low, high = values.chunk(2, -1)
    return low | high << 4


def unpack_halves(data: Tensor) -> Tensor:
    """Inverse of `pack_halves`: uint8 "... code", twice as many."""
    return torch.cat([data & 15, data >> 4], -1)


def unsigned(values: Tensor, bits: int) -> Tensor:
    """Symmetric int8 codes offset by 2^(bits-1) to uint8; uint8 codes pass.

    >>> unsigned(torch.tensor([-8, 0, 7], dtype=torch.int8), 4).tolist()
    [0, 8, 15]
    """
    return values if values.dtype == torch.uint8 else (values.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)


def _check(bits: int) -> None:
    if bits not in range(1, 9):
        raise UsageError("pack", got=f"{bits} bits", wanted="1 to 8")
