"""Attention after a cut, in every way that it may be computed: kernels that repeat keys by themselves never ask how often."""

from typing import Any

import pytest
import torch
from torch import Tensor

import lessen
from lessen.core.modules import plain_attention
from lessen.methods import Magnitude

transformers = pytest.importorskip("transformers")

IDS = torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(IDS).index_fill(1, torch.tensor([0, 1]), 0)


def decoder(groups: int) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=groups, **sizes)).eval()


@pytest.mark.parametrize(
    ("groups", "kinds", "repeats"), [(1, None, 3), (2, ["heads"], 1), (2, ["kv_group"], 2)], ids=["MQA", "heads of GQA", "groups of GQA"]
)
def test_grouped_queries_agree_with_padding_and_in_eager_attention(groups: int, kinds: Any, repeats: int):
    pruned = lessen.prune(decoder(groups), {"input_ids": IDS}, method=Magnitude(ratio=0.3), kinds=kinds)
    model: Any = pruned.model
    assert {layer.self_attn.num_key_value_groups for layer in model.model.layers} == {repeats}
    assert model.config._attn_implementation == "sdpa"

    def answers(**inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return model(input_ids=IDS, **inputs).logits

    fused, padded = answers(), answers(attention_mask=PADDED)
    with plain_attention(model):
        assert torch.allclose(answers(), fused, atol=1e-5), "float32 in another order"
        assert torch.allclose(answers(attention_mask=PADDED)[:, 2:], padded[:, 2:], atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_kinds_in_turns_are_saved_and_loaded_from_the_configuration_that_there_was(tmp_path: Any):
    """After the first turn one number says all widths, after the second none does."""
    sizes = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 96}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GraniteSWAConfig(vocab_size=64, num_hidden_layers=2, **sizes)
        model = transformers.GraniteSWAForCausalLM(config).double().eval()
    pruned = lessen.prune(model, {"input_ids": IDS}, method=Magnitude(ratio=0.25), kinds=("ffn", "kv_group", "heads", "width"))
    made: Any = pruned.model
    assert made.model.embed_tokens.weight.shape[1] == 96 and {layer.self_attn.num_key_value_groups for layer in made.model.layers} == {1}
    lessen.save(pruned, tmp_path / "saved")
    again: Any = lessen.load(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, made(IDS).logits)
