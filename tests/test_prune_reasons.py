"""What `trace` lists `prune` can cut; where there is nothing to prune, or less than was asked for, the reason is told."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lessen
from lessen.core.edit import Resize
from lessen.errors import UsageError
from lessen.methods import BlockInfluence, Magnitude
from lessen.models.inputs import example_inputs

pytest.importorskip("transformers")

from tests.directories import tiny

X = torch.zeros(1, 4)
TOKENS = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


def mlp(width: int = 8) -> Any:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)).eval()


def encoder() -> Any:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.Sequential(nn.Linear(4, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)).eval()


def wants(message: str, model: nn.Module, example: Any, **options: Any) -> None:
    with pytest.raises(UsageError, match=message):
        lessen.prune(model, example, **{"method": Magnitude(ratio=0.25), **options})


@pytest.mark.parametrize("name", ["llava", "bert", "detr", "encoder"])
def test_prune_cuts_every_kind_that_trace_lists(name: str):
    model = encoder() if name == "encoder" else tiny(name)
    example = TOKENS if name == "encoder" else example_inputs(model)
    kinds = {unit.kind for unit in lessen.trace(model, example).units} - {"layer"}
    assert len(kinds) > 1
    for kind in kinds:
        assert lessen.prune(model, example, method=Magnitude(ratio=0.25), kinds=[kind], prove=False).kept


def test_what_the_code_cannot_say_is_listed_as_held_with_its_reason():
    structure = lessen.trace(encoder(), TOKENS)
    (width,) = structure.stuck
    assert width.kind == "width" and "held: width, since 1.layers.0.self_attn: arithmetic with the value 4 of a size" in str(structure)
    wants(
        "no unit of kind width .*held: width, since 1.layers.0.self_attn: arithmetic .*units of kind heads",
        encoder(),
        TOKENS,
        kinds=["width"],
    )
    both = lessen.prune(encoder(), TOKENS, method=Magnitude(ratio=0.25), kinds=["channels", "width"])
    assert any("1 unit left whole (width), as the code cannot say it: 1.layers.0.self_attn: arithmetic" in note for note in both.notes)


def test_the_language_width_of_a_vision_language_model_is_a_unit():
    model = tiny("llava")
    example = example_inputs(model)
    widths = [unit for unit in lessen.trace(model, example).units if unit.kind == "width"]
    assert any(part.name == "lm_head.weight" for unit in widths for part in unit.slices) and len(widths) == 2
    made: Any = lessen.prune(model, example, method=Magnitude(ratio=0.25), kinds=["width"], prove=True)
    assert made.model.lm_head.in_features == 12 and made.model.model.vision_tower.encoder.layers[0].mlp.fc1.in_features == 12


def test_heads_of_multi_head_attention_say_that_the_width_goes_along():
    structure = lessen.trace(encoder(), TOKENS)
    heads = next(unit for unit in structure.units if unit.kind == "heads")
    assert "and with them the width: nn.MultiheadAttention wants heads times features of a head to be its embed_dim" in heads.reason
    made: Any = lessen.prune(encoder(), TOKENS, method=Magnitude(ratio=0.5), kinds=["heads"], prove=True)
    attention = made.model[1].layers[0].self_attn
    assert (attention.num_heads, attention.embed_dim, attention.head_dim) == (2, 8, 4) and made.model[0].out_features == 8
    assert any("take their part of the width with them" in note for note in made.notes)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    wants("since inputs are what the caller passes, and nn.MultiheadAttention wants", layer, torch.randn(2, 5, 16), kinds=["heads"])


@pytest.mark.parametrize("units", [None, "traced"])
def test_where_all_is_frozen_that_is_the_reason(units: str | None):
    given = lessen.trace(mlp(), X) if units else None
    message = r"everything that it could prune is frozen by freeze=\['0', '2'\], wanted one unit at least that is not; freeze less"
    wants(message, mlp(), X, freeze=["0", "2"], units=given)


class Straight(nn.Module):
    """Nothing inside: the input is what the output is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (None, "wanted one at least; held: one.weight"),
        (["channels"], "no unit of kind channels .* held: one.weight.0., since outputs are what the caller gets"),
        (["experts"], "no router with a pack of experts was seen"),
        (["heads"], "no attention over several heads was seen"),
        (["vocab"], "no table is looked up by what the caller passes"),
    ],
)
def test_where_nothing_can_go_the_reason_is_told(kinds: list[str] | None, message: str):
    wants(message, Straight().eval(), X, kinds=kinds)


def test_the_structure_or_units_of_another_model_are_refused():
    other = lessen.trace(mlp(16), X)
    message = r"units: got the structure of another model, in which 0.weight is \(16, 4\); here it is \(8, 4\)"
    wants(message, mlp(), X, units=other)
    wants(r"in which 0.weight is \(8, 4\); here it is missing", Straight(), X, units=lessen.trace(mlp(), X))
    wants("which is no unit of this model", mlp(), X, units=list(other.units))
    declared = [replace(unit, complete=False) for unit in other.units]
    wants(r"units: 0: got 0.weight of shape \(8, 4\), wanted 16 indices on its axis 0", mlp(), X, units=declared)
    wants(r"units: 0: got no tensor 0.weight", Straight(), X, units=declared)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "20%", "rounds": 0}, "got rounds=0, wanted 1 or more"),
        ({"rounds": 2}, "rounds=2: got a ratio of the method's own, wanted a budget .*; say to='20%'"),
        ({"method": BlockInfluence(ratio=0.5), "rounds": 2}, "rounds=2 with BlockInfluence, which drops whole layers by its own ratio"),
        ({"method": BlockInfluence(ratio=0.5), "to": "20%"}, "to='20%' with BlockInfluence, wanted its ratio: it drops whole layers"),
        ({"to": "100%"}, "to: got '100%', wanted less than 100%, as something must stay"),
        ({"to": "1.5x macs"}, "to: got '1.5x macs', wanted a share that stays, above 0x and at most 1x"),
        ({"method": "Magnitude(ratio='20%')"}, "20%"),
    ],
)
def test_what_makes_no_sense_is_told_before_any_work(options: dict[str, Any], message: str):
    model = tiny("llama")
    wants(message, model, example_inputs(model), **options)


def test_a_share_in_percent_gets_the_fraction_as_its_remedy():
    with pytest.raises(UsageError, match=r"Magnitude: got ratio='20%', wanted float; write ratio=0.2$"):
        Magnitude(ratio="20%")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=r"wanted float$"):
        Magnitude(ratio="100%")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("ratio", "told"), [(0.3, True), (0.5, False)])
def test_whole_groups_that_miss_the_ratio_are_told(ratio: float, told: bool):
    model = tiny("llama")
    made = lessen.prune(model, example_inputs(model), method=Magnitude(ratio=ratio), kinds=["kv_group"], prove=False)
    note = f"Asked for {ratio:.0%} of all that units of kind kv_group have, 50% went: none is divided, and the smallest unit has 2."
    assert (note in made.notes) is told and made.records[0].reason == "1 of 2 key/value groups removed"


def test_queries_of_a_group_are_called_so():
    model = tiny("llama")
    made: Any = lessen.prune(model, example_inputs(model), method=Magnitude(ratio=0.5), kinds=["heads"], prove=False)
    assert made.records[0].reason == "1 of 2 heads of every key/value group removed"
    attention = made.model.model.layers[0].self_attn
    assert (attention.q_proj.out_features, attention.k_proj.out_features) == (8, 8)
    plain = lessen.prune(tiny("vit"), example_inputs(tiny("vit")), method=Magnitude(ratio=0.5), kinds=["heads"], prove=False)
    assert plain.records[0].reason == "2 of 4 heads removed"


def test_numbers_that_two_plans_change_are_changed_twice():
    model, example = encoder(), TOKENS
    once: Any = lessen.prune(model, example, method=Magnitude(ratio=0.25), kinds=["heads"], prove=False)
    twice: Any = lessen.prune(once.model, example, method=Magnitude(ratio=0.34), kinds=["heads"], prove=False)
    names = [edit.name for made in (once, twice) for edit in made.edits if isinstance(edit, Resize)]
    assert len(names) > len(set(names))
    with torch.no_grad():
        assert torch.equal(lessen.apply(model, [*once.edits, *twice.edits])(example), twice.model(example))
