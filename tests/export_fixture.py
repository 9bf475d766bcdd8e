"""A tiny quantized decoder behind the checkpoint protocol, with a tokenizer, for the tests of exporters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.edit import Quantize
from lessen.formats.affine import Int, PerGroup
from lessen.models.skeleton import skeleton

EMBEDDING = "model.embed_tokens.weight"
Choose = Callable[[str], Int | None]


def four_bits(name: str) -> Int | None:
    """The house default: 4-bit linears, 8-bit table."""
    return Int(8, PerGroup(32)) if name in (EMBEDDING, "lm_head.weight") else Int(4, PerGroup(32))


def llama(tied: bool = True, family: str = "llama", seed: int = 0, vocab: int = 384, **config: Any) -> nn.Module:
    """Two layers, width 64, four heads over two key heads, random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "vocab_size": vocab, "max_position_embeddings": 64, "tie_word_embeddings": tied, "bos_token_id": 0,
        "eos_token_id": 0,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**settings, **config})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.3 * noise)
    model.config.dtype = torch.float32
    model.config.architectures = [type(model).__name__]
    return model


class Solved:
    """A module in memory, its matrices quantized as `choose` says; `read` gives what the codes mean."""

    def __init__(self, model: nn.Module, choose: Choose = four_bits):
        self.model, self.label = model, type(model).__name__
        config: Any = model.config
        self.config: dict[str, Any] = {**config.to_dict(), "dtype": "float32"}
        stored = {id(p): n for n, p in model.named_parameters()}
        self.names = list(stored.values())
        every = model.named_parameters(remove_duplicate=False)
        self.tied = {n: stored[id(p)] for n, p in every if stored[id(p)] != n}
        self.size_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        self.edits: dict[str, Quantize] = {}
        for name in self.names:
            format = choose(name) if self.read(name).ndim == 2 else None
            if format is not None:
                self.edits[name] = Quantize(name, format, format.encode(self.read(name)))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.model.get_parameter(name).shape)

    def read(self, name: str) -> Tensor:
        edit = self.edits.get(self.tied.get(name, name))
        return self.model.get_parameter(name).detach() if edit is None else edit.format.decode(edit.codes)

    def quantized(self, name: str) -> Quantize | None:
        return self.edits.get(self.tied.get(name, name))

    def skeleton(self) -> nn.Module:
        return skeleton(self.config, self.label, {name: self.shape(name) for name in self.names})

    def fingerprint(self) -> str:
        return "memory"

    def tokenizer(self) -> Any:
        return byte_tokenizer(self.shape(EMBEDDING)[0])

    def copy_tokenizer(self, folder: Path) -> None:
        self.tokenizer().save_pretrained(folder)


def decoded(solved: Solved) -> Any:
    """The module with the weights of the codes."""
    with torch.no_grad():
        for name in solved.names:
            solved.model.get_parameter(name).copy_(solved.read(name))
    return solved.model


def byte_tokenizer(vocab: int) -> Any:
    """A byte-level BPE tokenizer of `vocab` tokens, trained on a sentence repeated with variations."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    text = [f"the model number {i} has learned from {i * 7} words of the small text about weights" for i in range(200)]
    tokenizer.train_from_iterator(text, trainer)
    assert tokenizer.get_vocab_size() == vocab
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")


def probe(vocab: int = 384, batch: int = 2, seq: int = 12) -> Tensor:
    """Token ids "batch seq"."""
    return torch.randint(1, vocab, (batch, seq), generator=torch.Generator().manual_seed(3))
