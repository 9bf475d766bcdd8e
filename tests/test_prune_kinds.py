"""Everything that can be removed is removed by one call: each kind of unit, named, listed, frozen; and each cut is the mask's."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lessen
from lessen.core.edit import Drop, Keep, Resize
from lessen.errors import LessenError, UsageError
from lessen.methods import RTN, BlockInfluence, BNScale, Magnitude, Wanda
from lessen.models.inputs import example_inputs
from lessen.structure.check import check

pytest.importorskip("transformers")

from tests.decoders import decoder, tokens
from tests.directories import tiny


class Net(nn.Module):
    """A stem with a norm, a convolution without one, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.PReLU(12)
        self.bare, self.slopes = nn.Conv2d(12, 20, 3, padding=1), nn.PReLU(20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slopes(self.bare(self.act(self.norm(self.stem(x)))))
        return self.head(x.mean((2, 3)))


def net() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net().eval()
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

CUTS = [
    *[("vit", kind, Magnitude(ratio=0.25)) for kind in ("channels", "heads", "head_dim", "width")],
    *[("llama", kind, Magnitude(ratio=0.25)) for kind in ("ffn", "kv_group", "head_dim", "width")],
    *[("mixtral", kind, Magnitude(ratio=0.25)) for kind in ("experts", "head_dim")],
    *[("t5", kind, Magnitude(ratio=0.25)) for kind in ("head_dim", "width")],
]


@pytest.mark.parametrize(("name", "kind", "method"), CUTS, ids=lambda value: value if isinstance(value, str) else "")
def test_each_kind_is_removed_by_one_call_and_equals_its_mask(name: str, kind: str, method: Any):
    model = tiny(name)
    example = example_inputs(model)
    pruned = lessen.prune(model, example, method=method, kinds=[kind], prove=False)
    assert pruned.kept and {unit.kind for unit in pruned.structure} == {"channels" if kind == "ffn" else kind}
    assert 0.5 < pruned.after["parameters"] / pruned.before["parameters"] < 0.98
    check(model, pruned.edits, example)
    with torch.no_grad():
        assert torch.isfinite(pruned.model(**example)[0]).all()


def test_convolutions_lose_channels():
    model = net()
    pruned = lessen.prune(model, X, method=Magnitude(ratio=0.5), kinds=["channels"], prove=True)
    smaller: Any = pruned.model
    assert (smaller.stem.out_channels, smaller.bare.out_channels) == (6, 10)


@pytest.mark.parametrize("name", ["vit", "llama", "llava", "mixtral"])
def test_whole_layers_go_and_every_stack_keeps_one(name: str):
    model = tiny(name)
    example = example_inputs(model)
    # LLaVA reads a layer of its vision tower by number.
    freeze = ["model.vision_tower"] if name == "llava" else []
    pruned = lessen.prune(model, example, [example], method=BlockInfluence(ratio=0.5), freeze=freeze, prove=True)
    drops = [edit.unit.name for edit in pruned.edits if isinstance(edit, Drop)]
    assert drops and pruned.after["parameters"] < pruned.before["parameters"]
    assert len({drop.rpartition(".")[0] for drop in drops}) == len(drops)  # two blocks to a stack: one of each at most


def test_rows_of_a_vocabulary_go_by_any_score():
    model = tiny("llama")
    example = example_inputs(model)
    pruned = lessen.prune(model, example, method=Magnitude(ratio=0.5), kinds=["vocab"])
    (kept,) = pruned.kept.values()
    assert len(kept) == 30 and pruned.model.get_input_embeddings().weight.shape == (30, 16)  # pyright: ignore[reportCallIssue]
    ids = torch.arange(8)[None]
    with torch.no_grad():
        wanted = model(kept[ids]).logits[..., kept]
        # float32 products of another shape sum in another order
        torch.testing.assert_close(pruned.model(ids).logits, wanted, rtol=1e-4, atol=1e-5)


def test_kinds_that_cut_the_same_tensors_take_turns():
    model = tiny("vit")
    example = example_inputs(model)
    both: Any = lessen.prune(model, example, method=Magnitude(ratio=0.25), kinds=["head_dim", "heads"], prove=True)
    assert {unit.kind for unit in both.structure} == {"head_dim", "heads"} and len(both.records) == 4
    attention = both.model.vit.layers[0].attention
    assert attention.q_proj.weight.shape == (9, 16)  # three heads of three features, of four by four
    with torch.no_grad():
        torch.testing.assert_close(lessen.apply(copy.deepcopy(model), both.edits)(**example)[0], both.model(**example)[0])
        check(model, both.edits, example)
    first = lessen.prune(model, example, method=Magnitude(), to="5%", kinds=["head_dim", "heads"])
    assert {unit.kind for unit in first.structure} == {"head_dim"}
    assert any("Units of kind heads are left whole: others cut the same tensors; prune again" in note for note in first.notes)


def test_listed_units_that_cut_the_same_tensors_are_refused():
    model = tiny("vit")
    example = example_inputs(model)
    units = [unit for unit in lessen.trace(model, example).units if unit.kind in ("heads", "head_dim")]
    with pytest.raises(UsageError, match="units that share no indices"):
        lessen.prune(model, example, method=Magnitude(), units=units)


@pytest.mark.parametrize(("name", "kind"), [("t5", "heads"), ("bert", "head_dim")])
def test_listed_units_take_the_numbers_of_their_modules_along(name: str, kind: str):
    model = tiny(name)
    example = example_inputs(model)
    units = [unit for unit in lessen.trace(model, example).units if unit.kind == kind]
    listed = lessen.prune(model, example, method=Magnitude(ratio=0.5), units=units)
    named = lessen.prune(model, example, method=Magnitude(ratio=0.5), kinds=[kind])
    assert any(isinstance(edit, Resize) for edit in listed.edits)
    with torch.no_grad():
        assert torch.equal(listed.model(**example)[0], named.model(**example)[0])


def test_listed_units_of_a_frozen_trace_are_known_again_and_those_of_another_model_are_not():
    model = tiny("vit")
    example = example_inputs(model)
    frozen = lessen.trace(model, example, freeze=["vit.layers.0"])
    units = [unit for unit in frozen.units if unit.kind == "channels"]
    assert len(lessen.prune(model, example, method=Magnitude(ratio=0.5), units=units, rounds=1).kept) == 1
    with pytest.raises(UsageError, match="no unit of this model"):
        lessen.prune(net(), X, method=Magnitude(), units=units)


def test_layers_in_a_list_are_left_by_methods_for_channels_and_the_other_way_round():
    model = tiny("llama")
    example = example_inputs(model)
    units = [unit for unit in lessen.trace(model, example).units if unit.kind in ("layer", "channels")]
    narrow = lessen.prune(model, example, method=Magnitude(ratio=0.5), units=units)
    assert not any(isinstance(edit, Drop) for edit in narrow.edits)
    assert "2 whole layers are left as they are: BlockInfluence drops layers." in narrow.notes
    short = lessen.prune(model, example, [example], method=BlockInfluence(ratio=0.5), units=units)
    assert not any(isinstance(edit, Keep) for edit in short.edits) and any("units inside layers are left" in note for note in short.notes)
    with pytest.raises(UsageError, match=r"got layers, wanted a method that drops them; method=BlockInfluence\(ratio=0.25\)"):
        lessen.prune(model, example, method=Magnitude(), kinds=["layer"])


@pytest.mark.parametrize("freeze", [["vit.layers.0"], ["vit.layers.0.*"], ["*.0.mlp*", "*.0.attention*"]])
def test_what_is_frozen_stays_whole(freeze: list[str]):
    model = tiny("vit")
    example = example_inputs(model)
    given = [None, lessen.trace(model, example)]
    for units in given:
        pruned = lessen.prune(model, example, method=Magnitude(ratio=0.25), freeze=freeze, units=units)
        after = dict(pruned.model.named_parameters())
        same = {name: after[name].shape == p.shape for name, p in model.named_parameters()}
        assert all(fine for name, fine in same.items() if ".layers.0." in name) and not all(same.values())
    again = lessen.prune(model, example, method=Magnitude(), freeze=freeze, to="10%", rounds=2)
    assert all(".layers.0." not in part.name for unit in again.structure for part in unit.slices)


def test_a_frozen_layer_is_not_dropped():
    model = decoder("llama", torch.float32, num_hidden_layers=3)
    pruned = lessen.prune(model, tokens(2, 12), [tokens(2, 12)], method=BlockInfluence(ratio=0.5), freeze=["model.layers.1.mlp"])
    assert [edit.unit.name for edit in pruned.edits if isinstance(edit, Drop)] in (["model.layers.0"], ["model.layers.2"])
    model = decoder("llama", torch.float32, num_hidden_layers=3)
    rest = lessen.prune(model, tokens(2, 12), [tokens(2, 12)], method=BlockInfluence(ratio=0.5), freeze=["model.layers.[02].*"])
    assert not rest.edits and any("Nothing was removed" in note for note in rest.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ["steem"]}, r"freeze: got 'steem', wanted .*; did you mean stem\?"),
        ({"kinds": ["chanels"]}, r"kinds: got 'chanels', .* did you mean channels\?"),
        ({"kinds": ["heads"]}, "no unit of kind heads that it could prune"),
        ({"method": "Magnitud"}, r"did you mean Magnitude\?"),
        ({"method": "Magnitude(powr=1)"}, r"did you mean power\?"),
        ({"method": Magnitude}, r"the class Magnitude, wanted one of it; Magnitude\(\)"),
        ({"method": RTN()}, "RTN, which removes nothing"),
        ({"method": 3}, "int, which removes nothing"),
    ],
)
def test_slips_are_told_with_the_nearest_name(options: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        lessen.prune(net(), X, **{"method": Magnitude(), **options})


def test_methods_may_be_spelt():
    spelt = lessen.prune(net(), X, method="Magnitude(ratio=0.5, power=1)", prove=False)
    made = lessen.prune(net(), X, method=Magnitude(ratio=0.5, power=1), prove=False)
    assert all(torch.equal(kept, made.kept[name]) for name, kept in spelt.kept.items())


def test_gains_of_norms_decide_and_units_without_one_are_left_whole_and_told():
    model = net()
    with torch.no_grad():
        model.norm.weight[:6] = 1e-4
    pruned = lessen.prune(model, X, method=BNScale(ratio=0.5))
    assert [kept.tolist() for kept in pruned.kept.values()] == [[6, 7, 8, 9, 10, 11]]
    smaller: Any = pruned.model
    assert smaller.bare.out_channels == 20  # slopes of an activation are no gains
    assert any("left whole" in note and "no normalisation scales their channels" in note for note in pruned.notes)


@pytest.mark.parametrize(
    ("options", "note"), [({"to": "0%"}, "Nothing was asked to go"), ({"method": Magnitude(ratio=0.01)}, "Nothing was removed")]
)
def test_a_budget_that_takes_nothing_says_so(options: dict[str, Any], note: str):
    pruned = lessen.prune(net(), X, **{"method": Magnitude(), **options})
    assert pruned.before["parameters"] == pruned.after["parameters"] and any(note in text for text in pruned.notes)


def test_the_way_of_computing_experts_is_as_it_was():
    model = tiny("mixtral")
    before = model.config._experts_implementation
    pruned: Any = lessen.prune(model, example_inputs(model), method=Magnitude(ratio=0.25), kinds=["experts"])
    assert model.config._experts_implementation == pruned.model.config._experts_implementation == before
    assert before != "eager"  # else this would show nothing
    with torch.no_grad():
        assert torch.isfinite(pruned.model(**example_inputs(model)).logits).all()


def test_statistics_of_inputs_need_no_labels():
    model = tiny("vit")
    batch = example_inputs(model)
    plain = lessen.prune(model, batch, [batch], method=Wanda(ratio=0.25))
    labelled = lessen.prune(model, batch, [{**batch, "labels": torch.tensor([0, 1])}], method=Wanda(ratio=0.25))
    assert plain.kept.keys() == labelled.kept.keys() and all(torch.equal(k, labelled.kept[n]) for n, k in plain.kept.items())


@pytest.mark.parametrize("edits", [[1], ["drop it"], [None], [Magnitude()]])
def test_what_is_no_edit_is_refused(edits: list[Any]):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LessenError, match="wanted edits"):
        lessen.apply(model, edits)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_structure_with_chosen_units_is_a_choice():
    model = tiny("vit")
    example = example_inputs(model)
    structure = lessen.trace(model, example)
    some = replace(structure, units=tuple(unit for unit in structure.units if unit.kind == "channels"))
    assert {unit.kind for unit in lessen.prune(model, example, method=Magnitude(ratio=0.25), units=some).structure} == {"channels"}
