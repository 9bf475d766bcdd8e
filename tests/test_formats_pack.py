"""Packing: every width round-trips, and the bytes are those of the programs that read them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lessen.errors import UsageError
from lessen.formats import Int, PerGroup
from lessen.formats.pack import pack, pack_halves, pack_words, unpack, unpack_halves, unpack_words, unsigned

widths = st.integers(1, 8)


def random_codes(bits: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def bit_string(row: list[int], bits: int) -> int:
    """The rule in its own words: code i occupies the bits i*bits .. (i+1)*bits - 1."""
    return sum(code << (i * bits) for i, code in enumerate(row))


@given(widths, st.lists(st.integers(1, 3), max_size=2), st.integers(1, 71), st.integers(0, 1 << 30))
@settings(max_examples=150, deadline=None)
def test_bytes_and_words_are_the_bit_string_and_come_back(bits: int, leading: list[int], count: int, seed: int):
    codes = random_codes(bits, (*leading, count), seed)
    data, words = pack(codes, bits), pack_words(codes, bits)
    assert data.shape == (*leading, -(-count * bits // 8)) and data.dtype == torch.uint8
    assert words.shape == (*leading, -(-count * bits // 32)) and words.dtype == torch.int32
    for row, row_bytes, row_words in zip(
        codes.view(-1, count), data.view(-1, data.shape[-1]), words.view(-1, words.shape[-1]), strict=True
    ):
        string = bit_string(row.tolist(), bits)
        assert bytes(row_bytes.tolist()) == string.to_bytes(data.shape[-1], "little")
        assert [word % (1 << 32) for word in row_words.tolist()] == [string >> (32 * i) & 0xFFFFFFFF for i in range(words.shape[-1])]
    assert torch.equal(unpack(data, bits, count), codes)
    assert torch.equal(unpack_words(words, bits, count), codes)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [32, 40, 33, 576])
def test_words_are_those_of_compressed_tensors(bits: int, columns: int):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = random_codes(bits, (3, columns), bits)
    signed = (codes.int() - (1 << (bits - 1))).to(torch.int8)
    theirs = helpers.pack_to_int32(signed, bits)
    assert torch.equal(pack_words(codes, bits), theirs)
    assert torch.equal(unsigned(signed, bits), codes)
    assert torch.equal(helpers.unpack_from_int32(theirs, bits, torch.Size([3, columns])), signed)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_columns_of_words_are_those_of_gptq(bits: int):
    codes = random_codes(bits, (5, 64), bits)  # "out in"
    per_word = 32 // bits
    expected = torch.zeros(64 // per_word, 5, dtype=torch.int64)  # "word out"
    for i in range(64):
        expected[i // per_word] |= codes[:, i].long() << (bits * (i % per_word))
    expected = torch.where(expected >= 1 << 31, expected - (1 << 32), expected).int()
    assert torch.equal(pack_words(codes, bits).T, expected)


def test_three_bit_gptq_splits_codes_10_and_21_between_words():
    codes = torch.zeros(1, 32, dtype=torch.uint8)
    codes[0, 10], codes[0, 21] = 0b111, 0b111
    # 32 codes in three words: code 10 has two bits in the first and one in the second, code 21 one in the second and two in the third.
    assert [word % (1 << 32) for word in pack_words(codes, 3)[0].tolist()] == [0b11 << 30, 1 | 1 << 31, 0b11]


def test_bytes_are_those_of_mat_mul_n_bits():
    codes = random_codes(4, (6, 64), 0)
    blocks = codes.view(6, 2, 32)
    assert torch.equal(pack(blocks, 4), blocks[..., 0::2] | blocks[..., 1::2] << 4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_halves_are_those_of_gguf(symmetric: bool):
    gguf = pytest.importorskip("gguf")
    format = Int(4, PerGroup(32), symmetric)
    codes = format.encode(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)))
    blocks = unsigned(codes.values, 4).view(4, 2, 32)
    scale = codes.scale.view(4, 2, 1)
    parts = [scale.view(torch.uint8)]
    if codes.zero is not None:
        parts.append((-scale.float() * codes.zero.view(4, 2, 1).float()).half().view(torch.uint8))
    data = torch.cat([*parts, pack_halves(blocks)], -1).view(4, -1).numpy()
    kind = gguf.GGMLQuantizationType.Q4_0 if symmetric else gguf.GGMLQuantizationType.Q4_1
    theirs, ours = torch.from_numpy(gguf.dequantize(data, kind)), format.decode(codes)
    # Q4_0 holds exactly what is decoded here; Q4_1 stores the minimum -scale * zero in float16: half a unit of 11 bits of up to 15 steps.
    assert torch.equal(theirs, ours) if symmetric else bool(((theirs - ours).abs() <= 15 * float(scale.max()) * 2**-11).all())
    assert torch.equal(unpack_halves(pack_halves(blocks)), blocks)


@given(widths)
@settings(deadline=None)
def test_symmetric_codes_of_every_width_are_offset_into_range(bits: int):
    low = -(1 << (bits - 1))
    values = torch.arange(low, -low).to(torch.int8)
    assert unsigned(values, bits).tolist() == list(range(1 << bits))
    assert torch.equal(unsigned(unsigned(values, bits), bits), unsigned(values, bits))


def test_misuse_is_refused():
    codes = torch.tensor([1, 9], dtype=torch.uint8)
    with pytest.raises(UsageError, match="codes up to 9, wanted uint8 codes below 8"):
        pack(codes, 3)
    with pytest.raises(UsageError, match="offset signed codes with `unsigned` first"):
        pack(codes.to(torch.int8), 4)
    for bits in (0, 9):
        with pytest.raises(UsageError, match="1 to 8"):
            pack(codes, bits)
    with pytest.raises(UsageError, match=r"got 1 bytes of torch\.uint8, wanted 2"):
        unpack(codes[:1], 4, 3)
    with pytest.raises(UsageError, match="an even number"):
        pack_halves(codes[:1])
