"""Cuts of traced models: numbers of modules follow, what cannot be expressed is held, and every cut is proved."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.core.apply import apply
from lessen.core.edit import Edit, Keep, Resize, load_edits, same, save_edits
from lessen.core.unit import Slice, Unit
from lessen.errors import LessenError
from lessen.structure.check import check, described
from lessen.structure.resize import expressible, resizes
from lessen.structure.sizes import Attribute, Size, evaluate, formula_of
from lessen.structure.trace import trace


class Attention(nn.Module):
    """Heads as attributes; `hidden` is written in the code as a product."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size, self.inside = 4, 6, 24
        self.q, self.k, self.v, self.o = nn.Linear(10, 24), nn.Linear(10, 24), nn.Linear(10, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, self.inside // self.heads).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2)
        return self.o(y.reshape(b, n, self.heads * self.size))


class AsWide(nn.Module):
    """The features of all heads are as many as those of the input, since the code says so; `wide` is asked for in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size, self.wide = 4, 3, 12
        self.start, self.end = nn.Linear(6, 12), nn.Linear(12, 5)
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.mix, self.out = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        b, n, width = x.size()
        q, k, v = (layer(x).view(b, n, self.heads, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2)
        x = x + self.o(y.reshape(b, n, width))
        return self.end(self.out(F.relu(self.mix(x)).view(-1, self.wide)).view(b, n, self.wide))


class Fixed(nn.Module):
    """A size written as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).view(-1, 12))


class Net(nn.Module):
    """Grouped and depthwise convolutions, statistics, a norm over groups, a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.depth, self.group = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1, groups=4)
        self.register_buffer("table", torch.linspace(1, 2, 16).view(1, 16, 1, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.group(self.depth(F.relu(self.norm(self.stem(x)))) * self.table)).mean((2, 3)))


def disturbed(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator))
    return model.eval()


def quarter(model: Any, inputs: Tensor) -> list[Edit]:
    structure = expressible(model, trace(model, inputs))
    units = [unit for unit in structure.units if unit.kind in ("channels", "heads", "kv_group", "width") and unit.size > 3]
    assert units
    return resizes(model, structure, [Keep(unit, torch.arange(unit.size // 4, unit.size)) for unit in units])


@pytest.mark.parametrize(("make", "shape"), [(Attention, (2, 5, 10)), (Net, (2, 3, 8, 8))])
def test_masked_and_sliced_models_agree_and_layers_describe_their_tensors(make, shape):
    model, inputs = disturbed(make()), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = copy.deepcopy(model.state_dict())
    smaller = check(model, quarter(model, inputs), inputs)
    described(smaller)
    assert sum(p.numel() for p in smaller.parameters()) < 0.85 * sum(p.numel() for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_attributes_follow_the_formulae_that_the_code_uses():
    model, inputs = disturbed(Attention()), torch.randn(2, 5, 10)
    smaller: Any = apply(copy.deepcopy(model), quarter(model, inputs))
    assert (smaller.heads, smaller.size, smaller.inside) == (3, 6, 18)
    assert type(model.heads) is int


def test_grouped_convolutions_keep_whole_groups_and_buffers_are_cut_along():
    model, inputs = disturbed(Net()), torch.randn(2, 3, 8, 8)
    smaller: Any = apply(copy.deepcopy(model), quarter(model, inputs))
    assert smaller.depth.groups == smaller.depth.in_channels == smaller.norm.num_features == len(smaller.norm.running_mean)
    assert smaller.table.shape[1] == smaller.stem.out_channels < 16
    assert smaller.group.in_channels == smaller.stem.out_channels


def test_a_size_that_the_code_spells_out_holds_its_unit_with_the_call_as_the_reason():
    model, inputs = Fixed(), torch.randn(3, 4)
    structure = trace(model, inputs)
    assert structure.stuck and all("a number in the code" in unit.reason == structure.held[unit.name] for unit in structure.stuck)
    unit = structure.stuck[0]
    with pytest.raises(LessenError, match="view with a size of 12"):
        resizes(model, structure, [Keep(unit, torch.arange(9))])


def test_a_unit_that_misses_a_slice_is_caught_by_the_proof():
    model, inputs = disturbed(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))), torch.randn(3, 4)
    wrong = Unit("0", "channels", 8, (Slice("0.weight", 0), Slice("0.bias", 0), Slice("2.weight", 1, repeat=1)), complete=True)
    check(model, [Keep(wrong, torch.arange(2, 8))], inputs)
    shifted = Unit("0", "channels", 4, (Slice("0.weight", 0, start=4), Slice("0.bias", 0, start=4), Slice("2.weight", 1)), complete=True)
    with pytest.raises(LessenError, match="differ by"):
        check(model, [Keep(shifted, torch.arange(2))], inputs)
    assert model[0].out_features == 8


def test_keeps_of_complete_units_act_at_once():
    heads = Unit("heads", "heads", 2, (Slice("weight", 0, span=3),), complete=True)
    features = Unit("features", "head_dim", 3, (Slice("weight", 0, repeat=2),), complete=True)
    model = nn.Linear(1, 6, bias=False)
    model.weight.data = torch.arange(6.0)[:, None]
    apply(model, [Keep(heads, torch.tensor([1])), Keep(features, torch.tensor([0, 2]))])
    assert model.weight.flatten().tolist() == [3.0, 5.0]
    assert model.out_features == 2


def test_a_number_that_is_not_what_the_edit_says_is_refused_and_the_model_untouched():
    model = Attention()
    with pytest.raises(LessenError, match="wanted 5 before"):
        apply(model, [Resize("heads", 5, 3)])
    assert model.heads == 4


def test_a_shared_configuration_is_copied_for_the_module_that_changes():
    class Settings:
        def __init__(self) -> None:
            self.heads = 4

        def to_dict(self) -> dict[str, int]:
            return {"heads": self.heads}

    class Part(nn.Module):
        def __init__(self, config: Settings):
            super().__init__()
            self.config = config

    shared = Settings()
    model: Any = nn.ModuleList([Part(shared), Part(shared)])
    apply(model, [Resize("0.config.heads", 4, 3)])
    assert [part.config.heads for part in model] == [3, 4]


def test_edits_of_traced_units_survive_the_file(tmp_path):
    model, inputs = disturbed(Attention()), torch.randn(2, 5, 10)
    edits = quarter(model, inputs)
    save_edits(tmp_path / "edits.safetensors", edits)
    again = load_edits(tmp_path / "edits.safetensors")
    assert [type(edit) for edit in edits] == [type(edit) for edit in again]
    for a, b in zip(edits, again, strict=True):
        if isinstance(a, Keep) and isinstance(b, Keep):
            assert a.unit.slices == b.unit.slices and torch.equal(a.indices, b.indices)
        else:
            assert same(a, b)


def test_sizes_compute_like_integers_and_remember_how():
    a, b = Size(12, Attribute("m", "a")), Size(5, Attribute("m", "b"))
    value = (a * 2 + b) // 3 - 1
    assert value == (12 * 2 + 5) // 3 - 1 and isinstance(value, Size)
    assert evaluate(formula_of(value), {Attribute("m", "a"): 6, Attribute("m", "b"): 3}.__getitem__, lambda axis: axis.size) == 4
    book: list[Any] = []
    assert Size(4, Attribute("m", "a"), book) ** 0.5 == 2.0 and [formula_of(used) for used in book] == [Attribute("m", "a")]


def test_what_the_code_makes_equal_is_cut_together():
    torch.manual_seed(0)
    model, example = AsWide().double().eval(), torch.randn(2, 7, 6, dtype=torch.float64)
    structure = expressible(model, trace(model, example))
    heads = next(unit for unit in structure.units if unit.kind == "heads")
    assert {("start.weight", 0), ("q.weight", 0), ("q.weight", 1), ("o.weight", 0), ("mix.weight", 1)} <= {
        (part.name, part.axis) for part in heads.slices
    }
    wide = next(unit for unit in structure.units if any(part.name == "mix.bias" for part in unit.slices))
    assert ("out.bias", 0) in {(part.name, part.axis) for part in wide.slices}
    edits = resizes(model, structure, [Keep(heads, torch.tensor([0, 1, 3])), Keep(wide, torch.arange(0, 12, 2))])
    smaller = check(model, edits, example)
    assert smaller.get_submodule("start").out_features == 9 and smaller.wide == 6


class Scaled(nn.Module):
    """A width whose value scales what the model computes, one that is compared with what the code expects, and rare activations."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.high = 8, 12
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 12)
        self.norm, self.c = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x)).view(-1, self.wide) / self.wide**0.5
        y = F.relu(self.b(y))
        if y.shape != (len(x), self.high):
            raise ValueError(f"{self.high} features expected")
        return self.c(self.norm(y))


def test_numbers_that_are_used_stay_those_that_are_compared_follow_and_channels_that_are_silent_count():
    torch.manual_seed(0)
    model, example = Scaled().double().eval(), torch.randn(2, 4, dtype=torch.float64)
    with torch.no_grad():
        model.b.bias.sub_(1.0)
        assert (F.relu(model.b(F.relu(model.a(example)) / 8**0.5)) == 0).all(0).any()
    structure = expressible(model, trace(model, example))
    assert "a" not in {unit.name for unit in structure.units} and "its value" not in structure.held
    unit = next(unit for unit in structure.units if any(part.name == "b.weight" for part in unit.slices))
    smaller = check(model, resizes(model, structure, [Keep(unit, torch.arange(9))]), example)
    assert smaller.high == 9 and smaller.wide == 8


class Packed(nn.Module):
    """Experts in one tensor whose hidden channels and whose numbers would both be called `experts`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 8)
        self.experts = nn.ParameterDict({"up": torch.randn(8, 6, 10), "down": torch.randn(8, 10, 6)})

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        inside = torch.einsum("tkid,ti->tkd", self.experts["up"][chosen], x).relu()
        return torch.einsum("tk,tkd,tkdo->to", weights, inside, self.experts["down"][chosen])


def test_units_have_names_of_their_own():
    torch.manual_seed(0)
    structure = trace(Packed().double(), torch.randn(5, 6, dtype=torch.float64))
    kinds = {unit.name: unit.kind for unit in structure.units}
    assert len(kinds) == len(structure.units) and {"channels", "experts"} <= set(kinds.values()), structure


def test_a_configuration_whose_numbers_follow_is_saved_as_it_was(tmp_path: Any):
    from transformers import SegformerConfig, SegformerForImageClassification

    from lessen.models import pruned

    torch.manual_seed(0)
    config = SegformerConfig(hidden_sizes=[8, 8, 12, 16], depths=[1] * 4, num_attention_heads=[1, 1, 1, 2], decoder_hidden_size=8)
    model, example = SegformerForImageClassification(config).eval(), {"pixel_values": torch.randn(1, 3, 32, 32)}
    structure = expressible(model, trace(model, example))
    keeps: list[Edit] = [Keep(unit, torch.arange(unit.size // 2)) for unit in structure.units if unit.kind == "width"]
    edits = resizes(model, structure, keeps)
    smaller = check(model, edits, example)
    pruned.save(smaller, edits, tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(pruned.load(tmp_path / "small")(**example).logits, smaller(**example).logits)


def test_attention_with_keys_of_another_stream_is_cut_by_whole_heads():
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.other, self.down = nn.Linear(3, 8), nn.Linear(5, 8), nn.Linear(8, 2)
            self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            y = self.other(y)
            return self.down(self.attention(self.up(x), y, y, need_weights=False)[0])

    torch.manual_seed(0)
    model, example = Cross().double().eval(), (torch.randn(2, 4, 3).double(), torch.randn(2, 6, 5).double())
    structure = expressible(model, trace(model, example))
    assert {(unit.kind, unit.size) for unit in structure.units} == {("heads", 4), ("channels", 8)}, structure
    heads = next(unit for unit in structure.units if unit.kind == "heads")
    smaller = check(model, resizes(model, structure, [Keep(heads, torch.tensor([0, 2, 3]))]), example)
    assert smaller.get_submodule("attention").in_proj_weight.shape == (18, 6)


def test_a_tensor_of_another_type_is_saved_as_it_is(tmp_path: Any):
    from transformers import LlamaConfig, LlamaForCausalLM

    from lessen.models import pruned

    config = LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2, num_hidden_layers=1, vocab_size=16)
    model = LlamaForCausalLM(config).double()
    model.lm_head.float()
    pruned.save(model, [], tmp_path / "mixed")
    loaded = pruned.load(tmp_path / "mixed")
    assert {name: p.dtype for name, p in loaded.named_parameters()} == {name: p.dtype for name, p in model.named_parameters()}


class Chosen(nn.Module):
    """Two of six experts by the sum of a score and a bias; experts have biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(4, 8), nn.Linear(8, 3)
        self.router = nn.Module()
        self.router.weight, self.router.bias = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6))
        self.experts = nn.Module()
        self.experts.up, self.experts.bias = nn.Parameter(torch.randn(6, 8, 8)), nn.Parameter(torch.randn(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        scores = F.linear(x, self.get_parameter("router.weight")).sigmoid()
        chosen = (scores + self.get_parameter("router.bias")).topk(2).indices
        weights = scores.gather(1, chosen)
        inside = (self.get_parameter("experts.up")[chosen] * x[:, None, :, None]).sum(2) + self.get_parameter("experts.bias")[chosen]
        return self.end((inside.tanh() * weights[..., None]).sum(1))


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [1, 4, 5], [2, 5]])
def test_experts_that_are_gone_are_never_chosen_by_the_mask(kept: list[int]):
    torch.manual_seed(0)
    model, example = Chosen().double().eval(), torch.randn(9, 4, dtype=torch.float64)
    structure = expressible(model, trace(model, example))
    experts = next(unit for unit in structure.units if unit.kind == "experts")
    assert {part.name for part in experts.slices} == {"router.weight", "router.bias", "experts.up", "experts.bias"}
    smaller = check(model, resizes(model, structure, [Keep(experts, torch.tensor(kept))]), example)
    assert smaller.get_parameter("experts.bias").shape == (len(kept), 8)
