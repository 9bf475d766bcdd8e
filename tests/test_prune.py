"""Pruning methods: scores against loops, exact counts, and what FLAP's bias is for."""

import copy
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lessen.core.apply import apply
from lessen.core.edit import Drop, Keep, Replace, load_edits, same, save_edits
from lessen.core.method import Stats
from lessen.core.unit import View
from lessen.errors import LessenError, UsageError
from lessen.methods.budget import keep
from lessen.methods.flap import FLAP
from lessen.methods.influence import BlockInfluence
from lessen.methods.magnitude import Magnitude
from lessen.methods.wanda import Wanda
from lessen.models.edited import Edited
from lessen.models.module import InMemory
from lessen.stats.accumulators import BlockSimilarity, InputMean, InputNorm, InputVariance
from lessen.structure.decoder import units, view, writer
from tests.decoders import decoder, tokens

FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "phi3")
CHANNEL_METHODS = (Magnitude, Wanda, FLAP)


def single(accumulators: dict[type, Any], _: nn.Module, args: tuple[Tensor, ...]) -> None:
    for accumulator in accumulators.values():
        accumulator.update(args[0])


def paired(accumulators: dict[type, Any], _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
    for accumulator in accumulators.values():
        accumulator.update(out, args[0])


def collect(model: nn.Module, views: list[View], needs: tuple[type, ...]) -> list[Stats]:
    """Statistics of the input of each unit's writing linear (or of each block) over the test tokens."""
    collected: list[dict[type, Any]] = []
    hooks = []
    for item in views:
        accumulators = {need: need() for need in needs}
        collected.append(accumulators)
        if item.unit.kind == "layer":
            module = model.get_submodule(item.unit.name)
            hooks.append(module.register_forward_hook(partial(paired, accumulators)))
        else:
            module = model.get_submodule(writer(item.unit).name.removesuffix(".weight"))
            hooks.append(module.register_forward_pre_hook(partial(single, accumulators)))
    with torch.no_grad():
        model(tokens(4, 32))
    for hook in hooks:
        hook.remove()
    return [{need: accumulator.value() for need, accumulator in each.items()} for each in collected]


def situation(model: nn.Module, method: Any) -> tuple[list[View], list[Stats]]:
    checkpoint = InMemory(model)
    views = [view(checkpoint, unit) for unit in units(checkpoint, method.kind)]
    return views, collect(model, views, method.needs)


@pytest.mark.parametrize("kind", ["ffn", "kv_group"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_loops_over_every_weight(family: str, kind: Any) -> None:
    model = decoder(family, torch.float32)
    for method in (Magnitude(unit=kind), Magnitude(unit=kind, power=1), Wanda(unit=kind), FLAP(unit=kind)):
        views, stats = situation(model, method)
        item, stat = views[1], stats[1]
        expected = [0.0] * item.unit.size
        for part in item.unit.slices:
            tensor = item.tensors[part.name].double()
            for c, s in product(range(item.unit.size), range(part.span)):
                index = part.start + c * part.span + s
                line = tensor.select(part.axis, index).reshape(-1)
                if isinstance(method, Magnitude):
                    expected[c] += sum(abs(float(w)) ** method.power for w in line)
                elif part == writer(item.unit) and isinstance(method, Wanda):
                    expected[c] += sum(abs(float(w)) for w in line) * float(stat[InputNorm][index]) ** 0.5
                elif part == writer(item.unit):
                    expected[c] += sum(float(w) ** 2 for w in line) * float(stat[InputVariance][index])
        got = method.score(item) if isinstance(method, Magnitude) else method.score(item, stat)
        # Scores are float32 sums of up to a few thousand terms of one sign.
        torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("across", ["layer", "model"])
@pytest.mark.parametrize("kind", ["ffn", "kv_group"])
@pytest.mark.parametrize("method", CHANNEL_METHODS)
def test_ratio_r_removes_exactly_the_rounded_share(method: Any, kind: Any, across: Any) -> None:
    model = decoder("llama", torch.float32)
    for ratio in (0.0, 0.2, 1 / 3, 0.5, 0.65):
        chosen = method(ratio=ratio, unit=kind, across=across, least=0.1)
        views, stats = situation(model, chosen)
        edits = chosen.decide(views, stats)
        kept = {edit.unit.name: len(edit.indices) for edit in edits if isinstance(edit, Keep)}
        widths = [kept.get(item.unit.name, item.unit.size) for item in views]
        sizes = [item.unit.size for item in views]
        if across == "layer":
            assert widths == [size - int(ratio * size + 0.5) for size in sizes]
        else:
            # Three groups to a layer: one must stay in each, so only what is left of the share can go.
            assert sum(widths) == max(sum(sizes) - int(ratio * sum(sizes) + 0.5), len(sizes))
        assert bool(edits) == (widths != sizes)


@pytest.mark.parametrize("method", [*CHANNEL_METHODS, BlockInfluence])
@pytest.mark.parametrize("family", FAMILIES)
def test_decisions_are_repeatable_saved_whole_and_change_no_model(method: Any, family: str, tmp_path: Path) -> None:
    model = decoder(family, torch.bfloat16)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    chosen = method(ratio=0.4)
    views, stats = situation(model, chosen)
    edits = chosen.decide(views, stats)
    assert edits and all(same(a, b) for a, b in zip(edits, chosen.decide(views, stats), strict=True))
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    save_edits(tmp_path / "edits", edits)
    assert all(same(a, b) for a, b in zip(edits, load_edits(tmp_path / "edits"), strict=True))
    with torch.no_grad():
        smaller = apply(copy.deepcopy(model), edits)
        assert torch.isfinite(smaller(tokens()).logits).all()
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


def writer_output(model: nn.Module, name: str, x: Tensor) -> Tensor:
    outputs: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, __, out: outputs.append(out))  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        model(x)
    hook.remove()
    return outputs[0]


@pytest.mark.parametrize("kind", ["ffn", "kv_group"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_bias_lowers_the_error_to_the_fluctuation_alone(family: str, kind: Any) -> None:
    model = decoder(family)
    x = tokens(4, 32)
    views, stats = situation(model, FLAP(unit=kind))
    item, stat = views[0], stats[0]
    name = writer(item.unit).name.removesuffix(".weight")
    full = writer_output(model, name, x)
    errors = {}
    for bias in (True, False):
        edits = FLAP(ratio=0.4, unit=kind, bias=bias).decide([item], [stat])
        errors[bias] = float((writer_output(apply(copy.deepcopy(model), edits), name, x) - full).square().mean())
    assert errors[True] < errors[False]
    # What is left has mean zero, feature by feature: no constant could lower it further. Statistics pass through float32 weights.
    left = writer_output(apply(copy.deepcopy(model), FLAP(ratio=0.4, unit=kind).decide([item], [stat])), name, x) - full
    assert left.mean((0, 1)).abs().max() < 1e-4 * full.abs().max()


def test_a_bias_that_is_there_is_added_to() -> None:
    model = decoder("llama", mlp_bias=True)
    method = FLAP(ratio=0.5)
    views, stats = situation(model, method)
    first = next(edit for edit in method.decide(views, stats) if isinstance(edit, Replace))
    keep_first = next(edit for edit in method.decide(views, stats) if isinstance(edit, Keep))
    gone = [c for c in range(views[0].unit.size) if c not in set(keep_first.indices.tolist())]
    weight = model.get_parameter("model.layers.0.mlp.down_proj.weight").detach()
    expected = model.get_parameter(first.name).detach() + weight[:, gone] @ stats[0][InputMean][gone]
    torch.testing.assert_close(first.weight.double(), expected, rtol=1e-5, atol=1e-5)  # stored in float32


def test_flap_prunes_constant_features_first_and_wanda_keeps_them() -> None:
    model = decoder("llama", torch.float32)
    views, _ = situation(model, FLAP())
    item = views[0]
    size = item.unit.size
    stat = {
        InputVariance: torch.ones(size).index_fill(0, torch.tensor([3, 5]), 0.0),
        InputMean: torch.ones(size).index_fill(0, torch.tensor([3, 5]), 50.0),
        InputNorm: torch.ones(size).index_fill(0, torch.tensor([3, 5]), 2500.0),
    }
    lost = {}
    for method in (FLAP(ratio=2 / size), Wanda(ratio=2 / size)):
        edit = next(edit for edit in method.decide([item], [stat]) if isinstance(edit, Keep))
        lost[type(method)] = set(range(size)) - set(edit.indices.tolist())
    assert lost[FLAP] == {3, 5} and not lost[Wanda] & {3, 5}


def test_the_block_that_does_least_is_dropped_and_equals_the_skipped_one() -> None:
    model = decoder("llama")
    with torch.no_grad():
        for name, parameter in model.model.layers[1].named_parameters():  # pyright: ignore
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1e-3)
    method = BlockInfluence(ratio=1 / 3)
    views, stats = situation(model, method)
    influence = [float(method.score(item, stat)) for item, stat in zip(views, stats, strict=True)]
    edits = method.decide(views, stats)
    assert min(influence) == influence[1] and [edit.unit.name for edit in edits if isinstance(edit, Drop)] == ["model.layers.1"]
    x = tokens()
    with torch.no_grad():
        block = model.model.layers[1]  # pyright: ignore
        skip = block.register_forward_hook(lambda _, args, __: args[0])  # pyright: ignore
        expected = model(x).logits
        skip.remove()
        assert torch.equal(apply(model, edits)(x).logits, expected)


def test_influence_is_one_minus_the_mean_cosine() -> None:
    model = decoder("qwen2")
    method = BlockInfluence()
    views, stats = situation(model, method)
    with torch.no_grad():
        states = model(tokens(4, 32), output_hidden_states=True).hidden_states
    # The last hidden state is after the final norm, so the last block is left out.
    for layer in range(2):
        a, b = states[layer].reshape(-1, 48), states[layer + 1].reshape(-1, 48)
        cosines = [float(x @ y / (x.norm() * y.norm())) for x, y in zip(a, b, strict=True)]
        assert abs(float(method.score(views[layer], stats[layer])) - (1 - sum(cosines) / len(cosines))) < 1e-12  # float64 sums


def test_prune_flap_then_load_with_the_stock_loader(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = decoder("llama", torch.float32)
    for method in (FLAP(ratio=0.25, multiple=8), FLAP(ratio=0.6, unit="kv_group"), BlockInfluence(ratio=0.3)):
        views, stats = situation(model, method)
        edits = method.decide(views, stats)
        lazy = Edited(InMemory(model), edits)
        apply(model, edits)
        assert lazy.names == InMemory(model).names
    model.save_pretrained(tmp_path)  # pyright: ignore
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert (loaded.config.intermediate_size, loaded.config.num_attention_heads, loaded.config.num_hidden_layers) == (32, 2, 2)


scores = st.lists(st.lists(st.floats(-10, 10, width=16), min_size=1, max_size=24), min_size=1, max_size=4)


@settings(deadline=None, max_examples=100)
@given(scores, st.floats(0, 0.95), st.integers(1, 8))
def test_selection_laws(lists: list[list[float]], ratio: float, multiple: int) -> None:
    given_scores = [torch.tensor(one) for one in lists]
    chosen = keep(given_scores, ratio, multiple)
    again = keep(given_scores, ratio, multiple)
    for score, stay, same_stay in zip(given_scores, chosen, again, strict=True):
        assert torch.equal(stay, same_stay) and len(stay) >= 1
        assert (stay.diff() > 0).all()
        assert len(stay) == len(score) or len(stay) % multiple == 0
        gone = torch.ones(len(score), dtype=torch.bool)
        gone[stay] = False
        assert not gone.any() or score[gone].max() <= score[stay].min()
    total, left = sum(map(len, lists)), sum(map(len, chosen))
    target = int(ratio * total + 0.5)
    if multiple == 1:
        assert total - left == min(target, total - len(lists))
        pairs = list(zip(given_scores, chosen, strict=True))
        cut = [float(v) for score, stay in pairs for i, v in enumerate(score) if i not in stay.tolist()]
        spare = [float(v) for score, stay in pairs if len(stay) > 1 for v in score[stay]]
        assert not cut or not spare or max(cut) <= min(spare)
    else:
        assert total - left <= target + multiple / 2


def test_ties_and_ratio_zero_are_settled_by_order() -> None:
    assert [stay.tolist() for stay in keep([torch.ones(3), torch.ones(3)], 0.5)] == [[2], [1, 2]]
    assert [stay.tolist() for stay in keep([torch.ones(3)], 0.0, multiple=2)] == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"ratio": -0.1}, "ratio=-0.1"),
        ({"unit": "head"}, "unit='head'"),
        ({"across": "world"}, "across='world'"),
        ({"multiple": 0}, "multiple=0"),
        ({"least": 2.0}, "least=2.0"),
        ({"ratio": 0.8, "across": "model", "least": 0.5}, "a sum of 1 at most"),
    ],
)
@pytest.mark.parametrize("method", CHANNEL_METHODS)
def test_options_that_make_no_sense_are_refused(method: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        method(**options)


def test_nan_scores_are_refused_by_name() -> None:
    model = decoder("llama", torch.float32)
    views, stats = situation(model, Wanda())
    stats[1] = {InputNorm: torch.full((40,), float("nan"))}
    with pytest.raises(LessenError, match=r"model.layers.1.mlp: got 40 NaN scores of 40"):
        Wanda().decide(views, stats)


def test_needs_are_what_is_read() -> None:
    assert Magnitude().needs == () and Wanda().needs == (InputNorm,) and BlockInfluence().needs == (BlockSimilarity,)
    assert FLAP().needs == (InputVariance, InputMean) and FLAP(bias=False).needs == (InputVariance,)
