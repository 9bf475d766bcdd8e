"""Surgeon: its costs against brute force, its update against least squares, and what it is for."""

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lessen
from lessen.core.unit import Unit
from lessen.errors import UsageError
from lessen.methods import Surgeon, Taylor, Wanda
from lessen.models.module import InMemory
from lessen.stats.accumulators import Gram
from lessen.stats.curvature import OutputFisher
from lessen.stats.gradients import Collecting
from lessen.stats.inputs import Read
from lessen.stats.whole import survey
from lessen.structure.decoder import units as decoder_units
from tests.decoders import decoder, tokens


def mlp(hidden: int = 10) -> tuple[Any, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 4)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model, [torch.randn(16, 6, generator=generator, dtype=torch.float64) for _ in range(4)]


def energy(model: nn.Module, x: Tensor) -> Tensor:
    """A loss whose gradient in the output is the output itself, so that G is its second moment."""
    return 0.5 * model(x).square().sum()


def situation(model: nn.Module, batches: list[Tensor]) -> tuple[Unit, Any, Any]:
    from lessen.choice import view_of

    unit = lessen.trace(model, batches[0]).units[0]
    stats, _ = survey(model, [unit], Surgeon().needs, batches, Collecting(energy))
    return unit, view_of(unit, dict(model.named_parameters())), stats[0]


def test_both_factors_are_second_moments():
    model, batches = mlp()
    _, _, stats = situation(model, batches)
    with torch.no_grad():
        hidden = torch.cat([torch.relu(model[0](x)) for x in batches])
        outputs = torch.cat([model(x) for x in batches])
    (read,) = stats[Read]
    torch.testing.assert_close(read.stats[Gram], hidden.T @ hidden / len(hidden))
    torch.testing.assert_close(read.stats[OutputFisher], outputs.T @ outputs / len(outputs))


def test_the_first_to_leave_is_the_one_that_costs_least_after_refitting_all_others():
    model, batches = mlp()
    _, view, stats = situation(model, batches)
    (read,) = stats[Read]
    damping = 1e-4
    moments, curvature = read.stats[Gram], read.stats[OutputFisher]
    moments = moments + damping * moments.diagonal().mean() * torch.eye(10, dtype=torch.float64)
    weight = model[2].weight.detach()

    def damage(gone: tuple[int, ...]) -> float:
        stay = [c for c in range(10) if c not in gone]
        fitted = torch.zeros_like(weight)
        fitted[:, stay] = torch.linalg.solve(moments[stay][:, stay], (weight @ moments)[:, stay].T).T
        change = fitted - weight
        return float(0.5 * (change.T @ curvature @ change @ moments).trace())

    score = Surgeon(damping=damping).score(view, stats)
    alone = [damage((c,)) for c in range(10)]
    first, second = score.argsort()[:2].tolist()
    assert first == min(range(10), key=alone.__getitem__)
    assert float(score[first]) == pytest.approx(alone[first], rel=1e-3)  # eliminated in float32
    # The second is the one that costs least on top of the first.
    pairs = {c: damage((first, c)) for c in range(10) if c != first}
    assert second == min(pairs, key=pairs.__getitem__)
    assert float(score[first] + score[second]) == pytest.approx(max(pairs[second], 2 * alone[first]), rel=2e-3)
    best = min(damage(gone) for gone in combinations(range(10), 3))
    three = tuple(score.argsort()[:3].tolist())
    assert damage(three) <= 1.5 * best  # greedy, and near the best of all 120 choices


def test_of_two_twins_one_goes_for_nothing_and_the_other_takes_over():
    model, batches = mlp()
    with torch.no_grad():
        model[0].weight[4] = model[0].weight[7]
        model[0].bias[4] = model[0].bias[7]
        model[2].weight[:, [4, 7]] *= 3  # loud, so that scores that look at one channel at a time keep both
    whole = torch.cat([model(x) for x in batches]).detach()
    errors = {}
    for method in (Surgeon(damping=1e-8), Surgeon(damping=1e-8, update=False), Taylor(at="switch"), Wanda()):
        made = lessen.prune(model, batches[0], batches, method=method, to="10%", losses=energy, prove=False)
        (kept,) = made.kept.values()
        errors[repr(method)] = float((torch.cat([made.model(x) for x in batches]).detach() - whole).square().mean().sqrt())
        assert len(kept) == 9
        if isinstance(method, Surgeon):
            assert len({4, 7} & set(kept.tolist())) == 1
    fitted, *others = errors.values()
    assert fitted < 1e-3 < min(others)  # weights are fitted in float64 from float32 decisions


def test_refitting_beats_leaving_the_weights_on_a_language_model():
    model = decoder("llama", torch.float32)
    units = [u for u in decoder_units(InMemory(model)) if u.kind in ("ffn", "kv_group")]
    batches = list(tokens(32, 24).split(4))
    with torch.no_grad():
        whole = model(tokens(32, 24)).logits
        errors = {}
        for update in (True, False):
            method = Surgeon(update=update)
            made = lessen.prune(model, tokens(2, 12), batches, method=method, to="20%", units=units, prove=False)
            errors[update] = float((made.model(tokens(32, 24)).logits - whole).square().mean())
            assert abs(made.after["parameters"] / made.before["parameters"] - 0.8) < 0.03
    assert errors[True] < errors[False]


def test_what_it_cannot_do_is_said():
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(Exception, match="wanted a linear layer; use Fisher or Taylor"):
        lessen.prune(conv, torch.zeros(1, 3, 8, 8), [torch.ones(1, 3, 8, 8)], method=Surgeon(), losses=energy)
    with pytest.raises(UsageError, match="damping=0"):
        Surgeon(damping=0.0)


def test_moments_are_exact_under_autocast():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator) @ torch.randn(8, 16, generator=generator)  # of rank 8: rounding leaves negative eigenvalues
    plain, cast = Gram(), Gram()
    plain.update(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast.update(x)
    assert torch.equal(plain.value(), cast.value())


def test_channels_that_convolutions_read_are_left_to_others():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))
        x, y = torch.randn(8, 3, 6, 6), torch.randint(2, (8,))
    pruned = lessen.prune(net.eval(), x, [(x, y)], method=Surgeon(), to="30%")
    assert "4" in pruned.kept and "0" not in pruned.kept
    assert any("convolutions read their channels" in note for note in pruned.notes)
