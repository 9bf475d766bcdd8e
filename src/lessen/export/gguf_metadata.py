"""What llama.cpp must know beside the weights: sizes, rotary tables, tokenizer, chat template.

Widths are read from the tensors, not from the configuration. A Llama whose layers were pruned to different widths is written as `deci`,
llama.cpp's name for the same network with widths of its own in each layer.

A tokenizer is only described by its tables plus the *name* of a pre-tokenizer that llama.cpp has compiled in. A wrong name gives a file
that loads and is quietly worse, so the name is only written where the pre-tokenizer is recognised exactly; all others are refused.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lessen.errors import LessenError
from lessen.export.grid import ELSEWHERE
from lessen.models.checkpoint import Checkpoint

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""model_type -> architecture in llama.cpp."""

MOVING = ("dynamic", "longrope")
"""Rotary angles that change with the length of the text, which no container but the Hugging Face directory can say."""

_GPT4_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_GPT4_WORDS % "{1,3}": "llama-bpe", _GPT4_WORDS % "": "qwen2"}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def architecture(checkpoint: Checkpoint) -> str:
    """llama.cpp's name of the architecture; LessenError if this exporter does not know it."""
    kind = checkpoint.config.get("model_type")
    if kind not in ARCHITECTURES:
        wanted = f"one of {', '.join(sorted(ARCHITECTURES))} for GGUF"
        raise LessenError(checkpoint.label, got=f"model_type {kind!r}", wanted=wanted, remedy=ELSEWHERE)
    name = ARCHITECTURES[kind]
    if len(set(layer_sizes(checkpoint))) == 1:
        return name
    if name != "llama":
        remedy = "prune all layers to the same widths, or take ONNX or the Hugging Face directory"
        raise LessenError(checkpoint.label, got=f"layers of different widths in a {kind}", wanted="equal ones in llama.cpp", remedy=remedy)
    return "deci"


def layer_sizes(checkpoint: Checkpoint) -> list[tuple[int, int, int]]:
    """(query heads, key heads, feed-forward width) of each block."""
    blocks = range(int(checkpoint.config["num_hidden_layers"]))
    return [(*heads(checkpoint, i), checkpoint.shape(f"model.layers.{i}.mlp.up_proj.weight")[0]) for i in blocks]


def head_dim(checkpoint: Checkpoint) -> int:
    """Width of one attention head."""
    config = checkpoint.config
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def heads(checkpoint: Checkpoint, block: int) -> tuple[int, int]:
    """Query and key heads of a block, from the shapes of its tensors."""
    prefix, size = f"model.layers.{block}.self_attn", head_dim(checkpoint)
    return checkpoint.shape(f"{prefix}.q_proj.weight")[0] // size, checkpoint.shape(f"{prefix}.k_proj.weight")[0] // size


def add_model(writer: Any, checkpoint: Checkpoint, file_type: int) -> None:
    """Sizes and conventions of the network."""
    config = checkpoint.config
    queries, keys, widths = zip(*layer_sizes(checkpoint), strict=True)
    vocab, dim = checkpoint.shape("model.embed_tokens.weight")
    writer.add_type("model")
    writer.add_name(Path(checkpoint.label).name or checkpoint.label)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(dim)
    writer.add_block_count(len(widths))
    writer.add_feed_forward_length(_one_or_all(widths))
    writer.add_head_count(_one_or_all(queries))
    writer.add_head_count_kv(_one_or_all(keys))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(vocab)
    size = head_dim(checkpoint)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    rope = rope_parameters(checkpoint)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def rope_parameters(checkpoint: Checkpoint) -> dict[str, Any]:
    """rope_type, rope_theta and the scaling's own values; LessenError for a scaling that the file cannot say."""
    config = checkpoint.config
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    if rope["rope_type"] not in ("default", "linear", "llama3") or rope.get("partial_rotary_factor", 1.0) != 1.0:
        got = f"rope scaling {rope['rope_type']!r}"
        partly = rope.get("partial_rotary_factor", 1.0) != 1.0
        remedy = ELSEWHERE if partly or rope["rope_type"] in MOVING else f"{ELSEWHERE}; so does ONNX"
        raise LessenError(checkpoint.label, got=got, wanted="default, linear or llama3 for GGUF", remedy=remedy)
    return rope


def rope_divisors(checkpoint: Checkpoint) -> Tensor | None:
    """float32 "head_dim / 2": what Llama 3's scaling divides each frequency by (`rope_freqs.weight`), None without it.

    Wavelengths up to context / high_freq_factor are kept, those beyond context / low_freq_factor divided by `factor`, blended between.
    """
    rope = rope_parameters(checkpoint)
    if rope["rope_type"] != "llama3":
        return None
    size, context = head_dim(checkpoint), rope["original_max_position_embeddings"]
    wavelength = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = ((context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / rope["factor"] + share)).float()


def add_tokenizer(writer: Any, checkpoint: Checkpoint) -> None:
    """Tables, special tokens and chat template: copied from a GGUF source, else translated from the Hugging Face tokenizer."""
    vocab = checkpoint.shape("model.embed_tokens.weight")[0]
    source = Path(checkpoint.label)
    if source.suffix == ".gguf" and source.is_file():
        _copy_fields(writer, source)
        return
    tokenizer = checkpoint.tokenizer()
    if not hasattr(tokenizer, "backend_tokenizer"):
        got = f"a {type(tokenizer).__name__} without tokenizer.json"
        raise LessenError(checkpoint.label, got=got, wanted="a fast tokenizer", remedy="save it with use_fast=True first")
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = pre_tokenizer(described, checkpoint.label)
    tokens, kinds = _tables(described, vocab, checkpoint.label)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    _add_special(writer, tokenizer)


def pre_tokenizer(described: dict[str, Any], where: str) -> str:
    """llama.cpp's name of a pre-tokenizer.

    Args:
        described: contents of `tokenizer.json`.
        where: what to call the model in messages.

    Raises:
        LessenError: not byte-level BPE, or splitting words in a way that llama.cpp has under no name known here.

    >>> byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    >>> pre_tokenizer({"model": {"type": "BPE"}, "normalizer": None, "pre_tokenizer": byte_level}, "model")
    'gpt-2'
    """
    model, normalizer, outer = described["model"], described.get("normalizer"), described.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", []) if outer.get("type") == "Sequence" else [outer]
    last = steps[-1] if steps else {}
    plain = (normalizer or {"type": "NFC"})["type"] == "NFC" and last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if model.get("type") == "BPE" and plain and not model.get("byte_fallback"):
        before, words = steps[:-1], last.get("use_regex", True)
        if not before and words:
            return "gpt-2"
        if len(before) == 1 and words and before[0].get("type") == "Digits" and before[0].get("individual_digits"):
            return "smollm"
        if len(before) == 1 and not words and before[0].get("type") == "Split" and before[0].get("behavior") == "Isolated":
            pattern = (before[0].get("pattern") or {}).get("Regex")
            if pattern in _SPLITS and not before[0].get("invert"):
                return _SPLITS[pattern]
    kinds = ", ".join(step.get("type", "nothing") for step in steps)
    got = f"{model.get('type')} tokenizer with pre-tokenizer {kinds}"
    wanted = "byte-level BPE that splits words as GPT-2, SmolLM, Llama 3 or Qwen 2 do"
    raise LessenError(where, got=got, wanted=wanted, remedy="start from a GGUF file of this model, whose tokenizer is copied")


def _tables(described: dict[str, Any], vocab: int, where: str) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{i}]" for i in range(vocab)]
    kinds = [_UNUSED] * vocab
    added = {token["id"]: token for token in described.get("added_tokens", [])}
    by_id = {i: text for text, i in described["model"]["vocab"].items()} | {i: token["content"] for i, token in added.items()}
    if max(by_id) >= vocab:
        got = f"{max(by_id) + 1} tokens"
        raise LessenError(where, got=got, wanted=f"at most the {vocab} rows of the embedding", remedy="give the model its own tokenizer")
    for i, text in by_id.items():
        tokens[i] = text
        kinds[i] = _NORMAL if i not in added else _CONTROL if added[i]["special"] else _USER_DEFINED
    return tokens, kinds


def _add_special(writer: Any, tokenizer: Any) -> None:
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unk"), ("pad", "pad")):
        token = getattr(tokenizer, f"{name}_token_id", None)
        if token is not None:
            getattr(writer, f"add_{key}_token_id")(token)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(len(ids) > 1 and ids[-1] == tokenizer.eos_token_id)
    writer.add_add_space_prefix(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _copy_fields(writer: Any, source: Path) -> None:
    from gguf import GGUFReader, GGUFValueType

    for key, field in GGUFReader(source).fields.items():
        if key.startswith("tokenizer."):
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)


def _one_or_all(values: Any) -> Any:
    """One number if all are equal, else the list."""
    return int(values[0]) if len(set(values)) == 1 else [int(v) for v in values]
