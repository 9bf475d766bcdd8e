"""Tiny random decoders of several families, and a checkpoint over a module in memory."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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


class Memory:
    """The checkpoint protocol over a module: enough of it for units and edits."""

    def __init__(self, model: nn.Module):
        self.model, self.label = model, type(model).__name__
        self.config: dict[str, Any] = model.config.to_dict()  # pyright: ignore
        stored = {id(p): n for n, p in model.named_parameters()}
        self.names = list(stored.values())
        every = model.named_parameters(remove_duplicate=False)
        self.tied = {n: stored[id(p)] for n, p in every if stored[id(p)] != n}
        self.size_bytes = sum(p.numel() * p.element_size() for p in model.parameters())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.model.get_parameter(name).shape)

    def read(self, name: str) -> Tensor:
        return self.model.get_parameter(name).detach()

    def quantized(self, name: str) -> None:
        return None

    def skeleton(self) -> nn.Module:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            fresh = AutoModelForCausalLM.from_config(type(self.model.config)(**self.model.config.to_dict()), attn_implementation="eager")  # pyright: ignore
        return fresh.to(next(self.model.parameters()).dtype).eval()

    def tokenizer(self) -> Any:
        raise AssertionError("no test of edits reads a tokenizer")

    def copy_tokenizer(self, folder: Path) -> None:
        return None

    def fingerprint(self) -> str:
        return "memory"
