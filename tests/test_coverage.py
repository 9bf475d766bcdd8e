"""The benchmark of pruning: its judge, its zoo, its processes; and pruned models of any kind on disk."""

import copy
import json
import time
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import prune_coverage
from benchmarks.zoo.cnn import ZOO
from benchmarks.zoo.judge import Wrong, indices, judge
from benchmarks.zoo.pool import forked
from lessen.core.apply import apply
from lessen.core.edit import Keep
from lessen.core.unit import Slice, Unit
from lessen.errors import LessenError, UsageError
from lessen.models import load
from lessen.models.pruned import save

UNIT = Unit("0", "channels", 8, (Slice("0.weight", 0), Slice("0.bias", 0), Slice("2.weight", 1)), complete=True)


def mlp() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double().eval()


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_judge_accepts_a_right_cut(inputs):
    smaller: Any = apply(mlp(), [Keep(UNIT, torch.arange(2, 8))])
    found = judge(mlp(), smaller, inputs)
    assert found["removed"] == round(1 - 44 / 58, 3) and found["difference"] < 1e-9


def test_the_judge_refuses_changed_values_wrong_pairs_and_stale_attributes(inputs):
    smaller: Any = apply(mlp(), [Keep(UNIT, torch.arange(2, 8))])
    changed = copy.deepcopy(smaller)
    changed[0].bias.data += 1
    with pytest.raises(Wrong, match=r"values of 0\.bias changed"):
        judge(mlp(), changed, inputs)
    paired = copy.deepcopy(smaller)
    paired[2].weight.data = mlp()[2].weight.data[:, :6]
    with pytest.raises(Wrong, match="differs from the masked model") as wrong:
        judge(mlp(), paired, inputs)
    assert wrong.value.silent
    stale = copy.deepcopy(smaller)
    stale[0].out_features = 8
    with pytest.raises(Wrong, match="attributes"):
        judge(mlp(), stale, inputs)
    with pytest.raises(Wrong, match=r"only 0\.0%"):
        judge(mlp(), mlp(), inputs)


def test_the_judge_sees_weights_that_are_no_longer_tied():
    layers = [nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Linear(8, 2)]
    tied: Any = nn.Sequential(*layers).double()
    tied[4].weight = tied[2].weight
    smaller: Any = copy.deepcopy(tied)
    smaller[4].weight = nn.Parameter(tied[2].weight.detach().clone())
    unit = Unit("0", "channels", 8, (Slice("0.weight", 0), Slice("0.bias", 0), Slice("2.weight", 1)), complete=True)
    apply(smaller, [Keep(unit, torch.arange(4, 8))])
    with pytest.raises(Wrong, match=r"right, but 2\.weight and 4\.weight are no longer tied"):
        judge(tied, smaller, torch.randn(3, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def test_what_is_kept_is_found_by_value():
    whole = torch.arange(24.0).view(4, 6)
    rows, columns = indices(whole, whole[[0, 3]][:, [1, 2, 5]], "w")
    assert (rows.tolist(), columns.tolist()) == ([0, 3], [1, 2, 5])
    with pytest.raises(Wrong, match="no selection"):
        indices(whole, torch.tensor([[0.0, 1.0], [6.0, 8.0]]), "w")


def test_a_job_that_crashes_hangs_or_fails_costs_one_row():
    assert forked(lambda: {"value": 1}, 5) == {"value": 1}
    assert "ZeroDivisionError" in forked(lambda: {"value": 1 // 0}, 5)["error"]
    assert "TimeOut" in forked(lambda: time.sleep(30) or {}, 0.2)["error"]


@pytest.mark.parametrize("name", ["resnext", "shufflenet_v1", "lstm", "transformer_encoder"])
def test_networks_of_the_zoo_are_cut_rightly(name):
    model, example = prune_coverage._own(name)
    row = prune_coverage._verdict(lambda: prune_coverage._lessen(f"cnn/{name}", model, example), model, example)
    assert row["verdict"] == "right", row


def test_every_network_of_the_zoo_runs():
    for make, example in ZOO.values():
        model: Any = make()
        assert model.double().eval()(example()).isfinite().all()


def test_a_pruned_model_of_transformers_is_saved_and_opened_with_its_own_widths(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=40)
    model: Any = LlamaForCausalLM(config).eval()
    base = "model.layers.0.mlp"
    unit = Unit(
        base,
        "channels",
        24,
        (Slice(f"{base}.gate_proj.weight", 0), Slice(f"{base}.up_proj.weight", 0), Slice(f"{base}.down_proj.weight", 1)),
        complete=True,
    )
    edits = [Keep(unit, torch.arange(0, 24, 2))]
    apply(model, edits)
    save(model, edits, tmp_path / "out")
    again: Any = load(tmp_path / "out")
    ids = torch.arange(10)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert [layer.mlp.up_proj.out_features for layer in again.model.layers] == [12, 24]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "edits.safetensors",
        "lessen.json",
        "model.safetensors",
    ]
    with pytest.raises(UsageError, match="exists"):
        save(model, edits, tmp_path / "out")


def test_a_model_that_nothing_says_how_to_make_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(UsageError, match="how to make it"):
        save(mlp(), [], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_directory_whose_maker_is_gone_says_so(tmp_path):
    model = apply(mlp(), [Keep(UNIT, torch.arange(2, 8))])
    save(model, [Keep(UNIT, torch.arange(2, 8))], tmp_path / "out", "tests.test_coverage:mlp")
    reloaded: Any = load(tmp_path / "out")
    assert reloaded[0].out_features == 6
    (tmp_path / "out" / "lessen.json").write_text(json.dumps({"pruned": {"made_by": "nowhere.at_all:f"}}))
    with pytest.raises(LessenError, match="nowhere"):
        load(tmp_path / "out")
