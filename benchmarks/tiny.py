"""A random model small enough for smoke runs: right in every shape, meaningless in every figure."""

import json
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY = 259  # bytes, one merged pair, start and end
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # the usual 0.02 gives a model that says nothing, and every KL would be zero
}


def directory(folder: Path, **sizes: float) -> Path:
    """Write a random Llama with a byte-level tokenizer as a Hugging Face directory, once; `sizes` replaces fields of its configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if folder.exists():
        return folder
    aside = folder.with_name(f"{folder.name}.aside")
    config = LlamaConfig(**{**SIZES, **sizes}, tie_word_embeddings=True, bos_token_id=257, eos_token_id=258, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # transformers' initialisation knows only the global generator
        model = LlamaForCausalLM(config)
    model.save_pretrained(aside)
    _tokenizer(aside)
    aside.rename(folder)
    return folder


def _tokenizer(folder: Path) -> None:
    """One token to a byte, but for one pair: llama.cpp does not take a vocabulary without merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"th": 256, "<s>": 257, "</s>": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def text(path: Path, lines: int = 400) -> Path:
    """Write sentences to calibrate on, for runs whose quality nobody looks at; lessen's own text takes seconds to gather."""
    path.write_text("\n".join(f"Line {i} has {7 * i % 101} words, of which {13 * i % 89} are about weights." for i in range(lines)))
    return path


def tokens(windows: int, length: int, seed: int) -> Tensor:
    """Random token ids, int64 "windows seq"."""
    return torch.randint(256, (windows, length), generator=torch.Generator().manual_seed(seed))


def blocks(folder: Path) -> int:
    """Number of decoder blocks of a Hugging Face directory."""
    return json.loads((folder / "config.json").read_text())["num_hidden_layers"]
