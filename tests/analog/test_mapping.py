"""Networks on tiles: exact where the chip is ideal, disturbed as the formulae say where it is not, and the model as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lessen.analog.chip import Array, Chip, System
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.devices.pcm import PCM
from lessen.analog.encoding import Differential, Encoding, Offset, Sliced
from lessen.analog.mapping import Split, map
from lessen.analog.periphery import Adc, Dac, Wires
from lessen.errors import LessenError, UsageError

ENCODINGS = [Differential(), Differential("tile"), Offset(), Offset("tile")]
TILES = [Array(512, 512), Array(7, 5), Array(16, 6)]


def small(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    first = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, groups=4, padding_mode="reflect", padding=1)
    )
    rest = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 20), nn.ReLU(), nn.Linear(20, 10, bias=False))
    return nn.Sequential(first, rest).to(dtype)


def pictures(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(4, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
@pytest.mark.parametrize("array", TILES, ids=repr)
@torch.no_grad()
def test_an_ideal_chip_computes_what_the_layers_do(encoding: Encoding, array: Array):
    model, x = small(), pictures()
    mapped = map(model, Chip(encoding=encoding, array=array)).program()
    assert torch.allclose(mapped(x), model(x), rtol=0, atol=1e-12)  # rounding of float64 over some hundred terms


@torch.no_grad()
def test_an_ideal_converter_road_computes_it_too():
    """Nothing folds if an ADC stands between: its steps are made so small that they do not show."""
    model, x = small(), pictures()
    for array in TILES:
        chip = Chip(array=array, adc=Adc(20, range=64.0, per="tile"))
        assert torch.allclose(map(model, chip).program()(x), model(x), rtol=0, atol=2e-2)


@pytest.mark.parametrize("pair", [Differential(), Offset()], ids=repr)
@torch.no_grad()
def test_slices_are_the_digits_of_the_rounded_weight(pair: Differential | Offset):
    linear, x = nn.Linear(12, 5).double(), torch.randn(3, 12, dtype=torch.float64)
    scale = linear.weight.abs().amax(1, keepdim=True)
    rounded = (linear.weight / scale * 127).round() / 127 * scale
    mapped = map(linear, Chip(encoding=Sliced(8, 2, pair), array=Array(12, 64))).program()
    assert torch.allclose(mapped(x), x @ rounded.t() + linear.bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("digit_bits", [None, 1, 3])
@torch.no_grad()
def test_digits_of_inputs_add_up_to_the_rounded_input(digit_bits: int | None):
    linear, x = nn.Linear(12, 5).double(), torch.randn(6, 12, dtype=torch.float64)
    chip = Chip(dac=Dac(8, digit_bits=digit_bits, quantile=1.0), array=Array(5, 64))
    mapped = map(linear, chip, calibration=[x]).program()
    rounded = (x / x.abs().max() * 127).round() / 127 * x.abs().max()
    assert torch.allclose(mapped(x), linear(rounded), rtol=0, atol=1e-6)  # a quantile is taken in float32


@torch.no_grad()
def test_an_adc_rounds_and_clips_the_sums_of_each_tile():
    linear, x = nn.Linear(6, 4, bias=False).double(), torch.randn(5, 6, dtype=torch.float64)
    chip = Chip(adc=Adc(4, range=0.5), array=Array(3, 64))
    scale = linear.weight.abs().unflatten(1, (2, 3)).amax(2)  # output tile
    expected = torch.zeros(5, 4, dtype=torch.float64)
    for tile in range(2):
        part = slice(3 * tile, 3 * tile + 3)
        sums = x[:, part] @ (linear.weight[:, part] / scale[:, tile, None]).t()
        expected += (sums / 0.5 * 7).round().clamp(-7, 7) / 7 * 0.5 * scale[:, tile]
    assert torch.allclose(map(linear, chip).program()(x), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_dynamic_range_is_that_of_each_vector():
    linear = nn.Linear(12, 5).double()
    x = torch.randn(6, 12, dtype=torch.float64) * torch.logspace(-3, 3, 6, dtype=torch.float64)[:, None]
    full = x.abs().amax(1, keepdim=True)
    rounded = (x / full * 127).round() / 127 * full
    mapped = map(linear, Chip(dac=Dac(8, range="dynamic"))).program()
    assert torch.allclose(mapped(x), linear(rounded), rtol=1e-12, atol=1e-12)
    assert torch.equal(mapped(torch.zeros(1, 12, dtype=torch.float64))[0], linear.bias)


@pytest.mark.parametrize("encoding", [Differential(), Offset()], ids=repr)
@pytest.mark.parametrize("adc", [Adc(None), Adc(20, range=400.0)], ids=["folded", "read"])
@torch.no_grad()
def test_fresh_noise_has_the_law_of_a_matrix_drawn_for_every_vector(encoding: Encoding, adc: Adc):
    linear = nn.Linear(24, 3, bias=False)
    x = torch.randn(1, 24, generator=torch.Generator().manual_seed(2)).expand(20000, 24)
    chip = Chip(device=Gaussian(written=0.0, reading=0.05), encoding=encoding, reads="fresh", adc=adc, array=Array(10, 64))
    found = map(linear, chip).program()(x)
    scale = torch.stack([w.abs().amax(1) for w in linear.weight.split(8, 1)])  # 24 inputs lie on three tiles of 8
    energy = torch.stack([part[0].square().sum() for part in x.split(8, 1)])
    per_weight = (
        2 * 0.05**2 if isinstance(encoding, Differential) else 4 * 2 * 0.05**2
    )  # pair; or device and reference, weights of half range
    sigma = (per_weight * (scale.square() * energy[:, None])).sum(0).sqrt()
    assert torch.allclose(found.std(0), sigma, rtol=0.03)  # 20,000 draws: 0.5 % of standard error
    assert torch.allclose(found.mean(0), linear(x[0]), atol=float(5 * sigma.max() / 20000**0.5))
    shared = torch.corrcoef(found.t())[0, 1].abs()
    assert (shared > 0.3) == isinstance(encoding, Offset), "columns share the noise of their reference, and nothing else"


@torch.no_grad()
def test_a_chip_stays_what_it_is_and_another_is_another():
    model, x = small(torch.float32), pictures(torch.float32)
    mapped = map(model, Chip(device=PCM()))
    first, later = mapped.program(3)(x), mapped.at(86400.0)(x)
    assert torch.equal(mapped.at(20.0)(x), first)
    assert torch.equal(mapped.program(3, 86400.0)(x), later)
    assert not torch.equal(mapped.program(4)(x), first)
    assert not torch.equal(later, first)


@pytest.mark.parametrize("how", ["tile", "column"])
@torch.no_grad()
def test_drift_is_corrected_by_the_weights_that_are_there(how: str):
    chip = Chip(device=PCM(), compensation=how)  # pyright: ignore[reportArgumentType]
    model, x = nn.Linear(40, 20), torch.randn(8, 40)
    mapped = map(model, chip)
    mapped.program(0, 30 * 86400.0)
    for change in (lambda w: w.mul_(0.5).add_(0.1 * torch.randn_like(w)), lambda w: w.copy_(w.flip(0)), lambda w: w.copy_(w.flip(1))):
        change(model.weight)
        found = mapped.program(0, 30 * 86400.0)(x)
        assert torch.equal(found, map(model, chip).program(0, 30 * 86400.0)(x))


@torch.no_grad()
def test_a_seed_and_a_time_are_what_they_are_in_any_type():
    mapped, x = map(nn.Linear(40, 20), Chip(device=PCM(), reads="frozen")), torch.randn(8, 40)
    found = mapped.program(0, 86400.0)(x)
    assert torch.equal(mapped.program(np.int64(0), 86400)(x), found)  # pyright: ignore[reportArgumentType]
    assert torch.equal(mapped.at(np.float32(86400.0))(x), found)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def test_compensation_undoes_the_mean_of_drift():
    linear = nn.Linear(256, 64, bias=False)
    x = torch.randn(50, 256)
    gains = {}
    for how in ("none", "tile", "column"):
        mapped = map(linear, Chip(device=PCM(), reads="quiet", compensation=how)).program(0, 365 * 86400.0)
        found = mapped(x)
        gains[how] = float((found * linear(x)).sum() / linear(x).square().sum())
    assert gains["none"] < 0.6  # (1 year / 20 s)^-0.05 = 0.49
    assert abs(gains["tile"] - 1) < 0.06 and abs(gains["column"] - 1) < 0.06


@torch.no_grad()
def test_narrow_storage_changes_less_than_any_device():
    model, x = small(torch.float32), pictures(torch.float32)
    wide, narrow = (map(model, Chip(device=PCM(), array=Array(16, 64)), store=s).program(0)(x) for s in (None, torch.float16))
    error = (narrow - wide).norm() / wide.norm()
    assert 0 < error < 2e-3  # 11 bits


def test_the_model_is_as_it_was_and_shares_its_parameters():
    model, x = small(torch.float32), pictures(torch.float32)
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    modules = [id(m) for m in model.modules()]
    mapped = map(model, Chip(device=PCM(), dac=Dac(8), adc=Adc(8)), calibration=[x]).program()
    assert {id(p) for p in mapped.model.parameters()} == {i for i, _ in before.values()}
    assert all(id(p) == before[n][0] and torch.equal(p, before[n][1]) for n, p in model.named_parameters())
    assert [id(m) for m in model.modules()] == modules
    assert model.training and mapped.model.training


class Attending(nn.Module):
    """Attention of torch, and an encoder layer, which in evaluation has a fast path that calls no module."""

    def __init__(self, batch_first: bool = True):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, add_bias_kv=True)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
        self.cross = nn.MultiheadAttention(16, 2, kdim=8, vdim=12, batch_first=batch_first, bias=False)

    def forward(self, x: Tensor, mask: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attention(x, x, x, key_padding_mask=padding, attn_mask=mask)
        z = self.layer(y, src_mask=mask, src_key_padding_mask=padding)
        return self.cross(z, x[..., :8], x[..., 4:], need_weights=False)[0], weights


@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_attention_of_torch_lies_on_tiles(batch_first: bool):
    torch.manual_seed(0)
    model = Attending(batch_first).double().eval()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True]])
    x = x if batch_first else x.transpose(0, 1)
    mapped = map(model, Chip(array=Array(7, 64))).program()
    assert len(mapped.layers) == 4 + 4 + 2 + 4
    for ours, theirs in zip(mapped(x, mask, padding), model(x, mask, padding), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    disturbed = map(model, Chip(device=Gaussian())).program()(x, mask, padding)[0]
    assert not torch.allclose(disturbed, model(x, mask, padding)[0], atol=1e-3), "the fast path must not go round the tiles"


@torch.no_grad()
def test_language_models_and_their_transposed_layers():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=20)).double().eval()
    tokens = torch.arange(10)[None]
    mapped = map(model, Chip(array=Array(7, 64)), split=["*.mlp.c_proj"]).program()
    assert torch.allclose(mapped(tokens).logits, model(tokens).logits, rtol=0, atol=1e-12)
    assert sorted(n for n, why in mapped.digital.items() if why == "kept digital") == [f"transformer.h.{i}.mlp.c_proj" for i in (0, 1)]
    assert mapped.digital["transformer.wte"] == "Embedding has no analog counterpart"


@torch.no_grad()
def test_what_has_no_counterpart_is_listed_and_stays_exact():
    model = nn.Sequential(nn.Linear(6, 6), nn.GRU(6, 4, batch_first=True)).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    mapped = map(model, Chip()).program()
    assert mapped.digital == {"1": "GRU has no analog counterpart"}
    assert torch.allclose(mapped(x)[0], model(x)[0], atol=1e-12)
    analog, whole = mapped.weights
    assert (analog, whole) == (36, 36 + 3 * 4 * 6 + 3 * 4 * 4)


def test_ranges_that_nobody_set_are_an_error():
    with pytest.raises(
        LessenError, match=r"analog layer 0: got converters without ranges, wanted calibration data; map\(\.\.\., calibration="
    ):
        map(nn.Sequential(nn.Linear(3, 3)), Chip(dac=Dac(8))).program()


class Idle(nn.Module):
    """A layer whose weight is used, but not through its module, as Mamba's fast path does."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) @ self.idle.weight


@pytest.mark.parametrize(
    "chip", [Chip(dac=Dac(8), adc=Adc(12)), Chip(dac=Dac(8, range="dynamic"), adc=Adc(12)), Chip()], ids=["inputs", "sums", "ideal"]
)
@torch.no_grad()
def test_a_layer_that_calibration_does_not_reach_stays_digital(chip: Chip):
    model, x = Idle(), torch.randn(5, 3)
    mapped = map(model, chip, calibration=[x]).program()
    assert list(mapped.layers) == ["used"] and mapped.digital == {"idle": "calibration gave it no input"}
    assert type(mapped.model.idle) is nn.Linear and mapped.model.idle.weight is model.idle.weight
    assert torch.allclose(mapped(x), model(x), atol=0.05)  # converters of 8 and 12 bits
    with pytest.raises(LessenError, match="calibration of idle: got no input"):
        map(model, chip, split=["used"], calibration=[x])


@torch.no_grad()
def test_a_state_space_model_is_mapped_whole_but_for_what_its_own_code_multiplies():
    """Mamba hands the weights of its convolution and of its step sizes to a scan, and calls neither layer."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=1)).eval()
    tokens = torch.randint(32, (2, 12), generator=torch.Generator().manual_seed(0))

    def run(network: nn.Module, batch: Tensor) -> Tensor:
        return network(input_ids=batch, use_cache=False).logits

    mapped = map(model, Chip(dac=Dac(12), adc=Adc(12)), calibration=[tokens], run=run).program()
    mixer = "backbone.layers.0.mixer"
    assert {f"{mixer}.{name}" for name in ("in_proj", "x_proj", "out_proj")} <= set(mapped.layers)
    assert all(mapped.digital[f"{mixer}.{name}"] == "calibration gave it no input" for name in ("conv1d", "dt_proj"))
    assert (run(mapped.model, tokens) - run(model, tokens)).abs().max() < 0.02  # converters of 12 bits


def test_wrong_requests_are_answered_in_a_line():
    model = nn.Sequential(nn.Linear(300, 300))
    with pytest.raises(UsageError, match="split: got '1', wanted a module of the model or a pattern; choose from 0"):
        map(model, Chip(), split=["1"])
    with pytest.raises(UsageError, match="layer 0: got 9 tiles, wanted at most the 8 of chip tiny"):
        map(model, Chip(array=Array(100, 200), system=System(tiles=8), name="tiny"))
    with pytest.raises(UsageError, match="map: got no layer for tiles"):
        map(nn.Sequential(nn.ReLU()), Chip())
    with pytest.raises(UsageError, match=r"time of PCM: got 1 s, wanted at least 20 s"):
        map(model, Chip(device=PCM())).program().at(1.0)
    with pytest.raises(UsageError, match=r"Mapped.at: got a chip that is not programmed"):
        map(model, Chip()).at(1.0)
    with pytest.raises(UsageError, match=r"Adc: got bits=0"):
        Adc(0)
    with pytest.raises(UsageError, match="chip unnamed: got 1 columns, 2 devices for a weight"):
        Chip(array=Array(8, 1))
    with pytest.raises(UsageError, match=r"calibration: got no batch"):
        map(model, Chip(dac=Dac(8)), calibration=[])


@torch.no_grad()
def test_a_layer_in_pieces_is_the_layer(monkeypatch: pytest.MonkeyPatch):
    from lessen.analog.tiles import crossbar

    linear, x = nn.Linear(6, 40).double(), torch.randn(3, 6, dtype=torch.float64)
    monkeypatch.setattr(crossbar, "_AT_ONCE", 6 * 8)
    for encoding in (Differential(), Offset(), Sliced(16, 4)):
        chip = Chip(
            encoding=encoding,
            array=Array(4, 8 * encoding.devices),
            adc=Adc(20, range=30.0),
            reads="fresh",
            device=Gaussian(written=0.0, reading=1e-9),
        )
        found = map(linear, chip).program()(x)
        assert torch.allclose(found, linear(x), atol=2e-3)
        assert not torch.equal(found, map(linear, replace(chip, device=Gaussian(written=0.1)), split=Split()).program()(x))


def test_moments_of_half_a_model():
    """Layers of a module that is a single layer, and inputs without a batch."""
    linear = nn.Linear(4, 3)
    mapped = map(linear, Chip()).program()
    assert mapped(torch.randn(4)).shape == (3,)
    conv = nn.Conv1d(3, 4, 3, dilation=2, padding="same")
    x = torch.randn(3, 11)
    with torch.no_grad():
        assert torch.allclose(map(conv, Chip(array=Array(4, 64))).program()(x), conv(x), atol=1e-5)


@pytest.mark.parametrize("model", ["columns", "solved", "fast"])
@torch.no_grad()
def test_wires_take_from_the_columns(model: str):
    """More resistance takes more; none takes nothing; a column of the layer is that of the nodal equations."""
    linear, x = nn.Linear(24, 6, bias=False).double(), torch.rand(5, 24, dtype=torch.float64)
    nn.init.uniform_(linear.weight, 0.2, 1.0)
    kept = []
    for ohm in (0.0, 1.0, 30.0):
        wires = Wires(ohm, model)  # pyright: ignore[reportArgumentType]
        found = map(linear, Chip(wires=wires, dac=Dac(16), array=Array(32, 32)), calibration=[x]).program()(x)
        kept.append(float((found / linear(x)).mean()))
    assert kept[0] == pytest.approx(1, abs=1e-4) and 1 > kept[1] > kept[2] > 0.5


@torch.no_grad()
def test_exact_wires_are_what_the_solver_finds():
    from lessen.analog.tiles.resistance import solve

    linear, x = nn.Linear(8, 3, bias=False).double(), torch.rand(4, 8, dtype=torch.float64)
    nn.init.uniform_(linear.weight, 0.1, 1.0)
    found = map(linear, Chip(wires=Wires(20.0, "solved"), array=Array(8, 6))).program()(x)
    scale = linear.weight.amax(1)
    conductance = (25.0 * linear.weight / scale[:, None]).t()[None].contiguous()
    pairs = torch.stack([conductance, torch.zeros_like(conductance)], -1).flatten(-2)  # no weight is negative
    current = solve(pairs, x[None], 20.0, 20.0)[0, :, 0::2]
    assert torch.allclose(found, current / 25.0 * scale, rtol=1e-4)


@pytest.mark.parametrize("encoding", [Differential(), Sliced(8, 4, Offset())], ids=["pair", "slices"])
@pytest.mark.parametrize("dac", [Dac(8), Dac(4, digit_bits=1)], ids=["whole", "digits"])
@torch.no_grad()
def test_convolutions_are_the_same_with_and_without_patches(encoding: Encoding, dac: Dac, monkeypatch: pytest.MonkeyPatch):
    """Two row tiles of three channels (the last one has two), groups, other borders, strides, one sequence without a batch."""
    nets = [
        (nn.Conv2d(5, 6, 3, stride=2, padding=1), torch.randn(3, 5, 9, 9)),
        (nn.Conv2d(4, 8, (3, 2), groups=2, padding=1, padding_mode="reflect"), torch.randn(2, 4, 6, 6)),
        (nn.Conv1d(6, 4, 3, dilation=2, padding="same"), torch.randn(6, 11)),
    ]
    for net, x in nets:
        chip = Chip(PCM(), encoding, dac, Adc(6), array=Array(27, 64))
        mapped = map(nn.Sequential(net.double()), chip, calibration=[x.double()]).program(1)
        whole = mapped(x.double())
        with monkeypatch.context() as patch:
            patch.setattr("lessen.analog.tiles.convolution.run", lambda *_: None)
            assert torch.allclose(whole, mapped(x.double()), rtol=0, atol=1e-12)  # the same sums in another order


@pytest.mark.parametrize("rows", [64, 16])
def test_a_mapped_network_runs_where_gradients_are_recorded(rows: int):
    mapped = map(nn.Linear(64, 8), Chip(adc=Adc(8), dac=Dac(8), array=Array(rows, 64)), calibration=[torch.randn(16, 64)]).program(0)
    with torch.no_grad():
        quiet = mapped(torch.ones(4, 64))
    torch.testing.assert_close(mapped(torch.ones(4, 64)).detach(), quiet)
