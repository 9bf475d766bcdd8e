"""Tiny random decoders of several families, and edits for them."""

from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.edit import Drop, Keep
from lessen.core.unit import Unit

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEAD_8 = {"head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {**HEAD_8, "tie_word_embeddings": True},
    "gemma": {**HEAD_8, "tie_word_embeddings": True},
    "gemma2": {**HEAD_8, "tie_word_embeddings": True},
    "gemma3_text": {**HEAD_8, "tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False},
    "phi3": {"tie_word_embeddings": False},
}


def decoder(family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **config: Any) -> nn.Module:
    """A causal language model with random weights, norms and biases included, in eval mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family], **config})
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager").to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            centre = 1.0 if "norm" in name and not family.startswith("gemma") else 0.0
            parameter.copy_(centre + 0.2 * noise if "norm" in name else 0.3 * noise)
    return model


def tokens(batch: int = 2, seq: int = 12, seed: int = 1) -> Tensor:
    return torch.randint(3, 64, (batch, seq), generator=torch.Generator().manual_seed(seed))


def some_keeps(units: list[Unit], seed: int = 0, uniform: bool = False) -> list[Keep]:
    """Cut every ffn and kv_group unit to two thirds (uniform) or to a random width."""
    generator = torch.Generator().manual_seed(seed)
    keeps: list[Keep] = []
    for unit in units:
        if unit.kind in ("ffn", "kv_group"):
            count = unit.size * 2 // 3 if uniform else int(torch.randint(1, max(2, unit.size), (), generator=generator))
            keeps.append(Keep(unit, torch.randperm(unit.size, generator=generator)[:count].sort().values))
    return keeps


def drop(units: list[Unit], *blocks: int) -> list[Drop]:
    """Drop these blocks, the last one first."""
    return [Drop(unit) for unit in reversed(units) if unit.kind == "layer" and unit.block in blocks]
