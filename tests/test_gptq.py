"""GPTQ against brute force, and the orderings that its mathematics promises."""

import itertools

import pytest
import torch

from lessen.core.edit import Quantize, Replace
from lessen.core.unit import Slice, Unit, View
from lessen.methods import AWQ, GPTQ, RTN
from lessen.methods.gptq import by_curvature, factorise
from lessen.stats.accumulators import Drift, Gram, InputMagnitude, InputNorm


def problem(rows=24, columns=64, tokens=400, seed=0):
    """A weight and statistics of correlated inputs, as layers have them."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=random) / columns**0.5 + torch.eye(columns)
    x = torch.randn(tokens, columns, generator=random) @ mixing * torch.logspace(-1, 1, columns)[None]
    weight = torch.randn(rows, columns, generator=random)
    stats = {}
    for kind in (Gram, InputNorm, InputMagnitude, Drift):
        accumulator = kind()
        accumulator.update(x, x + 0.1 * torch.randn(x.shape, generator=random))
        stats[kind] = accumulator.value()
    return weight, x, stats


def linear(weight):
    return View(Unit("layer", "linear", len(weight), (Slice("layer.weight", 0),)), {"layer.weight": weight})


def shared(weight, producer=None):
    tensors = {"layer.weight": weight} | ({} if producer is None else {"norm.weight": producer})
    unit = Unit(
        "in", "inputs", weight.shape[1], (Slice("layer.weight", 1),), producer=None if producer is None else Slice("norm.weight", 0)
    )
    return View(unit, tensors)


def quantized(edits):
    (edit,) = [e for e in edits if isinstance(e, Quantize)]
    return edit


def rounded(edits):
    edit = quantized(edits)
    return edit.format.decode(edit.codes)


def loss(weight, result, gram):
    error = (result - weight).double()
    return float(((error @ gram) * error).sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [16, 32, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_is_never_worse_than_rtn_on_its_own_gram(bits, group, symmetric):
    weight, _, stats = problem()
    plain = rounded(RTN(bits, group, symmetric)(linear(weight), stats))
    fed_back = rounded(GPTQ(bits, group, symmetric)(linear(weight), stats))
    assert loss(weight, fed_back, stats[Gram]) < 0.9 * loss(weight, plain, stats[Gram])


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_round_of_polish_lowers_the_loss(symmetric):
    weight, _, stats = problem()
    damped, _ = factorise(stats[Gram], 0.01) or pytest.fail("the Gram matrix is fine")
    losses = [loss(weight, rounded(GPTQ(3, 16, symmetric, polish=n)(linear(weight), stats)), damped) for n in range(4)]
    # Coordinate descent may already stand still after a few rounds; it never rises beyond float32 rounding of the gradient.
    assert losses[1] < losses[0]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(losses))


def test_first_column_is_compensated_by_exact_least_squares():
    """After rounding one column, the others move to the minimiser of tr(E H E^T), solved directly in float64."""
    weight, _, stats = problem(rows=6, columns=8)
    damped, inverse = factorise(stats[Gram], 0.0) or pytest.fail("the Gram matrix is fine")
    factor = torch.linalg.cholesky(inverse, upper=True)
    error = 0.1
    by_factor = -error / factor[0, 0] * factor[0, 1:]
    direct = error * torch.linalg.solve(damped[1:, 1:], damped[1:, 0])
    torch.testing.assert_close(by_factor, direct, rtol=1e-8, atol=1e-10)
    assert weight.shape == (6, 8)


def test_gptq_comes_close_to_the_best_codes_of_all():
    """Every pair of codes for 4 columns at 2 bits can be tried: 256 per row."""
    weight, _, stats = problem(rows=8, columns=4, tokens=50)
    method = GPTQ(2, None, damping=1e-6, polish=3)
    result = rounded(method(linear(weight), stats))
    edit = quantized(method(linear(weight), stats))
    every = torch.tensor(list(itertools.product(range(-2, 2), repeat=4)), dtype=torch.float64)
    best = 0.0
    for row, scale in zip(weight.double(), edit.codes.scale.double().flatten(), strict=True):
        errors = every * scale - row
        best += float(((errors @ stats[Gram]) * errors).sum(1).min())
    plain = loss(weight, edit.format.decode(edit.format.round(weight, edit.codes.scale, None)), stats[Gram])
    found = loss(weight, result, stats[Gram])
    assert best - 1e-9 <= found <= best + 0.5 * (plain - best)


def test_curvature_order_keeps_groups_whole():
    order = by_curvature(torch.tensor([1.0, 2.0, 9.0, 3.0, 5.0, 4.0]), 2)
    assert order.tolist() == [2, 3, 4, 5, 1, 0]


def test_dead_inputs_are_rounded_to_nearest_and_not_zeroed():
    weight, x, _ = problem()
    x[:, 7] = 0
    gram = Gram()
    gram.update(x)
    result = rounded(GPTQ(4, 16)(linear(weight), {Gram: gram.value()}))
    step = 2 * weight.abs().amax() / 15
    assert bool((result[:, 7] != 0).any())
    assert float((result[:, 7] - weight[:, 7]).abs().max()) <= float(step)


@pytest.mark.parametrize("broken", ["nan", "negative", "zero"])
def test_a_gram_matrix_without_use_falls_back_to_rounding(broken):
    weight, _, stats = problem()
    gram = {"nan": torch.full((64, 64), torch.nan), "negative": -1e6 * torch.eye(64), "zero": torch.zeros(64, 64)}[broken].double()
    result = rounded(GPTQ(4, 16)(linear(weight), {**stats, Gram: gram}))
    assert bool(result.isfinite().all())
    plain = rounded(RTN(4, 16, scale="mse")(linear(weight), stats))
    torch.testing.assert_close(result, plain, rtol=0, atol=0)


def test_a_singular_gram_matrix_is_damped():
    weight, x, _ = problem(tokens=400)
    gram = Gram()
    gram.update(x[:10])  # rank 10 of 64
    result = rounded(GPTQ(4, 16, damping=0.0)(linear(weight), {Gram: gram.value()}))
    assert bool(result.isfinite().all())


def test_correction_undoes_part_of_the_inherited_error():
    """With the drifted input, the corrected weight reproduces the original output better (in sample, by construction)."""
    random = torch.Generator().manual_seed(3)
    weight, x, _ = problem()
    original = x @ (torch.eye(64) + 0.05 * torch.randn(64, 64, generator=random))
    stats = {}
    for kind in (Gram, Drift):
        accumulator = kind()
        accumulator.update(x, original)
        stats[kind] = accumulator.value()
    wanted = original @ weight.T
    plain = (x @ rounded(GPTQ(4, 16)(linear(weight), stats)).T - wanted).square().sum()
    corrected = (x @ rounded(GPTQ(4, 16, correction=1.0)(linear(weight), stats)).T - wanted).square().sum()
    assert corrected < 0.5 * plain


def test_awq_is_never_worse_than_rtn_and_leaves_the_function_alone_but_for_rounding():
    weight, x, stats = problem()
    gain = torch.rand(64, generator=torch.Generator().manual_seed(1)) + 0.5
    edits = AWQ(4, 16)(shared(weight, gain), stats)
    plain = rounded(RTN(4, 16)(linear(weight), stats))
    new_gain = next((e.weight for e in edits if isinstance(e, Replace)), gain)
    effective = rounded(edits) * (new_gain / gain)  # what the layer computes per unit of its original input
    assert loss(weight, effective, stats[Gram]) <= loss(weight, plain, stats[Gram])
    fine = AWQ(8, 16)(shared(weight, gain), stats)
    new_gain = next((e.weight for e in fine if isinstance(e, Replace)), gain)
    wanted = x @ weight.T
    # 8 bits over groups of 16: a step of about 1/50 deviation, so 1/2500/12 of the energy; a wrong sign or gain would be of order 1.
    assert float((x @ (rounded(fine) * new_gain / gain).T - wanted).square().sum() / wanted.square().sum()) < 1e-4


def test_awq_without_a_producer_is_rtn():
    weight, _, stats = problem()
    torch.testing.assert_close(rounded(AWQ(4, 16)(shared(weight), stats)), rounded(RTN(4, 16)(linear(weight), stats)), rtol=0, atol=0)
