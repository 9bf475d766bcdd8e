"""Small floats against torch's own and against brute force, for every code and every float16; and the laws of scaled ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lessen.errors import LessenError, UsageError
from lessen.formats import KINDS, Float, PerGroup, PerRow, PerTensor
from lessen.formats.floating import Minifloat, magnitudes, values
from lessen.formats.granularity import SCALE_DTYPES, grouped

TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
HALVES = torch.arange(1 << 16).to(torch.uint16).view(torch.float16)
FINITE_HALVES = HALVES[HALVES.isfinite()].float()
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.mark.parametrize("name", TORCH)
def test_all_256_codes_mean_what_torch_says(name: str):
    codes = torch.arange(256).to(torch.uint8)
    ours, theirs = values(KINDS[name]), codes.view(TORCH[name]).float()
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(7).view(torch.int32), theirs.nan_to_num(7).view(torch.int32))  # bits: -0 is not 0
    assert torch.equal(KINDS[name].decode(codes).nan_to_num(7), ours.nan_to_num(7))


def test_all_16_codes_of_fp4():
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    expected = torch.tensor(positive + [-v for v in positive])
    assert torch.equal(values(KINDS["e2m1"]).view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("name", TORCH)
def test_every_float16_encodes_as_in_torch_where_torch_does_not_overflow(name: str):
    x = FINITE_HALVES[FINITE_HALVES.abs() <= KINDS[name].largest]
    assert torch.equal(KINDS[name].encode(x), x.to(TORCH[name]).view(torch.uint8))


@kinds
def test_every_float16_encodes_as_the_brute_force_nearest_even(kind: Minifloat):
    table = magnitudes(kind).double()
    for x in FINITE_HALVES.split(8192):
        distance = (x.double().abs()[:, None] - table).abs()
        tied = distance == distance.min(1, keepdim=True).values
        # At most two codes tie, and they are neighbours: exactly one of them is even.
        even = torch.arange(len(table)) % 2 == 0
        choice = torch.where(tied.sum(1, keepdim=True) == 2, tied & even, tied).int().argmax(1)
        assert torch.equal(kind.encode(x), (choice + (x.signbit().long() << (kind.bits - 1))).to(torch.uint8))


@kinds
def test_encoding_what_was_decoded_changes_nothing(kind: Minifloat):
    codes = torch.arange(1 << kind.bits).to(torch.uint8)
    codes = codes[values(kind).isfinite()]
    assert torch.equal(kind.encode(kind.decode(codes)), codes)


@kinds
def test_encoding_is_monotone_and_saturates(kind: Minifloat):
    decoded = kind.decode(kind.encode(FINITE_HALVES.sort().values))
    assert bool((decoded.diff() >= 0).all())
    far = torch.tensor([kind.largest * 1.5, 3e38, torch.inf])
    assert kind.decode(kind.encode(far)).tolist() == [kind.largest] * 3
    assert kind.decode(kind.encode(-far)).tolist() == [-kind.largest] * 3


@kinds
def test_ties_just_above_and_just_below_a_midpoint_fall_to_their_own_side(kind: Minifloat):
    table = magnitudes(kind)
    middle = (table[:-1] + table[1:]) / 2
    lower = torch.arange(len(middle))
    infinity = torch.tensor(torch.inf)
    assert torch.equal(kind.encode(middle.nextafter(-infinity)).long(), lower)
    assert torch.equal(kind.encode(middle.nextafter(infinity)).long(), lower + 1)
    assert torch.equal(kind.encode(middle).long(), lower + lower % 2)


@kinds
def test_nearest_is_decode_of_encode(kind: Minifloat):
    table = magnitudes(kind)
    middle = (table[:-1] + table[1:]) / 2
    infinity = torch.tensor(torch.inf)
    edges = torch.cat([middle, middle.nextafter(infinity), middle.nextafter(-infinity), table, torch.tensor([1e-45, 3e38, torch.inf])])
    for x in (FINITE_HALVES, edges, -edges):
        assert torch.equal(kind.nearest(x).view(torch.int32), kind.decode(kind.encode(x)).view(torch.int32))


@kinds
def test_nan_is_refused(kind: Minifloat):
    with pytest.raises(LessenError, match="NaN"):
        kind.encode(torch.tensor([1.0, torch.nan]))


floats = st.builds(
    Float,
    kind=st.sampled_from(list(KINDS)),
    granularity=st.sampled_from([PerTensor(), PerRow(), PerGroup(16)]),
    scale_dtype=st.sampled_from(SCALE_DTYPES),
)


def matrix(seed: int, exponent: int) -> Tensor:
    return torch.randn(5, 48, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent


@given(floats, st.integers(0, 1 << 30), st.integers(-6, 3))
@settings(max_examples=100, deadline=None)
def test_no_other_code_decodes_nearer(format: Float, seed: int, exponent: int):
    w = matrix(seed, exponent)
    codes = format.encode(w)
    scale = codes.scale.double().view(-1, 1)
    exact = grouped(w, format.granularity).double()
    table = values(format.layout).double()
    best = (exact[:, :, None] - scale[:, :, None] * table[table.isfinite()]).abs().amin(2)
    error = (grouped(format.decode(codes), format.granularity).double() - exact).abs()
    # w / scale is rounded in float32: near a midpoint the other neighbour may be chosen, which is worse by that rounding only.
    assert bool((error <= best + exact.abs() * 2**-22).all())


@given(floats, st.integers(0, 1 << 30), st.integers(-6, 3))
@settings(max_examples=50, deadline=None)
def test_rounding_again_changes_nothing_and_order_is_kept(format: Float, seed: int, exponent: int):
    w = grouped(matrix(seed, exponent), format.granularity).sort(1).values.reshape(5, 48)
    codes = format.encode(w)
    decoded = format.decode(codes)
    assert codes.values.dtype == torch.uint8 and codes.scale.dtype == format.scale_dtype and codes.zero is None
    assert torch.equal(format.decode(format.round(decoded, codes.scale)), decoded)
    assert bool((grouped(decoded, format.granularity).diff(dim=1) >= 0).all())


@pytest.mark.parametrize("name", KINDS)
def test_the_largest_weight_of_a_group_decodes_almost_exactly(name: str):
    w = matrix(0, 0)
    format = Float(name, PerGroup(16))
    peak = grouped(w, PerGroup(16)).abs()
    place = peak.argmax(1, keepdim=True)
    decoded = grouped(format.decode(format.encode(w)), PerGroup(16)).abs()
    # Two float32 roundings: of the scale, and of the product.
    torch.testing.assert_close(decoded.gather(1, place), peak.gather(1, place), rtol=2**-22, atol=0)


def test_bits_count_the_scales():
    assert Float("e2m1", PerGroup(16), torch.float16).bits_per_weight((4, 64)) == 4 + 16 / 16
    assert Float("e5m2", PerTensor()).bits_per_weight((4, 64)) == 8 + 32 / 256


def test_finer_formats_and_groups_never_lose_more():
    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    lost = lambda format: float((format.decode(format.encode(w)) - w).square().sum())  # noqa: E731
    assert lost(Float("e4m3")) < lost(Float("e5m2")) < lost(Float("e2m1"))
    by_group = [lost(Float("e2m1", granularity)) for granularity in (PerTensor(), PerRow(), PerGroup(32), PerGroup(16))]
    assert by_group == sorted(by_group, reverse=True)


@pytest.mark.parametrize("name", KINDS)
def test_zeros_and_bad_weights(name: str):
    format = Float(name, PerRow(), torch.float16)
    codes = format.encode(torch.zeros(2, 8))
    assert bool((codes.scale == 1).all()) and not bool(format.decode(codes).any())
    for bad in (torch.nan, torch.inf):
        with pytest.raises(LessenError, match="NaN or infinite"):
            format.encode(torch.tensor([[1.0, bad]]))
    with pytest.raises(LessenError, match=r"scale_dtype=torch\.float32"):
        format.encode(torch.full((1, 8), 3e38))


def test_misspelt_kinds_are_named():
    with pytest.raises(UsageError, match="did you mean e4m3"):
        Float("e4m3fn")
    with pytest.raises(UsageError, match=r"torch\.float64"):
        Float("e4m3", scale_dtype=torch.float64)
