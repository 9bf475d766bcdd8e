"""The Hugging Face configuration that a GGUF file's metadata describes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lessen.errors import LessenError, nearest

Metadata = Mapping[str, Any]
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_FIELDS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}


def build_config(
    metadata: Metadata, shapes: Mapping[str, tuple[int, ...]], numbers: Callable[[str], Tensor], where: str
) -> tuple[dict[str, Any], bool]:
    """`config.json` of the model in a GGUF file, and whether all its blocks have the same widths.

    Args:
        metadata: key -> value, as in the file.
        shapes: of the tensors, torch order; they settle what metadata leaves open (vocabulary, biases, tied head).
        numbers: reads one tensor (`rope_freqs.weight`).
        where: what to call the file in messages.
    """
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        remedy = f"{nearest(str(arch), ARCHITECTURES)}; or give the Hugging Face directory"
        raise LessenError(where, got=f"architecture {arch!r}", wanted=f"one of {', '.join(sorted(ARCHITECTURES))}", remedy=remedy)
    if metadata.get(f"{arch}.expert_count"):
        raise LessenError(where, got=f"{metadata[f'{arch}.expert_count']} experts", wanted="a dense model")
    if "token_embd.weight" not in shapes:
        raise LessenError(
            where, got="no tensor token_embd.weight", wanted=f"every tensor of {arch}", remedy="copy or download the file again"
        )
    config: dict[str, Any] = {"architectures": [ARCHITECTURES[arch]], "model_type": arch, "dtype": "float32"}
    uniform = True
    for key, name in _FIELDS.items():
        value = metadata.get(f"{arch}.{key}", config.get("num_attention_heads") if name == "num_key_value_heads" else None)
        if isinstance(value, list) and value:
            uniform = uniform and len(set(value)) == 1
            value = max(value)
        if not isinstance(value, int | float) or value <= 0:
            remedy = "this variant is not supported; give the Hugging Face directory"
            raise LessenError(where, got=f"{arch}.{key} = {value!r}", wanted="a positive number", remedy=remedy)
        config[name] = value
    head_dim = metadata.get(f"{arch}.attention.key_length") or config["hidden_size"] // config["num_attention_heads"]
    config |= {
        "head_dim": head_dim,
        "hidden_act": "silu",
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "rope_parameters": _rope(metadata, arch, head_dim, numbers if "rope_freqs.weight" in shapes else None, where),
    }
    if arch != "qwen2":  # its configuration has no such switch: the biases are always there
        config["attention_bias"] = "blk.0.attn_q.bias" in shapes
    if arch == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
    for name in ("bos", "eos", "padding"):
        if (token := metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            config[f"{name.replace('padding', 'pad')}_token_id"] = token
    return config, uniform


def _rope(metadata: Metadata, arch: str, head_dim: int, numbers: Callable[[str], Tensor] | None, where: str) -> dict[str, Any]:
    theta = float(metadata.get(f"{arch}.rope.freq_base", 10000.0))
    kind = metadata.get(f"{arch}.rope.scaling.type", "none")
    factor = metadata.get(f"{arch}.rope.scaling.factor", 1.0)
    rotated = metadata.get(f"{arch}.rope.dimension_count", head_dim)
    if rotated != head_dim or kind not in ("none", "linear"):
        got = f"rope scaling {kind!r} over {rotated} of {head_dim} dimensions"
        raise LessenError(where, got=got, wanted="none or linear, over whole heads", remedy="give the Hugging Face directory")
    if numbers is not None:
        return _llama3(theta, head_dim, numbers("rope_freqs.weight").float(), where)
    if kind == "linear" and factor != 1.0:
        return {"rope_type": "linear", "rope_theta": theta, "factor": float(factor)}
    return {"rope_type": "default", "rope_theta": theta}


def _llama3(theta: float, head_dim: int, divisors: Tensor, where: str) -> dict[str, Any]:
    """Parameters of Llama 3's frequency scaling behind a table of divisors, proved by computing the table from them.

    Wavelengths up to 1/4 of the original context are kept, beyond the whole of it divided by `factor`, blended between.
    """
    factor, low, high = round(float(divisors.max()), 3), 1.0, 4.0
    wavelength = 2 * torch.pi * theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    for context in (8192, 1024, 2048, 4096, 16384, 32768, 65536, 131072):
        share = ((context / wavelength - low) / (high - low)).clamp(0, 1)
        wanted = 1 / ((1 - share) / factor + share)
        # llama.cpp stores the divisors in float32
        if divisors.shape == wanted.shape and torch.allclose(divisors.double(), wanted, rtol=1e-5):
            known = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": context}
            return {"rope_type": "llama3", "rope_theta": theta, **known}
    raise LessenError(where, got="unknown rope frequency factors", wanted="those of Llama 3", remedy="give the Hugging Face directory")
