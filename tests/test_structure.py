"""Units of decoder families: what they name, that shared inputs are shared, and that producers absorb what they claim."""

import copy

import pytest
import torch
from torch import nn

from lessen.core.unit import Slice, Unit
from lessen.errors import UsageError
from lessen.models.module import InMemory
from lessen.structure.decoder import describe, units, view, writer
from tests.decoders import FAMILIES, decoder, tokens


class Plain(nn.Module):
    """A decoder that no table knows: no attention, odd names, a tied head."""

    def __init__(self, tied: bool = True):
        super().__init__()
        self.config = {"model_type": "plain", "hidden_size": 8}
        self.table = nn.Embedding(16, 8)
        self.positions = nn.Embedding(4, 8)
        self.stages = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(8, 12), "b": nn.Linear(12, 8)}) for _ in range(2)])
        self.out = nn.Linear(8, 16, bias=False)
        if tied:
            self.out.weight = self.table.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_of_a_block_is_named_once_and_channels_cover_their_axes(family: str) -> None:
    model = decoder(family)
    checkpoint = InMemory(model)
    found = units(checkpoint)
    assert len({unit.name for unit in found if unit.kind != "linear"}) == sum(unit.kind != "linear" for unit in found)
    linears = [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in f".{n}."]
    assert [unit.slices[0].name for unit in found if unit.kind == "linear"] == linears
    assert sorted(part.name for unit in found if unit.kind == "inputs" for part in unit.slices) == sorted(linears)
    for unit in found:
        covered: dict[tuple[str, int], list[int]] = {}
        for part in unit.slices:
            covered.setdefault((part.name, part.axis), []).extend(range(part.start, part.start + unit.size * part.span))
        for (name, axis), indices in covered.items():
            assert sorted(indices) == list(range(checkpoint.shape(name)[axis])), (unit.name, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_of_one_inputs_unit_read_one_tensor_in_execution_order(family: str) -> None:
    model = decoder(family)
    seen: list[tuple[str, torch.Tensor]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, args, name=name: seen.append((f"{name}.weight", args[0])))
    with torch.no_grad():
        model(tokens(batch=1))
    ran = [name for name, _ in seen]
    by_name = dict(seen)
    groups = [[part.name for part in unit.slices] for unit in units(InMemory(model), "inputs")]
    assert [name for group in groups for name in group] == [n for n in ran if ".layers." in n]
    for group in groups:
        assert all(by_name[name] is by_name[group[0]] for name in group)
    assert len({id(by_name[group[0]]) for group in groups}) == len(groups)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_producer_absorbs_the_inverse_of_a_rescaled_input(family: str) -> None:
    model = decoder(family)
    before = model(tokens()).logits.detach()
    rescaled = 0
    for unit in units(InMemory(model), "inputs"):
        if unit.producer is None:
            continue
        rescaled += 1
        made = model.get_parameter(unit.producer.name)
        scale = 1 + torch.rand(len(made), generator=torch.Generator().manual_seed(rescaled), dtype=torch.float64)
        # Runs of `span` rows serve as many consecutive runs of columns as there are query heads to a key/value head.
        runs = unit.size // len(made)
        columns = scale.view(-1, unit.producer.span).repeat_interleave(runs, 0).reshape(-1)
        with torch.no_grad():
            made.div_(scale.view(-1, *[1] * (made.ndim - 1)))
            for part in unit.slices:
                model.get_parameter(part.name).mul_(columns)
    assert rescaled == 3 * {"llama": 4, "mistral": 4, "qwen3": 4, "qwen2": 3, "phi3": 2}.get(family, 2)
    # Equal but for float64 rounding of logits of size 10.
    torch.testing.assert_close(model(tokens()).logits.detach(), before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_one_embedding_unit_and_a_free_one_is_another(tied: bool) -> None:
    model = Plain(tied)
    found = units(InMemory(model), "embedding")
    assert [unit.name for unit in found] == (["table"] if tied else ["table", "out"])
    assert all(unit.size == 16 for unit in found)


def test_an_unknown_architecture_has_linears_inputs_and_layers_but_no_channels() -> None:
    checkpoint = InMemory(Plain())
    kinds = [unit.kind for unit in units(checkpoint)]
    assert kinds.count("linear") == kinds.count("inputs") == 4 and kinds.count("layer") == 2
    assert "ffn" not in kinds
    with pytest.raises(UsageError, match=r"plain.*wanted one of .*llama.*layer units"):
        units(checkpoint, "ffn")


def test_a_module_without_blocks_and_a_misspelt_kind_are_refused() -> None:
    model = nn.Linear(2, 2)
    model.config = {"model_type": "none"}  # pyright: ignore
    with pytest.raises(UsageError, match="ModuleList"):
        units(InMemory(model))
    with pytest.raises(UsageError, match="kind 'fnn'"):
        units(InMemory(Plain()), "fnn")  # pyright: ignore


def test_views_bring_biases_and_producers_along() -> None:
    checkpoint = InMemory(decoder("qwen2", torch.float32))
    read = next(unit for unit in units(checkpoint, "inputs") if unit.producer)
    names = list(view(checkpoint, read).tensors)
    prefix = "model.layers.0"
    assert names == [
        *(f"{prefix}.self_attn.{p}_proj.weight" for p in "qkv"),
        f"{prefix}.input_layernorm.weight",
        *(f"{prefix}.self_attn.{p}_proj.bias" for p in "qkv"),
    ]


def test_descriptions_name_every_slice() -> None:
    for unit in units(InMemory(decoder("phi3")), "kv_group"):
        text = describe(unit)
        assert all(part.name in text for part in unit.slices) and "from index 48" in text and unit.reason in text
        assert writer(unit).name.endswith("o_proj.weight")


def test_channel_sums_of_a_fused_tensor_see_each_segment() -> None:
    from lessen.core.unit import View

    unit = Unit("mlp", "ffn", 2, (Slice("gate_up", 0), Slice("gate_up", 0, start=2)))
    weight = torch.tensor([[1.0], [2.0], [10.0], [20.0]])
    assert View(unit, {"gate_up": weight}).sum_per_channel({"gate_up": weight}).tolist() == [11.0, 22.0]


def test_finding_units_changes_nothing() -> None:
    model = decoder("llama")
    before = copy.deepcopy(model.state_dict())
    units(InMemory(model))
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
