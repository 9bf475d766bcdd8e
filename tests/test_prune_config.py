"""Configurations and modules say what is left, wherever one number still does; and no configuration is written that its class refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

import lessen
from lessen.core.stock import is_stock
from lessen.methods import BlockInfluence, Magnitude
from lessen.models.inputs import example_inputs

pytest.importorskip("transformers")

from tests.directories import KINDS, tiny


def pruned(name: str, kinds: list[str], ratio: float = 0.5, **options: Any) -> Any:
    model = tiny(name)
    return lessen.prune(model, example_inputs(model), method=Magnitude(ratio=ratio), kinds=kinds, **{"prove": True, **options})


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("llama", "kv_group", {"num_key_value_heads": 1, "num_attention_heads": 2, "head_dim": 4}),
        ("llama", "ffn", {"intermediate_size": 12, "hidden_size": 16}),
        ("llama", "width", {"hidden_size": 8, "head_dim": 4}),
        ("t5", "head_dim", {"d_kv": 2, "d_model": 16, "num_heads": 4}),
        ("mixtral", "width", {"hidden_size": 8, "head_dim": 4}),
        ("mixtral", "experts", {"num_local_experts": 2}),
    ],
)
def test_one_number_that_says_what_is_left_is_written_everywhere(name: str, kind: str, fields: dict[str, int], tmp_path: Path):
    import transformers

    made = pruned(name, [kind])
    owners = [made.model.config, *(module.config for module in made.model.modules() if hasattr(module, "config"))]
    for owner in owners:
        assert {field: getattr(owner, field) for field in fields} == fields
    assert is_stock(made.model)
    with torch.device("meta"):
        fresh = dict(type(made.model)(made.model.config).named_modules())
    for path, module in made.model.named_modules():
        numbers = {key: value for key, value in vars(module).items() if type(value) is int}
        assert numbers == {key: vars(fresh[path]).get(key, value) for key, value in numbers.items()}
    lessen.save(made, tmp_path / "small")
    stock = getattr(transformers, KINDS[name][0]).from_pretrained(tmp_path / "small", dtype=torch.float32).eval()
    example = example_inputs(made.model)
    with torch.no_grad():
        # The stock class may choose another kernel for attention, which sums in another order: rounding of float32.
        torch.testing.assert_close(stock(**example)[0], made.model(**example)[0], rtol=1e-4, atol=1e-5)


def test_a_vision_language_model_says_it_in_the_configuration_of_its_tower():
    made = pruned("llava", ["kv_group"])
    text = made.model.config.text_config
    assert (text.num_key_value_heads, text.num_attention_heads) == (1, 2)
    assert made.model.model.language_model.config is text and made.model.config.vision_config.num_attention_heads == 4


def test_what_differs_from_block_to_block_is_said_by_the_modules_alone():
    model = tiny("llama")
    made: Any = lessen.prune(model, example_inputs(model), method=Magnitude(ratio=0.5), freeze=["model.layers.0"])
    assert not is_stock(made.model) and made.model.config.intermediate_size == 24
    assert [layer.mlp.up_proj.out_features for layer in made.model.model.layers] == [24, 12]


@pytest.mark.parametrize("freeze", [[], ["model.layers.0"]])
def test_a_loss_over_routers_knows_how_many_experts_there_are(freeze: list[str]):
    model = tiny("mixtral")
    example = example_inputs(model)
    made: Any = lessen.prune(model, example, method=Magnitude(ratio=0.5), kinds=["experts"], freeze=freeze)
    counts = [layer.mlp.gate.num_experts for layer in made.model.model.layers]
    assert counts == ([4, 2] if freeze else [2, 2])
    assert [layer.mlp.experts.num_experts for layer in made.model.model.layers] == counts
    if freeze:
        assert any("layers keep different numbers of experts" in note for note in made.notes)
    else:
        assert made.model.num_experts == 2
        with torch.no_grad():
            assert torch.isfinite(made.model(**example, output_router_logits=True).aux_loss)


@pytest.mark.parametrize(("name", "kind", "ratio"), [("llama", "width", 0.3), ("llama", "kv_group", 0.3), ("mixtral", "experts", 0.3)])
def test_uniform_widths_are_such_that_the_class_takes_its_configuration(name: str, kind: str, ratio: float, tmp_path: Path):
    import transformers

    made = pruned(name, [kind], ratio, uniform=True)
    assert made.kept and is_stock(made.model)
    if kind == "width":
        assert made.model.config.hidden_size == 12  # 11 are closer to three tenths, and no multiple of four heads
        assert any("Widths are kept at multiples of 4: configurations of LlamaForCausalLM refuse" in note for note in made.notes)
    lessen.save(made, tmp_path / "small")
    assert getattr(transformers, KINDS[name][0]).from_pretrained(tmp_path / "small").config.to_dict()


def test_a_width_that_its_class_refuses_is_saved_with_its_edits(tmp_path: Path):
    made = pruned("llama", ["width"], 0.3)
    assert made.model.model.norm.weight.shape == (11,) and not is_stock(made.model)
    lessen.save(made, tmp_path / "small")
    example = example_inputs(made.model)
    with torch.no_grad():
        assert torch.equal(lessen.load(tmp_path / "small")(**example).logits, made.model(**example).logits)


def test_equal_shapes_of_which_stock_code_makes_another_model_are_kept_with_their_edits(tmp_path: Path):
    made = pruned("llama", ["head_dim"], uniform=True)  # the scale of attention and the rotary table follow from head_dim
    assert not is_stock(made.model) and any("Stock code computes other constants from these widths" in note for note in made.notes)
    lessen.save(made, tmp_path / "small")
    example = example_inputs(made.model)
    with torch.no_grad():
        assert torch.equal(lessen.load(tmp_path / "small")(**example).logits, made.model(**example).logits)


def test_dropped_layers_are_uniform():
    model = tiny("llama")
    example = example_inputs(model)
    made: Any = lessen.prune(model, example, [example], method=BlockInfluence(ratio=0.5), uniform=True)
    assert made.model.config.num_hidden_layers == 1 and is_stock(made.model)
