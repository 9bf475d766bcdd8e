"""HPD: divided projections compute what they did, and lose less to a chip where its analysis says so."""

from statistics import fmean

import pytest
import torch
from torch import nn

from lessen.analog.chip import Chip
from lessen.analog.devices.flash import NorFlash
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.mapping import map
from lessen.analog.periphery import Adc, Dac
from lessen.analog.robust.hpd import HPD, second_moments
from lessen.analog.tiles.branches import linears
from lessen.core.apply import apply
from lessen.errors import UsageError
from tests.analog.robust_nets import language_loss, mamba, sentences


def losses(model: nn.Module, evaluate, chip: Chip, split=(), chips: int = 4) -> float:
    mapped = map(model, chip, split=split)
    with torch.no_grad():
        return fmean(evaluate(mapped.program(seed).model) for seed in range(chips))


def called(model: nn.Module) -> list[str]:
    """Mamba's code multiplies with the weight of dt_proj itself: no module is called."""
    return [name for name in linears(model) if not name.endswith("dt_proj")]


def run(model: nn.Module, tokens: torch.Tensor) -> object:
    return model(input_ids=tokens)


@pytest.mark.parametrize("form", ["svd", "rotated", "inputs"])
def test_a_divided_layer_computes_what_it_did(form):
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 20)).double()
    x = torch.randn(50, 24, dtype=torch.float64)
    method = HPD(form, 5 if form == "inputs" else None, targets=("*",))
    hybrid = method.divide(model, method.decide(model, second_moments(model, ["0", "2"], [x])))
    assert (hybrid.model(x) - model(x)).abs().max() < 1e-12
    assert all(hybrid.split.keeps(name) for name in hybrid.split.digital)
    mapped = map(hybrid.model, Chip(), split=hybrid.split).program()
    assert set(mapped.layers) == ({"0.base", "2.base"} if form == "inputs" else {"0.left", "2.left"})
    assert (mapped.model(x) - model(x)).abs().max() < 1e-12


def test_digital_multiplications_are_those_of_the_digital_matrices():
    model = nn.Sequential(nn.Linear(24, 16))
    hybrid = HPD("svd", 3, targets=("0",)).divide(model, HPD("svd", 3, targets=("0",)).decide(model))
    assert hybrid.digital_macs == {"0": 3 * 24}
    method = HPD("inputs", 3, targets=("0",))
    hybrid = method.divide(model, method.decide(model, second_moments(model, ["0"], [torch.randn(9, 24)])))
    assert (hybrid.digital_macs, hybrid.macs) == ({"0": 3 * (2 * 24 + 16)}, {"0": 24 * 16})


def test_the_edits_carried_out_alone_are_the_best_matrix_of_that_rank():
    model = nn.Linear(24, 16, bias=False)
    weight = model.weight.detach().clone()
    root = nn.Sequential(model)
    apply(root, HPD("rotated", 5, targets=("0",)).decide(root))
    dropped = torch.linalg.svdvals(weight.double())[5:].square().sum()  # Eckart-Young
    assert float((model.weight - weight).square().sum().detach()) == pytest.approx(float(dropped), rel=1e-4)  # float32 weights


def test_errors_in_proportion_to_weights_become_errors_in_proportion_to_outputs():
    """Inputs that share a large component which the weights cancel: the situation in which the paper's form is the answer."""
    random = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 32, bias=False).requires_grad_(False)
    layer.weight -= layer.weight.mean(1, keepdim=True)
    model = nn.Sequential(layer)
    x = torch.randn(256, 64, generator=random) + 10
    exact = layer(x)
    chip = Chip(NorFlash(sigma_vth=2.0, floor=0.0, loss=0.0, loss_spread=0.0, noise_vth=0.0))
    relative = 2.0 / (1.4 * 8.617333262e-2 * 300)  # deviation of a conductance over itself
    method = HPD("svd", targets=("0",))
    hybrid = method.divide(model, method.decide(model))

    def share(net: nn.Module) -> float:
        return float((net(x) - exact).square().sum() / exact.square().sum())

    plain = losses(model, share, chip, chips=8)
    divided = losses(hybrid.model, share, chip, hybrid.split, chips=8)
    # exp(2 s a) - 2 exp(s a) + 1 of a normal a is s^2 to a percent at s = 0.055; 8 chips of 1024 weights add ten percent
    assert divided == pytest.approx(relative**2, rel=0.25)
    assert plain > 20 * divided


def test_the_main_directions_of_the_inputs_take_most_of_the_loss_of_a_trained_mamba():
    model, evaluate = mamba(), language_loss(48)
    with torch.no_grad():
        digital = evaluate(model)
    chip = Chip(Gaussian(written=0.1))
    names = called(model)
    others = [n for n, m in model.named_modules() if isinstance(m, nn.Conv1d | nn.Embedding) or n.endswith("dt_proj")]
    method = HPD("inputs", 8, targets=tuple(names))
    hybrid = method.divide(model, method.decide(model, second_moments(model, names, [sentences(32, 24, 5)], run)))
    plain = losses(model, evaluate, chip, others) - digital
    divided = losses(hybrid.model, evaluate, chip, [*hybrid.split.digital, *others]) - digital
    assert plain > 0.1  # nats: the chip does harm
    assert divided < 0.6 * plain


def crowded(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten classes of vectors of 256 features; 98 % of their power lies in six directions that say nothing of the class."""
    fixed, random = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    loud = torch.linalg.qr(torch.randn(256, 6, generator=fixed))[0]
    centres = 0.16 * torch.randn(10, 256, generator=fixed)
    classes = torch.randint(10, (count,), generator=random)
    rest = centres[classes] + 0.4 * torch.randn(count, 256, generator=random)
    return rest + 20 * torch.randn(count, 6, generator=random) @ loud.t(), classes


def test_a_wide_network_wins_most_of_its_loss_back_with_7_percent_of_its_multiplications_digital():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    x, classes = crowded(3000, 0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(800):
        at = torch.randint(len(x), (128,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[at]), classes[at]).backward()
        optimizer.step()
    unseen, kinds = crowded(1500, 1)

    def wrong(net: nn.Module) -> float:
        return 100 * float((net(unseen).argmax(1) != kinds).float().mean())

    chip, calibration = Chip(Gaussian(written=0.15), dac=Dac(8), adc=Adc(8)), [x[:512]]
    method = HPD("inputs", 6, targets=("0",))
    hybrid = method.divide(model, method.decide(model, second_moments(model, ["0"], calibration)))
    assert sum(hybrid.digital_macs.values()) < 0.07 * (256 * 256 + 256 * 10)
    with torch.no_grad():
        digital = wrong(model)
        plain, divided = (
            torch.tensor([wrong(mapped.program(seed).model) for seed in range(6)])
            for mapped in (map(model, chip, calibration=calibration), map(hybrid.model, chip, split=hybrid.split, calibration=calibration))
        )
    assert plain.mean() - digital > 10  # points of a hundred
    assert divided.mean() - digital < 0.3 * (plain.mean() - digital), (plain, divided)
    assert bool((divided < plain).all())


def test_the_default_is_the_output_projection_of_the_last_block():
    assert HPD().chosen(mamba()) == ["backbone.layers.1.mixer.out_proj"]
    assert HPD(blocks=2).chosen(mamba()) == ["backbone.layers.0.mixer.out_proj", "backbone.layers.1.mixer.out_proj"]


def test_the_original_keeps_its_layers_and_shares_its_other_parameters():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    before, bias = model.get_parameter("1.weight").clone(), model.get_parameter("1.bias")
    method = HPD("svd", targets=("1",))
    hybrid = method.divide(model, method.decide(model))
    assert type(model[1]) is nn.Linear
    assert torch.equal(model.get_parameter("1.weight"), before)
    assert hybrid.model.get_parameter("0.weight") is model.get_parameter("0.weight")
    assert hybrid.model.get_parameter("1.left.bias") is bias


def test_wrong_requests_are_refused():
    model = nn.Sequential(nn.Linear(6, 6))
    with pytest.raises(UsageError, match="wanted 1 or more"):
        HPD(rank=0)
    with pytest.raises(UsageError, match="second_moments"):
        HPD(targets=("0",)).decide(model)
    with pytest.raises(UsageError, match="such as 0"):
        HPD(targets=("1",)).decide(model)
    with pytest.raises(UsageError, match="no block with an output projection"):
        HPD().decide(model)
    with pytest.raises(UsageError, match="data that reaches"):
        second_moments(mamba(), ["backbone.layers.0.mixer.dt_proj"], [sentences(2, 8, 0)], run)
