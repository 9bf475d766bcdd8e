"""Tracing whole models: agreement with what decoder families declare, fake tensors, refusals, and a model left as it was."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lessen
from lessen.core.unit import Slice, Unit
from lessen.errors import LessenError, UsageError
from lessen.models.module import InMemory
from lessen.structure.decoder import units as declared
from lessen.structure.example import example_of
from lessen.structure.trace import trace
from tests.decoders import FAMILIES, decoder, tokens


def covered(unit: Unit) -> dict[tuple[str, int], list[list[int]]]:
    """tensor and axis -> for each channel, its indices."""
    found: dict[tuple[str, int], list[list[int]]] = {}
    for part in unit.slices:
        rows = found.setdefault((part.name, part.axis), [[] for _ in range(unit.size)])
        for row, indices in zip(rows, part.indices(unit.size).tolist(), strict=True):
            row += indices
    return {key: [sorted(row) for row in rows] for key, rows in found.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_traced_units_agree_with_declared_ones(family: str):
    model = decoder(family)
    found = [covered(unit) for unit in trace(model, {"input_ids": tokens(batch=1)}).units if unit.size > 1]
    wanted = [unit for unit in declared(InMemory(model)) if unit.kind in ("ffn", "kv_group")]
    assert len(wanted) == 6
    for unit in wanted:
        assert covered(unit) in found, unit.name


def test_kinds_of_a_decoder():
    structure = trace(decoder("llama"), {"input_ids": tokens(batch=1)})
    kinds = {kind: [unit.name for unit in structure.units if unit.kind == kind] for kind in {unit.kind for unit in structure.units}}
    assert kinds["width"] == ["model.width"]
    assert kinds["layer"] == [f"model.layers.{i}" for i in range(3)]
    assert kinds["kv_group"] == [f"model.layers.{i}.self_attn.kv_group" for i in range(3)]
    assert kinds["channels"] == [f"model.layers.{i}.mlp" for i in range(3)]
    assert structure.unit("model.width").normed
    assert not structure.unit("model.layers.0.mlp").normed
    assert [unit.size for unit in structure.vocabulary] == [64]
    assert structure.held["model.embed_tokens.weight[0]"].startswith("embedding in model.embed_tokens")


def test_the_chain_tells_through_which_operations():
    structure = trace(decoder("llama"), {"input_ids": tokens(batch=1)})
    chain = structure.unit("model.layers.1.mlp").chain
    assert chain[1:] == (
        "model.layers.1.mlp.up_proj.weight[0] is tied to model.layers.1.mlp.gate_proj.weight[0] by mul in model.layers.1.mlp",
        "model.layers.1.mlp.down_proj.weight[1] is tied to model.layers.1.mlp.gate_proj.weight[0] by mm in model.layers.1.mlp.down_proj",
    )
    assert "model.layers.1.mlp: channels, 40 channels" in str(structure)


def test_a_model_on_the_meta_device_gives_the_same_units():
    model = decoder("mistral")
    real = trace(model, {"input_ids": tokens(batch=1)})
    fake = trace(model.to("meta"), {"input_ids": tokens(batch=1)})
    assert [(u.name, u.kind, u.size, u.slices) for u in fake.units] == [(u.name, u.kind, u.size, u.slices) for u in real.units]
    assert all(p.is_meta for p in model.parameters())


def test_a_large_model_that_asks_for_values_is_traced_on_its_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lessen.structure.trace.FAKE_ABOVE", 0)
    model = mixture()
    structure = trace(model, {"input_ids": torch.arange(1, 13)[None]})
    assert "traced with real weights" in structure.notes[-1]
    assert any(unit.kind == "experts" for unit in structure.units)
    with pytest.raises(LessenError, match="trace a small copy"):
        trace(model.to("meta"), {"input_ids": torch.arange(1, 13)[None]})


def test_frozen_parts_are_held():
    model = decoder("llama")
    structure = trace(model, {"input_ids": tokens(batch=1)}, freeze=["model.layers.1", "model.norm"])
    assert {unit.name for unit in structure.units if unit.kind == "channels"} == {"model.layers.0.mlp", "model.layers.2.mlp"}
    assert not any(unit.kind == "width" for unit in structure.units)
    assert "model.layers.1" not in [unit.name for unit in structure.units]
    assert structure.held["model.layers.1.mlp.up_proj.weight[0]"] == "model.layers.1 is frozen"


def test_sizes_after_a_cut():
    structure = trace(decoder("llama"), {"input_ids": tokens(batch=1)})
    rows = structure.dims["model.layers.0.self_attn.q_proj.weight"][0]
    assert structure.size_after(rows, {}) == 48
    assert structure.size_after(rows, {"model.layers.0.self_attn.kv_group": 2}) == 32
    assert "model.layers.0.self_attn.kv_group" in structure.units_of(rows)


class Routed(nn.Module):
    """Goes one way or the other by the sign of its input."""

    def __init__(self):
        super().__init__()
        self.up, self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.a if float(x.mean()) > 0 else self.b
        return branch(self.up(x))


def test_a_model_that_goes_another_way_is_refused():
    with pytest.raises(LessenError, match=r"a takes part with some inputs and not with others"):
        trace(Routed(), torch.ones(1, 4))


def test_an_operation_without_a_rule_names_itself_the_module_and_the_remedy():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(odd(self.up(x)))

    with pytest.raises(LessenError, match=r"lessen_test\.odd in the model: got an operation without a rule.*rules=\{'lessen_test\.odd'"):
        trace(Odd(), torch.ones(1, 4))
    structure = trace(Odd(), torch.ones(1, 4), rules={"lessen_test.odd": lambda call: call.of("x")})
    assert [unit.size for unit in structure.units] == [8]
    assert trace(Odd(), torch.ones(1, 4), freeze=["up"]).units == ()


@torch.library.custom_op("lessen_test::odd", mutates_args=())
def odd(x: Tensor) -> Tensor:
    return x * 2


def test_a_model_that_fails_its_example_is_refused_and_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2)).train()
    model[0].eval()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    with pytest.raises(LessenError, match=r"0: got RuntimeError"):
        trace(model, torch.ones(1, 5))
    trace(model, torch.ones(1, 4))
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_grad_enabled()
    assert model(torch.ones(3, 4)).requires_grad


def test_what_a_forward_leaves_behind_is_taken_away():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)
            self.seen: Tensor
            self.register_buffer("seen", torch.zeros(8))
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = hidden = self.up(x)
            self.seen += hidden[0]
            return self.down(hidden)

    model = Keeps()
    state = torch.random.get_rng_state()
    trace(model, torch.ones(1, 4))
    assert model.last is None
    assert not model.seen.any()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_inspect_shows_the_structure_of_any_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from lessen.cli.main import run

    lines = ["import torch", "from torch import nn", "def net():", "    m = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))"]
    (tmp_path / "inspected.py").write_text("\n".join([*lines, "    m.example_inputs = torch.zeros(1, 4)", "    return m", ""]))
    monkeypatch.chdir(tmp_path)
    assert run(["inspect", "inspected:net", "--brief"]) == 0
    out = capsys.readouterr().out
    assert ["0", "channels", "8", "56", "3"] in [line.split() for line in out.splitlines()]  # 4 * 8 + 8 + 8 * 2 parameters
    assert "is tied to" not in out and out.splitlines()[-1].startswith("3 places of tensors are held. --units lists them")
    for option in (["--units"], ["--unit", "0"]):
        assert run(["inspect", "inspected:net", *option]) == 0
        out = capsys.readouterr().out
        assert "0: channels, 8 channels (3 tensors share these channels)" in out
        assert "2.weight[1] is tied to 0.weight[0] by addmm in 2" in out
        assert ("held: 0.weight[1]" in out) == (option == ["--units"])
    assert run(["inspect", "inspected:net", "--units", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["units"][0]["chain"] and told["units"][0]["slices"][0]["length"] == 8 and told["held"]
    assert run(["inspect", "inspected:net", "--unit", "1"]) == 2
    assert "got no unit '1'" in capsys.readouterr().err


def test_a_module_that_tells_no_example_is_refused():
    with pytest.raises(UsageError, match=r"set model\.example_inputs"):
        example_of(nn.Linear(2, 2))


def test_what_takes_no_part_is_held():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)})
    model.forward = lambda x: model["used"](x)
    structure = trace(model, torch.ones(1, 4))
    assert structure.units == ()
    assert structure.held["idle.weight[0]"] == "it takes no part in the example"


def test_freezing_what_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"freeze='2', wanted a module, parameter or buffer"):
        trace(nn.Sequential(nn.Linear(4, 4)), torch.ones(1, 4), freeze=["2"])


def test_an_unknown_unit_is_refused_with_the_nearest():
    structure = lessen.trace(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), torch.ones(1, 4))
    with pytest.raises(UsageError, match="no unit '1'"):
        structure.unit("1")


def mixture(**config: Any) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **config))
    model.set_experts_implementation("eager")
    return model.double().eval()


def test_experts_are_units_with_the_rows_of_their_router():
    structure = trace(mixture(), {"input_ids": torch.arange(1, 13)[None]})
    (first, second) = [unit for unit in structure.units if unit.kind == "experts"]
    assert (first.size, first.floor) == (4, 2)
    assert first.name == "model.layers.0.mlp.experts"
    assert {(part.name.rpartition("mlp.")[2], part.axis) for part in second.slices} == {
        ("gate.weight", 0),
        ("experts.gate_up_proj", 0),
        ("experts.down_proj", 0),
    }
    hidden = next(unit for unit in structure.units if unit.kind == "channels")
    assert [part for part in hidden.slices if part.name.endswith("gate_up_proj")] == [
        Slice("model.layers.0.mlp.experts.gate_up_proj", 1, repeat=2)
    ]


class FewExperts(nn.Module):
    """One of three experts sees everything; the others never anything."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(4, 8), nn.Linear(8, 3)
        self.experts = nn.ModuleDict({f"expert_{i}": nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for i in range(3)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.experts["expert_1"](self.start(x)))


def test_experts_that_no_token_reached_follow_the_width():
    structure = trace(FewExperts(), torch.randn(2, 4))
    inner, outer = (next(u for u in structure.units if u.slices[0].name == name) for name in ("start.weight", "end.weight"))
    for unit, place in ((inner, ("0.weight", 1)), (outer, ("2.weight", 0))):
        assert {(f"experts.expert_{i}.{place[0]}", place[1]) for i in range(3)} <= {(part.name, part.axis) for part in unit.slices}
    assert "entry beside experts.expert_1" in structure.held["experts.expert_0.0.weight[0]"]
    assert len([note for note in structure.notes if "takes no part" in note]) == 2


def _held(module: nn.Module) -> dict[str, Any]:
    """Everything that a module keeps for itself, containers by what they are and what they hold."""

    def shown(value: Any) -> Any:
        return (id(value), list(value.items() if isinstance(value, dict) else value)) if isinstance(value, dict | list | set) else value

    return {key: shown(value) for key, value in vars(module).items()}


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_was_never_called_is_untouched_by_a_trace(fails: bool):
    # Models of transformers put hooks into their parts when they are first called, and remember that they did.
    transformers = pytest.importorskip("transformers")
    width = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**width, image_size=32, patch_size=8),
        text_config=transformers.LlamaConfig(**width, vocab_size=99, num_key_value_heads=2, max_position_embeddings=64),
        image_token_id=98,
        vision_feature_select_strategy="default",
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fine = {"input_ids": torch.tensor([[98] * 16 + [5, 6, 7]]), "pixel_values": pixels}
    expected = copy.deepcopy(model)(**fine, output_hidden_states=True)
    owners = {**dict(model.named_modules()), **{f"config {i}": c for i, c in enumerate((config, config.vision_config, config.text_config))}}
    before = {name: _held(owner) for name, owner in owners.items()}
    if fails:
        with pytest.raises(LessenError):
            lessen.trace(model, {**fine, "input_ids": fine["input_ids"][:, 1:]})
    else:
        assert lessen.trace(model, fine).units
    assert {name: _held(owner) for name, owner in owners.items()} == before
    found = model(**fine, output_hidden_states=True)
    assert torch.equal(found.logits, expected.logits)
    assert len(found.hidden_states) == len(expected.hidden_states) > 1
