"""ROMER: what it replaces and corrects is what it says, routing on a chip comes nearer to what it is without, and nothing is left of it."""

import copy
from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lessen.analog.chip import Chip
from lessen.analog.devices.faults import Faults
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.devices.pcm import PCM
from lessen.analog.mapping import Mapped, map
from lessen.analog.periphery import Adc, Dac
from lessen.analog.robust.romer import ROMER, Routed, listen_to
from lessen.analog.run.hardening import hardened
from lessen.analog.run.subject import Data
from lessen.analog.simulation import simulate
from lessen.errors import UsageError
from tests.analog.robust_nets import language_loss, mixture, sentences

GATES = ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]
CHIP = Chip(Gaussian(written=0.2))


def run(model: nn.Module, tokens: Tensor) -> object:
    return model(input_ids=tokens)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def agreement(tokens: Tensor) -> Callable[[nn.Module], float]:
    """Share of tokens, of all routers, that go to the experts to which the clean network sends them."""
    clean = listen_to(mixture(), GATES, [tokens], run)

    def judge(model: nn.Module) -> float:
        found = listen_to(model, GATES, [tokens], run)
        same = [(clean[g].chosen.sort(-1).values == found[g].chosen.sort(-1).values).all(-1).float().mean() for g in GATES]
        return fmean(float(s) for s in same)

    return judge


def test_opened_experts_and_routers_compute_what_they_did():
    model, tokens = mixture(), sentences(4, 24, 9)
    mapped = map(model, Chip(), split=["*embed*", "+*.mlp.gate"]).program()
    assert {f"{g}.scores" for g in GATES} <= set(mapped.layers)
    assert "model.layers.0.mlp.experts.experts.7.down" in mapped.layers
    with torch.no_grad():
        difference = mapped.model(input_ids=tokens).logits - model(input_ids=tokens).logits
    assert difference.abs().max() < 1e-5  # float32


def test_chips_lose_less_and_the_model_is_as_it_was_to_the_bit():
    model, evaluate, routed = mixture(), language_loss(64), agreement(sentences(64, 24, 1))
    before = state(model)
    with torch.no_grad():
        digital = evaluate(model)
    mapped = map(model, CHIP, split=["*embed*"])

    def judge(net: nn.Module) -> dict[str, float]:
        return {"loss": evaluate(net), "routed": routed(net)}

    plain = simulate(mapped, judge, digital=model, chips=6)
    adapt = ROMER().at_looks([sentences(128, 24, 5)], run)
    found = simulate(mapped, judge, digital=model, chips=6, adapt=adapt)
    assert all(b.values["routed"] > a.values["routed"] + 0.02 for a, b in zip(plain.looks, found.looks, strict=True))
    gains = torch.tensor([a.values["loss"] - b.values["loss"] for a, b in zip(plain.looks, found.looks, strict=True)])
    lost = fmean(look.values["loss"] for look in plain.looks) - digital
    assert gains.mean() > 0.03 * lost > 0
    assert gains.mean() > 3 * gains.std() / 6**0.5  # pairs of the same chip
    with torch.no_grad():
        assert evaluate(model) == digital == found.digital["loss"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("compensation", ["none", "column"])
def test_rows_are_the_same_in_any_order_of_chips_and_times(compensation):
    chip = Chip(PCM(), dac=Dac(8), adc=Adc(8), reads="fresh", compensation=compensation)
    tokens = sentences(16, 24, 5)
    how: dict[str, Any] = {"split": ["*embed*"], "calibration": [tokens], "run": run}
    mapped = map(mixture(), chip, **how)
    evaluate, times = language_loss(16), [20.0, 86400.0]
    copies: list[int] = []
    adapt = ROMER(starved=0.9).at_looks([tokens], run)  # every chip has experts that become copies

    def counted(found: Mapped) -> None:
        copies.append(sum(len(replaced) for replaced in adapt(found).values()))

    forth = simulate(mapped, evaluate, times=times, chips=[0, 1], adapt=counted)
    back = simulate(mapped, evaluate, times=times[::-1], chips=[1, 0], adapt=counted)
    assert {(x.chip, x.seconds, x.values["quality"]) for x in forth.looks} == {(x.chip, x.seconds, x.values["quality"]) for x in back.looks}
    assert min(copies) > 0
    fresh = map(mixture(), chip, **how)
    alone = simulate(fresh, evaluate, times=times[1:], chips=[1], adapt=ROMER(starved=0.9).at_looks([tokens], run)).looks[0]
    assert alone.values == back.looks[0].values
    adapt.undo(mapped)  # and without it the network on the chip is what it is without it
    plain = (simulate(net, evaluate, times=times, chips=[0]) for net in (mapped, map(mixture(), chip, **how)))
    assert len({look.looks[1].values["quality"] for look in plain}) == 1


def test_beside_remapping_of_faults_a_chip_is_the_same_whatever_chip_was_looked_at_before():
    """An order for the tiles is found for the clean weights, not for those that another chip's correction has left."""
    model, tokens = mixture(), sentences(16, 24, 5)
    before, chip = state(model), Chip(Gaussian(written=0.1), faults=Faults(low=0.02, high=0.02))
    found = []
    for first, chips in ((0, 2), (1, 1)):
        data = Data(batches=[tokens], evaluate=language_loss(16), better="lower", seed=first)
        made = hardened(model, chip, ["Remap", ROMER(starved=0.9)], times=[1.0], chips=chips, split=["*embed*"], data=data)
        found.append(made.qualities[1]["rows"])
    one, two = found
    key = next(iter(one))
    assert one[key][0]["most"] == two[key][0]["mean"] or one[key][0]["least"] == two[key][0]["mean"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_percentiles_of_logits_become_those_of_the_clean_network():
    random = torch.Generator().manual_seed(0)
    gate = torch.randn(8, 32, generator=random, dtype=torch.float64)
    states = torch.randn(4000, 32, generator=random, dtype=torch.float64) + 3 * torch.randn(32, generator=random, dtype=torch.float64)
    none = torch.zeros(4000, 2, dtype=torch.long)
    clean, noisy = Routed(states, states @ gate.t(), none), Routed(0.5 * states, 0.5 * states @ gate.t(), none)  # states that have shrunk

    def off(logits: Tensor) -> float:
        ends = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
        wanted, found = (torch.quantile(t, ends, dim=0) for t in (clean.logits, logits))
        return float((wanted - found).abs().max() / clean.logits.std())

    assert off(noisy.logits) > 0.5
    # the term in place of a bias is not the same for every token; here it is next to nothing, since a matrix alone undoes a shrinking
    assert off(noisy.states @ ROMER("percentile").corrected(gate, clean, noisy).t()) < 0.02
    assert torch.equal(ROMER("none").corrected(gate, clean, noisy), gate)


def test_starved_experts_become_copies_of_the_most_frequent_ones():
    model, tokens = mixture(), [sentences(64, 24, 5)]
    mapped = map(model, CHIP, split=["*embed*"]).program(0)
    seen = listen_to(mapped.model, GATES, tokens, run)[GATES[0]]
    counts = torch.bincount(seen.chosen.flatten(), minlength=8).float()
    poor, rich = int(counts.argmin()), int(counts.argmax())
    method = ROMER("none", starved=float(counts[poor] / counts.mean()) * 1.01).at_looks(tokens, run)
    assert method(mapped)[GATES[0]] == {poor: rich}
    pack, own = "model.layers.0.mlp.experts", mixture().get_parameter("model.layers.0.mlp.experts.down_proj")
    for expert in range(8):
        held = mapped.model.get_parameter(f"{pack}.experts.{expert}.down.weight")
        assert torch.equal(held, own[rich if expert == poor else expert])
    # the copy is written to tiles of its own: the same weights with other errors
    inputs = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (mapped.model.get_submodule(f"{pack}.experts.{expert}.down")(inputs) for expert in (poor, rich))
        assert 0.02 < float((one - two).norm() / two.norm()) < 1.0
    method.undo(mapped)
    assert torch.equal(mapped.model.get_parameter(f"{pack}.experts.{poor}.down.weight"), own[poor])


def test_experts_that_are_digital_are_replaced_in_the_twin_alone():
    model, tokens = copy.deepcopy(mixture()), [sentences(16, 24, 5)]
    before = state(model)
    mapped = map(model, CHIP, split=["*embed*", "*.mlp.experts"]).program(0)
    copies = ROMER("none", starved=0.9).at_looks(tokens, run)(mapped)[GATES[0]]
    pack = mapped.model.get_parameter("model.layers.0.mlp.experts.down_proj")
    assert copies and all(torch.equal(pack[poor], pack[rich]) for poor, rich in copies.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_wrong_requests_are_refused():
    with pytest.raises(UsageError, match="a share in"):
        ROMER(starved=1.0)
    plain, method = nn.Sequential(nn.Linear(3, 3)), ROMER().at_looks([sentences(2, 8, 0)], run)
    with pytest.raises(UsageError, match="program"):
        method(map(plain, Chip()))
    with pytest.raises(UsageError, match="no router"):
        method(map(plain, Chip()).program())
    with pytest.raises(UsageError, match="a digital one"):
        method(map(mixture(), Chip(), split=["*embed*", "+*.mlp.gate"]).program())
