"""Proofs in float64 without a copy in float64: weights that are widened as they are used, kernels and casts that have no float64."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.core.apply import apply
from lessen.core.edit import Edit, Keep
from lessen.errors import LessenError
from lessen.structure import wide
from lessen.structure.check import check
from lessen.structure.resize import expressible, resizes
from lessen.structure.trace import trace
from lessen.structure.wide import GroupedProducts, grouped, widened


class Block(nn.Module):
    """A channel set of its own, a weight that all blocks share, and a note of the types that it ran in."""

    def __init__(self, shared: nn.Linear):
        super().__init__()
        self.up, self.down, self.shared = nn.Linear(6, 12), nn.Linear(12, 6), shared
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        self.seen: Any = (x.dtype, self.up.weight.dtype, self.shared.weight.dtype, self.scale.dtype)
        return x + self.scale * self.shared(self.down(torch.relu(self.up(x))))


class Blocks(nn.Module):
    """Three blocks and a head that is tied to the table in front."""

    def __init__(self) -> None:
        super().__init__()
        self.table, shared = nn.Embedding(20, 6), nn.Linear(6, 6)
        self.blocks = nn.ModuleList(Block(shared) for _ in range(3))
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


IDS = torch.tensor([[1, 5, 7, 2]])


def cut(model: nn.Module, inputs: Any = IDS) -> list[Edit]:
    structure = expressible(model, trace(model, inputs))
    units = [unit for unit in structure.units if unit.kind == "channels"]
    assert units
    return resizes(model, structure, [Keep(unit, torch.arange(unit.size // 3, unit.size)) for unit in units])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_model_is_widened_block_by_block_and_left_as_it_was(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model: Any = Blocks().to(dtype).eval()
    expected = copy.deepcopy(model).double()(IDS)
    before = {name: (p, p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    monkeypatch.setattr(wide, "WHOLE", 10)
    monkeypatch.setattr(wide, "_blocks", lambda m, real=wide._blocks: found.append(len(real(m))) or real(m))
    found: list[int] = []
    with widened(model), torch.no_grad():
        assert model.blocks[0].up.weight.dtype == dtype and model.table.weight.dtype == torch.float64
        got = model(IDS)
        assert model.blocks[0].up.weight.dtype == dtype
    assert found == [3]  # a weight that several blocks share is widened for each
    assert torch.equal(got, expected)
    assert before == {name: (p, p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    assert model.head.weight is model.table.weight and model.blocks[0].scale.dtype == dtype
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_a_block_shares_with_others_is_widened_for_the_whole_run(monkeypatch: pytest.MonkeyPatch):
    model: Any = Blocks().eval()
    model.blocks[2].down.weight = nn.Parameter(torch.randn(6, 12))
    model.again = nn.Linear(12, 6)
    model.again.weight = model.blocks[2].down.weight
    monkeypatch.setattr(wide, "WHOLE", 10)
    with widened(model):
        assert model.blocks[2].up.weight.dtype == torch.float64 and model.blocks[1].up.weight.dtype == torch.float32
    assert model.again.weight.dtype == torch.float32


@pytest.mark.parametrize("whole", [10, 20_000_000])
def test_the_proof_passes_a_right_cut_and_refuses_a_wrong_one_of_any_size(whole: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wide, "WHOLE", whole)
    torch.manual_seed(0)
    model = Blocks().to(torch.bfloat16).eval()
    edits = cut(model)
    smaller: Any = check(model, edits, IDS)
    assert smaller.blocks[0].up.weight.shape == (8, 4) and smaller.blocks[0].up.weight.dtype == torch.bfloat16
    monkeypatch.setattr("lessen.structure.check.apply", _misled)
    with pytest.raises(LessenError, match="differ by"):
        check(model, edits, IDS)


def _misled(model: Any, edits: Any, mode: Any = "slice") -> nn.Module:
    """`apply`, but one tensor of the smaller model has other columns than it should."""
    whole = model.blocks[0].down.weight.detach()
    changed: Any = apply(model, edits, mode)
    if mode == "slice":
        changed.blocks[0].down.weight.data = whole[2:, :8].clone()
    return changed


def test_memory_decides_whether_a_proof_is_tried(monkeypatch: pytest.MonkeyPatch):
    model = Blocks()
    whole = sum(p.numel() for p in model.parameters())
    assert wide.needed(model) == (4 + 8) * whole  # a masked copy in float32, and all of it in float64
    monkeypatch.setattr(wide, "available_bytes", lambda: 100 * whole)
    assert wide.fits(model) is None
    monkeypatch.setattr(wide, "available_bytes", lambda: 14 * whole)
    assert "it would take" in str(wide.fits(model))
    monkeypatch.setattr(wide, "WHOLE", 10)
    assert wide.needed(model) < (4 + 8) * whole
    assert wide.fits(model) is None


def test_grouped_products_are_those_of_the_kernel():
    generator = torch.Generator().manual_seed(0)
    ends = torch.tensor([2, 2, 16, 24], dtype=torch.int32)
    rows, columns = (torch.randn(24, n, generator=generator) for n in (16, 8))
    experts = torch.randn(4, 16, 8, generator=generator)
    pairs = [(rows, experts, ends), (rows.T.contiguous(), columns, ends), (experts.transpose(1, 2), rows.T, ends)]
    for left, right, offs in pairs:
        wanted = F.grouped_mm(left, right, offs=offs)
        # float32 sums of 16 products
        assert (grouped(left.double(), right.double(), offs) - wanted).abs().max() < 1e-4
    batch = torch.randn(4, 8, 16, generator=generator)
    assert torch.allclose(grouped(batch.double(), experts.double()), (batch @ experts).double(), atol=1e-4)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe", "DeepseekV3"])
def test_experts_in_the_implementation_that_transformers_takes_by_itself_are_proved(name: str):
    transformers = pytest.importorskip("transformers")
    experts = {"num_local_experts": 4} if name == "Mixtral" else {"num_experts": 4} if name == "Qwen3Moe" else {"n_routed_experts": 4}
    if name == "DeepseekV3":
        experts |= {"n_group": 1, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "first_k_dense_replace": 1}
        experts |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    if name != "Mixtral":
        experts |= {"moe_intermediate_size": 16}
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(**sizes, num_key_value_heads=4, head_dim=8, num_experts_per_tok=2, **experts)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    ids = torch.arange(5, 12)[None]
    smaller = check(model, cut(model, ids), ids)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


class Rounded(nn.Module):
    """Computes in float32 whatever it is given, and makes much of its rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(6, 300), nn.Linear(300, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        inside = torch.sigmoid(F.linear(torch.relu(self.up(x)).float(), self.mid.weight.float()))
        return self.down((1e4 * inside).sin().to(x.dtype))


def test_rounding_of_the_code_itself_is_no_wrong_slice(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model, inputs = Rounded().eval(), torch.randn(3, 6)
    edits = cut(model, inputs)
    assert check(model, edits, inputs).get_submodule("up").out_features == 200
    monkeypatch.setattr("lessen.structure.check.WideCasts", GroupedProducts)
    with pytest.raises(LessenError, match="differ by"):
        check(model, edits, inputs)
