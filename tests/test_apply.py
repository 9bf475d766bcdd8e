"""`apply` and `Edited`: the same edits as a mask, as a slice and as a lazy checkpoint agree; failure changes nothing."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from lessen.core.apply import apply, edited
from lessen.core.edit import Drop, Edit, Factor, Keep, Quantize, Replace
from lessen.core.unit import Slice, Unit
from lessen.errors import LessenError
from lessen.formats.affine import Int
from lessen.formats.granularity import PerRow
from lessen.models.edited import Edited
from lessen.models.module import InMemory
from lessen.models.skeleton import fill
from lessen.structure.decoder import units
from tests.decoders import FAMILIES, decoder, drop, some_keeps, tokens

# Sums over fewer or more zeros may be grouped differently; logits here are of size 10 and float64 carries 16 digits.
ROUNDING = 1e-11


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens()).logits


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters(remove_duplicate=False)}


def quantize(name: str, weight: torch.Tensor, bits: int = 4) -> Quantize:
    format = Int(bits, PerRow())
    return Quantize(name, format, format.encode(weight.float()))


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_and_sliced_models_agree(family: str, uniform: bool) -> None:
    model = decoder(family)
    found = units(InMemory(model))
    edits: list[Edit] = [*some_keeps(found, uniform=uniform), *drop(found, 1)]
    sliced, masked = apply(copy.deepcopy(model), edits), apply(copy.deepcopy(model), edits, mode="mask")
    torch.testing.assert_close(logits(sliced), logits(masked), rtol=0.0, atol=ROUNDING)
    assert sum(p.numel() for p in sliced.parameters()) < sum(p.numel() for p in masked.parameters())
    assert (logits(sliced) - logits(model)).abs().max() > 0.1  # the edits do matter
    assert {n: p.shape for n, p in masked.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_works_after_blocks_were_dropped(family: str) -> None:
    model = decoder(family)
    found = units(InMemory(model))
    apply(model, [*some_keeps(found), *drop(found, 0)])
    ids = tokens(batch=1)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, eos_token_id=None)  # pyright: ignore
    with torch.no_grad():
        greedy = model(made[:, :-1]).logits.argmax(-1)[:, ids.shape[1] - 1 :]
    assert torch.equal(made[:, ids.shape[1] :], greedy)


@pytest.mark.parametrize("family", FAMILIES)
def test_uniformly_pruned_models_load_with_the_stock_loader(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = decoder(family, torch.float32)
    found = units(InMemory(model))
    # Llama's configuration wants hidden_size to be a multiple of the number of heads: keep 2 of 6 heads.
    keeps = [Keep(k.unit, k.indices[:1] if k.unit.kind == "kv_group" else k.indices) for k in some_keeps(found, uniform=True)]
    apply(model, [*keeps, *drop(found, 2)])
    model.save_pretrained(tmp_path)  # pyright: ignore
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    assert torch.equal(logits(loaded.eval()), logits(model))
    assert (loaded.config.intermediate_size, loaded.config.num_attention_heads, loaded.config.num_hidden_layers) == (26, 2, 2)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_a_bias_on_one_linear_loads_with_the_stock_loader(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = decoder(family, torch.float32)
    apply(model, [Replace("model.layers.1.self_attn.o_proj.bias", torch.arange(48.0))])
    assert model.config.attention_bias  # pyright: ignore
    model.save_pretrained(tmp_path)  # pyright: ignore
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    assert torch.equal(logits(loaded.eval()), logits(model))
    assert (logits(model) - logits(decoder(family, torch.float32))).abs().max() > 0.1


def many_edits(model: nn.Module, seed: int) -> list[Edit]:
    """Every kind of edit, in an order where later ones see the shapes and numbers that earlier ones left."""
    found = units(InMemory(model))
    edits: list[Edit] = [*some_keeps(found, seed), *drop(found, seed % 3)]
    after = apply(copy.deepcopy(model), edits)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in after.named_parameters():
        pick = int(torch.randint(0, 4, (), generator=generator))
        if parameter.ndim == 2 and pick == 0:
            edits.append(quantize(name, parameter.detach()))
        elif parameter.ndim == 2 and pick == 1 and "layers" in name:
            edits.append(Replace(name, torch.randn(parameter.shape, generator=generator)))
            u, v = torch.randn(len(parameter), 2, generator=generator), torch.randn(2, parameter.shape[1], generator=generator)
            edits += [Factor(name, u, v), quantize(name, u @ v, bits=3)][: 1 + seed % 2]
        elif name.endswith("down_proj.weight"):
            edits.append(Replace(name.replace("weight", "bias"), torch.randn(len(parameter), generator=generator)))
    again = units(InMemory(apply(copy.deepcopy(model), edits)))
    return [*edits, *some_keeps(again, seed + 1)[:1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "phi3"])
@pytest.mark.parametrize("seed", range(3))
def test_the_lazy_checkpoint_equals_the_applied_model(family: str, seed: int, dtype: torch.dtype) -> None:
    model = decoder(family, dtype)
    edits = many_edits(model, seed)
    lazy = Edited(InMemory(model), edits)
    applied = apply(copy.deepcopy(model), edits)
    direct = InMemory(applied)
    assert lazy.names == direct.names and lazy.tied == direct.tied
    for name in [*lazy.names, *lazy.tied]:
        assert torch.equal(lazy.read(name).to(dtype), direct.read(name)), name
        assert lazy.shape(name) == direct.shape(name)
    assert {k: lazy.config[k] for k in lazy.config if k != "dtype"} == {k: direct.config[k] for k in lazy.config if k != "dtype"}
    rebuilt = fill(lazy.skeleton(), lazy, dtype)
    assert torch.equal(logits(rebuilt), logits(applied))


def test_codes_are_handed_through_only_while_they_are_the_weight() -> None:
    model = decoder("llama", torch.float32)
    found = {unit.name: unit for unit in units(InMemory(model))}
    name = "model.layers.2.mlp.down_proj.weight"
    codes = quantize(name, model.get_parameter(name).detach())
    base = Edited(InMemory(model), [codes])
    moved = Edited(base, drop(list(found.values()), 0)).quantized(name.replace("2", "1"))
    assert moved is not None and moved.name == name.replace("2", "1") and moved.codes is codes.codes
    assert Edited(base, [Keep(found["model.layers.2.mlp"], torch.arange(5))]).quantized(name) is None
    assert base.quantized("model.layers.0.mlp.down_proj.weight") is None


def test_the_fingerprint_follows_every_edit() -> None:
    model = decoder("llama", torch.float32)
    base, name = InMemory(model), "model.norm.weight"
    prints = [
        base.fingerprint(),
        *(Edited(base, [Replace(name, torch.full((48,), value))]).fingerprint() for value in (1.0, 2.0)),
        Edited(base, drop(units(base), 0)).fingerprint(),
        Edited(base, drop(units(base), 1)).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert Edited(base, [Replace(name, torch.full((48,), 2.0))]).fingerprint() == prints[2]


def bad_edits() -> dict[str, list[Edit]]:
    layer = Unit("model.layers.9", "layer", 1, ())
    mlp = Unit("model.layers.0.mlp", "ffn", 40, (Slice("model.layers.0.mlp.up_proj.weight", 0),))
    wide = Unit("model.layers.0.mlp", "ffn", 41, mlp.slices)
    gate = "model.layers.0.mlp.gate_proj.weight"
    return {
        "no such tensor": [Replace("model.layers.0.mlp.nothing.weight", torch.ones(2))],
        "no such block": [Drop(layer)],
        "wrong shape": [Replace(gate, torch.ones(2, 2))],
        "wrong codes": [quantize(gate, torch.ones(3, 3))],
        "wrong factors": [Factor(gate, torch.ones(40, 2), torch.ones(3, 48))],
        "stale unit": [Keep(wide, torch.arange(3))],
        "nothing kept": [Keep(mlp, torch.arange(0))],
        "out of range": [Keep(mlp, torch.tensor([1, 40]))],
        "out of order": [Keep(mlp, torch.tensor([3, 1]))],
        "new weight": [Replace("model.layers.0.input_layernorm.extra", torch.ones(48))],
    }


@pytest.mark.parametrize("case", bad_edits())
@pytest.mark.parametrize("mode", ["slice", "mask"])
def test_a_bad_edit_leaves_the_model_untouched(case: str, mode: str) -> None:
    model = decoder("llama", torch.float32)
    before, config = state(model), model.config.to_dict()  # pyright: ignore
    good: list[Edit] = [*some_keeps(units(InMemory(model)))[2:], Replace("model.norm.weight", torch.zeros(48))]
    with pytest.raises(LessenError):
        apply(model, [*good, *bad_edits()[case]], mode=mode)  # pyright: ignore
    after = state(model)
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert model.config.to_dict() == config  # pyright: ignore


def test_a_number_of_heads_that_stock_loaders_refuse_is_refused_with_the_ones_they_take() -> None:
    model = decoder("llama", hidden_size=40, num_attention_heads=10, num_key_value_heads=5)
    groups = [unit for unit in units(InMemory(model)) if unit.kind == "kv_group"]
    with pytest.raises(LessenError, match=r"6 attention heads with hidden_size 40.*leaves 1 or 2 or 4 key/value heads"):
        apply(model, [Keep(unit, torch.arange(3)) for unit in groups])
    apply(model, [Keep(unit, torch.arange(4)) for unit in groups])
    assert model.config.num_attention_heads == 8  # pyright: ignore


def test_dropping_every_block_is_refused() -> None:
    model = decoder("llama", torch.float32)
    with pytest.raises(LessenError, match="one block at least"):
        apply(model, drop(units(InMemory(model)), 0, 1, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_the_identity(family: str) -> None:
    model = decoder(family, torch.float32)
    before, config = state(model), model.config.to_dict()  # pyright: ignore
    apply(model, [Keep(u, torch.arange(u.size)) for u in units(InMemory(model)) if u.kind in ("ffn", "kv_group")])
    after = state(model)
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert model.config.to_dict() == config  # pyright: ignore


def test_drops_of_two_passes_follow_the_numbers_that_the_first_left() -> None:
    model = decoder("llama", num_hidden_layers=6)
    layers = list(model.model.layers)  # pyright: ignore
    found = units(InMemory(model))
    first = drop(found, 1, 3)  # leaves 0, 2, 4, 5
    again = units(Edited(InMemory(model), first))
    keep = next(k for k in some_keeps(again) if k.unit.name == "model.layers.3.mlp")  # block 5 at first
    edits: list[Edit] = [*first, keep, *drop(again, 1, 2)]
    sliced, masked = apply(copy.deepcopy(model), edits), apply(copy.deepcopy(model), edits, mode="mask")
    torch.testing.assert_close(logits(sliced), logits(masked), rtol=0.0, atol=ROUNDING)
    apply(model, [edit for edit in edits if edit is not keep])
    assert list(model.model.layers) == [layers[0], layers[5]]  # pyright: ignore
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]  # pyright: ignore


def test_tied_weights_stay_tied_and_dtypes_stay() -> None:
    model = decoder("llama", torch.bfloat16)
    table = model.get_parameter("model.embed_tokens.weight")
    apply(model, [quantize("lm_head.weight", table.detach(), 8)])  # named by its alias
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_the_tensor_rule_alone_follows_slices_and_drops() -> None:
    model = decoder("llama", torch.float32)
    found = units(InMemory(model))
    keep = next(k for k in some_keeps(found) if k.unit.kind == "ffn")
    name = keep.unit.slices[-1].name
    weight = model.get_parameter(name).detach()
    assert torch.equal(edited(name, weight, [keep]), weight[:, keep.indices])  # pyright: ignore
    assert edited(name, weight, drop(found, 0)) is None
