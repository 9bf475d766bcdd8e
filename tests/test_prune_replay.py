"""A plan is for the model that it was made on: on another architecture of the same names it is refused, and the model stays as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lessen
from lessen.core.edit import Drop, Edit, Keep, load_edits, save_edits
from lessen.core.unit import Slice, Unit
from lessen.errors import LessenError
from lessen.methods import BlockInfluence, Magnitude
from lessen.models.module import InMemory
from lessen.structure.decoder import units

pytest.importorskip("transformers")

from tests.decoders import decoder, tokens

X = torch.zeros(1, 4)


def mlp(width: int) -> Any:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)).eval()


def refused(model: nn.Module, edits: Any, message: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for mode in ("slice", "mask"):
        with pytest.raises(LessenError, match=message):
            lessen.apply(model, edits, mode=mode)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("width", [6, 16])
@pytest.mark.parametrize("stored", [False, True])
def test_a_model_of_other_widths_is_refused(width: int, stored: bool, tmp_path: Path):
    edits: Any = lessen.prune(mlp(8), X, method=Magnitude(ratio=0.5)).edits
    if stored:
        save_edits(tmp_path / "edits.safetensors", edits)
        edits = load_edits(tmp_path / "edits.safetensors")
    refused(mlp(width), edits, rf"0.weight: got shape \({width}, 4\), wanted 8 indices on axis 0, .*; plan again on this model")
    right: Any = lessen.apply(mlp(8), edits)
    assert right[0].out_features == 4


@pytest.mark.parametrize("sizes", [{"intermediate_size": 64}, {"num_key_value_heads": 6}])
def test_declared_units_know_their_model_too(sizes: Any):
    kind = "ffn" if "intermediate_size" in sizes else "kv_group"
    keeps = [Keep(unit, torch.arange(2)) for unit in units(InMemory(decoder("llama")), kind)]
    refused(decoder("llama", **sizes), keeps, "as in the model that .* was found in; plan again")
    lessen.apply(decoder("llama"), keeps)


def test_a_deeper_model_is_refused():
    model = decoder("llama", torch.float32, num_hidden_layers=3)
    traced = lessen.prune(model, tokens(), [tokens()], method=BlockInfluence(ratio=0.7)).edits
    declared = [Drop(unit) for unit in reversed(units(InMemory(model), "layer")[1:])]
    for edits in (traced, declared):
        assert len(edits) == 2
        refused(decoder("llama", num_hidden_layers=4), edits, "model.layers: got 4 blocks, wanted 3, as in the model that was planned for")
        short: Any = lessen.apply(decoder("llama", num_hidden_layers=3), edits)
        assert len(short.model.layers) == 1


def test_layers_that_do_not_exist_are_named():
    keeps = [Keep(unit, torch.arange(2)) for unit in units(InMemory(decoder("llama")), "ffn")]
    refused(
        decoder("llama", num_hidden_layers=2), keeps, "model.layers.2.mlp.gate_proj.weight: got a Keep edit, wanted the name of a tensor"
    )


def test_what_a_second_plan_cuts_is_cut_after_the_first():
    model = mlp(8)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([5.0, 1, 6, 2, 7, 3, 8, 4])[:, None].expand(8, 4))
    once = lessen.prune(model, X, method=Magnitude(ratio=0.5))
    twice = lessen.prune(once.model, X, method=Magnitude(ratio=0.5))
    both: list[Edit] = [*once.edits, *twice.edits]
    replayed: Any = lessen.apply(mlp(8), both)
    assert replayed[0].weight.shape == (2, 4)
    lessen.apply(model, both)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twice.model.parameters(), strict=True))


def test_units_made_by_hand_need_no_lengths():
    unit = Unit("mlp", "channels", 4, (Slice("0.weight", 0), Slice("0.bias", 0), Slice("2.weight", 1)), complete=True)
    cut: Any = lessen.apply(mlp(8), [Keep(unit, torch.arange(2))])
    assert cut[0].out_features == 6
