"""Tiny random causal LMs of many families, on disk, and a byte-level tokenizer for them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 1}
GQA = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
FAMILIES: dict[str, dict[str, Any]] = {
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


def tiny(family: str = "llama", **changes: Any) -> nn.Module:
    """A seeded model whose weights are large enough for a wrong mask or a swapped tensor to show."""
    config = transformers.CONFIG_MAPPING[family](**{**FAMILIES[family], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def save(model: nn.Module, folder: Path, **options: Any) -> Path:
    """Write a model with its tokenizer."""
    model.save_pretrained(folder, **options)  # pyright: ignore[reportCallIssue]
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> Any:
    """64 single characters."""
    from tokenizers import Tokenizer, models

    table = {chr(32 + i): i for i in range(64)}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(table, [])), eos_token="!", bos_token=" ")


def tokens(rows: int = 2, columns: int = 12) -> torch.Tensor:
    """Token ids "batch seq"."""
    return torch.randint(0, 64, (rows, columns), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits "batch seq vocab" of the whole model."""
    with torch.no_grad():
        return model(ids, use_cache=False).logits
