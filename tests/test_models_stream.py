"""A streamed model is the whole model, in every family, with one block in memory."""

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from lessen.models import load, open_checkpoint  # noqa: E402
from lessen.models.stream import Stream  # noqa: E402

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
GQA = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
FAMILIES = {
    "llama": {**GQA, "tie_word_embeddings": True},
    "mistral": {**GQA, "sliding_window": 4},
    "qwen2": {**GQA},
    "qwen3": {**GQA, "head_dim": 8},
    "gemma2": {**GQA, "head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 5.0},
    "gemma3_text": {**GQA, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 16},
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 24, "max_position_embeddings": 64},
    "phi": {**SMALL, "intermediate_size": 48, "partial_rotary_factor": 0.5},
    "phi3": {**GQA, "pad_token_id": 0},
    "falcon": {**SMALL, "alibi": True, "new_decoder_architecture": False},
    "gpt_neox": {**SMALL, "intermediate_size": 48},
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "olmo2": {**GQA},
    "cohere": {**GQA},
}


def tiny(family: str) -> nn.Module:
    config = transformers.CONFIG_MAPPING[family](**FAMILIES[family])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # default initialization is so small that a wrong mask would hardly show
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture
def tokens():
    return torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_logits_are_those_of_the_whole_model(family, tokens, tmp_path):
    model = tiny(family)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = model(tokens).logits
        loaded = load(tmp_path)
        assert torch.equal(loaded(tokens).logits, wanted)
        stream = Stream(open_checkpoint(tmp_path))
        hidden = stream.embed(tokens)
        for i in range(stream.blocks):
            hidden = stream.forward(stream.block(i), i, hidden)
        # The head runs on single positions; a float32 matmul of other row counts may add in another order.
        torch.testing.assert_close(stream.head(hidden), wanted, atol=1e-5, rtol=1e-5)
